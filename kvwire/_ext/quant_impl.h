/* Lossy codecs: the numbers of a cell as codes of a few bits, and scales. The format is in docs/compression.md. */
#ifndef KVWIRE_QUANT_IMPL_H
#define KVWIRE_QUANT_IMPL_H

#include "codec_impl.h"

enum {
    KVWIRE_QUANT_TOKENS = 32, /* most rows that share scales */
    KVWIRE_QUANT_FEWEST = 8,  /* fewer rows than these have scales along the row: one for each number would be no gain */
    KVWIRE_QUANT_GROUP = 32,  /* numbers of a row that share a scale, as KIVI has it */
};

enum { KVWIRE_SYMMETRIC, KVWIRE_RANGE, KVWIRE_E4M3, KVWIRE_DELTA };

typedef struct {
    uint8_t bits;
    uint8_t kind;
} kvwire_quant_t;

/* For codec_t: `provider` is a kvwire_quant_t. */
long long kvwire_quant_encode(const kvwire_codec_t *c, const kvwire_cell_t *cell, const uint8_t *src, size_t n,
                              uint8_t *dst, size_t capacity, kvwire_scratch_t *scratch);
int kvwire_quant_decode(const kvwire_codec_t *c, const kvwire_cell_t *cell, const uint8_t *src, size_t length,
                        uint8_t *dst, size_t n, kvwire_scratch_t *scratch);

#endif
