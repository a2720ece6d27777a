/*
 * Feeds damaged and hostile pictures to the native decoder, which has to be compiled with sanitizers: see fuzz.py.
 *
 *     fuzz SEEDS_DIR COUNT SEED [FIRST]
 *
 * Input number N of a seed is the same in every run, so FIRST goes back to a finding. Each input lies in a block of its
 * very size, and so does the result. Results that are done are made once more with fresh memory and must be the same.
 * The input of a finding is saved to finding-SEED-N.jpg in the current folder. The last line is a summary in JSON.
 */
#define _XOPEN_SOURCE 700

#include <dirent.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "jpeg.h"

#define MOST_BYTES (1 << 21)
#define MOST_SEEDS 512
#define MOST_SEGMENTS 256
/* Seconds of processor time that one input may take, sanitizers included. */
#define MOST_SECONDS 20
/* Inputs that share a cropper. FIRST goes back to the start of such a run, since an earlier input may be to blame. */
#define RUN 64

typedef struct {
    uint8_t *data;
    size_t length;
    char name[256];
} Seed;

/* A marker and what belongs to it, to the next marker. */
typedef struct {
    size_t at, length;
    uint8_t marker;
} Segment;

static Seed seeds[MOST_SEEDS];
static int num_seeds;

static uint8_t work[MOST_BYTES];
static size_t length;

static Segment segments[MOST_SEGMENTS];
static int num_segments;

static uint64_t state, run_seed;
static volatile sig_atomic_t failing_soon;
static long starved; /* calls that came to nothing for want of memory, on purpose */
static char finding_name[64];
static const uint8_t *current;
static size_t current_length;
static char current_call[256];

const char *__asan_default_options(void)
{
    return "abort_on_error=1:allocator_may_return_null=1:quarantine_size_mb=64:hard_rss_limit_mb=6000";
}

const char *__ubsan_default_options(void)
{
    return "abort_on_error=1:print_stacktrace=1";
}

/* ------------------------------------------------------------------------------------------------------ chance */

static uint64_t mixed(uint64_t x)
{
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

static uint64_t next(void)
{
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (state * 0x2545F4914F6CDD1Du) >> 16;
}

/* 0 to n - 1; 0 where n is 0. */
static size_t below(size_t n)
{
    return n ? (size_t)(next() % n) : 0;
}

static int one_in(size_t n)
{
    return below(n) == 0;
}

static double unit(void)
{
    return (double)(next() & 0xFFFFFFFFu) / 4294967296.0;
}

/* ----------------------------------------------------------------------------------------------- failing memory */

#ifdef FAILING_MALLOC
/* With the linker's --wrap, so that the calls of the library count too where it is linked statically. */
void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);

static int fails(void)
{
    return failing_soon > 0 && --failing_soon == 0;
}

void *__wrap_malloc(size_t size)
{
    return fails() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return fails() ? NULL : __real_calloc(count, size);
}
#endif

/* ----------------------------------------------------------------------------------------------------- findings */

static void write_all(int file, const void *data, size_t size)
{
    const char *at = data;
    while (size) {
        ssize_t done = write(file, at, size);
        if (done <= 0)
            return;
        at += done;
        size -= (size_t)done;
    }
}

static void say(const char *text)
{
    write_all(STDERR_FILENO, text, strlen(text));
}

/* Sanitizers abort at their first finding; so do the checks here. */
static void on_abort(int number)
{
    int file = current ? open(finding_name, O_WRONLY | O_CREAT | O_TRUNC, 0644) : -1;
    if (file >= 0) {
        write_all(file, current, current_length);
        close(file);
    }
    say("\nFINDING ");
    say(finding_name);
    say("\n");
    say(current_call);
    signal(number, SIG_DFL);
    raise(number);
}

static void on_time(int number)
{
    (void)number;
    say("\nThis input takes too long.\n");
    abort();
}

static void found(const char *what)
{
    say(what);
    abort();
}

/* -------------------------------------------------------------------------------------------- bytes of the input */

static void put(uint8_t byte)
{
    if (length < MOST_BYTES)
        work[length++] = byte;
}

static void put_16(unsigned value)
{
    put((uint8_t)(value >> 8));
    put((uint8_t)value);
}

static void put_all(const void *data, size_t size)
{
    for (size_t at = 0; at < size; at++)
        put(((const uint8_t *)data)[at]);
}

static void set_16(size_t at, unsigned value)
{
    if (at + 2 <= length) {
        work[at] = (uint8_t)(value >> 8);
        work[at + 1] = (uint8_t)value;
    }
}

static void erase(size_t at, size_t size)
{
    memmove(work + at, work + at + size, length - at - size);
    length -= size;
}

static void insert(size_t at, const uint8_t *data, size_t size)
{
    if (length + size > MOST_BYTES)
        return;
    memmove(work + at + size, work + at, length - at);
    memcpy(work + at, data, size);
    length += size;
}

static size_t end_of_scan(size_t at)
{
    while (at + 1 < length && !(work[at] == 0xFF && work[at + 1] && (work[at + 1] & 0xF8) != 0xD0))
        at++;
    return at + 1 < length ? at : length;
}

static void find_segments(void)
{
    size_t at = 2;
    for (num_segments = 0; num_segments < MOST_SEGMENTS && at + 4 <= length && work[at] == 0xFF; num_segments++) {
        Segment segment = {at, 2 + ((size_t)work[at + 2] << 8 | work[at + 3]), work[at + 1]};
        if (segment.length > length - at)
            segment.length = length - at;
        if (segment.marker == 0xDA)
            segment.length = end_of_scan(at + segment.length) - at;
        segments[num_segments] = segment;
        at += segment.length;
    }
}

static int is_frame(uint8_t marker)
{
    return marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC;
}

/* A segment whose marker is one of `wanted`, else NULL; "F" stands for any start of frame. */
static const Segment *any_segment(const char *wanted)
{
    const Segment *chosen = NULL;
    int seen = 0;
    for (int at = 0; at < num_segments; at++) {
        uint8_t marker = segments[at].marker;
        int fits = wanted[0] == 'F' ? is_frame(marker) : memchr(wanted, marker, strlen(wanted)) != NULL;
        if (fits && one_in((size_t)++seen))
            chosen = &segments[at];
    }
    return chosen;
}

/* --------------------------------------------------------------------------------------------------- mutations */

static uint8_t odd_byte(void)
{
    static const uint8_t bytes[] = {0x00, 0x01, 0x7F, 0x80, 0xFE, 0xFF, 0xD8, 0xD9, 0xDA, 0xC4};
    return one_in(2) ? (uint8_t)next() : bytes[below(sizeof bytes)];
}

static unsigned odd_side(void)
{
    static const unsigned sides[] = {0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 255, 4096, 13377, 32768, 65500, 65535};
    return one_in(3) ? (unsigned)below(65536) : one_in(2) ? 1 + (unsigned)below(300) : sides[below(17)];
}

static void truncate_input(void)
{
    length = below(length) + 1;
}

static void flip_bits(void)
{
    for (size_t times = 1 + below(16); times; times--)
        work[below(length)] ^= (uint8_t)(1 << below(8));
}

static void random_run(void)
{
    size_t at = below(length), size = 1 + below(one_in(4) ? 400 : 16);
    for (; size && at < length; size--, at++)
        work[at] = odd_byte();
}

static const Seed *any_seed(void)
{
    /* Small pictures are done sooner, so they come more often. */
    const Seed *chosen = &seeds[below((size_t)num_seeds)];
    for (int tries = 0; tries < 3; tries++) {
        const Seed *other = &seeds[below((size_t)num_seeds)];
        if (other->length < chosen->length)
            chosen = other;
    }
    return chosen;
}

static void splice(void)
{
    const Seed *other = any_seed();
    size_t from = below(other->length), size = other->length - from;
    length = 2 + below(length - 2);
    if (size > MOST_BYTES - length)
        size = MOST_BYTES - length;
    memcpy(work + length, other->data + from, size);
    length += size;
}

static void change_segments(void)
{
    static uint8_t copy[MOST_BYTES];
    const Segment one = segments[below((size_t)num_segments)], other = segments[below((size_t)num_segments)];
    if (!num_segments)
        return;
    memcpy(copy, work + one.at, one.length);
    switch (below(4)) {
    case 0: /* once more, somewhere */
        insert(other.at, copy, one.length);
        break;
    case 1: /* many times */
        for (size_t times = 1 + below(20); times; times--)
            insert(one.at, copy, one.length);
        break;
    case 2:
        erase(one.at, one.length);
        break;
    default: /* elsewhere */
        if (other.at < one.at) {
            erase(one.at, one.length);
            insert(other.at, copy, one.length);
        }
    }
}

static void change_frame(void)
{
    static const uint8_t types[] = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF};
    static const uint8_t precisions[] = {0, 1, 2, 7, 9, 12, 16, 255};
    const Segment *frame = any_segment("F");
    size_t at, components;
    if (!frame || frame->length < 10)
        return;
    at = frame->at;
    components = (frame->length - 10) / 3;
    switch (below(7)) {
    case 0:
        work[at + 4] = precisions[below(sizeof precisions)];
        break;
    case 1:
        work[at + 1] = types[below(sizeof types)];
        break;
    case 2: /* the number of components, with or without the rest of it */
        work[at + 9] = one_in(2) ? (uint8_t)below(6) : odd_byte();
        if (one_in(2))
            set_16(at + 2, 8 + 3u * work[at + 9]);
        break;
    case 3:
        if (components)
            work[at + 10 + 3 * below(components) + below(3)] = odd_byte();
        break;
    case 4:
        for (size_t component = 0; component < components; component++)
            work[at + 11 + 3 * component] = (uint8_t)((1 + below(4)) << 4 | (1 + below(4)));
        break;
    case 5:
        set_16(at + 5 + 2 * below(2), odd_side());
        break;
    default:
        set_16(at + 5, one_in(4) ? 65500 : odd_side());
        set_16(at + 7, one_in(4) ? 65500 : odd_side());
    }
}

/* Tables, restart intervals and scan headers: another length, or other contents. */
static void change_table(void)
{
    const Segment *table = any_segment("\xC4\xDB\xDD\xDA\xCC");
    size_t head;
    if (!table || table->length < 5)
        return;
    head = table->length < 200 ? table->length : 200;
    if (one_in(3)) {
        set_16(table->at + 2, one_in(2) ? (unsigned)below(table->length + 8) : odd_side());
        return;
    }
    for (size_t times = 1 + below(4); times; times--)
        work[table->at + 4 + below(head - 4)] = odd_byte();
}

static void put_tiff_32(uint32_t value, int little)
{
    for (int byte = 0; byte < 4; byte++)
        put((uint8_t)(value >> 8 * (little ? byte : 3 - byte)));
}

static void put_tiff_16(unsigned value, int little)
{
    put((uint8_t)(little ? value : value >> 8));
    put((uint8_t)(little ? value >> 8 : value));
}

/* An EXIF block, sound or hostile, or XMP, put behind the start of the image. */
static void add_exif(void)
{
    static uint8_t block[2048];
    static const uint32_t offsets[] = {0, 1, 7, 8, 9, 26, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF0, 0xFFFFFFFE, 0xFFFFFFFF};
    static const unsigned counts[] = {0, 1, 2, 170, 255, 0x1555, 0xFFFF};
    size_t before = length, size;
    int little = one_in(2), sound = one_in(2);
    unsigned entries = sound ? 1 + (unsigned)below(3) : counts[below(7)];
    if (length + sizeof block > MOST_BYTES)
        return;
    put_16(0xFFE1);
    put_16(0);
    put_all(one_in(8) ? "Exix\0" : "Exif\0", 6);
    if (one_in(16))
        length = before + 4 + below(7);
    else if (one_in(8)) {
        length = before + 4;
        put_all("http://ns.adobe.com/xap/1.0/ tiff:Orientation=\"6\"", 1 + below(50));
    } else {
        put_all(one_in(16) ? "XX" : little ? "II" : "MM", 2);
        put_tiff_16(42, little);
        put_tiff_32(sound ? 8 : one_in(3) ? (uint32_t)below(64) : offsets[below(11)], little);
        put_tiff_16(entries, little);
        for (unsigned entry = 0; entry < entries && entry < 1 + below(6); entry++) {
            put_tiff_16(one_in(2) || sound ? 0x0112 : (unsigned)below(65536), little);
            put_tiff_16(sound ? 3 : (unsigned)below(14), little);
            put_tiff_32(sound ? 1 : offsets[below(11)], little);
            put_tiff_16(1 + (unsigned)below(sound ? 8 : 12), little);
            put_tiff_16(0, little);
        }
        if (one_in(3))
            length -= below(length - before - 4);
    }
    size = length - before;
    size = size > sizeof block ? sizeof block : size;
    memcpy(block, work + before, size);
    length = before;
    size -= one_in(8) ? below(size - 4) : 0;
    block[2] = (uint8_t)((size - 2) >> 8);
    block[3] = (uint8_t)(size - 2);
    if (one_in(16))
        block[2 + below(2)] = odd_byte();
    insert(length < 2 ? length : 2, block, size);
}

static void end_image(void)
{
    if (length > MOST_BYTES - 2)
        length = MOST_BYTES - 2;
    put_16(0xFFD9);
}

/* ---------------------------------------------------------------------------------- pictures made from nothing */

/* One code of each length: a row of ones and a zero. Whatever bits follow mean something, so nothing stops early. */
static void put_huffman(uint8_t id, const uint8_t *values)
{
    put_16(0xFFC4);
    put_16(2 + 17 + 15);
    put(id);
    for (int bits = 1; bits <= 16; bits++)
        put(bits <= 15);
    put_all(values, 15);
}

static void put_tables(int progressive)
{
    static const uint8_t dc[] = {0, 2, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0, 1, 2};
    static const uint8_t ac[] = {
        0x00, 0x01, 0x11, 0x02, 0x21, 0x03, 0xF0, 0x31, 0x12, 0x04, 0x41, 0x05, 0x0A, 0xE1, 0x51,
    };
    static const uint8_t runs[] = {
        0x00, 0x01, 0x10, 0x11, 0x21, 0x20, 0xF0, 0x31, 0x30, 0x41, 0x40, 0x51, 0x50, 0xE0, 0x61,
    };
    put_16(0xFFDB);
    put_16(2 + 65);
    put(0);
    for (int at = 0; at < 64; at++)
        put((uint8_t)(1 + below(one_in(20) ? 255 : 24)));
    put_huffman(0x00, dc);
    put_huffman(0x10, progressive ? runs : ac);
}

/* The frame that is being made. */
static struct {
    unsigned width, height, interval;
    int arithmetic, progressive, components, h[4], v[4], most_h, most_v, blocks;
} plan;

/* Sampling that libjpeg knows has factors which divide the largest; now and then there are others. */
static int factor(int most)
{
    int chosen = 1 + (int)below((size_t)most);
    return most % chosen && !one_in(20) ? most : chosen;
}

static void make_plan(void)
{
    int most_h = 1 + (int)below(one_in(2) ? 2 : 4), most_v = 1 + (int)below(one_in(2) ? 2 : 4), plain = one_in(3);
    plan.arithmetic = one_in(4);
    plan.progressive = one_in(3);
    plan.width = 1 + (unsigned)below(one_in(8) ? 900 : 120);
    plan.height = 1 + (unsigned)below(one_in(8) ? 900 : 120);
    if (one_in(40))
        plan.width = 1 + (unsigned)below(65500), plan.height = 1 + (unsigned)below(16);
    else if (one_in(40))
        plan.height = 1 + (unsigned)below(65500), plan.width = 1 + (unsigned)below(16);
    else if (one_in(400))
        plan.width = plan.height = one_in(2) ? 13377 : 1 + (unsigned)below(13377);
    plan.interval = one_in(6) ? 1 + (unsigned)below(one_in(2) ? 20 : 65535) : 0;
    plan.components = one_in(16) ? (int)(2 + 2 * below(2)) : one_in(4) ? 1 : 3;
    plan.most_h = plan.most_v = plan.blocks = 0;
    for (int at = 0; at < plan.components; at++) {
        plan.h[at] = plain ? (at ? 1 : most_h) : factor(most_h);
        plan.v[at] = plain ? (at ? 1 : most_v) : factor(most_v);
        plan.most_h = plan.h[at] > plan.most_h ? plan.h[at] : plan.most_h;
        plan.most_v = plan.v[at] > plan.most_v ? plan.v[at] : plan.most_v;
        plan.blocks += plan.h[at] * plan.v[at];
    }
}

static unsigned up(unsigned value, unsigned by)
{
    return (value + by - 1) / by;
}

static void put_bits(size_t bytes, int noise)
{
    for (; bytes; bytes--) {
        uint8_t byte = noise == 0 ? 0 : noise == 1 ? (uint8_t)(next() & next() & next()) : (uint8_t)next();
        put(byte);
        if (byte == 0xFF)
            put(0);
    }
}

/* As many bits as the blocks of a scan take, with restart markers; anything else would count as damage. */
static void put_blocks(int first, int components, size_t bits, int noise)
{
    size_t units = (size_t)up(plan.width, 8 * (unsigned)plan.most_h) * up(plan.height, 8 * (unsigned)plan.most_v);
    if (components > 1) {
        bits *= (size_t)plan.blocks;
    } else {
        unsigned width = up(plan.width * (unsigned)plan.h[first], (unsigned)plan.most_h);
        unsigned height = up(plan.height * (unsigned)plan.v[first], (unsigned)plan.most_v);
        units = (size_t)up(width, 8) * up(height, 8);
    }
    if (units * bits > 1000000) /* some 30 million pixels, more than enough time */
        units = 1000000 / bits;
    if (plan.arithmetic && !noise) /* the end of the data stands for any number of zeros */
        return;
    for (unsigned restart = 0; units; restart++) {
        size_t some = plan.interval && plan.interval < units ? plan.interval : units;
        put_bits((some * bits + 7) / 8, noise);
        units -= some;
        if (units)
            put_16(0xFFD0 + restart % 8);
    }
}

static void put_scan(int first, int components, int from, int to, int high, int low)
{
    put_16(0xFFDA);
    put_16(6 + 2u * (unsigned)components);
    put((uint8_t)components);
    for (int at = first; at < first + components; at++) {
        put((uint8_t)(1 + at));
        put(0);
    }
    put((uint8_t)from);
    put((uint8_t)to);
    put((uint8_t)(high << 4 | low));
}

static int in_one_scan(void)
{
    return plan.components == 1 || (plan.blocks <= 10 && !one_in(4));
}

static void put_whole(int together, int high, int low, size_t bits, int noise)
{
    int components = together ? plan.components : 1;
    for (int at = 0; at < plan.components; at += components) {
        put_scan(at, components, 0, plan.progressive ? 0 : 63, high, low);
        put_blocks(at, components, bits, noise);
    }
}

/*
 * Zeros are flat colour and of a known length, two bits a block or one where progressive. Noise has an unknown length,
 * which is no matter where only one scan is decoded, nor in the last bits of a progressive DC, one a block.
 */
static void put_scans(void)
{
    int low = (int)below(3), sequence = !one_in(8), together = in_one_scan();
    if (!plan.progressive) {
        int noise = together || one_in(8) ? (int)below(3) : 0;
        put_whole(together, 0, 0, noise ? 30 : 2, noise);
        return;
    }
    put_whole(together, 0, low, 1, one_in(16));
    for (size_t times = one_in(64) ? 150 : below(8), band = 1; times && band < 63; times--) {
        int component = (int)below((size_t)plan.components), bit = (int)below(2);
        size_t first = sequence ? band : 1 + below(63), last = first + below(times > 8 ? 1 : 64 - first);
        put_scan(component, 1, (int)first, (int)last, 0, bit);
        put_blocks(component, 1, 1, one_in(32));
        if (bit) { /* and the bit that it left out */
            put_scan(component, 1, (int)first, (int)last, 1, 0);
            put_blocks(component, 1, 1, 0);
        }
        band = last + 1;
    }
    for (; low; low--)
        put_whole(in_one_scan(), low, low - 1, 1, plan.arithmetic ? 0 : 2);
}

/* Any kind of frame, any sampling factors, with data that fits it: what Pillow's encoder never writes. */
static void build(void)
{
    make_plan();
    length = 0;
    put_16(0xFFD8);
    if (one_in(4)) {
        put_16(0xFFEE);
        put_16(14);
        put_all("Adobe\0\144\0\0\0\0", 11);
        put((uint8_t)(one_in(16) || plan.components == 4 ? below(4) : below(2)));
    }
    put_tables(plan.progressive);
    if (plan.interval) {
        put_16(0xFFDD);
        put_16(4);
        put_16(plan.interval);
    }
    put(0xFF);
    put((uint8_t)((plan.progressive ? 0xC2 : plan.arithmetic ? 0xC1 : 0xC0 + below(2)) + 8 * plan.arithmetic));
    put_16(8 + 3u * (unsigned)plan.components);
    put(8);
    put_16(plan.height);
    put_16(plan.width);
    put((uint8_t)plan.components);
    for (int at = 0; at < plan.components; at++) {
        put((uint8_t)(1 + at));
        put((uint8_t)(plan.h[at] << 4 | plan.v[at]));
        put(0);
    }
    put_scans();
    end_image();
}

static void garbage(void)
{
    length = 0;
    put_16(0xFFD8);
    for (size_t size = below(600); size; size--)
        put(one_in(6) ? 0xFF : odd_byte());
}

static void mutate(void)
{
    switch (below(9)) {
    case 0:
        truncate_input();
        break;
    case 1:
        flip_bits();
        break;
    case 2:
        random_run();
        break;
    case 3:
        splice();
        break;
    case 4:
        change_segments();
        break;
    case 5:
        change_frame();
        break;
    case 6:
        change_table();
        break;
    case 7:
        add_exif();
        break;
    default: /* the head is where most of the parsing is */
        work[below(length < 700 ? length : 700)] = odd_byte();
    }
}

static void make_input(void)
{
    const Seed *seed = any_seed();
    if (one_in(40)) {
        garbage();
    } else {
        if (one_in(3))
            build();
        else
            memcpy(work, seed->data, length = seed->length);
        for (size_t times = below(4); times && length > 4; times--) {
            find_segments();
            mutate();
        }
    }
    if (!one_in(12))
        end_image();
}

/* ------------------------------------------------------------------------------------------------------- calls */

static double odd_edge(double side)
{
    static const double edges[] = {
        NAN, INFINITY, -INFINITY, 1e300, -1e300, 2147483648.0, -2147483649.0, 0.0, -0.0, 5e-324,
    };
    return one_in(3) ? edges[below(10)] : (unit() * 3.0 - 1.0) * side;
}

/* Two edges within 0..side. */
static void valid_edges(double side, double *low, double *high)
{
    double a = unit() * side, b = unit() * side;
    if (one_in(3))
        a = floor(a), b = ceil(b);
    if (one_in(6))
        a = 0.0;
    if (one_in(6))
        b = side;
    if (one_in(12))
        b = a + pow(10.0, -20.0 * unit());
    if (one_in(24))
        a = 0.0, b = pow(10.0, -320.0 * unit());
    *low = a < b ? a : b;
    *high = a < b ? b : a;
    if (!(*low < *high) || *high > side)
        *low = 0.0, *high = side;
}

static Box any_box(double width, double height)
{
    Box box = {0.0, 0.0, width, height};
    if (one_in(5))
        return box;
    valid_edges(width, &box.left, &box.right);
    valid_edges(height, &box.top, &box.bottom);
    if (one_in(16)) { /* the slack that rounding is given, and a little more */
        box.left -= 2e-3 * unit();
        box.bottom += 2e-3 * unit();
    }
    if (one_in(10)) {
        double *edges[] = {&box.left, &box.top, &box.right, &box.bottom};
        *edges[below(4)] = odd_edge(width);
    }
    return box;
}

static int any_size(void)
{
    return one_in(4) ? 1 + (int)below(300) : one_in(4) ? 1 + (int)below(8) : 1 + (int)below(64);
}

static void *block_of(size_t size)
{
    void *block = malloc(size ? size : 1);
    if (!block) {
        perror("fuzz");
        exit(2);
    }
    return block;
}

static void limit_time(int seconds)
{
    struct itimerval timer = {{0, 0}, {seconds, 0}};
    setitimer(ITIMER_PROF, &timer, NULL);
}

static JpegCropper *new_cropper(void)
{
    JpegCropper *cropper = jpeg_cropper_new();
    if (!cropper) {
        fputs("fuzz: no memory for a cropper\n", stderr);
        exit(2);
    }
    return cropper;
}

static void describe(const char *kind, Box box, int size, Filter filter, int flip, int exact)
{
    snprintf(
        current_call, sizeof current_call, "%sbox %.17g %.17g %.17g %.17g size %d filter %d flip %d exact %d\n", kind,
        box.left, box.top, box.right, box.bottom, size, (int)filter, flip, exact);
}

typedef struct {
    uint8_t *data, *out;
    size_t length, out_size;
    Box box;
    int size, flip, exact;
    Filter filter;
} Call;

static CropResult made(JpegCropper *cropper, const Call *call, uint8_t *out)
{
    return jpeg_crop(
        cropper, call->data, call->length, call->box, call->size, call->filter, call->flip, call->exact, out);
}

/* The same again with nothing left over from earlier pictures, and from the start where memory had failed before. */
static void check_again(const Call *call, CropResult expected, int failing)
{
    uint8_t *again = block_of(call->out_size);
    JpegCropper *cropper = new_cropper();
    memset(again, 0x5A, call->out_size);
    if (failing) {
        failing_soon = failing;
        starved += made(cropper, call, again) != expected;
        failing_soon = 0;
    }
    if (made(cropper, call, again) != expected)
        found("\nA new cropper comes to another result.\n");
    if (expected == CROP_DONE && memcmp(call->out, again, call->out_size))
        found("\nA new cropper gives another picture.\n");
    jpeg_cropper_free(cropper);
    free(again);
}

static CropResult one_jpeg(JpegCropper *cropper)
{
    Call call = {.length = length, .size = any_size(), .flip = one_in(2), .exact = one_in(2)};
    const Segment *frame;
    double width = 64, height = 64;
    CropResult result;

    call.filter = one_in(2) ? FILTER_BILINEAR : FILTER_BICUBIC;
    call.data = memcpy(block_of(length), work, length);
    call.out_size = 3 * (size_t)call.size * call.size;
    call.out = memset(block_of(call.out_size), 0xA5, call.out_size);
    find_segments();
    frame = any_segment("F");
    if (frame && frame->length >= 9) {
        height = (double)work[frame->at + 5] * 256 + work[frame->at + 6];
        width = (double)work[frame->at + 7] * 256 + work[frame->at + 8];
    }
    call.box = one_in(4) ? any_box(height, width) : any_box(width, height);
    current = call.data;
    current_length = length;
    describe("", call.box, call.size, call.filter, call.flip, call.exact);
    result = made(cropper, &call, call.out);
#ifdef PLANTED_BUG
    if (result == CROP_DONE)
        call.out[0] = *(volatile uint8_t *)(call.data + length);
#endif
    if (result < CROP_DONE || result > CROP_NO_MEMORY)
        found("\nA result that is none.\n");
    if (one_in(result == CROP_DONE ? 4 : 40))
        check_again(&call, result, one_in(4) ? 1 + (int)below(one_in(2) ? 3 : 20) : 0);
    current = NULL;
    free(call.data);
    free(call.out);
    return result;
}

static void one_raw(Scratch *scratch, int scalar)
{
    int width = 1 + (int)below(one_in(8) ? 3000 : 90), height = 1 + (int)below(one_in(8) ? 3000 : 90);
    int size = any_size(), flip = one_in(2), exact = one_in(3), failed;
    Filter filter = one_in(2) ? FILTER_BILINEAR : FILTER_BICUBIC;
    size_t bytes, result_bytes = 3 * (size_t)size * size;
    uint8_t *pixels, *out, *other;
    char kind[64];
    Box box;
    if (width > 90 && height > 90)
        height = 1 + height % 90;
    bytes = 3 * (size_t)width * height;
    pixels = block_of(bytes);
    out = block_of(result_bytes);
    other = block_of(result_bytes);
    for (size_t at = 0; at < bytes; at++)
        pixels[at] = (uint8_t)next();
    if (one_in(4)) /* sharp edges, to the limits of the arithmetic */
        for (size_t at = 0; at < bytes; at++)
            pixels[at] = pixels[at] & 1 ? 255 : 0;
    box.left = box.top = 0.0;
    box.right = width;
    box.bottom = height;
    if (!one_in(6)) {
        valid_edges(width, &box.left, &box.right);
        valid_edges(height, &box.top, &box.bottom);
    }
    Picture picture = {pixels, width, height, 3 * (size_t)width};
    current = pixels;
    current_length = bytes;
    snprintf(kind, sizeof kind, "raw %d x %d, %s first, ", width, height, scalar ? "scalar" : "vector");
    describe(kind, box, size, filter, flip, exact);
    memset(out, 0xA5, result_bytes);
    memset(other, 0x5A, result_bytes);
    resize_force_scalar(scalar);
    failed = (exact ? resize_crop_exact : resize_crop)(picture, box, size, filter, flip, out, scratch);
    resize_force_scalar(!scalar);
    failed |= (exact ? resize_crop_exact : resize_crop)(picture, box, size, filter, flip, other, scratch);
    resize_force_scalar(0);
    if (!failed && memcmp(out, other, result_bytes))
        found("\nScalar and vector code differ.\n");
    current = NULL;
    free(pixels);
    free(out);
    free(other);
}

/* -------------------------------------------------------------------------------------------------------- runs */

static int by_name(const void *one, const void *other)
{
    return strcmp(((const Seed *)one)->name, ((const Seed *)other)->name);
}

static void load_seeds(const char *folder)
{
    DIR *entries = opendir(folder);
    for (struct dirent *entry; entries && num_seeds < MOST_SEEDS && (entry = readdir(entries));) {
        Seed *seed = &seeds[num_seeds];
        char path[4096];
        FILE *file;
        if (entry->d_name[0] == '.' || strlen(entry->d_name) >= sizeof seed->name)
            continue;
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        strcpy(seed->name, entry->d_name);
        file = fopen(path, "rb");
        if (!file)
            continue;
        seed->length = fread(work, 1, MOST_BYTES / 2, file);
        fclose(file);
        if (seed->length < 8)
            continue;
        seed->data = block_of(seed->length);
        memcpy(seed->data, work, seed->length);
        num_seeds++;
    }
    if (entries)
        closedir(entries);
    qsort(seeds, (size_t)num_seeds, sizeof *seeds, by_name);
}

static void begin_input(const char *kind, long at)
{
    state = mixed(run_seed * 0x9E3779B97F4A7C15u + (uint64_t)at * 2 + (kind[0] == 'r')) | 1;
    snprintf(finding_name, sizeof finding_name, "finding-%s%llu-%ld.jpg", kind, (unsigned long long)run_seed, at);
    limit_time(MOST_SECONDS);
}

static long peak_mib(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss / 1024;
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

int main(int count_of_arguments, char **arguments)
{
    long count, first, results[CROP_NO_MEMORY + 1] = {0}, raw = 0;
    JpegCropper *cropper = NULL;
    Scratch scratch = {0};
    double begin;
    if (count_of_arguments < 4) {
        fputs("fuzz SEEDS_DIR COUNT SEED [FIRST]\n", stderr);
        return 2;
    }
    load_seeds(arguments[1]);
    count = atol(arguments[2]);
    run_seed = strtoull(arguments[3], NULL, 10);
    first = count_of_arguments > 4 ? atol(arguments[4]) / RUN * RUN : 0;
    if (!num_seeds) {
        fputs("fuzz: no seeds\n", stderr);
        return 2;
    }
    signal(SIGABRT, on_abort);
    signal(SIGPROF, on_time);
    begin = now();
    failing_soon = 1;
    jpeg_cropper_free(jpeg_cropper_new());
    failing_soon = 0;
    for (long at = first; at < first + count; at++) {
        if (at % RUN == 0) {
            jpeg_cropper_free(cropper);
            cropper = new_cropper();
        }
        begin_input("", at);
        make_input();
        results[one_jpeg(cropper)]++;
        if (at % 4 == 0) {
            begin_input("raw-", at);
            one_raw(&scratch, at % 8 == 0);
            raw++;
        }
    }
    limit_time(0);
    jpeg_cropper_free(cropper);
    scratch_free(&scratch);
    for (int at = 0; at < num_seeds; at++)
        free(seeds[at].data);
    printf(
        "{\"inputs\": %ld, \"raw\": %ld, \"seconds\": %.2f, \"peak_mib\": %ld, \"done\": %ld, \"unusual\": %ld, "
        "\"damaged\": %ld, \"outside\": %ld, \"no_memory\": %ld, \"starved\": %ld}\n",
        count, raw, now() - begin, peak_mib(), results[CROP_DONE], results[CROP_UNUSUAL], results[CROP_DAMAGED],
        results[CROP_OUTSIDE], results[CROP_NO_MEMORY], starved);
    return 0;
}
