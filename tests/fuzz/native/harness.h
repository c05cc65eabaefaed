/* What every harness has: bytes taken from the input, a check that ends the run, and what the driver lends it. */
#ifndef KVWIRE_FUZZ_HARNESS_H
#define KVWIRE_FUZZ_HARNESS_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

/* Set by the driver where KVWIRE_FUZZ_PLANT=1: the harness then has a bug in what it wraps, which it must find. */
extern int kvwire_fuzz_planted;

/* What the engine's recv() gives, in place of the kernel. */
typedef ssize_t (*fuzz_recv_t)(void *buffer, size_t room);
extern fuzz_recv_t kvwire_fuzz_recv;

typedef struct {
    const uint8_t *at;
    const uint8_t *end;
} input_t;

static inline size_t left(const input_t *in) { return (size_t)(in->end - in->at); }

/* Little-endian; what the input lacks is zero. */
static inline uint64_t take(input_t *in, size_t bytes)
{
    uint64_t value = 0;
    size_t n = left(in) < bytes ? left(in) : bytes;
    memcpy(&value, in->at, n);
    in->at += n;
    return value;
}

#define require(ok, what) \
    do { \
        if (!(ok)) { \
            fprintf(stderr, "FOUND: %s\n", what); \
            abort(); \
        } \
    } while (0)

#endif
