/* Runs every CRC32C implementation of this CPU against the bitwise definition, without Python: this is how the ARM
 * code is tested on other machines (`make test-arm`). Prints one line per implementation; exit status 0 when all
 * agree. Arguments name implementations that have to be among them. With --speed it measures instead. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "crc32c_impl.h"

enum { SIZE = 70000, SLACK = 80 };

static uint32_t bitwise(uint32_t crc, const uint8_t *p, size_t n) {
    crc = ~crc;
    while (n--) {
        crc ^= *p++;
        for (int i = 0; i < 8; i++) crc = (crc >> 1) ^ (crc & 1 ? 0x82F63B78u : 0);
    }
    return ~crc;
}

static int check(const char *name, kvwire_crc32c_fn fn, const uint8_t *data, size_t n) {
    uint32_t start = (uint32_t)n * 2654435761u, want = bitwise(start, data, n), got = fn(start, data, n);
    size_t cut = n / 3;
    uint32_t in_two = fn(fn(start, data, cut), data + cut, n - cut);
    if (got == want && in_two == want) return 0;
    printf("%s: %zu bytes: want %08x, got %08x, in two %08x\n", name, n, (unsigned)want, (unsigned)got, (unsigned)in_two);
    return 1;
}

static void speed(const char *name, kvwire_crc32c_fn fn, const uint8_t *data) {
    static const size_t sizes[] = {64, 256, 4096, 16384, 65536};
    printf("%-12s", name);
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        size_t n = sizes[k], rounds = ((size_t)1 << 28) / n;
        struct timespec from, to;
        uint32_t crc = 0;
        clock_gettime(CLOCK_MONOTONIC, &from);
        for (size_t i = 0; i < rounds; i++) crc = fn(crc, data, n);
        clock_gettime(CLOCK_MONOTONIC, &to);
        double elapsed_s = (double)(to.tv_sec - from.tv_sec) + 1e-9 * (double)(to.tv_nsec - from.tv_nsec);
        printf("  %5zu B %6.2f GB/s", n, 1e-9 * (double)(n * rounds) / elapsed_s);
        if (crc == 1) putchar(' '); /* uses the result */
    }
    putchar('\n');
}

int main(int argc, char **argv) {
    static uint8_t buffer[SIZE + SLACK];
    int wrong = 0, only_speed = argc > 1 && strcmp(argv[1], "--speed") == 0;
    uint32_t noise = 1;
    for (size_t i = 0; i < sizeof buffer; i++) buffer[i] = (uint8_t)((noise = noise * 1664525u + 1013904223u) >> 24);
    for (size_t k = 0; kvwire_crc32c_name(k); k++) {
        const char *name = kvwire_crc32c_name(k);
        kvwire_crc32c_fn fn = kvwire_crc32c_find(name);
        if (only_speed) {
            speed(name, fn, buffer);
            continue;
        }
        wrong += kvwire_crc32c_select(name) != 0 || strcmp(kvwire_crc32c_selected(), name) != 0;
        wrong += kvwire_crc32c(0, "123456789", 9) != 0xE3069283u;
        for (size_t n = 0; n <= 2100; n++) wrong += check(name, fn, buffer + n % 65, n);
        for (size_t align = 0; align < 65; align++) wrong += check(name, fn, buffer + align, 12288 + 768 + 7 * align);
        wrong += check(name, fn, buffer, SIZE);
        printf("%s: %s\n", name, wrong ? "WRONG" : "ok");
    }
    for (int i = 1; i < argc && !only_speed; i++)
        if (!kvwire_crc32c_find(argv[i])) {
            printf("%s: does not run on this CPU\n", argv[i]);
            wrong++;
        }
    return wrong != 0;
}
