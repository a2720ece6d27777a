#include "huffman.h"

#include <stdlib.h>
#include <string.h>

/* Codes of up to this many bits, with their values, are looked up in one step. Tables of 6 KB each stay in the cache. */
#define LOOK 10
#define BLOCK 64
/* Zeros behind the data: more than the 64 * 31 bits of a block, the most that are read before the end is noticed. */
#define PADDING 512
#define BLOCK_ENDS 64

#if JPEG_LIB_VERSION >= 70
#define SCALED_SIZE(info) ((info)->DCT_h_scaled_size)
#else
#define SCALED_SIZE(info) ((info)->DCT_scaled_size)
#endif

/*
 * The part of libjpeg's entropy decoder that its other parts call: in no manual, but alike in every release of
 * libjpeg-turbo from 1.0 to 3.1. The tests compare what comes of it with libjpeg's own, file by file.
 */
typedef struct {
    void (*start_pass)(j_decompress_ptr jpeg);
    boolean (*decode_mcu)(j_decompress_ptr jpeg, JBLOCKROW *blocks);
} EntropyDecoder;

/* A coefficient, where its code and value lie within LOOK bits; `bits` is 0 elsewhere. */
typedef struct {
    int16_t value;
    uint8_t run;  /* zeros before it; BLOCK_ENDS for the code that says so */
    uint8_t bits; /* of code and value */
} Whole;

/* One or more whole codes with their values, to pass over; `bits` is 0 where not even one code lies within LOOK bits. */
typedef struct {
    uint8_t bits;
    uint8_t advance; /* coefficients that they lead on by, and BLOCK_ENDS more where the last says that the block ends */
} Skip;

/* A code alone; `length` is 0 where it is longer than LOOK, or none. */
typedef struct {
    uint8_t symbol; /* run << 4 | size */
    uint8_t length;
} Code;

typedef struct {
    int made;
    UINT8 bits[17], values[256]; /* what it was made of */
    int32_t longest[17];         /* largest code of each length, with ones behind it up to 16 bits; -1: none */
    int32_t offset[17];          /* from a code to its place in `values` */
    Whole whole[1 << LOOK];
    Skip skip[1 << LOOK];
    Code code[1 << LOOK];
} Table;

/* Where the reading is. */
typedef struct {
    const uint8_t *next;
    uint64_t window; /* the next bits, from the top down */
    int have;        /* how many of them are counted; behind them stand some of the next byte, or zeros */
} Bits;

struct Huffman {
    Table dc[NUM_HUFF_TBLS], ac[NUM_HUFF_TBLS];
    uint8_t *data; /* the entropy-coded segment without stuffed bytes */
    size_t room, length;
    Bits bits;
    int last_dc[MAX_COMPS_IN_SCAN];
    int column, first_column, last_column;
    void (*on_damage)(struct jpeg_decompress_struct *jpeg);
};

static int switched_off = 0;

/* Zigzag (T.81, figure A.6); places behind the end are those of damaged data, and of no matter. */
static const uint8_t NATURAL_ORDER[BLOCK + 16] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48,
    41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
    30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
    63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63,
};

void huffman_switch_off(int off)
{
    switched_off = off;
}

Huffman *huffman_new(void)
{
    return calloc(1, sizeof(Huffman));
}

void huffman_free(Huffman *huffman)
{
    if (huffman)
        free(huffman->data);
    free(huffman);
}

/* A value of `size` bits as the standard codes it (T.81, F.2.2.1): the lower half of the range stands for negatives. */
static inline int extend(unsigned bits, int size)
{
    return size && bits < 1u << (size - 1) ? (int)bits - (1 << size) + 1 : (int)bits;
}

/* As many whole codes as each LOOK bits tell of. */
static void fill_skip(Table *table)
{
    for (unsigned index = 0; index < 1u << LOOK; index++) {
        unsigned used = 0, advance = 0;
        while (used < LOOK && advance < BLOCK_ENDS) {
            /* Bits behind the LOOK known ones are zeros here: a code is good only if it ends before them. */
            Code next = table->code[(index << used) & ((1u << LOOK) - 1)];
            unsigned run = next.symbol >> 4, size = next.symbol & 15;
            if (!next.length || next.length > LOOK - used || advance + run + 1 >= BLOCK)
                break;
            used += next.length + size;
            advance += !size && run != 15 ? BLOCK_ENDS : run + 1;
        }
        table->skip[index] = (Skip){(uint8_t)used, (uint8_t)advance};
    }
}

/* All that begins with the code of `symbol`. */
static void fill_code(Table *table, unsigned code, int length, uint8_t symbol, int is_dc)
{
    int size = symbol & 15, run = symbol >> 4;
    if (length > LOOK)
        return;
    for (unsigned rest = 0; rest < 1u << (LOOK - length); rest++) {
        unsigned index = code << (LOOK - length) | rest;
        table->code[index] = (Code){symbol, (uint8_t)length};
        if (length + size > LOOK)
            continue;
        if (is_dc || size)
            table->whole[index] = (Whole){
                (int16_t)extend(rest >> (LOOK - length - size), size), (uint8_t)run, (uint8_t)(length + size)};
        else if (run != 15)
            table->whole[index] = (Whole){0, BLOCK_ENDS, (uint8_t)length};
    }
}

/* Returns 0, or -1 where the table is none that could be used. */
static int make_table(Table *table, const JHUFF_TBL *source, int is_dc)
{
    int32_t code = 0;
    int at = 0;
    if (!source)
        return -1;
    if (table->made && !memcmp(table->bits, source->bits, sizeof table->bits)
        && !memcmp(table->values, source->huffval, sizeof table->values))
        return 0;
    table->made = 0;
    memset(table->whole, 0, sizeof table->whole);
    memset(table->code, 0, sizeof table->code);
    for (int length = 1; length <= 16; length++, code <<= 1) {
        int count = source->bits[length];
        if (at + count > 256 || code + count > 1 << length)
            return -1;
        table->offset[length] = at - code;
        for (int each = 0; each < count; each++, at++, code++) {
            if (is_dc && source->huffval[at] > 15)
                return -1;
            fill_code(table, (unsigned)code, length, source->huffval[at], is_dc);
        }
        table->longest[length] = count ? (code << (16 - length)) - 1 : -1;
    }
    memcpy(table->bits, source->bits, sizeof table->bits);
    memcpy(table->values, source->huffval, sizeof table->values);
    if (!is_dc)
        fill_skip(table);
    table->made = 1;
    return 0;
}

#define INLINE static inline __attribute__((always_inline))

/* At least 56 bits in the window afterwards. */
INLINE void refill(Bits *bits)
{
    uint64_t eight;
    memcpy(&eight, bits->next, 8);
#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    eight = __builtin_bswap64(eight);
#endif
    /* Bits of the byte that is not counted any more are the same when they come again. */
    bits->window |= eight >> bits->have;
    bits->next += (63 - bits->have) >> 3;
    bits->have |= 56;
}

INLINE void drop(Bits *bits, int count)
{
    bits->window <<= count;
    bits->have -= count;
}

/* The symbol of the next code, which is dropped; -1 where there is no such code. */
INLINE int take_code(Bits *bits, const Table *table)
{
    Code code = table->code[bits->window >> (64 - LOOK)];
    int32_t top = (int32_t)(bits->window >> 48);
    if (code.length) {
        drop(bits, code.length);
        return code.symbol;
    }
    for (int length = LOOK + 1; length <= 16; length++)
        if (top <= table->longest[length]) {
            int at = table->offset[length] + (top >> (16 - length));
            if (at < 0 || at > 255)
                return -1;
            drop(bits, length);
            return table->values[at];
        }
    return -1;
}

/* The `size` next bits as a value, 0 for none. */
INLINE int take_value(Bits *bits, int size)
{
    unsigned value;
    if (!size)
        return 0;
    value = (unsigned)(bits->window >> (64 - size));
    drop(bits, size);
    return extend(value, size);
}

/* Difference of the DC coefficient; 1 << 20 for damage. */
INLINE int take_dc(Bits *bits, const Table *table)
{
    Whole whole;
    int size;
    refill(bits);
    whole = table->whole[bits->window >> (64 - LOOK)];
    if (whole.bits) {
        drop(bits, whole.bits);
        return whole.value;
    }
    size = take_code(bits, table);
    return size < 0 ? 1 << 20 : take_value(bits, size);
}

/* The AC coefficients into `block`, which is zeros; returns the place behind the last of them, above BLOCK for damage. */
INLINE int take_ac(Bits *bits, const Table *table, JCOEF *block)
{
    int at = 1;
    while (at < BLOCK) {
        Whole whole;
        int symbol;
        refill(bits);
        whole = table->whole[bits->window >> (64 - LOOK)];
        if (whole.bits) {
            drop(bits, whole.bits);
            at += whole.run;
            if (whole.run == BLOCK_ENDS)
                return BLOCK;
            block[NATURAL_ORDER[at++]] = whole.value;
            if (at >= BLOCK)
                break;
            /* 46 bits are left: enough for another short one and a long one. */
            whole = table->whole[bits->window >> (64 - LOOK)];
            if (whole.bits) {
                drop(bits, whole.bits);
                at += whole.run;
                if (whole.run == BLOCK_ENDS)
                    return BLOCK;
                block[NATURAL_ORDER[at++]] = whole.value;
                continue;
            }
        }
        symbol = take_code(bits, table);
        if (symbol & 15 && symbol > 0) {
            at += symbol >> 4;
            block[NATURAL_ORDER[at++]] = (JCOEF)take_value(bits, symbol & 15);
        } else if (symbol == 0xF0) {
            at += 16;
        } else {
            return symbol < 0 ? BLOCK + 1 : BLOCK;
        }
    }
    return at;
}

/* Passes over the AC coefficients; returns as take_ac. */
INLINE int pass_ac(Bits *bits, const Table *table)
{
    int at = 1;
    while (at < BLOCK) {
        Skip skip;
        int symbol;
        refill(bits);
        skip = table->skip[bits->window >> (64 - LOOK)];
        /* Several codes at once, unless the block may be full before the last of them, which is the next block's then. */
        if (skip.bits && at + (skip.advance & (BLOCK_ENDS - 1)) + (skip.advance >> 6) <= BLOCK) {
            drop(bits, skip.bits);
            if (skip.advance >= BLOCK_ENDS)
                return BLOCK;
            at += skip.advance;
            continue;
        }
        symbol = take_code(bits, table);
        if (symbol < 0)
            return BLOCK + 1;
        drop(bits, symbol & 15);
        if (symbol & 15)
            at += (symbol >> 4) + 1;
        else if (symbol == 0xF0)
            at += 16;
        else
            return BLOCK;
    }
    return at;
}

/* Takes the place of libjpeg's function of this name: one MCU into `blocks`, which are zeros, or passed over for NULL. */
static boolean decode_mcu(j_decompress_ptr jpeg, JBLOCKROW *blocks)
{
    Huffman *huffman = jpeg->client_data;
    Bits bits = huffman->bits;
    int wanted = blocks && huffman->column >= huffman->first_column && huffman->column <= huffman->last_column;
    for (int number = 0; number < jpeg->blocks_in_MCU; number++) {
        int component = jpeg->MCU_membership[number], end;
        const jpeg_component_info *info = jpeg->cur_comp_info[component];
        const Table *table = &huffman->ac[info->ac_tbl_no];
        int dc = huffman->last_dc[component] + take_dc(&bits, &huffman->dc[info->dc_tbl_no]);
        if (dc < -32768 || dc > 32767)
            huffman->on_damage(jpeg);
        huffman->last_dc[component] = dc;
        if (wanted)
            blocks[number][0][0] = (JCOEF)dc;
        if (wanted && SCALED_SIZE(info) > 1)
            end = take_ac(&bits, table, blocks[number][0]);
        else
            end = pass_ac(&bits, table);
        /* Within one block it cannot have read beyond the padding. */
        if (end > BLOCK || bits.next - (bits.have >> 3) > huffman->data + huffman->length)
            huffman->on_damage(jpeg);
    }
    huffman->bits = bits;
    if (++huffman->column == (int)jpeg->MCUs_per_row)
        huffman->column = 0;
    return TRUE;
}

/* Copies the entropy-coded segment without the zeros that are stuffed behind FF, up to the first marker; -1: no memory. */
static int unstuff(Huffman *huffman, const uint8_t *data, size_t length)
{
    const uint8_t *end = data + length;
    uint8_t *place;
    if (huffman->room < length + PADDING) {
        free(huffman->data);
        huffman->room = length + length / 2 + PADDING;
        huffman->data = malloc(huffman->room);
        if (!huffman->data) {
            huffman->room = 0;
            return -1;
        }
    }
    place = huffman->data;
    while (data < end) {
        const uint8_t *mark = memchr(data, 0xFF, (size_t)(end - data));
        size_t count = (size_t)((mark ? mark : end) - data);
        memcpy(place, data, count);
        place += count;
        if (!mark || mark + 1 >= end || mark[1] != 0)
            break;
        *place++ = 0xFF;
        data = mark + 2;
    }
    huffman->length = (size_t)(place - huffman->data);
    memset(place, 0, PADDING);
    return 0;
}

int huffman_take_over(
    Huffman *huffman, struct jpeg_decompress_struct *jpeg, int first_column, int last_column,
    void (*on_damage)(struct jpeg_decompress_struct *jpeg))
{
    /* Shared with libjpeg's headers by name only, and with its memory by address. */
    EntropyDecoder *decoder = (EntropyDecoder *)jpeg->entropy;
#ifndef LIBJPEG_TURBO_VERSION_NUMBER
    return 0;
#endif
    if (switched_off || jpeg->progressive_mode || jpeg->arith_code || jpeg->restart_interval
        || jpeg_has_multiple_scans(jpeg) || jpeg->data_precision != 8 || !decoder || !decoder->decode_mcu)
        return 0;
    for (int at = 0; at < jpeg->comps_in_scan; at++) {
        const jpeg_component_info *info = jpeg->cur_comp_info[at];
        if (info->dc_tbl_no < 0 || info->dc_tbl_no >= NUM_HUFF_TBLS || info->ac_tbl_no < 0
            || info->ac_tbl_no >= NUM_HUFF_TBLS
            || make_table(&huffman->dc[info->dc_tbl_no], jpeg->dc_huff_tbl_ptrs[info->dc_tbl_no], 1)
            || make_table(&huffman->ac[info->ac_tbl_no], jpeg->ac_huff_tbl_ptrs[info->ac_tbl_no], 0))
            return 0;
    }
    if (unstuff(huffman, jpeg->src->next_input_byte, jpeg->src->bytes_in_buffer))
        return 0;
    huffman->bits = (Bits){huffman->data, 0, 0};
    huffman->column = 0;
    memset(huffman->last_dc, 0, sizeof huffman->last_dc);
    huffman->first_column = first_column;
    huffman->last_column = last_column;
    huffman->on_damage = on_damage;
    jpeg->client_data = huffman;
    decoder->decode_mcu = decode_mcu;
    return 1;
}
