"""Segments: scatter, gather and iovecs over strided pages, against a table with the address of every byte.

The pages lie in an arena that nothing else is in, so every byte that is not the segment's shows whether it was
written. What lies outside of the arena is AddressSanitizer's.
"""

from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy

from harness cimport input_t, left, planted, require, take
from kvwire._ext.layout cimport (iovec, row_t, segment_gather, segment_iovecs, segment_scatter, segment_t)

cdef enum:
    ROWS = 3                       # of a pattern
    BLOCKS = 2
    PAGES = 2                      # of a block
    IOVECS = 12
    OPERATIONS = 6                 # of one input
    STREAM_BYTES = 2040            # a row that has more than 2048 is written by streaming stores

cdef struct case_t:
    segment_t segment
    row_t[ROWS] pattern
    long long[BLOCKS * PAGES] offsets
    long long arena_bytes
    char *arena
    char *expected                 # what the arena has to be
    long long *at                  # of every byte of the segment, in the arena


cdef void make(case_t *c, input_t *inp) noexcept nogil:
    """Rows and pages as the input wants them; the arena ends where the last of them does."""
    cdef segment_t *s = &c.segment
    cdef row_t *row
    cdef long long i, blocks, block, n, byte, end, wide
    s.npattern = <long long>(1 + take(inp, 1) % ROWS)
    s.pages_per_block = <long long>(1 + take(inp, 1) % PAGES)
    blocks = <long long>(1 + take(inp, 1) % BLOCKS)
    s.block_bytes = 0
    for i in range(s.npattern):
        row = &c.pattern[i]
        wide = <long long>take(inp, 1)
        row.start = s.block_bytes
        row.page = <long long>take(inp, 1) % s.pages_per_block
        row.offset = <long long>take(inp, 1)
        row.rows = 1 + (wide & 3)
        row.row_bytes = 1 + <long long>take(inp, 1) % 16
        if i == 0 and wide == 0xFC:
            row.row_bytes += STREAM_BYTES
        row.row_stride = row.row_bytes + <long long>take(inp, 1) % 24
        row.nbytes = row.rows * row.row_bytes
        s.block_bytes += row.nbytes
    s.nbytes = s.block_bytes * blocks
    for i in range(blocks * s.pages_per_block):
        c.offsets[i] = <long long>take(inp, 2) % 256
    s.pattern = c.pattern
    s.offsets = c.offsets
    c.at = <long long *>malloc(<size_t>s.nbytes * sizeof(long long))
    c.arena_bytes = n = 0
    for block in range(blocks):
        for i in range(s.npattern):
            row = &c.pattern[i]
            for byte in range(row.nbytes):
                c.at[n] = (c.offsets[block * s.pages_per_block + row.page] + row.offset
                           + byte // row.row_bytes * row.row_stride + byte % row.row_bytes)
                c.arena_bytes = max(c.arena_bytes, c.at[n] + 1)
                n += 1
    c.arena = <char *>malloc(<size_t>c.arena_bytes)
    c.expected = <char *>malloc(<size_t>c.arena_bytes)
    for i in range(c.arena_bytes):
        c.arena[i] = <char>(i * 31 >> 3)
    memcpy(c.expected, c.arena, <size_t>c.arena_bytes)
    s.base = c.arena


cdef void scatter(case_t *c, long long off, long long length) noexcept nogil:
    cdef char *src = <char *>malloc(<size_t>length)
    cdef long long i
    for i in range(length):
        src[i] = <char>(i * 7 + length)
        c.expected[c.at[off + i]] = src[i]
    # Planted: the last byte of a range that ends with its block goes where the range goes on.
    if planted and length > 1 and off + length < c.segment.nbytes and (off + length) % c.segment.block_bytes == 0:
        segment_scatter(&c.segment, off, length - 1, src)
        segment_scatter(&c.segment, off + length, 1, src + length - 1)
    else:
        segment_scatter(&c.segment, off, length, src)
    require(memcmp(c.arena, c.expected, <size_t>c.arena_bytes) == 0, b"scatter wrote something else")
    free(src)


cdef void gather(case_t *c, long long off, long long length) noexcept nogil:
    cdef char *dst = <char *>malloc(<size_t>length)
    cdef long long i
    segment_gather(&c.segment, off, length, dst)
    for i in range(length):
        require(dst[i] == c.expected[c.at[off + i]], b"gather read something else")
    free(dst)


cdef void iovecs(case_t *c, long long off, long long length, int limit) noexcept nogil:
    """Right addresses in order, as few pieces as can be, and -1 exactly where the limit is less."""
    cdef iovec *out = <iovec *>malloc(<size_t>limit * sizeof(iovec))
    cdef int n, i, pieces = 0
    cdef long long k, seen = 0
    for k in range(length):
        pieces += k == 0 or c.at[off + k] != c.at[off + k - 1] + 1
    n = segment_iovecs(&c.segment, off, length, out, limit)
    require(n == (pieces if pieces <= limit else -1), b"how many iovecs")
    for i in range(max(n, 0)):
        for k in range(<long long>out[i].iov_len):
            require(<char *>out[i].iov_base + k == c.arena + c.at[off + seen], b"an iovec is somewhere else")
            seen += 1
    require(n < 0 or seen == length, b"iovecs of another length")
    free(out)


cdef int one_input(const unsigned char *data, size_t size) noexcept nogil:
    cdef input_t inp
    cdef case_t c
    cdef long long off, length
    cdef int what, operation = 0
    inp.at = data
    inp.end = data + size
    make(&c, &inp)
    while left(&inp) >= 4 and operation < OPERATIONS:
        operation += 1
        what = <int>take(&inp, 1)
        off = <long long>take(&inp, 2) % c.segment.nbytes
        length = <long long>take(&inp, 2) % (c.segment.nbytes - off + 1)
        if what & 0x80:
            length = c.segment.nbytes - off
        if what & 3 == 0:
            gather(&c, off, length)
        elif what & 3 == 1:
            iovecs(&c, off, length, 1 + (what >> 2) % IOVECS)
        else:
            scatter(&c, off, length)
    free(c.arena)
    free(c.expected)
    free(c.at)
    return 0


ONE_INPUT = <size_t>&one_input
