/* Byte planes: byte i of every element in one row, so that bytes that are alike lie together. */
#ifndef KVWIRE_PLANES_IMPL_H
#define KVWIRE_PLANES_IMPL_H

#include <stddef.h>
#include <stdint.h>

/* `count` elements of `size` bytes (1, 2, 4 or 8, little endian) at `src`; plane i, the i-th lowest byte, is at
 * `dst + i * count`. `rotate`: the highest bit, the sign of a float, becomes the lowest first, which leaves the upper eight
 * bits of the exponent in the highest plane. */
void kvwire_planes_split(const uint8_t *src, size_t count, unsigned size, int rotate, uint8_t *dst);

/* The reverse, from planes wherever they lie. */
void kvwire_planes_merge(const uint8_t *const *planes, size_t count, unsigned size, int rotate, uint8_t *dst);

/* Whether entropy coding will make a plane shorter, by a histogram of at most 4096 of its bytes. */
int kvwire_planes_shrinks(const uint8_t *plane, size_t count);

#endif
