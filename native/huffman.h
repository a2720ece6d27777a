/*
 * A faster entropy decoder for ordinary baseline JPEGs, put in the place of libjpeg-turbo's own.
 *
 * Entropy decoding is two thirds of what a crop costs. This one looks up a code and its value in one step, and passes
 * over blocks outside of the crop without making their values, several codes in one step. It gives the same coefficients;
 * whatever it finds wrong is left to a slower and more patient decoder.
 */
#ifndef STAGEWRIGHT_HUFFMAN_H
#define STAGEWRIGHT_HUFFMAN_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <jpeglib.h>

typedef struct Huffman Huffman;

/* NULL where there is no memory. */
Huffman *huffman_new(void);
void huffman_free(Huffman *huffman);

/*
 * Takes over the entropy decoding of `jpeg`, for which jpeg_start_decompress has been called and nothing read yet, if it
 * is of a kind that this decoder knows; else leaves it as it is. Columns of MCUs outside of first_column..last_column
 * are passed over: their coefficients are undefined. `on_damage` is called with `jpeg` where the data is damaged, and
 * must not return. `huffman` must stay for as long as `jpeg` is read. Returns whether it took over.
 */
int huffman_take_over(
    Huffman *huffman, struct jpeg_decompress_struct *jpeg, int first_column, int last_column,
    void (*on_damage)(struct jpeg_decompress_struct *jpeg));

/* For tests: 1 leaves every file to libjpeg-turbo's own decoder. */
void huffman_switch_off(int off);

#endif
