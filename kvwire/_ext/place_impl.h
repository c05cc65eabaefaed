/* Copy into a slot, past the caches.
 *
 * A slot is written once and read much later, by an attention kernel or a copy to a device. Ordinary stores would
 * first read every line of it from memory and then evict what the receive path works on; streaming stores do
 * neither. Measured on cells from a 512 KiB buffer to pages in random order of 512 MiB: 14 GB/s instead of 7 at
 * 16 KiB pages, 15 instead of 11 at 1 MiB (bench/place.py).
 */
#ifndef KVWIRE_PLACE_IMPL_H
#define KVWIRE_PLACE_IMPL_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>

#define KVWIRE_STREAM_MIN 2048 /* below this the alignment of both ends costs more than it saves */

__attribute__((target("avx2"))) static void kvwire_place_avx2(char *dst, const char *src, size_t n)
{
    size_t head = -(uintptr_t)dst & 31;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    memcpy(dst, src, n); /* a sanitizer does not see the streaming stores below: it sees their range here */
#endif
    memcpy(dst, src, head);
    dst += head, src += head, n -= head;
    for (; n >= 128; dst += 128, src += 128, n -= 128) {
        __m256i a = _mm256_loadu_si256((const __m256i *)src);
        __m256i b = _mm256_loadu_si256((const __m256i *)(src + 32));
        __m256i c = _mm256_loadu_si256((const __m256i *)(src + 64));
        __m256i d = _mm256_loadu_si256((const __m256i *)(src + 96));
        _mm256_stream_si256((__m256i *)dst, a);
        _mm256_stream_si256((__m256i *)(dst + 32), b);
        _mm256_stream_si256((__m256i *)(dst + 64), c);
        _mm256_stream_si256((__m256i *)(dst + 96), d);
    }
    _mm_sfence(); /* streaming stores are weakly ordered; the cell is said to have landed next */
    memcpy(dst, src, n);
}

static inline void kvwire_place(char *dst, const char *src, size_t n)
{
    if (n >= KVWIRE_STREAM_MIN && __builtin_cpu_supports("avx2"))
        kvwire_place_avx2(dst, src, n);
    else
        memcpy(dst, src, n);
}
#else
static inline void kvwire_place(char *dst, const char *src, size_t n) { memcpy(dst, src, n); }
#endif

#endif
