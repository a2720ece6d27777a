#include "resize.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define HAVE_AVX2_CODE 1
#include <immintrin.h>
#endif

/* Rows of the result that are made together: the horizontal pass runs down them, sixteen 16-bit lanes at once. */
#define LANES 16
/* Bits behind the point that sums carry between the passes. */
#define FRACTION_BITS 6
/* Each product of the fast code is rounded by itself; with more terms than this the errors could reach a level. */
#define MOST_FAST_TAPS 32

/* What each place of the result takes along one axis: `taps` weights for source places from `start` on. */
typedef struct {
    int taps;
    int32_t *start;
    int16_t *weights; /* size x taps, a one of 15 bits capped to 32767; zeros where fewer are needed */
} Axis;

/*
 * Fixed point of a filter. A rounded product is value * weight >> 15. The triangle's weights have 15 bits, so products
 * keep the bits of their value. The cubic's may exceed one at a border and have 14, so each pass of the fast code loses
 * one bit; the first pass makes up for it by starting from one bit more, the second does not.
 */
typedef struct {
    int weight_bits, value_bits, final_bits, wide;
} Fixed;

void scratch_free(Scratch *scratch)
{
    free(scratch->memory);
    scratch->memory = NULL;
    scratch->size = 0;
}

void *scratch_take(Scratch *scratch, size_t size)
{
    uintptr_t address;
    if (size + 63 < size)
        return NULL;
    if (scratch->size < size + 63) {
        free(scratch->memory);
        scratch->memory = malloc(size + 63);
        scratch->size = scratch->memory ? size + 63 : 0;
        if (!scratch->memory)
            return NULL;
    }
    address = ((uintptr_t)scratch->memory + 63) & ~(uintptr_t)63;
    return (void *)address;
}

static double triangle(double x)
{
    x = fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

/* Keys (1981) with a = -0.5, as Pillow and torch with antialiasing have it. */
static double cubic(double x)
{
    x = fabs(x);
    if (x < 1.0)
        return (1.5 * x - 2.5) * x * x + 1.0;
    if (x < 2.0)
        return ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0;
    return 0.0;
}

static int taps_needed(double scale, double support, int first, int end)
{
    int most = (int)ceil(2.0 * support * (scale > 1.0 ? scale : 1.0)) + 1;
    return most < end - first ? most : end - first;
}

/* Weights for the stretch low..high of an axis, using the places first..end (exclusive) and no others. */
static void fill_axis(
    Axis *axis, double low, double high, int first, int end, int size, Filter filter, int weight_bits)
{
    const int one = 1 << weight_bits, most = one < 32767 ? 32767 : one - 1;
    double scale = (high - low) / size, widened = scale > 1.0 ? scale : 1.0;
    double reach = (filter == FILTER_BICUBIC ? 2.0 : 1.0) * widened;
    for (int at = 0; at < size; at++) {
        int16_t *weights = axis->weights + (size_t)at * axis->taps;
        double centre = low + (at + 0.5) * scale, sum = 0.0, running = 0.0;
        int from = (int)floor(centre - reach + 0.5), to = (int)floor(centre + reach + 0.5), rounded = 0;
        from = from < first ? first : from > end - 1 ? end - 1 : from;
        to = to > end ? end : to <= from ? from + 1 : to;
        if (to - from > axis->taps)
            to = from + axis->taps;
        for (int place = from; place < to; place++) {
            double x = (place + 0.5 - centre) / widened;
            sum += filter == FILTER_BICUBIC ? cubic(x) : triangle(x);
        }
        axis->start[at] = from;
        if (sum <= 0.0) { /* a box thinner than a pixel, between two centres */
            memset(weights, 0, axis->taps * sizeof *weights);
            weights[0] = (int16_t)(one < most ? one : most);
            continue;
        }
        /* Rounding the running sum makes the weights sum to one exactly, so that flat colour stays as it is. */
        for (int place = from; place < to; place++) {
            double x = (place + 0.5 - centre) / widened;
            int next, weight;
            running += (filter == FILTER_BICUBIC ? cubic(x) : triangle(x)) / sum;
            next = (int)floor(running * one + 0.5);
            weight = next - rounded;
            rounded = next;
            weights[place - from] = (int16_t)(weight > most ? most : weight);
        }
        for (int tap = to - from; tap < axis->taps; tap++)
            weights[tap] = 0;
        /* Places behind a short end would be read with weight 0: move the start so that they lie inside. */
        if (from + axis->taps > end) {
            int back = from + axis->taps - end;
            memmove(weights + back, weights, (axis->taps - back) * sizeof *weights);
            memset(weights, 0, back * sizeof *weights);
            axis->start[at] = from - back;
        }
    }
}

/* Weights that are nowhere needed at the end of the rows, as most scales have one, are left out. */
static void trim_axis(Axis *axis, int size)
{
    int most = 1;
    for (int at = 0; at < size; at++) {
        int16_t *weights = axis->weights + (size_t)at * axis->taps;
        int lead = 0, count = axis->taps;
        while (count > 1 && weights[count - 1] == 0)
            count--;
        while (lead < count - 1 && weights[lead] == 0)
            lead++;
        most = count - lead > most ? count - lead : most;
    }
    if (most == axis->taps)
        return;
    for (int at = 0; at < size; at++) {
        int16_t *weights = axis->weights + (size_t)at * axis->taps;
        int lead = 0;
        while (lead < axis->taps - most && weights[lead] == 0)
            lead++;
        axis->start[at] += lead;
        memmove(axis->weights + (size_t)at * most, weights + lead, most * sizeof *weights);
    }
    axis->taps = most;
}

static inline int16_t rounded_product(int16_t value, int16_t weight)
{
    return (int16_t)(((int32_t)value * weight + 16384) >> 15);
}

static inline uint8_t to_level(int value, int bits)
{
    value = (value + (1 << (bits - 1))) >> bits;
    return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

/* One group of up to LANES rows: `columns` holds [3 * width][LANES] after the vertical pass. */
static void vertical_scalar(
    Picture picture, const Axis *axis, int first_row, int rows, int left, int width, Fixed fixed, int16_t *columns)
{
    for (int lane = 0; lane < rows; lane++) {
        const int16_t *weights = axis->weights + (size_t)(first_row + lane) * axis->taps;
        const uint8_t *source = picture.pixels + (size_t)axis->start[first_row + lane] * picture.stride + 3 * (size_t)left;
        for (int x = 0; x < 3 * width; x++) {
            int32_t sum = 0;
            if (fixed.wide) {
                for (int tap = 0; tap < axis->taps; tap++)
                    sum += source[tap * picture.stride + x] * (int32_t)weights[tap];
                sum = (sum + (1 << (fixed.weight_bits - FRACTION_BITS - 1))) >> (fixed.weight_bits - FRACTION_BITS);
            } else {
                for (int tap = 0; tap < axis->taps; tap++)
                    sum += rounded_product((int16_t)(source[tap * picture.stride + x] << fixed.value_bits), weights[tap]);
            }
            columns[(size_t)x * LANES + lane] = (int16_t)sum;
        }
    }
}

static void horizontal_scalar(
    const int16_t *columns, const Axis *axis, int left, int rows, int size, Fixed fixed, int flip, uint8_t *out)
{
    for (int x = 0; x < size; x++) {
        const int16_t *weights = axis->weights + (size_t)x * axis->taps;
        const int16_t *source = columns + (size_t)(axis->start[x] - left) * 3 * LANES;
        uint8_t *place = out + 3 * (size_t)(flip ? size - 1 - x : x);
        for (int channel = 0; channel < 3; channel++) {
            int32_t sums[LANES] = {0};
            for (int tap = 0; tap < axis->taps; tap++) {
                const int16_t *values = source + (size_t)(3 * tap + channel) * LANES;
                for (int lane = 0; lane < LANES; lane++)
                    sums[lane] += fixed.wide ? (int32_t)values[lane] * weights[tap]
                                             : rounded_product(values[lane], weights[tap]);
            }
            for (int lane = 0; lane < rows; lane++) {
                int32_t sum = sums[lane];
                if (fixed.wide)
                    sum = (sum + (1 << (fixed.weight_bits - 1))) >> fixed.weight_bits;
                place[(size_t)lane * 3 * size + channel] = to_level(sum, fixed.wide ? FRACTION_BITS : fixed.final_bits);
            }
        }
    }
}

#ifdef HAVE_AVX2_CODE

__attribute__((target("avx2"))) static inline void transpose(__m256i row[16])
{
    __m256i a[16], b[16];
    for (int i = 0; i < 8; i++) {
        a[2 * i] = _mm256_unpacklo_epi16(row[2 * i], row[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_epi16(row[2 * i], row[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) {
        b[4 * i] = _mm256_unpacklo_epi32(a[4 * i], a[4 * i + 2]);
        b[4 * i + 1] = _mm256_unpackhi_epi32(a[4 * i], a[4 * i + 2]);
        b[4 * i + 2] = _mm256_unpacklo_epi32(a[4 * i + 1], a[4 * i + 3]);
        b[4 * i + 3] = _mm256_unpackhi_epi32(a[4 * i + 1], a[4 * i + 3]);
    }
    for (int half = 0; half < 2; half++)
        for (int i = 0; i < 4; i++) {
            a[8 * half + 2 * i] = _mm256_unpacklo_epi64(b[8 * half + i], b[8 * half + 4 + i]);
            a[8 * half + 2 * i + 1] = _mm256_unpackhi_epi64(b[8 * half + i], b[8 * half + 4 + i]);
        }
    for (int i = 0; i < 8; i++) {
        row[i] = _mm256_permute2x128_si256(a[i], a[8 + i], 0x20);
        row[8 + i] = _mm256_permute2x128_si256(a[i], a[8 + i], 0x31);
    }
}

/* 3 * width >= 16: the last block of columns overlaps the one before it, so that no byte beyond the row is read. */
__attribute__((target("avx2"))) static void vertical_avx2(
    Picture picture, const Axis *axis, int first_row, int rows, int left, int width, Fixed fixed, int16_t *columns)
{
    const __m128i value_bits = _mm_cvtsi32_si128(fixed.value_bits);
    int end = 3 * width;
    for (int block = 0; block < end; block += LANES) {
        int x = block + LANES <= end ? block : end - LANES;
        __m256i lanes[LANES];
        for (int lane = 0; lane < rows; lane++) {
            const int16_t *weights = axis->weights + (size_t)(first_row + lane) * axis->taps;
            const uint8_t *source =
                picture.pixels + (size_t)axis->start[first_row + lane] * picture.stride + 3 * (size_t)left + x;
            __m256i sum = _mm256_setzero_si256();
            for (int tap = 0; tap < axis->taps; tap++, source += picture.stride) {
                __m256i values = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)source));
                values = _mm256_sll_epi16(values, value_bits);
                sum = _mm256_add_epi16(sum, _mm256_mulhrs_epi16(values, _mm256_set1_epi16(weights[tap])));
            }
            lanes[lane] = sum;
        }
        for (int lane = rows; lane < LANES; lane++)
            lanes[lane] = _mm256_setzero_si256();
        transpose(lanes);
        for (int i = 0; i < LANES; i++)
            _mm256_store_si256((__m256i *)(columns + (size_t)(x + i) * LANES), lanes[i]);
    }
}

/* `results` holds [3 * size, rounded up to LANES][LANES]. */
__attribute__((target("avx2"))) static void horizontal_avx2(
    const int16_t *columns, const Axis *axis, int left, int rows, int size, Fixed fixed, int flip, int16_t *results,
    uint8_t *out)
{
    const __m256i half = _mm256_set1_epi16((short)(1 << (fixed.final_bits - 1)));
    const __m128i final_bits = _mm_cvtsi32_si128(fixed.final_bits);
    for (int x = 0; x < size; x++) {
        const int16_t *weights = axis->weights + (size_t)x * axis->taps;
        const __m256i *source = (const __m256i *)(columns + (size_t)(axis->start[x] - left) * 3 * LANES);
        __m256i *place = (__m256i *)(results + (size_t)(flip ? size - 1 - x : x) * 3 * LANES);
        __m256i red = half, green = half, blue = half;
        for (int tap = 0; tap < axis->taps; tap++, source += 3) {
            __m256i weight = _mm256_set1_epi16(weights[tap]);
            red = _mm256_add_epi16(red, _mm256_mulhrs_epi16(_mm256_load_si256(source), weight));
            green = _mm256_add_epi16(green, _mm256_mulhrs_epi16(_mm256_load_si256(source + 1), weight));
            blue = _mm256_add_epi16(blue, _mm256_mulhrs_epi16(_mm256_load_si256(source + 2), weight));
        }
        _mm256_store_si256(place, _mm256_sra_epi16(red, final_bits));
        _mm256_store_si256(place + 1, _mm256_sra_epi16(green, final_bits));
        _mm256_store_si256(place + 2, _mm256_sra_epi16(blue, final_bits));
    }
    for (int block = 0; block < 3 * size; block += LANES) {
        __m256i lanes[LANES];
        int whole = block + LANES <= 3 * size;
        for (int i = 0; i < LANES; i++)
            lanes[i] = _mm256_load_si256((const __m256i *)(results + (size_t)(block + i) * LANES));
        transpose(lanes);
        for (int lane = 0; lane < rows; lane++) {
            __m128i levels =
                _mm_packus_epi16(_mm256_castsi256_si128(lanes[lane]), _mm256_extracti128_si256(lanes[lane], 1));
            uint8_t *place = out + (size_t)lane * 3 * size + block;
            if (whole) {
                _mm_storeu_si128((__m128i *)place, levels);
            } else {
                uint8_t some[LANES];
                _mm_storeu_si128((__m128i *)some, levels);
                memcpy(place, some, 3 * size - block);
            }
        }
    }
}

#endif

static int scalar_only = 0;

void resize_force_scalar(int scalar)
{
    scalar_only = scalar;
}

int resize_has_avx2(void)
{
#ifdef HAVE_AVX2_CODE
    return !scalar_only && __builtin_cpu_supports("avx2");
#else
    return 0;
#endif
}

const char *resize_path(void)
{
    return resize_has_avx2() ? "avx2" : "scalar";
}

static size_t aligned(size_t bytes)
{
    return (bytes + 63) & ~(size_t)63;
}

int resize_crop(Picture picture, Box box, int size, Filter filter, int flip, uint8_t *out, Scratch *scratch)
{
    int left = (int)floor(box.left), right = (int)ceil(box.right);
    int top = (int)floor(box.top), bottom = (int)ceil(box.bottom), width = right - left;
    Fixed fixed = filter == FILTER_BICUBIC ? (Fixed){14, 7, 5, 0} : (Fixed){15, 6, 6, 0};
    double support = filter == FILTER_BICUBIC ? 2.0 : 1.0;
    size_t columns_size, results_size = aligned(((size_t)3 * size + LANES) * LANES * sizeof(int16_t));
    size_t weights_x, weights_y, starts = aligned((size_t)size * sizeof(int32_t));
    Axis x_axis, y_axis;
    uint8_t *memory;
    int16_t *columns, *results;

    x_axis.taps = taps_needed((box.right - box.left) / size, support, left, right);
    y_axis.taps = taps_needed((box.bottom - box.top) / size, support, top, bottom);
    fixed.wide = x_axis.taps > MOST_FAST_TAPS || y_axis.taps > MOST_FAST_TAPS;
    columns_size = aligned((size_t)3 * width * LANES * sizeof(int16_t));
    weights_x = aligned((size_t)size * x_axis.taps * sizeof(int16_t));
    weights_y = aligned((size_t)size * y_axis.taps * sizeof(int16_t));
    memory = scratch_take(scratch, columns_size + results_size + weights_x + weights_y + 2 * starts);
    if (!memory)
        return -1;
    columns = (int16_t *)memory;
    results = (int16_t *)(memory += columns_size);
    x_axis.weights = (int16_t *)(memory += results_size);
    y_axis.weights = (int16_t *)(memory += weights_x);
    x_axis.start = (int32_t *)(memory += weights_y);
    y_axis.start = (int32_t *)(memory += starts);
    fill_axis(&x_axis, box.left, box.right, left, right, size, filter, fixed.weight_bits);
    fill_axis(&y_axis, box.top, box.bottom, top, bottom, size, filter, fixed.weight_bits);

    trim_axis(&x_axis, size);
    trim_axis(&y_axis, size);
    for (int row = 0; row < size; row += LANES) {
        int rows = size - row < LANES ? size - row : LANES;
        uint8_t *place = out + (size_t)row * 3 * size;
#ifdef HAVE_AVX2_CODE
        if (!fixed.wide && resize_has_avx2() && 3 * width >= LANES) {
            vertical_avx2(picture, &y_axis, row, rows, left, width, fixed, columns);
            horizontal_avx2(columns, &x_axis, left, rows, size, fixed, flip, results, place);
            continue;
        }
#endif
        memset(columns, 0, columns_size);
        vertical_scalar(picture, &y_axis, row, rows, left, width, fixed, columns);
        horizontal_scalar(columns, &x_axis, left, rows, size, fixed, flip, place);
    }
    (void)results;
    return 0;
}
