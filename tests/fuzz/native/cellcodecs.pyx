"""Codecs: cells of any shape and place there and back, and payloads that are anything, by the real libzstd.

Every cell, payload and result lies in memory of just its own length, and the scratch is no larger than the longest cell
needs; what is written outside is AddressSanitizer's.
"""

from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy

from harness cimport input_t, left, planted, require, take
from kvwire._ext.codec cimport (BF16, FP16, FP32, FP64, OTHER, Native, byte_t, cell_t, codec_t, part_t, scratch_init,
                                scratch_t)
from kvwire._ext.zstdlib cimport Zstd, zstd_t

from kvwire._ext.codec import own
from kvwire._ext.zstdlib import find

cdef enum:
    LONGEST = 4096
    PARTS = 3
    CODECS = 7
    ZSTD = 0                       # in the table
    REPEATS = 4                    # an input is too short to shrink much: it is taken so many times

cdef Zstd _found = find()
cdef const zstd_t *zstd = &_found.z
cdef scratch_t _scratch
cdef scratch_t *scratch = &_scratch
cdef const codec_t *codecs[CODECS]
_kept = [own(name, 1) for name in ("zstd", "bf16", "fp8", "int8", "int4", "int2", "delta")]
for i, made in enumerate(_kept):
    codecs[i] = &(<Native>made).c
if not scratch_init(scratch, LONGEST, zstd):
    raise MemoryError()


cdef void shape(cell_t *cell, part_t *parts, input_t *inp) noexcept nogil:
    cdef unsigned int what = <unsigned int>take(inp, 1), i
    cdef unsigned long long block = 0
    cell.element = <byte_t>(what % 5)
    cell.itemsize = 2 if cell.element in (BF16, FP16) else 4 if cell.element == FP32 else 8 if cell.element == FP64 else (
        <byte_t>(1 << (what >> 3 & 3)))
    cell.parts = parts
    cell.nparts = 1 + (what >> 5) % PARTS
    for i in range(cell.nparts):
        what = <unsigned int>take(inp, 3)
        parts[i].outer = 1 + (what & 3)
        parts[i].tokens = 1 + (what >> 2 & 63)
        parts[i].inner = 1 + (what >> 8 & 63)
        parts[i].per_channel = what >> 14 & 1
        block += parts[i].outer * parts[i].tokens * parts[i].inner
    cell.layers = 3
    cell.layer = <unsigned int>take(inp, 1) % 4
    cell.offset = take(inp, 2) % block * cell.itemsize
    if take(inp, 1) & 0xF == 0:
        cell.offset += 1


cdef long long encode(const codec_t *c, const cell_t *cell, const byte_t *src, size_t n, byte_t *dst,
                      size_t capacity) noexcept nogil:
    cdef long long length = c.encode(c, cell, src, n, dst, capacity, scratch)
    # Planted: a payload of an odd length has another last byte.
    if planted and length > 0 and length & 1:
        dst[length - 1] ^= 1
    return length


cdef bint finite(const cell_t *cell, const byte_t *data, size_t n) noexcept nogil:
    cdef size_t i, size = cell.itemsize
    cdef unsigned long long word, inf = 0x7F80 if cell.element == BF16 else 0x7C00 if cell.element == FP16 else 0x7F800000
    for i in range(n // size):
        word = 0
        memcpy(&word, data + i * size, size)
        if word & inf == inf:
            return False
    return True


cdef void there_and_back(int which, const cell_t *cell, input_t *inp) noexcept nogil:
    cdef const codec_t *c = codecs[which]
    cdef size_t room = <size_t>take(inp, 2), n = left(inp), i
    cdef byte_t *src
    cdef byte_t *dst
    cdef byte_t *payload
    cdef byte_t *back
    cdef long long length
    n = min(n * REPEATS, <size_t>LONGEST) - room % 3 if n else 0
    src = <byte_t *>malloc(n)
    for i in range(n):
        src[i] = inp.at[i % left(inp)]
    if room < 0xC000:
        room = n
    else:
        room %= n + 1
    dst = <byte_t *>malloc(room)
    back = <byte_t *>malloc(n)
    length = encode(c, cell, src, n, dst, room)
    require(length < 0 or (<size_t>length <= room and <size_t>length < n), b"a payload that is no shorter")
    if length >= 0:
        payload = <byte_t *>malloc(<size_t>length)
        memcpy(payload, dst, <size_t>length)
        require(c.decode(c, cell, payload, <size_t>length, back, n, scratch), b"a payload that does not decode")
        if which == ZSTD:
            require(memcmp(src, back, n) == 0, b"not the same bytes")
        else:
            require(finite(cell, src, n), b"something that is no number was encoded")
            require(finite(cell, back, n), b"numbers became something else")
        require(encode(c, cell, src, n, dst, room) == length and memcmp(dst, payload, <size_t>length) == 0,
                b"the same cell gave another payload")
        require(not c.decode(c, cell, payload, <size_t>length - 1, back, n, scratch), b"a payload without its end")
        free(payload)
    free(src)
    free(dst)
    free(back)


cdef void anything(int which, const cell_t *cell, input_t *inp) noexcept nogil:
    cdef const codec_t *c = codecs[which]
    cdef size_t n = <size_t>take(inp, 2) % (LONGEST + 2), length = left(inp)
    cdef byte_t *src = <byte_t *>malloc(length)
    cdef byte_t *dst = <byte_t *>malloc(n)
    memcpy(src, inp.at, length)
    if c.decode(c, cell, src, length, dst, n, scratch):
        require(n <= LONGEST or which == 1, b"a cell that is longer than the scratch was decoded")
    free(src)
    free(dst)


cdef int one_input(const unsigned char *data, size_t size) noexcept nogil:
    cdef input_t inp
    cdef cell_t cell
    cdef part_t parts[PARTS]
    cdef int what
    inp.at = data
    inp.end = data + size
    what = <int>take(&inp, 1)
    shape(&cell, parts, &inp)
    if what & 0x80:
        anything(what % CODECS, &cell, &inp)
    else:
        there_and_back(what % CODECS, &cell, &inp)
    return 0


ONE_INPUT = <size_t>&one_input
