#ifndef _WIN32
#define _POSIX_C_SOURCE 200809L
#endif
#include "file.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#ifndef _WIN32
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

/* Larger files, pipes and devices are left to Python, which refuses them with the reason. */
#define MOST_BYTES (1 << 30)

static int make_room(FileReader *reader, size_t size)
{
    uint8_t *memory;
    if (reader->room >= size)
        return 0;
    size += size / 2;
    memory = realloc(reader->memory, size);
    if (!memory)
        return -1;
    reader->memory = memory;
    reader->room = size;
    return 0;
}

#ifdef _WIN32

static double now(void)
{
    return (double)clock() / CLOCKS_PER_SEC;
}

static int read_all(FileReader *reader, const char *path)
{
    FILE *file = fopen(path, "rb");
    size_t got;
    int failed;
    if (!file)
        return -1;
    do {
        if (make_room(reader, reader->length + (1 << 18))) {
            fclose(file);
            return -1;
        }
        got = fread(reader->memory + reader->length, 1, reader->room - reader->length, file);
        reader->length += got;
    } while (got);
    failed = ferror(file);
    fclose(file);
    return failed ? -1 : 0;
}

#else

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static int read_all(FileReader *reader, const char *path)
{
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe without a writer would keep open() waiting */
    struct stat status;
    ssize_t got = -1;
    if (file < 0)
        return -1;
    if (!fstat(file, &status) && S_ISREG(status.st_mode) && status.st_size <= MOST_BYTES
        && !make_room(reader, (size_t)status.st_size + 1))
        do {
            if (reader->length == reader->room && make_room(reader, reader->room + (1 << 18))) {
                got = -1;
                break;
            }
            got = read(file, reader->memory + reader->length, reader->room - reader->length);
            reader->length += got > 0 ? (size_t)got : 0;
        } while (got > 0);
    close(file);
    return got < 0 ? -1 : 0;
}

#endif

int file_read(FileReader *reader, const char *path)
{
    double began = now();
    int failed;
    reader->length = 0;
    failed = read_all(reader, path);
    reader->seconds += now() - began;
    return failed;
}

void file_reader_free(FileReader *reader)
{
    free(reader->memory);
    reader->memory = NULL;
    reader->room = 0;
}
