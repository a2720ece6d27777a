#include "jpeg.h"

#include "huffman.h"

#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#include <jerror.h>

/* Larger pictures are left to Pillow, which refuses those that only exist to fill the memory. */
#define MOST_PIXELS 178956970
/* A progressive file may hold any number of scans of a few bytes, each of which costs a pass over all of the picture. */
#define MOST_SCANS 100
/* How far from the end of the file the end-of-image marker may stand: some cameras write a little behind it. */
#define TAIL 4096
/* Upsampling of colour looks at its neighbours, so columns decoded alone begin and end a little outside of the box. */
#define MARGIN 4

#if JPEG_LIB_VERSION >= 70
#define MIN_SCALED_SIZE(jpeg) ((jpeg)->min_DCT_h_scaled_size)
#else
#define MIN_SCALED_SIZE(jpeg) ((jpeg)->min_DCT_scaled_size)
#endif

/* The first two members are what libjpeg knows; its callbacks find the rest by the same address. */
typedef struct {
    struct jpeg_error_mgr base;
    jmp_buf escape;
    int warnings;
} Errors;

typedef struct {
    struct jpeg_progress_mgr base;
} Progress;

struct JpegCropper {
    struct jpeg_decompress_struct jpeg;
    Errors errors;
    Progress progress;
    Scratch pixels, resizing;
    Huffman *huffman;
    uint8_t *tile;
    size_t tile_size;
};

/* How upright pixels lie in the file: coordinates swapped first, then mirrored. */
typedef struct {
    int swap, mirror_x, mirror_y;
} Turn;

static const Turn TURNS[9] = {
    {0, 0, 0}, {0, 0, 0}, {0, 1, 0}, {0, 1, 1}, {0, 0, 1}, {1, 0, 0}, {1, 0, 1}, {1, 1, 1}, {1, 1, 0},
};

static void on_error(j_common_ptr jpeg)
{
    longjmp(((Errors *)jpeg->err)->escape, 1);
}

static void on_message(j_common_ptr jpeg, int level)
{
    if (level < 0)
        ((Errors *)jpeg->err)->warnings++;
}

static void on_output(j_common_ptr jpeg)
{
    (void)jpeg;
}

static void on_progress(j_common_ptr jpeg)
{
    if (jpeg->is_decompressor && ((j_decompress_ptr)jpeg)->input_scan_number > MOST_SCANS)
        longjmp(((Errors *)jpeg->err)->escape, 1);
}

static void on_damage(struct jpeg_decompress_struct *jpeg)
{
    longjmp(((Errors *)jpeg->err)->escape, 1);
}

JpegCropper *jpeg_cropper_new(void)
{
    JpegCropper *cropper = calloc(1, sizeof *cropper);
    if (!cropper)
        return NULL;
    cropper->huffman = huffman_new();
    if (!cropper->huffman) {
        free(cropper);
        return NULL;
    }
    cropper->jpeg.err = jpeg_std_error(&cropper->errors.base);
    cropper->errors.base.error_exit = on_error;
    cropper->errors.base.emit_message = on_message;
    cropper->errors.base.output_message = on_output;
    cropper->progress.base.progress_monitor = on_progress;
    return cropper;
}

void jpeg_cropper_free(JpegCropper *cropper)
{
    if (!cropper)
        return;
    scratch_free(&cropper->pixels);
    scratch_free(&cropper->resizing);
    huffman_free(cropper->huffman);
    free(cropper->tile);
    free(cropper);
}

int jpeg_library_version(void)
{
    return JPEG_LIB_VERSION;
}

int jpeg_turbo_version(void)
{
#ifdef LIBJPEG_TURBO_VERSION_NUMBER
    return LIBJPEG_TURBO_VERSION_NUMBER;
#else
    return 0;
#endif
}

static unsigned read_16(const uint8_t *at, int little)
{
    return little ? at[0] | (unsigned)at[1] << 8 : (unsigned)at[0] << 8 | at[1];
}

static uint32_t read_32(const uint8_t *at, int little)
{
    return little ? read_16(at, 1) | (uint32_t)read_16(at + 2, 1) << 16
                  : (uint32_t)read_16(at, 0) << 16 | read_16(at + 2, 0);
}

/* The EXIF orientation, 1 to 8, in a TIFF block; 0 where it is not plainly stated, 1 where there is none. */
static int tiff_orientation(const uint8_t *tiff, size_t length)
{
    int little;
    uint32_t directory;
    unsigned entries;
    if (length < 8)
        return 0;
    little = tiff[0] == 'I' && tiff[1] == 'I';
    if (!little && !(tiff[0] == 'M' && tiff[1] == 'M'))
        return 0;
    directory = read_32(tiff + 4, little);
    if (directory < 8 || directory > length - 2)
        return 0;
    entries = read_16(tiff + directory, little);
    if ((length - directory - 2) / 12 < entries)
        return 0;
    for (unsigned entry = 0; entry < entries; entry++) {
        const uint8_t *at = tiff + directory + 2 + 12 * (size_t)entry;
        if (read_16(at, little) != 0x0112)
            continue;
        if (read_16(at + 2, little) != 3 || read_32(at + 4, little) != 1)
            return 0;
        unsigned value = read_16(at + 8, little);
        return value >= 1 && value <= 8 ? (int)value : 0;
    }
    return 1;
}

static int contains(const uint8_t *data, size_t length, const char *word)
{
    size_t size = strlen(word);
    for (size_t at = 0; at + size <= length; at++)
        if (data[at] == (uint8_t)word[0] && !memcmp(data + at, word, size))
            return 1;
    return 0;
}

/* As tiff_orientation, from the application markers of the file: one EXIF block, else none that XMP gives instead. */
static int orientation(struct jpeg_decompress_struct *jpeg)
{
    int found = 1, blocks = 0;
    for (jpeg_saved_marker_ptr marker = jpeg->marker_list; marker; marker = marker->next) {
        if (marker->data_length >= 6 && !memcmp(marker->data, "Exif\0", 5)) {
            if (++blocks > 1)
                return 0;
            found = tiff_orientation(marker->data + 6, marker->data_length - 6);
        } else if (contains(marker->data, marker->data_length, "Orientation")) {
            return 0;
        }
    }
    return found;
}

static int has_end(const uint8_t *data, size_t length)
{
    size_t stop = length > TAIL ? length - TAIL : 0;
    for (size_t at = length; at >= stop + 2; at--)
        if (data[at - 2] == 0xFF && data[at - 1] == JPEG_EOI)
            return 1;
    return 0;
}

static Box turned(Box box, Turn turn, double width, double height)
{
    Box result = box;
    if (turn.swap) {
        result.left = box.top;
        result.right = box.bottom;
        result.top = box.left;
        result.bottom = box.right;
    }
    box = result;
    if (turn.mirror_x) {
        result.left = width - box.right;
        result.right = width - box.left;
    }
    if (turn.mirror_y) {
        result.top = height - box.bottom;
        result.bottom = height - box.top;
    }
    return result;
}

/* `tile` as it lies in the file to `out` upright, mirrored left to right where `flip` is set. */
static void turn_tile(const uint8_t *tile, Turn turn, int size, int flip, uint8_t *out)
{
    for (int y = 0; y < size; y++)
        for (int x = 0; x < size; x++, out += 3) {
            int upright_x = flip ? size - 1 - x : x;
            int source_x = turn.swap ? y : upright_x, source_y = turn.swap ? upright_x : y;
            source_x = turn.mirror_x ? size - 1 - source_x : source_x;
            source_y = turn.mirror_y ? size - 1 - source_y : source_y;
            memcpy(out, tile + 3 * ((size_t)source_y * size + source_x), 3);
        }
}

static int clamp(double value, int low, int high)
{
    return value < low ? low : value > high ? high : (int)value;
}

/* Puts the faster entropy decoder in place, told of the MCU columns that libjpeg will use after jpeg_crop_scanline. */
static void take_entropy(JpegCropper *cropper, JDIMENSION offset)
{
    struct jpeg_decompress_struct *jpeg = &cropper->jpeg;
    int across = jpeg->num_components == 1 ? 1 : jpeg->max_h_samp_factor;
    int width = MIN_SCALED_SIZE(jpeg) * across;
    int last = ((int)(offset + jpeg->output_width) + width - 1) / width - 1;
    huffman_take_over(cropper->huffman, jpeg, (int)offset / width, last, on_damage);
}

/* Decodes what `box` (in pixels of the file, already scaled) touches; its coordinates then belong to the result. */
static CropResult decode_box(JpegCropper *cropper, Box *box, Picture *picture)
{
    struct jpeg_decompress_struct *jpeg = &cropper->jpeg;
    JDIMENSION offset, columns, first_row;
    int left, right, top, bottom;
    uint8_t *pixels;

    left = clamp(floor(box->left), 0, (int)jpeg->output_width - 1);
    right = clamp(ceil(box->right), left + 1, (int)jpeg->output_width);
    top = clamp(floor(box->top), 0, (int)jpeg->output_height - 1);
    bottom = clamp(ceil(box->bottom), top + 1, (int)jpeg->output_height);

    offset = left > MARGIN ? left - MARGIN : 0;
    columns = (right + MARGIN < (int)jpeg->output_width ? right + MARGIN : (int)jpeg->output_width) - offset;
    if (columns < jpeg->output_width)
        jpeg_crop_scanline(jpeg, &offset, &columns);
    else
        offset = 0;
    take_entropy(cropper, offset);

    picture->stride = 3 * (size_t)jpeg->output_width;
    pixels = scratch_take(&cropper->pixels, picture->stride * (size_t)(bottom - top));
    if (!pixels)
        return CROP_NO_MEMORY;
    first_row = jpeg_skip_scanlines(jpeg, (JDIMENSION)top);
    if (first_row != (JDIMENSION)top)
        return CROP_DAMAGED;
    while (jpeg->output_scanline < (JDIMENSION)bottom) {
        JSAMPROW row = pixels + picture->stride * (jpeg->output_scanline - (JDIMENSION)top);
        if (jpeg_read_scanlines(jpeg, &row, 1) != 1)
            return CROP_DAMAGED;
    }
    picture->pixels = pixels;
    picture->width = (int)jpeg->output_width;
    picture->height = bottom - top;
    box->left = fmax(box->left, left) - offset;
    box->right = fmin(box->right, right) - offset;
    box->top = fmax(box->top, top) - top;
    box->bottom = fmin(box->bottom, bottom) - top;
    return CROP_DONE;
}

static int inside(Box box, double width, double height)
{
    const double slack = 1e-3;
    return box.left >= -slack && box.top >= -slack && box.right <= width + slack && box.bottom <= height + slack
        && box.left < box.right && box.top < box.bottom && box.left < width && box.top < height && box.right > 0.0
        && box.bottom > 0.0;
}

static Box clipped(Box box, double width, double height)
{
    Box result = {fmax(box.left, 0.0), fmax(box.top, 0.0), fmin(box.right, width), fmin(box.bottom, height)};
    return result;
}

/* From decoded pixels to the upright result. */
static CropResult finish(
    JpegCropper *cropper, Picture picture, Box box, int turned_by, int size, Filter filter, int flip, int exact,
    uint8_t *out)
{
    int upright = turned_by == 1;
    uint8_t *target = upright ? out : cropper->tile;
    if ((exact ? resize_crop_exact : resize_crop)(
            picture, box, size, filter, upright && flip, target, &cropper->resizing))
        return CROP_NO_MEMORY;
    if (!upright)
        turn_tile(cropper->tile, TURNS[turned_by], size, flip, out);
    return CROP_DONE;
}

/* Everything that may jump to the caller's setjmp; nothing here owns memory that would be lost by it. */
static CropResult crop(
    JpegCropper *cropper, const uint8_t *data, size_t length, Box box, int size, Filter filter, int flip, int exact,
    uint8_t *out)
{
    struct jpeg_decompress_struct *jpeg = &cropper->jpeg;
    Picture picture;
    CropResult result;
    Turn turn;
    int turned_by, scale;
    double width, height;

    /*
     * A new one for each picture: libjpeg keeps tables for the pictures that follow, so that a file which has lost its
     * own would be decoded with those of whichever picture came before it.
     */
    jpeg_create_decompress(jpeg);
    jpeg->progress = &cropper->progress.base;
    jpeg_save_markers(jpeg, JPEG_APP0 + 1, 0xFFFF);
    jpeg_mem_src(jpeg, data, (unsigned long)length);
    if (jpeg_read_header(jpeg, TRUE) != JPEG_HEADER_OK)
        return CROP_UNUSUAL;
    if ((double)jpeg->image_width * jpeg->image_height > MOST_PIXELS || jpeg->data_precision != 8)
        return CROP_UNUSUAL;
    if (jpeg->jpeg_color_space != JCS_GRAYSCALE && jpeg->jpeg_color_space != JCS_YCbCr
        && jpeg->jpeg_color_space != JCS_RGB)
        return CROP_UNUSUAL;
    turned_by = orientation(jpeg);
    /* Resized before it is turned, a picture is rounded in another order: not to the bit what was asked for. */
    if (!turned_by || (exact && turned_by != 1))
        return CROP_UNUSUAL;
    turn = TURNS[turned_by];
    width = turn.swap ? jpeg->image_height : jpeg->image_width;
    height = turn.swap ? jpeg->image_width : jpeg->image_height;
    if (!inside(box, width, height))
        return CROP_OUTSIDE;
    box = turned(clipped(box, width, height), turn, jpeg->image_width, jpeg->image_height);
    /* Mirrored, a box thinner than the numbers are fine at its new place has nothing left between its edges. */
    if (!(box.left < box.right && box.top < box.bottom))
        return CROP_OUTSIDE;

    scale = 1;
    if (!exact)
        while (scale < 8 && fmin(box.right - box.left, box.bottom - box.top) >= 2.0 * scale * size)
            scale *= 2;
    jpeg->scale_num = 1;
    jpeg->scale_denom = (unsigned)scale;
    jpeg->out_color_space = JCS_RGB;
    jpeg->dct_method = JDCT_ISLOW;
    jpeg->do_fancy_upsampling = TRUE;
    jpeg_start_decompress(jpeg);
    box.left /= scale;
    box.right /= scale;
    box.top /= scale;
    box.bottom /= scale;
    result = decode_box(cropper, &box, &picture);
    if (result != CROP_DONE)
        return result;
    if (cropper->errors.warnings)
        return CROP_DAMAGED;
    return finish(cropper, picture, box, turned_by, size, filter, flip, exact, out);
}

CropResult jpeg_crop(
    JpegCropper *cropper, const uint8_t *data, size_t length, Box box, int size, Filter filter, int flip, int exact,
    uint8_t *out)
{
    volatile CropResult result = CROP_DAMAGED;
    size_t tile_size = 3 * (size_t)size * size;
    if (length < 4 || data[0] != 0xFF || data[1] != 0xD8)
        return CROP_UNUSUAL;
    if (!has_end(data, length))
        return CROP_DAMAGED;
    if (cropper->tile_size < tile_size) {
        free(cropper->tile);
        cropper->tile = malloc(tile_size);
        cropper->tile_size = cropper->tile ? tile_size : 0;
        if (!cropper->tile)
            return CROP_NO_MEMORY;
    }
    cropper->errors.warnings = 0;
    if (!setjmp(cropper->errors.escape))
        result = crop(cropper, data, length, box, size, filter, flip, exact, out);
    /* Not finish: rows below the box are never decoded. */
    jpeg_destroy_decompress(&cropper->jpeg);
    return result;
}
