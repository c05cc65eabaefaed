/* Numbers of a cell to floats and back, codes of a few bits to bytes and back, and the codec that makes bf16 of fp32. */
#ifndef KVWIRE_NUMBERS_IMPL_H
#define KVWIRE_NUMBERS_IMPL_H

#include "codec_impl.h"

/* `count` numbers of BF16, FP16 or FP32 to floats; 0 where one of them is NaN or infinite. */
int kvwire_numbers_load(unsigned element, const uint8_t *src, size_t count, float *out);

/* The reverse. What is too large for the element becomes its largest; of NaN, which only a payload that is none can
 * give, something that means nothing. */
void kvwire_numbers_store(unsigned element, const float *from, size_t count, uint8_t *dst);

/* `count` codes of 2, 4 or 8 bits, a byte each, to (count * bits + 7) / 8 bytes: the first in the lowest bits. */
void kvwire_numbers_pack(unsigned bits, const uint8_t *codes, size_t count, uint8_t *out);
void kvwire_numbers_unpack(unsigned bits, const uint8_t *in, size_t count, uint8_t *codes);

/* For codec_t; no provider. */
long long kvwire_bf16_encode(const kvwire_codec_t *c, const kvwire_cell_t *cell, const uint8_t *src, size_t n,
                             uint8_t *dst, size_t capacity, kvwire_scratch_t *scratch);
int kvwire_bf16_decode(const kvwire_codec_t *c, const kvwire_cell_t *cell, const uint8_t *src, size_t length,
                       uint8_t *dst, size_t n, kvwire_scratch_t *scratch);

#endif
