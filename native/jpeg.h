/* From the bytes of a JPEG file and a crop box to a small square picture, decoding no more than the crop needs. */
#ifndef STAGEWRIGHT_JPEG_H
#define STAGEWRIGHT_JPEG_H

#include "resize.h"

/* Why a picture was not done; whoever calls tries another decoder then. */
typedef enum {
    CROP_DONE = 0,
    CROP_UNUSUAL = 1,  /* not a JPEG of 8-bit grey, YCbCr or RGB, or not plainly upright (exact: not upright) */
    CROP_DAMAGED = 2,  /* libjpeg stopped or warned, or there is no end-of-image marker near the end */
    CROP_OUTSIDE = 3,  /* the box does not lie within the picture */
    CROP_NO_MEMORY = 4,
    CROP_UNREADABLE = 5 /* the file, by crop_files */
} CropResult;

typedef struct JpegCropper JpegCropper;

/* NULL where there is no memory. One cropper serves one thread, any number of pictures. */
JpegCropper *jpeg_cropper_new(void);
void jpeg_cropper_free(JpegCropper *cropper);

/* libjpeg's own version, e.g. 62, and that of libjpeg-turbo, e.g. 2001005. */
int jpeg_library_version(void);
int jpeg_turbo_version(void);

/*
 * Decodes the part `box` (in upright pixels, EXIF orientation applied) of the JPEG in `data` and resizes it to
 * size x size pixels of RGB in `out`. Unless `exact`, decodes at the smallest of 1/8, 1/4, 1/2 and 1 at which the box
 * still has size x size pixels; `exact` decodes at full size and resizes
 * as Pillow does, to the bit. Decoding ends at the last row that the box touches, so
 * damage below it is not noticed, but for a missing end of the file.
 */
CropResult jpeg_crop(
    JpegCropper *cropper, const uint8_t *data, size_t length, Box box, int size, Filter filter, int flip, int exact,
    uint8_t *out);

#endif
