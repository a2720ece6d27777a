/* stagewright.data._native: crops of many JPEG or raw pictures in one call, without the interpreter lock. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <string.h>

#include "file.h"
#include "huffman.h"
#include "jpeg.h"

/* Arrays of a call, as the buffers that Python gave; released together. */
enum { WHICH, OFFSETS, LENGTHS, BOXES, FLIPS, OUT, SIZES, ARRAYS };

typedef struct {
    Py_buffer arrays[ARRAYS];
    int held[ARRAYS];
    Py_buffer *sources;
    Py_ssize_t num_sources, count;
    int size;
    Filter filter;
} Call;

static void release(Call *call)
{
    for (int at = 0; at < ARRAYS; at++)
        if (call->held[at])
            PyBuffer_Release(&call->arrays[at]);
    for (Py_ssize_t at = 0; at < call->num_sources; at++)
        PyBuffer_Release(&call->sources[at]);
    PyMem_Free(call->sources);
}

static int hold(Call *call, int at, PyObject *object, Py_ssize_t bytes, const char *name, int writable)
{
    if (PyObject_GetBuffer(object, &call->arrays[at], writable ? PyBUF_WRITABLE : PyBUF_SIMPLE))
        return -1;
    call->held[at] = 1;
    if (call->arrays[at].len != bytes) {
        PyErr_Format(PyExc_ValueError, "%s has %zd bytes and needs %zd", name, call->arrays[at].len, bytes);
        return -1;
    }
    return 0;
}

static int hold_sources(Call *call, PyObject *sequence)
{
    Py_ssize_t count = PySequence_Size(sequence);
    if (count < 0)
        return -1;
    call->sources = PyMem_Malloc(sizeof(Py_buffer) * (count ? count : 1));
    if (!call->sources) {
        PyErr_NoMemory();
        return -1;
    }
    for (; call->num_sources < count; call->num_sources++) {
        PyObject *item = PySequence_GetItem(sequence, call->num_sources);
        int failed = !item || PyObject_GetBuffer(item, &call->sources[call->num_sources], PyBUF_SIMPLE);
        Py_XDECREF(item);
        if (failed)
            return -1;
    }
    return 0;
}

/* Arguments that both functions share; -1 with an exception set where they do not fit together. */
static int begin(
    Call *call, PyObject *sources, PyObject *which, PyObject *offsets, PyObject *lengths, PyObject *boxes,
    PyObject *flips, int size, int filter, PyObject *out)
{
    Py_ssize_t count;
    if (size < 1 || size > 16384 || (filter != FILTER_BILINEAR && filter != FILTER_BICUBIC)) {
        PyErr_SetString(PyExc_ValueError, "size must be 1 to 16384 and filter 0 (bilinear) or 1 (bicubic)");
        return -1;
    }
    if (PyObject_GetBuffer(which, &call->arrays[WHICH], PyBUF_SIMPLE))
        return -1;
    call->held[WHICH] = 1;
    count = call->arrays[WHICH].len / (Py_ssize_t)sizeof(int32_t);
    call->count = count;
    call->size = size;
    call->filter = (Filter)filter;
    if (count > PY_SSIZE_T_MAX / ((Py_ssize_t)3 * size * size)) {
        PyErr_SetString(PyExc_ValueError, "too many pictures for one call");
        return -1;
    }
    if (hold_sources(call, sources) || hold(call, OFFSETS, offsets, count * 8, "offsets (int64)", 0)
        || hold(call, LENGTHS, lengths, count * 8, "lengths (int64)", 0)
        || hold(call, BOXES, boxes, count * 32, "boxes (float64, four each)", 0)
        || hold(call, FLIPS, flips, count, "flips (bool)", 0)
        || hold(call, OUT, out, count * 3 * size * size, "out (uint8)", 1))
        return -1;
    for (Py_ssize_t at = 0; at < count; at++) {
        int32_t source = ((int32_t *)call->arrays[WHICH].buf)[at];
        int64_t offset = ((int64_t *)call->arrays[OFFSETS].buf)[at];
        int64_t length = ((int64_t *)call->arrays[LENGTHS].buf)[at];
        if (source < 0 || source >= call->num_sources || offset < 0 || length < 0
            || length > call->sources[source].len || offset > call->sources[source].len - length) {
            PyErr_Format(PyExc_ValueError, "picture %zd does not lie within its source", at);
            return -1;
        }
    }
    return 0;
}

static const uint8_t *data_of(const Call *call, Py_ssize_t at)
{
    int32_t source = ((int32_t *)call->arrays[WHICH].buf)[at];
    return (const uint8_t *)call->sources[source].buf + ((int64_t *)call->arrays[OFFSETS].buf)[at];
}

static size_t length_of(const Call *call, Py_ssize_t at)
{
    return (size_t)((int64_t *)call->arrays[LENGTHS].buf)[at];
}

static Box box_of(const Call *call, Py_ssize_t at)
{
    const double *edges = (const double *)call->arrays[BOXES].buf + 4 * at;
    Box box = {edges[0], edges[1], edges[2], edges[3]};
    return box;
}

static uint8_t *out_of(const Call *call, Py_ssize_t at)
{
    return (uint8_t *)call->arrays[OUT].buf + (size_t)at * 3 * call->size * call->size;
}

static int flip_of(const Call *call, Py_ssize_t at)
{
    return ((const uint8_t *)call->arrays[FLIPS].buf)[at] != 0;
}

PyDoc_STRVAR(
    crop_jpegs_doc,
    "crop_jpegs(sources, which, offsets, lengths, boxes, flips, size, filter, exact, out) -> bytes\n\n"
    "Fills out, uint8 (N, size, size, 3), with the parts boxes, float64 (N, 4), of N JPEG files: the bytes\n"
    "offsets[i] to offsets[i] + lengths[i] (int64) of sources[which[i]] (int32). Returns a byte for each: 0 done,\n"
    "1 not a JPEG of a usual kind, 2 damaged, 3 the box lies outside, 4 no memory; out is undefined where not 0.");

static PyObject *crop_jpegs(PyObject *module, PyObject *arguments)
{
    PyObject *sources, *which, *offsets, *lengths, *boxes, *flips, *out, *codes = NULL;
    int size, filter, exact;
    Call call = {0};
    JpegCropper *cropper = NULL;
    char *code;
    (void)module;
    if (!PyArg_ParseTuple(
            arguments, "OOOOOOiipO", &sources, &which, &offsets, &lengths, &boxes, &flips, &size, &filter, &exact, &out))
        return NULL;
    if (begin(&call, sources, which, offsets, lengths, boxes, flips, size, filter, out))
        goto end;
    codes = PyBytes_FromStringAndSize(NULL, call.count);
    if (!codes)
        goto end;
    code = PyBytes_AsString(codes);
    Py_BEGIN_ALLOW_THREADS
    cropper = jpeg_cropper_new();
    for (Py_ssize_t at = 0; at < call.count; at++)
        code[at] = cropper ? (char)jpeg_crop(
                                 cropper, data_of(&call, at), length_of(&call, at), box_of(&call, at), size, call.filter,
                                 flip_of(&call, at), exact, out_of(&call, at))
                           : CROP_NO_MEMORY;
    jpeg_cropper_free(cropper);
    Py_END_ALLOW_THREADS
end:
    release(&call);
    return codes;
}

PyDoc_STRVAR(
    crop_files_doc,
    "crop_files(paths, boxes, flips, size, filter, exact, out) -> (bytes, float)\n\n"
    "As crop_jpegs for whole files, read here: paths is a list of bytes, as os.fsencode gives them. Code 5: the file could\n"
    "not be read. Also returns the seconds that reading took.");

static PyObject *crop_files(PyObject *module, PyObject *arguments)
{
    PyObject *paths, *boxes, *flips, *out, *codes = NULL, *result = NULL;
    int size, filter, exact;
    Call call = {0};
    JpegCropper *cropper = NULL;
    FileReader reader = {0};
    const char **names = NULL;
    char *code;
    (void)module;
    if (!PyArg_ParseTuple(
            arguments, "O!OOiipO", &PyList_Type, &paths, &boxes, &flips, &size, &filter, &exact, &out))
        return NULL;
    call.count = PyList_Size(paths);
    call.size = size;
    call.filter = (Filter)filter;
    if (size < 1 || size > 16384 || (filter != FILTER_BILINEAR && filter != FILTER_BICUBIC)
        || call.count > PY_SSIZE_T_MAX / ((Py_ssize_t)3 * size * size)) {
        PyErr_SetString(PyExc_ValueError, "size must be 1 to 16384 and filter 0 (bilinear) or 1 (bicubic)");
        return NULL;
    }
    names = PyMem_Malloc(sizeof *names * (call.count ? call.count : 1));
    if (!names)
        return PyErr_NoMemory();
    paths = PyList_GetSlice(paths, 0, call.count); /* of our own, so that the names stay while the lock is given up */
    if (!paths)
        goto end;
    for (Py_ssize_t at = 0; at < call.count; at++) {
        names[at] = PyBytes_AsString(PyList_GetItem(paths, at));
        if (!names[at])
            goto end;
    }
    if (hold(&call, BOXES, boxes, call.count * 32, "boxes (float64, four each)", 0)
        || hold(&call, FLIPS, flips, call.count, "flips (bool)", 0)
        || hold(&call, OUT, out, call.count * 3 * size * size, "out (uint8)", 1))
        goto end;
    codes = PyBytes_FromStringAndSize(NULL, call.count);
    if (!codes)
        goto end;
    code = PyBytes_AsString(codes);
    Py_BEGIN_ALLOW_THREADS
    cropper = jpeg_cropper_new();
    for (Py_ssize_t at = 0; at < call.count; at++) {
        if (!cropper)
            code[at] = CROP_NO_MEMORY;
        else if (file_read(&reader, names[at]))
            code[at] = CROP_UNREADABLE;
        else
            code[at] = (char)jpeg_crop(
                cropper, reader.memory, reader.length, box_of(&call, at), size, call.filter, flip_of(&call, at), exact,
                out_of(&call, at));
    }
    jpeg_cropper_free(cropper);
    Py_END_ALLOW_THREADS
    result = Py_BuildValue("Od", codes, reader.seconds);
end:
    file_reader_free(&reader);
    release(&call);
    PyMem_Free((void *)names);
    Py_XDECREF(paths);
    Py_XDECREF(codes);
    return result;
}

PyDoc_STRVAR(
    crop_raw_doc,
    "crop_raw(sources, which, offsets, sizes, boxes, flips, size, filter, exact, out) -> bytes\n\n"
    "As crop_jpegs for pictures of uint8 (height, width, 3); sizes is int32 (N, 2), width and height, 0 where\n"
    "there is no picture. Codes 0, 3, 4.");

static CropResult crop_one_raw(const Call *call, Py_ssize_t at, int exact, Scratch *scratch)
{
    const int32_t *sizes = (const int32_t *)call->arrays[SIZES].buf + 2 * at;
    Picture picture = {data_of(call, at), sizes[0], sizes[1], 3 * (size_t)sizes[0]};
    Box box = box_of(call, at);
    if (!(box.left >= 0 && box.top >= 0 && box.left < box.right && box.top < box.bottom && box.right <= sizes[0]
          && box.bottom <= sizes[1]))
        return CROP_OUTSIDE;
    return (exact ? resize_crop_exact : resize_crop)(
               picture, box, call->size, call->filter, flip_of(call, at), out_of(call, at), scratch)
        ? CROP_NO_MEMORY
        : CROP_DONE;
}

static PyObject *crop_raw(PyObject *module, PyObject *arguments)
{
    PyObject *sources, *which, *offsets, *sizes, *boxes, *flips, *out, *lengths = NULL, *codes = NULL;
    int size, filter, exact;
    Call call = {0};
    Scratch scratch = {0};
    Py_buffer view;
    char *code;
    (void)module;
    if (!PyArg_ParseTuple(
            arguments, "OOOOOOiipO", &sources, &which, &offsets, &sizes, &boxes, &flips, &size, &filter, &exact, &out))
        return NULL;
    /* The lengths follow from the sizes. */
    if (PyObject_GetBuffer(sizes, &view, PyBUF_SIMPLE))
        return NULL;
    lengths = PyByteArray_FromStringAndSize(NULL, view.len);
    for (Py_ssize_t at = 0; lengths && at < view.len / 8; at++) {
        const int32_t *pair = (const int32_t *)view.buf + 2 * at;
        int bad = pair[0] < 1 || pair[1] < 1 || pair[0] > 1 << 24 || pair[1] > 1 << 24;
        ((int64_t *)PyByteArray_AsString(lengths))[at] = bad ? 0 : (int64_t)3 * pair[0] * pair[1];
    }
    PyBuffer_Release(&view);
    if (!lengths)
        return NULL;
    if (begin(&call, sources, which, offsets, lengths, boxes, flips, size, filter, out)
        || hold(&call, SIZES, sizes, call.count * 8, "sizes (int32, two each)", 0))
        goto end;
    codes = PyBytes_FromStringAndSize(NULL, call.count);
    if (!codes)
        goto end;
    code = PyBytes_AsString(codes);
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t at = 0; at < call.count; at++)
        code[at] = (char)crop_one_raw(&call, at, exact, &scratch);
    scratch_free(&scratch);
    Py_END_ALLOW_THREADS
end:
    release(&call);
    Py_DECREF(lengths);
    return codes;
}

PyDoc_STRVAR(
    gather_doc,
    "gather(pictures, rows, shifts, flips, size, out)\n\n"
    "Copies the pictures rows, int64 (N,), of uint8 (M, size, size, 3) to out, seen through a window moved by shifts,\n"
    "int64 (N, 2), pixels right and down (black outside), and then mirrored left to right where flips, bool (N,), says.");

static void gather_one(const uint8_t *picture, int64_t right, int64_t down, int flip, int size, uint8_t *out)
{
    int begin = right < 0 ? (int)-right : 0, end = right > 0 ? size - (int)right : size;
    for (int y = 0; y < size; y++, out += 3 * (size_t)size) {
        int64_t row = y + down;
        const uint8_t *source;
        if (row < 0 || row >= size || begin >= end) {
            memset(out, 0, 3 * (size_t)size);
            continue;
        }
        source = picture + 3 * (size_t)(row * size + begin + right);
        if (!flip) {
            memset(out, 0, 3 * (size_t)begin);
            memcpy(out + 3 * (size_t)begin, source, 3 * (size_t)(end - begin));
            memset(out + 3 * (size_t)end, 0, 3 * (size_t)(size - end));
        } else {
            uint8_t *place = out + 3 * (size_t)(size - 1 - begin);
            memset(out, 0, 3 * (size_t)(size - end));
            for (int x = begin; x < end; x++, place -= 3, source += 3) {
                place[0] = source[0];
                place[1] = source[1];
                place[2] = source[2];
            }
            memset(out + 3 * (size_t)(size - begin), 0, 3 * (size_t)begin);
        }
    }
}

static PyObject *gather(PyObject *module, PyObject *arguments)
{
    PyObject *objects[5], *result = NULL;
    Py_buffer views[5];
    int size, held = 0;
    Py_ssize_t count, available, each;
    (void)module;
    if (!PyArg_ParseTuple(
            arguments, "OOOOiO", &objects[0], &objects[1], &objects[2], &objects[3], &size, &objects[4]))
        return NULL;
    if (size < 1 || size > 16384) {
        PyErr_SetString(PyExc_ValueError, "size must be 1 to 16384");
        return NULL;
    }
    for (; held < 5; held++)
        if (PyObject_GetBuffer(objects[held], &views[held], held == 4 ? PyBUF_WRITABLE : PyBUF_SIMPLE))
            goto end;
    each = (Py_ssize_t)3 * size * size;
    available = views[0].len / each;
    count = views[1].len / 8;
    if (views[2].len != count * 16 || views[3].len != count || views[4].len / each != count || views[4].len % each) {
        PyErr_SetString(PyExc_ValueError, "rows, shifts, flips and out do not fit together");
        goto end;
    }
    for (Py_ssize_t at = 0; at < count; at++) {
        int64_t row = ((int64_t *)views[1].buf)[at], *shift = (int64_t *)views[2].buf + 2 * at;
        if (row < 0 || row >= available || shift[0] < -size || shift[0] > size || shift[1] < -size || shift[1] > size) {
            PyErr_Format(PyExc_ValueError, "row or shift %zd is out of range", at);
            goto end;
        }
    }
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t at = 0; at < count; at++) {
        const int64_t *shift = (const int64_t *)views[2].buf + 2 * at;
        gather_one(
            (const uint8_t *)views[0].buf + ((int64_t *)views[1].buf)[at] * each, shift[0], shift[1],
            ((const uint8_t *)views[3].buf)[at] != 0, size, (uint8_t *)views[4].buf + at * each);
    }
    Py_END_ALLOW_THREADS
    result = Py_NewRef(Py_None);
end:
    for (int at = 0; at < held; at++)
        PyBuffer_Release(&views[at]);
    return result;
}

PyDoc_STRVAR(force_scalar_doc, "force_scalar(on): resize without vector instructions; for tests, the bits are the same.");

static PyObject *force_scalar(PyObject *module, PyObject *on)
{
    int scalar = PyObject_IsTrue(on);
    (void)module;
    if (scalar < 0)
        return NULL;
    resize_force_scalar(scalar);
    return Py_NewRef(Py_None);
}

PyDoc_STRVAR(
    library_entropy_doc, "library_entropy(on): leave entropy decoding to libjpeg-turbo; for tests, the pixels are the same.");

static PyObject *library_entropy(PyObject *module, PyObject *on)
{
    int off = PyObject_IsTrue(on);
    (void)module;
    if (off < 0)
        return NULL;
    huffman_switch_off(off);
    return Py_NewRef(Py_None);
}

PyDoc_STRVAR(info_doc, "info() -> (libjpeg's version, libjpeg-turbo's version or 0, \"avx2\" or \"scalar\")");

static PyObject *info(PyObject *module, PyObject *nothing)
{
    (void)module;
    (void)nothing;
    return Py_BuildValue("iis", jpeg_library_version(), jpeg_turbo_version(), resize_path());
}

static PyMethodDef methods[] = {
    {"crop_jpegs", crop_jpegs, METH_VARARGS, crop_jpegs_doc},
    {"crop_files", crop_files, METH_VARARGS, crop_files_doc},
    {"crop_raw", crop_raw, METH_VARARGS, crop_raw_doc},
    {"gather", gather, METH_VARARGS, gather_doc},
    {"force_scalar", force_scalar, METH_O, force_scalar_doc},
    {"library_entropy", library_entropy, METH_O, library_entropy_doc},
    {"info", info, METH_NOARGS, info_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_native", "Crops of many pictures in one call, without the interpreter lock.", 0, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&definition);
}
