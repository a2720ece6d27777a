/* Whole files into memory that is used again and again. */
#ifndef STAGEWRIGHT_FILE_H
#define STAGEWRIGHT_FILE_H

#include <stddef.h>
#include <stdint.h>

/* Begins as zeros, ends with file_reader_free. */
typedef struct {
    uint8_t *memory;
    size_t length; /* bytes of the file that was read last */
    size_t room;
    double seconds; /* spent in file_read so far */
} FileReader;

/* Returns 0, or -1 where the file cannot be read or there is no memory. */
int file_read(FileReader *reader, const char *path);

void file_reader_free(FileReader *reader);

#endif
