/* A preloaded library that makes file operations below one folder fail, as a disk or a mount does.

   Every operation below the folder is counted, reads and writes apart; the k-th of a kind fails with an errno, and so do the
   next ones, up to a number of times. With errno 0 a read returns half of what was asked for. Loaded by benchmarks/storm.py. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { READS = 0, WRITES = 1, FILES = 4096 };

static char prefix[4096];
static char suffix[256];
static long counted[2], first[2] = {-1, -1}, times;
static int code;
static unsigned char below[FILES];

void failing_io_arm(const char *folder, const char *ending, int kind, long k, int error, long how_often) {
    snprintf(prefix, sizeof prefix, "%s", folder);
    snprintf(suffix, sizeof suffix, "%s", ending);
    counted[READS] = counted[WRITES] = 0;
    first[READS] = first[WRITES] = -1;
    first[kind] = k;
    code = error;
    times = how_often;
}

long failing_io_count(int kind) { return counted[kind]; }

static int concerns(const char *path) {
    size_t length = strlen(prefix), end = strlen(suffix), own = path ? strlen(path) : 0;
    return length && own >= length && !strncmp(path, prefix, length) && own >= end &&
           !strcmp(path + own - end, suffix);
}

/* Whether the operation that comes now is to fail. */
static int fails(int kind) {
    long number = ++counted[kind];
    return first[kind] > 0 && number >= first[kind] && number < first[kind] + times;
}

#define REAL(name) ((__typeof__(name) *)dlsym(RTLD_NEXT, #name))
#define FAIL_IF(kind, result)          \
    do {                               \
        if (fails(kind) && code) {     \
            errno = code;              \
            return result;             \
        }                              \
    } while (0)

static int opened(int descriptor, const char *path) {
    if (descriptor >= 0 && descriptor < FILES) below[descriptor] = concerns(path);
    return descriptor;
}

static int is_below(int descriptor) { return descriptor >= 0 && descriptor < FILES && below[descriptor]; }

#define OPEN(name)                                                                          \
    int name(const char *path, int flags, ...) {                                            \
        va_list rest;                                                                       \
        va_start(rest, flags);                                                              \
        int mode = va_arg(rest, int);                                                       \
        va_end(rest);                                                                       \
        if (concerns(path)) FAIL_IF(flags & (O_WRONLY | O_RDWR | O_CREAT) ? WRITES : READS, -1); \
        return opened(REAL(name)(path, flags, mode), path);                                 \
    }
OPEN(open)
OPEN(open64)

#define FOPEN(name)                                                             \
    FILE *name(const char *path, const char *mode) {                            \
        if (concerns(path)) FAIL_IF(mode[0] == 'r' ? READS : WRITES, NULL);     \
        FILE *file = REAL(name)(path, mode);                                    \
        if (file) opened(fileno(file), path);                                   \
        return file;                                                            \
    }
FOPEN(fopen)
FOPEN(fopen64)

int close(int descriptor) {
    if (descriptor >= 0 && descriptor < FILES) below[descriptor] = 0;
    return REAL(close)(descriptor);
}

#define READ(name, signature, call)                           \
    ssize_t name signature {                                  \
        if (is_below(descriptor) && fails(READS)) {           \
            if (code) {                                       \
                errno = code;                                 \
                return -1;                                    \
            }                                                 \
            count = count > 1 ? count / 2 : count;            \
        }                                                     \
        return REAL(name) call;                               \
    }
READ(read, (int descriptor, void *to, size_t count), (descriptor, to, count))
READ(pread, (int descriptor, void *to, size_t count, off_t at), (descriptor, to, count, at))
READ(pread64, (int descriptor, void *to, size_t count, off64_t at), (descriptor, to, count, at))

size_t fread(void *to, size_t size, size_t count, FILE *file) {
    if (is_below(fileno(file))) FAIL_IF(READS, 0);
    return REAL(fread)(to, size, count, file);
}

#define WRITE(name, signature, call)                          \
    ssize_t name signature {                                  \
        if (is_below(descriptor)) FAIL_IF(WRITES, -1);        \
        return REAL(name) call;                               \
    }
WRITE(write, (int descriptor, const void *from, size_t count), (descriptor, from, count))
WRITE(pwrite, (int descriptor, const void *from, size_t count, off_t at), (descriptor, from, count, at))
WRITE(pwrite64, (int descriptor, const void *from, size_t count, off64_t at), (descriptor, from, count, at))

#define ON_DESCRIPTOR(name, signature, call)                  \
    int name signature {                                      \
        if (is_below(descriptor)) FAIL_IF(WRITES, -1);        \
        return REAL(name) call;                               \
    }
ON_DESCRIPTOR(fsync, (int descriptor), (descriptor))
ON_DESCRIPTOR(ftruncate, (int descriptor, off_t size), (descriptor, size))
ON_DESCRIPTOR(ftruncate64, (int descriptor, off64_t size), (descriptor, size))

#define ON_PATH(name, signature, call)                        \
    int name signature {                                      \
        if (concerns(path)) FAIL_IF(WRITES, -1);              \
        return REAL(name) call;                               \
    }
ON_PATH(rename, (const char *from, const char *path), (from, path))
ON_PATH(mkdir, (const char *path, mode_t mode), (path, mode))
ON_PATH(unlink, (const char *path), (path))
ON_PATH(truncate, (const char *path, off_t size), (path, size))
ON_PATH(truncate64, (const char *path, off64_t size), (path, size))
