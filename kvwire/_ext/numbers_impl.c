#include "numbers_impl.h"

#include "floats_impl.h"

int kvwire_numbers_load(unsigned element, const uint8_t *restrict src, size_t count, float *restrict out) {
    const uint32_t bound = element == KVWIRE_BF16 ? 0x7F80 : element == KVWIRE_FP16 ? 0x7C00 : 0x7F800000;
    uint32_t strange = 0;
    uint16_t half;
    uint32_t word;
    if (element == KVWIRE_FP32) {
        for (size_t i = 0; i < count; i++) {
            memcpy(&word, src + 4 * i, 4);
            strange |= (word & 0x7FFFFFFF) >= bound;
            out[i] = float_of(word);
        }
        return !strange;
    }
    for (size_t i = 0; i < count; i++) {
        memcpy(&half, src + 2 * i, 2);
        strange |= (uint32_t)(half & 0x7FFF) >= bound;
    }
    if (element == KVWIRE_BF16)
        for (size_t i = 0; i < count; i++) {
            memcpy(&half, src + 2 * i, 2);
            out[i] = bf16_to_float(half);
        }
    else
        for (size_t i = 0; i < count; i++) {
            memcpy(&half, src + 2 * i, 2);
            out[i] = fp16_to_float(half);
        }
    return !strange;
}

void kvwire_numbers_store(unsigned element, const float *restrict from, size_t count, uint8_t *restrict dst) {
    uint16_t half;
    float value;
    if (element == KVWIRE_FP32)
        for (size_t i = 0; i < count; i++) {
            value = clamped(from[i], KVWIRE_FP32_MAX);
            memcpy(dst + 4 * i, &value, 4);
        }
    else if (element == KVWIRE_BF16)
        for (size_t i = 0; i < count; i++) {
            half = float_to_bf16(clamped(from[i], KVWIRE_BF16_MAX));
            memcpy(dst + 2 * i, &half, 2);
        }
    else
        for (size_t i = 0; i < count; i++) {
            half = float_to_fp16(clamped(from[i], KVWIRE_FP16_MAX));
            memcpy(dst + 2 * i, &half, 2);
        }
}

void kvwire_numbers_pack(unsigned bits, const uint8_t *restrict codes, size_t count, uint8_t *restrict out) {
    size_t whole = count * bits / 8;
    if (bits == 8)
        memcpy(out, codes, count);
    else if (bits == 4)
        for (size_t i = 0; i < whole; i++)
            out[i] = (uint8_t)(codes[2 * i] | codes[2 * i + 1] << 4);
    else
        for (size_t i = 0; i < whole; i++)
            out[i] = (uint8_t)(codes[4 * i] | codes[4 * i + 1] << 2 | codes[4 * i + 2] << 4 | codes[4 * i + 3] << 6);
    if (whole * 8 < count * bits) {
        out[whole] = 0;
        for (size_t i = whole * 8 / bits, shift = 0; i < count; i++, shift += bits)
            out[whole] = (uint8_t)(out[whole] | codes[i] << shift);
    }
}

void kvwire_numbers_unpack(unsigned bits, const uint8_t *restrict in, size_t count, uint8_t *restrict codes) {
    size_t whole = count * bits / 8;
    if (bits == 8)
        memcpy(codes, in, count);
    else if (bits == 4)
        for (size_t i = 0; i < whole; i++) {
            codes[2 * i] = in[i] & 15;
            codes[2 * i + 1] = in[i] >> 4;
        }
    else
        for (size_t i = 0; i < whole; i++)
            for (unsigned k = 0; k < 4; k++)
                codes[4 * i + k] = in[i] >> 2 * k & 3;
    for (size_t i = whole * 8 / bits, shift = 0; i < count; i++, shift += bits)
        codes[i] = (uint8_t)(in[whole] >> shift & ((1 << bits) - 1));
}

/* --- fp32 to bf16 ------------------------------------------------------------------------------------------------- */

long long kvwire_bf16_encode(const kvwire_codec_t *c, const kvwire_cell_t *cell, const uint8_t *src, size_t n,
                             uint8_t *dst, size_t capacity, kvwire_scratch_t *scratch) {
    size_t count = n / 4;
    uint32_t strange = 0;
    (void)c;
    (void)scratch;
    if (cell->element != KVWIRE_FP32 || n == 0 || n % 4 || cell->offset % 4 || capacity < n / 2)
        return -1;
    for (size_t i = 0; i < count; i++) {
        float value;
        memcpy(&value, src + 4 * i, 4);
        uint16_t half = float_to_bf16(value);
        /* What is NaN or infinite, or becomes so. A NaN whose lowest bits are set can become anything. */
        strange |= ((half & 0x7FFF) >= 0x7F80) | ((bits_of(value) & 0x7FFFFFFF) >= 0x7F800000);
        memcpy(dst + 2 * i, &half, 2);
    }
    return strange ? -1 : (long long)(n / 2);
}

int kvwire_bf16_decode(const kvwire_codec_t *c, const kvwire_cell_t *cell, const uint8_t *src, size_t length,
                       uint8_t *dst, size_t n, kvwire_scratch_t *scratch) {
    (void)c;
    (void)scratch;
    if (cell->element != KVWIRE_FP32 || n == 0 || n % 4 || length != n / 2)
        return 0;
    for (size_t i = 0; i < length / 2; i++) {
        uint16_t half;
        memcpy(&half, src + 2 * i, 2);
        float value = bf16_to_float(half);
        memcpy(dst + 4 * i, &value, 4);
    }
    return 1;
}
