/* Floats of 8 and 16 bits to float and back, in ways that gcc makes vectors of. Rounding is to nearest, ties to even.
 * What is converted back is finite; what is too large for the narrower type becomes its largest. */
#ifndef KVWIRE_FLOATS_IMPL_H
#define KVWIRE_FLOATS_IMPL_H

#include <stdint.h>
#include <string.h>

#define KVWIRE_BF16_MAX 0x1.FEp127f
#define KVWIRE_FP16_MAX 65504.0f
#define KVWIRE_FP32_MAX 0x1.FFFFFEp127f
#define KVWIRE_E4M3_MAX 448.0f

static inline uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

static inline float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* NaN stays what it is. */
static inline float clamped(float value, float most) {
    value = value > most ? most : value;
    return value < -most ? -most : value;
}

static inline float bf16_to_float(uint16_t half) {
    return float_of((uint32_t)half << 16);
}

static inline uint16_t float_to_bf16(float value) {
    uint32_t bits = bits_of(value);
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

/* The magnitude is multiplied by 2^112, the difference of the exponents' biases: right for denormals, too. */
static inline float fp16_to_float(uint16_t half) {
    float magnitude = float_of((uint32_t)(half & 0x7FFF) << 13) * 0x1p112f;
    return float_of(bits_of(magnitude) | (uint32_t)(half & 0x8000) << 16);
}

/* Below the least normal number, adding 0.5, whose last bit has the worth of the least denormal, rounds. */
static inline uint16_t float_to_fp16(float value) {
    uint32_t bits = bits_of(value) & 0x7FFFFFFF, sign = bits_of(value) >> 16 & 0x8000;
    uint32_t normal = (bits + 0xFFF + (bits >> 13 & 1) - (112u << 23)) >> 13;
    uint32_t denormal = bits_of(float_of(bits) + 0.5f) - bits_of(0.5f);
    return (uint16_t)(sign | (bits < 113u << 23 ? denormal : normal));
}

/* E4M3 as in "FP8 Formats for Deep Learning" (Micikevicius and others, 2022): no infinities, S.1111.111 is NaN. */
static inline float e4m3_to_float(uint8_t code) {
    if ((code & 0x7F) == 0x7F)
        return float_of(0x7FC00000);
    float magnitude = float_of((uint32_t)(code & 0x7F) << 20) * 0x1p120f;
    return float_of(bits_of(magnitude) | (uint32_t)(code & 0x80) << 24);
}

static inline uint8_t float_to_e4m3(float value) {
    uint32_t bits = bits_of(value) & 0x7FFFFFFF, sign = bits_of(value) >> 24 & 0x80;
    uint32_t normal = (bits + 0x7FFFF + (bits >> 20 & 1) - (120u << 23)) >> 20;
    uint32_t denormal = bits_of(float_of(bits) + 0x1p14f) - bits_of(0x1p14f);
    return (uint8_t)(sign | (bits < 121u << 23 ? denormal : normal));
}

#endif
