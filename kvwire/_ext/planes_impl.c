#include "planes_impl.h"

#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "elements are taken for little endian"
#endif

/* Plain loops over words: gcc -O3 makes vectors of them. What is at src and dst need not be aligned. */

#define ROTATE_UP(word, bits) ((word) << 1 | (word) >> ((bits) - 1))
#define ROTATE_DOWN(word, bits) ((word) >> 1 | (word) << ((bits) - 1))

static void split_2(const uint8_t *restrict src, size_t count, int rotate, uint8_t *restrict dst) {
    uint8_t *restrict high = dst + count;
    for (size_t i = 0; i < count; i++) {
        uint16_t word;
        memcpy(&word, src + 2 * i, 2);
        word = rotate ? (uint16_t)ROTATE_UP(word, 16) : word;
        dst[i] = (uint8_t)word;
        high[i] = (uint8_t)(word >> 8);
    }
}

static void merge_2(const uint8_t *const *planes, size_t count, int rotate, uint8_t *restrict dst) {
    const uint8_t *restrict low = planes[0], *restrict high = planes[1];
    for (size_t i = 0; i < count; i++) {
        uint16_t word = (uint16_t)(low[i] | high[i] << 8);
        word = rotate ? (uint16_t)ROTATE_DOWN(word, 16) : word;
        memcpy(dst + 2 * i, &word, 2);
    }
}

static void split_4(const uint8_t *restrict src, size_t count, int rotate, uint8_t *restrict dst) {
    uint8_t *restrict b = dst + count, *restrict c = dst + 2 * count, *restrict d = dst + 3 * count;
    for (size_t i = 0; i < count; i++) {
        uint32_t word;
        memcpy(&word, src + 4 * i, 4);
        word = rotate ? ROTATE_UP(word, 32) : word;
        dst[i] = (uint8_t)word;
        b[i] = (uint8_t)(word >> 8);
        c[i] = (uint8_t)(word >> 16);
        d[i] = (uint8_t)(word >> 24);
    }
}

static void merge_4(const uint8_t *const *planes, size_t count, int rotate, uint8_t *restrict dst) {
    const uint8_t *restrict a = planes[0], *restrict b = planes[1], *restrict c = planes[2], *restrict d = planes[3];
    for (size_t i = 0; i < count; i++) {
        uint32_t word = (uint32_t)a[i] | (uint32_t)b[i] << 8 | (uint32_t)c[i] << 16 | (uint32_t)d[i] << 24;
        word = rotate ? ROTATE_DOWN(word, 32) : word;
        memcpy(dst + 4 * i, &word, 4);
    }
}

/* By way of their halves, some at a time: gcc makes vectors of that, and not of eight planes at once. */
enum { HALVES = 256 };

static void split_8(const uint8_t *restrict src, size_t count, int rotate, uint8_t *restrict dst) {
    uint32_t low[HALVES], high[HALVES];
    for (size_t at = 0, some; at < count; at += some) {
        some = count - at < HALVES ? count - at : HALVES;
        for (size_t i = 0; i < some; i++) {
            uint64_t word;
            memcpy(&word, src + 8 * (at + i), 8);
            word = rotate ? ROTATE_UP(word, 64) : word;
            low[i] = (uint32_t)word;
            high[i] = (uint32_t)(word >> 32);
        }
        for (unsigned k = 0; k < 4; k++) {
            uint8_t *restrict a = dst + k * count + at, *restrict b = dst + (k + 4) * count + at;
            for (size_t i = 0; i < some; i++) {
                a[i] = (uint8_t)(low[i] >> 8 * k);
                b[i] = (uint8_t)(high[i] >> 8 * k);
            }
        }
    }
}

static void merge_8(const uint8_t *const *planes, size_t count, int rotate, uint8_t *restrict dst) {
    uint32_t half[2][HALVES];
    for (size_t at = 0, some; at < count; at += some) {
        some = count - at < HALVES ? count - at : HALVES;
        for (unsigned k = 0; k < 2; k++) {
            const uint8_t *restrict a = planes[4 * k] + at, *restrict b = planes[4 * k + 1] + at;
            const uint8_t *restrict c = planes[4 * k + 2] + at, *restrict d = planes[4 * k + 3] + at;
            for (size_t i = 0; i < some; i++)
                half[k][i] = (uint32_t)a[i] | (uint32_t)b[i] << 8 | (uint32_t)c[i] << 16 | (uint32_t)d[i] << 24;
        }
        for (size_t i = 0; i < some; i++) {
            uint64_t word = (uint64_t)half[1][i] << 32 | half[0][i];
            word = rotate ? ROTATE_DOWN(word, 64) : word;
            memcpy(dst + 8 * (at + i), &word, 8);
        }
    }
}

void kvwire_planes_split(const uint8_t *src, size_t count, unsigned size, int rotate, uint8_t *dst) {
    /* The constants let the compiler make each loop without its branch. */
    switch (size) {
    case 2:
        rotate ? split_2(src, count, 1, dst) : split_2(src, count, 0, dst);
        break;
    case 4:
        rotate ? split_4(src, count, 1, dst) : split_4(src, count, 0, dst);
        break;
    case 8:
        rotate ? split_8(src, count, 1, dst) : split_8(src, count, 0, dst);
        break;
    default:
        memcpy(dst, src, count);
    }
}

void kvwire_planes_merge(const uint8_t *const *planes, size_t count, unsigned size, int rotate, uint8_t *dst) {
    switch (size) {
    case 2:
        rotate ? merge_2(planes, count, 1, dst) : merge_2(planes, count, 0, dst);
        break;
    case 4:
        rotate ? merge_4(planes, count, 1, dst) : merge_4(planes, count, 0, dst);
        break;
    case 8:
        rotate ? merge_8(planes, count, 1, dst) : merge_8(planes, count, 0, dst);
        break;
    default:
        memcpy(dst, planes[0], count);
    }
}

int kvwire_planes_shrinks(const uint8_t *plane, size_t count) {
    enum { RUN = 64, SAMPLES = 4096, LEAST = 64 };
    uint32_t seen[2][256] = {{0}};
    size_t runs = count / RUN, taken = runs < SAMPLES / RUN ? runs : SAMPLES / RUN;
    uint64_t pairs = 0, n = taken * RUN;
    if (count < LEAST)
        return 0;
    /* Whole cache lines, spread evenly; two tables, so that equal neighbours need not wait for each other. */
    for (size_t run = 0; run < taken; run++) {
        const uint8_t *at = plane + run * runs / taken * RUN;
        for (size_t i = 0; i < RUN; i += 2) {
            seen[0][at[i]]++;
            seen[1][at[i + 1]]++;
        }
    }
    for (unsigned value = 0; value < 256; value++) {
        uint64_t times = seen[0][value] + seen[1][value];
        pairs += times * (times - 1);
    }
    /* Two bytes of noise are equal in 1 of 256 cases. A quarter more than that leaves 7.7 bits to a byte, by Renyi's
     * entropy of order 2; where a plane is short, chance alone can give as much, and then zstd is tried for nothing. */
    return pairs * 256 > (n * (n - 1)) + (n * (n - 1)) / 4;
}
