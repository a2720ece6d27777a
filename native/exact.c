/*
 * The resize of resize.h bit by bit as Pillow does it where it is asked to go across first and then down: weights of 22
 * bits, and 8 bits between the passes. Slower than resize_crop and the same on every machine, so that an evaluation and a saved model see the
 * very same pixels whether or not this code was there.
 */
#include "resize.h"

#include <math.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define HAVE_AVX2_CODE 1
#endif

#define LANES 16
#define WEIGHT_BITS 22

typedef struct {
    int taps;
    int32_t *start, *count;
    int32_t *weights; /* size x taps */
} ExactAxis;

static double triangle(double x)
{
    x = x < 0.0 ? -x : x;
    return x < 1.0 ? 1.0 - x : 0.0;
}

/* The order of operations matters to the last bit, and with it to the weights. */
static double cubic(double x)
{
    const double a = -0.5;
    x = x < 0.0 ? -x : x;
    if (x < 1.0)
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0)
        return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

static double reach_of(float low, float high, int size, Filter filter)
{
    double scale = (double)(high - low) / size;
    return (filter == FILTER_BICUBIC ? 2.0 : 1.0) * (scale < 1.0 ? 1.0 : scale);
}

/* `raw` has room for `taps` numbers. Edges are single precision, as Pillow takes them. */
static void fill_axis(ExactAxis *axis, float low, float high, int places, int size, Filter filter, double *raw)
{
    double scale = (double)(high - low) / size, reach = reach_of(low, high, size, filter);
    double shrink = 1.0 / (scale < 1.0 ? 1.0 : scale);
    for (int at = 0; at < size; at++) {
        int32_t *weights = axis->weights + (size_t)at * axis->taps;
        double centre = low + (at + 0.5) * scale, sum = 0.0;
        int from = (int)(centre - reach + 0.5), to = (int)(centre + reach + 0.5), count;
        from = from < 0 ? 0 : from;
        to = to > places ? places : to;
        count = to - from < axis->taps ? to - from : axis->taps;
        count = count < 0 ? 0 : count;
        for (int tap = 0; tap < count; tap++) {
            double x = (tap + from - centre + 0.5) * shrink;
            raw[tap] = filter == FILTER_BICUBIC ? cubic(x) : triangle(x);
            sum += raw[tap];
        }
        for (int tap = 0; tap < count; tap++) {
            double weight = sum != 0.0 ? raw[tap] / sum : raw[tap];
            weights[tap] = (int32_t)((weight < 0 ? -0.5 : 0.5) + weight * (1 << WEIGHT_BITS));
        }
        axis->start[at] = from;
        axis->count[at] = count;
    }
}

static inline uint8_t to_level(int32_t sum)
{
    sum >>= WEIGHT_BITS;
    return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

/* `rows` rows from `first` on: across, from the picture's columns `left` on, into `lines` (3 * size bytes each). */
static inline __attribute__((always_inline)) void across(
    Picture picture, const ExactAxis *axis, int first, int rows, int left, int width, int size, int16_t *columns,
    uint8_t *lines)
{
    for (int lane = 0; lane < rows; lane++) {
        const uint8_t *source = picture.pixels + (size_t)(first + lane) * picture.stride + 3 * (size_t)left;
        for (int x = 0; x < 3 * width; x++)
            columns[(size_t)x * LANES + lane] = source[x];
    }
    for (int x = 0; x < size; x++) {
        const int32_t *weights = axis->weights + (size_t)x * axis->taps;
        for (int channel = 0; channel < 3; channel++) {
            const int16_t *values = columns + ((size_t)axis->start[x] * 3 + channel) * LANES;
            int32_t sums[LANES];
            for (int lane = 0; lane < LANES; lane++)
                sums[lane] = 1 << (WEIGHT_BITS - 1);
            for (int tap = 0; tap < axis->count[x]; tap++, values += 3 * LANES)
                for (int lane = 0; lane < LANES; lane++)
                    sums[lane] += values[lane] * weights[tap];
            for (int lane = 0; lane < rows; lane++)
                lines[(size_t)lane * 3 * size + 3 * x + channel] = to_level(sums[lane]);
        }
    }
}

/* Row `at` of the result from `lines`, mirrored where `flip` is set; `sums` has room for 3 * size numbers. */
static inline __attribute__((always_inline)) void down(
    const uint8_t *lines, const ExactAxis *axis, int at, int size, int flip, int32_t *sums, uint8_t *out)
{
    const int32_t *weights = axis->weights + (size_t)at * axis->taps;
    for (int x = 0; x < 3 * size; x++)
        sums[x] = 1 << (WEIGHT_BITS - 1);
    for (int tap = 0; tap < axis->count[at]; tap++) {
        const uint8_t *line = lines + (size_t)(axis->start[at] + tap) * 3 * size;
        for (int x = 0; x < 3 * size; x++)
            sums[x] += line[x] * weights[tap];
    }
    if (!flip)
        for (int x = 0; x < 3 * size; x++)
            out[x] = to_level(sums[x]);
    else
        for (int x = 0; x < size; x++)
            for (int channel = 0; channel < 3; channel++)
                out[3 * (size - 1 - x) + channel] = to_level(sums[3 * x + channel]);
}

typedef struct {
    Picture picture;
    ExactAxis x, y;
    int left, top, width, height, size, flip;
    int16_t *columns;
    uint8_t *lines;
    int32_t *sums;
} Work;

static inline __attribute__((always_inline)) void both(const Work *work, uint8_t *out)
{
    for (int row = 0; row < work->height; row += LANES) {
        int rows = work->height - row < LANES ? work->height - row : LANES;
        across(
            work->picture, &work->x, work->top + row, rows, work->left, work->width, work->size, work->columns,
            work->lines + (size_t)row * 3 * work->size);
    }
    for (int at = 0; at < work->size; at++)
        down(work->lines, &work->y, at, work->size, work->flip, work->sums, out + (size_t)at * 3 * work->size);
}

static void both_scalar(const Work *work, uint8_t *out)
{
    both(work, out);
}

#ifdef HAVE_AVX2_CODE
/* The same lines for a compiler that may use wider registers. */
__attribute__((target("avx2"))) static void both_avx2(const Work *work, uint8_t *out)
{
    both(work, out);
}
#endif

static size_t aligned(size_t bytes)
{
    return (bytes + 63) & ~(size_t)63;
}

int resize_crop_exact(Picture picture, Box box, int size, Filter filter, int flip, uint8_t *out, Scratch *scratch)
{
    int left = (int)floor(box.left), right = (int)ceil(box.right);
    int top = (int)floor(box.top), bottom = (int)ceil(box.bottom);
    float low_x = (float)(box.left - left), high_x = (float)(box.right - left);
    float low_y = (float)(box.top - top), high_y = (float)(box.bottom - top);
    Work work = {picture, {0}, {0}, left, top, right - left, bottom - top, size, flip, NULL, NULL, NULL};
    size_t starts = aligned((size_t)size * sizeof(int32_t)), x_weights, y_weights, columns, lines, sums, raw;
    uint8_t *memory;

    work.x.taps = (int)ceil(reach_of(low_x, high_x, size, filter)) * 2 + 1;
    work.y.taps = (int)ceil(reach_of(low_y, high_y, size, filter)) * 2 + 1;
    x_weights = aligned((size_t)size * work.x.taps * sizeof(int32_t));
    y_weights = aligned((size_t)size * work.y.taps * sizeof(int32_t));
    columns = aligned((size_t)3 * work.width * LANES * sizeof(int16_t));
    lines = aligned((size_t)3 * size * work.height);
    sums = aligned((size_t)3 * size * sizeof(int32_t));
    raw = aligned((size_t)(work.x.taps > work.y.taps ? work.x.taps : work.y.taps) * sizeof(double));
    memory = scratch_take(scratch, 4 * starts + x_weights + y_weights + columns + lines + sums + raw);
    if (!memory)
        return -1;
    work.x.start = (int32_t *)memory;
    work.x.count = (int32_t *)(memory += starts);
    work.y.start = (int32_t *)(memory += starts);
    work.y.count = (int32_t *)(memory += starts);
    work.x.weights = (int32_t *)(memory += starts);
    work.y.weights = (int32_t *)(memory += x_weights);
    work.columns = (int16_t *)(memory += y_weights);
    work.lines = memory += columns;
    work.sums = (int32_t *)(memory += lines);
    fill_axis(&work.x, low_x, high_x, work.width, size, filter, (double *)(memory + sums));
    fill_axis(&work.y, low_y, high_y, work.height, size, filter, (double *)(memory + sums));
    memset(work.columns, 0, columns);
#ifdef HAVE_AVX2_CODE
    if (resize_has_avx2()) {
        both_avx2(&work, out);
        return 0;
    }
#endif
    both_scalar(&work, out);
    return 0;
}
