/* CRC32C in four ways: portable tables, hardware CRC in three interleaved streams (x86-64 and ARMv8 share the
 * body), and folding with 512-bit carry-less multiplication.
 *
 * Notation: a CRC is a polynomial over GF(2) modulo P = x^32 + 0x1EDC6F41, held bit-reflected, so bit 31 of a
 * uint32_t is the coefficient of x^0. "State" is the value between two steps, that is, not inverted; the inversion
 * belongs to the outermost functions. Appending m zero bytes multiplies a state by x^(8m). */
#include "crc32c_impl.h"

#include <string.h>

#define POLY_REFLECTED 0x82F63B78u

/* ---- GF(2) arithmetic, used once at load for tables and constants ---- */

static uint32_t times_x(uint32_t a) { return (a >> 1) ^ (a & 1 ? POLY_REFLECTED : 0); }

static void zero_state_table(uint32_t table[8][256]) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t state = byte;
        for (int i = 0; i < 8; i++) state = times_x(state);
        table[0][byte] = state;
    }
    for (int k = 1; k < 8; k++)
        for (int byte = 0; byte < 256; byte++)
            table[k][byte] = (table[k - 1][byte] >> 8) ^ table[0][table[k - 1][byte] & 0xFF];
}

/* ---- portable: slicing by 8 (Kounavis and Berry, 2005), any byte order ---- */

static uint32_t slice[8][256];

static uint32_t load_le32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint32_t crc32c_portable(uint32_t crc, const void *data, size_t n) {
    const uint8_t *p = data;
    uint32_t s = ~crc;
    for (; n >= 8; p += 8, n -= 8) {
        uint32_t lo = s ^ load_le32(p), hi = load_le32(p + 4);
        s = slice[7][lo & 0xFF] ^ slice[6][lo >> 8 & 0xFF] ^ slice[5][lo >> 16 & 0xFF] ^ slice[4][lo >> 24] ^
            slice[3][hi & 0xFF] ^ slice[2][hi >> 8 & 0xFF] ^ slice[1][hi >> 16 & 0xFF] ^ slice[0][hi >> 24];
    }
    for (; n; p++, n--) s = (s >> 8) ^ slice[0][(s ^ *p) & 0xFF];
    return ~s;
}

/* ---- what the two instruction sets call the same four things ---- */

#if defined(__x86_64__)
#include <immintrin.h>
#define HW_THREE_STREAMS
#define HW_CRC __attribute__((target("sse4.2")))
#define HW_CRC_MUL __attribute__((target("sse4.2,pclmul")))
#define crc_u64(s, w) ((uint32_t)_mm_crc32_u64((s), (w)))
#define crc_u8(s, b) _mm_crc32_u8((s), (b))
#define multiply(a, b) \
    ((uint64_t)_mm_cvtsi128_si64( \
        _mm_clmulepi64_si128(_mm_cvtsi32_si128((int)(a)), _mm_cvtsi32_si128((int)(b)), 0x00)))
#elif defined(__aarch64__) && !defined(__ARM_BIG_ENDIAN)
#include <arm_acle.h>
#include <arm_neon.h>
#include <sys/auxv.h>
#define HW_THREE_STREAMS
#define HW_CRC __attribute__((target("+crc")))
#define HW_CRC_MUL __attribute__((target("+crc+crypto")))
#define crc_u64(s, w) __crc32cd((s), (w))
#define crc_u8(s, b) __crc32cb((s), (b))
#define multiply(a, b) ((uint64_t)vgetq_lane_u64(vreinterpretq_u64_p128(vmull_p64((a), (b))), 0))
#endif

#ifdef HW_THREE_STREAMS

static uint32_t times(uint32_t a, uint32_t b) {
    uint32_t product = 0;
    for (uint32_t bit = 1u << 31; bit; bit >>= 1, b = times_x(b))
        if (a & bit) product ^= b;
    return product;
}

static uint32_t x_to_the(uint32_t exponent) {
    uint32_t result = 1u << 31, square = 1u << 30; /* x^0 and x^1 */
    for (; exponent; exponent >>= 1, square = times(square, square))
        if (exponent & 1) result = times(result, square);
    return result;
}

/* The instruction takes 3 cycles and one can start in each, so three streams keep it busy. A combine costs about
 * 20 cycles: LONG makes it vanish, SHORT is for what is left. */
enum { LONG_STREAM = 4096, SHORT_STREAM = 256 }; /* bytes of one of the three */

static struct {
    uint32_t past_one, past_two; /* moves a state past one, two streams */
} long_shift, short_shift;

/* multiply() of two reflected 32-bit polynomials, taken as a 64-bit message, is their product times x, and the CRC
 * of a 64-bit message from state 0 is that times x^32: hence the 33. */
static void init_three_streams(void) {
    long_shift.past_one = x_to_the(8 * LONG_STREAM - 33);
    long_shift.past_two = x_to_the(16 * LONG_STREAM - 33);
    short_shift.past_one = x_to_the(8 * SHORT_STREAM - 33);
    short_shift.past_two = x_to_the(16 * SHORT_STREAM - 33);
}

static inline uint64_t load_u64(const uint8_t *p) {
    uint64_t word;
    memcpy(&word, p, 8);
    return word;
}

HW_CRC static uint32_t one_stream(uint32_t s, const uint8_t *p, size_t n) {
    for (; n >= 8; p += 8, n -= 8) s = crc_u64(s, load_u64(p));
    for (; n; p++, n--) s = crc_u8(s, *p);
    return s;
}

/* State after the 3 * `stream` bytes at `p`. The first two streams enter through the last word of the third. */
HW_CRC_MUL static inline uint32_t three_streams(uint32_t a, const uint8_t *p, size_t stream, uint32_t past_two,
                                                uint32_t past_one) {
    uint32_t b = 0, c = 0;
    size_t i = 0;
    for (; i < stream - 8; i += 8) {
        a = crc_u64(a, load_u64(p + i));
        b = crc_u64(b, load_u64(p + stream + i));
        c = crc_u64(c, load_u64(p + 2 * stream + i));
    }
    a = crc_u64(a, load_u64(p + i));
    b = crc_u64(b, load_u64(p + stream + i));
    return crc_u64(c, load_u64(p + 2 * stream + i) ^ multiply(a, past_two) ^ multiply(b, past_one));
}

HW_CRC_MUL static uint32_t crc32c_three_streams(uint32_t crc, const void *data, size_t n) {
    const uint8_t *p = data;
    uint32_t s = ~crc;
    for (; n >= 3 * LONG_STREAM; p += 3 * LONG_STREAM, n -= 3 * LONG_STREAM)
        s = three_streams(s, p, LONG_STREAM, long_shift.past_two, long_shift.past_one);
    for (; n >= 3 * SHORT_STREAM; p += 3 * SHORT_STREAM, n -= 3 * SHORT_STREAM)
        s = three_streams(s, p, SHORT_STREAM, short_shift.past_two, short_shift.past_one);
    return ~one_stream(s, p, n);
}

#endif

/* ---- x86-64 with VPCLMULQDQ: folding (Gopal et al., Intel, 2009) on 4 x 512 bits ---- */

#if defined(__x86_64__)

#define HW_FOLD __attribute__((target("sse4.2,pclmul,avx512f,vpclmulqdq")))

/* A reflected 128-bit lane is low * x^64 + high. To move it `distance` bytes on, its halves are multiplied with
 * x^(8 distance + 64) and x^(8 distance); one x comes from the reflected product, and 32 more from a reflected
 * 32-bit constant standing in the low half of a 64-bit operand. */
static uint64_t fold_by[5][8] __attribute__((aligned(64))); /* [1..4]: 64, 128, 192, 256 bytes; [0]: lanes to the last */

static void init_fold(void) {
    for (int lane = 0; lane < 4; lane++)
        for (int k = 0; k < 5; k++) {
            uint32_t distance = k ? 64 * (uint32_t)k : 16 * (uint32_t)(3 - lane);
            if (distance == 0) continue; /* the last lane stays, its product is to be 0 */
            fold_by[k][2 * lane] = x_to_the(8 * distance + 64 - 33);
            fold_by[k][2 * lane + 1] = x_to_the(8 * distance - 33);
        }
}

HW_FOLD static inline __m512i fold(__m512i a, const uint64_t *by, __m512i onto) {
    __m512i k = _mm512_load_si512(by);
    __m512i low = _mm512_clmulepi64_epi128(a, k, 0x00), high = _mm512_clmulepi64_epi128(a, k, 0x11);
    return _mm512_ternarylogic_epi64(low, high, onto, 0x96); /* xor of the three */
}

HW_FOLD static uint32_t crc32c_fold512(uint32_t crc, const void *data, size_t n) {
    const uint8_t *p = data;
    if (n < 512) return crc32c_three_streams(crc, data, n);
    __m512i a = _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)~crc)));
    __m512i b = _mm512_loadu_si512(p + 64), c = _mm512_loadu_si512(p + 128), d = _mm512_loadu_si512(p + 192);
    for (p += 256, n -= 256; n >= 256; p += 256, n -= 256) {
        a = fold(a, fold_by[4], _mm512_loadu_si512(p));
        b = fold(b, fold_by[4], _mm512_loadu_si512(p + 64));
        c = fold(c, fold_by[4], _mm512_loadu_si512(p + 128));
        d = fold(d, fold_by[4], _mm512_loadu_si512(p + 192));
    }
    d = fold(a, fold_by[3], fold(b, fold_by[2], fold(c, fold_by[1], d)));
    __m512i moved = fold(d, fold_by[0], _mm512_setzero_si512());
    __m128i last = _mm512_extracti32x4_epi32(d, 3);
    last = _mm_xor_si128(last, _mm_xor_si128(_mm512_castsi512_si128(moved), _mm512_extracti32x4_epi32(moved, 1)));
    last = _mm_xor_si128(last, _mm512_extracti32x4_epi32(moved, 2));
    uint32_t s = crc_u64(crc_u64(0, (uint64_t)_mm_cvtsi128_si64(last)), (uint64_t)_mm_extract_epi64(last, 1));
    return ~one_stream(s, p, n);
}

#endif

#if defined(__aarch64__) && defined(HW_THREE_STREAMS)

/* For cores that have the CRC instructions but no PMULL, such as Cortex-A72 without the crypto extension. */
static uint32_t crc32c_one_stream(uint32_t crc, const void *data, size_t n) { return ~one_stream(~crc, data, n); }

#endif

/* ---- choice ---- */

static struct implementation {
    const char *name;
    kvwire_crc32c_fn fn;
} implementations[4]; /* what this CPU runs, best first, then {NULL, NULL} */

static struct implementation *current;

static void offer(const char *name, kvwire_crc32c_fn fn, int runs_here) {
    static size_t count;
    if (runs_here) implementations[count++] = (struct implementation){name, fn};
}

/* A constructor runs once, before anything can call in, whatever thread loads the module. */
__attribute__((constructor)) static void init(void) {
    zero_state_table(slice);
#ifdef HW_THREE_STREAMS
    init_three_streams();
#endif
#if defined(__x86_64__)
    init_fold();
    __builtin_cpu_init();
    int three = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul");
    int wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("vpclmulqdq");
    offer("fold512", crc32c_fold512, three && wide);
    offer("sse42", crc32c_three_streams, three);
#elif defined(HW_THREE_STREAMS)
    unsigned long has = getauxval(AT_HWCAP);
    offer("armv8-pmull", crc32c_three_streams, (has & HWCAP_CRC32) && (has & HWCAP_PMULL));
    offer("armv8", crc32c_one_stream, (has & HWCAP_CRC32) != 0);
#endif
    offer("portable", crc32c_portable, 1);
    current = implementations;
}

static struct implementation *find(const char *name) {
    for (struct implementation *it = implementations; it->name; it++)
        if (strcmp(it->name, name) == 0) return it;
    return NULL;
}

uint32_t kvwire_crc32c(uint32_t crc, const void *data, size_t n) {
    return __atomic_load_n(&current, __ATOMIC_RELAXED)->fn(crc, data, n);
}

const char *kvwire_crc32c_name(size_t index) {
    return index < sizeof implementations / sizeof *implementations ? implementations[index].name : NULL;
}

kvwire_crc32c_fn kvwire_crc32c_find(const char *name) {
    struct implementation *it = find(name);
    return it ? it->fn : NULL;
}

int kvwire_crc32c_select(const char *name) {
    struct implementation *it = find(name);
    if (it) __atomic_store_n(&current, it, __ATOMIC_RELAXED);
    return it ? 0 : -1;
}

const char *kvwire_crc32c_selected(void) { return __atomic_load_n(&current, __ATOMIC_RELAXED)->name; }
