/* Antialiased resize of a part of an 8-bit RGB picture: separable triangle or cubic filter, widened by the scale. */
#ifndef STAGEWRIGHT_RESIZE_H
#define STAGEWRIGHT_RESIZE_H

#include <stddef.h>
#include <stdint.h>

typedef enum { FILTER_BILINEAR = 0, FILTER_BICUBIC = 1 } Filter;

/* 8-bit RGB pixels, rows `stride` bytes apart. Nothing outside of width x height is read. */
typedef struct {
    const uint8_t *pixels;
    int width, height;
    size_t stride;
} Picture;

/* Left, top, right, bottom in pixels, edges between pixels, fractions allowed. */
typedef struct {
    double left, top, right, bottom;
} Box;

/* Memory that grows as needed and serves one call after the other; begins as zeros, ends with scratch_free. */
typedef struct {
    void *memory;
    size_t size;
} Scratch;

void scratch_free(Scratch *scratch);

/* At least `size` bytes, aligned to 64; NULL where there is no memory. What was there before is lost. */
void *scratch_take(Scratch *scratch, size_t size);

/* Whether this machine has AVX2 and it may be used. */
int resize_has_avx2(void);

/* Which code resize_crop runs: "avx2" or "scalar". Both give the same bits. */
const char *resize_path(void);

/* For tests and benchmarks: 1 makes resize_crop take the scalar code on every machine. */
void resize_force_scalar(int scalar);

/*
 * Resizes the part `box` of `picture`, which must lie within it and not be empty, to size x size pixels in `out`
 * (size * size * 3 bytes), mirrored left to right where `flip` is set. The filter sees the pixels that the box touches
 * and no others. Everything after the weights is integer arithmetic, the same on every machine. Returns 0, or -1 where there is no memory.
 */
int resize_crop(Picture picture, Box box, int size, Filter filter, int flip, uint8_t *out, Scratch *scratch);

/* As resize_crop, bit by bit as Pillow resizes the pixels that the box touches. */
int resize_crop_exact(Picture picture, Box box, int size, Filter filter, int flip, uint8_t *out, Scratch *scratch);

#endif
