"""Segments: a virtual byte range over pages of registered memory."""

from libc.string cimport memcpy
from cpython.bytes cimport PyBytes_FromStringAndSize, PyBytes_AS_STRING

from kvwire.errors import SpecError

cdef extern from "place_impl.h" nogil:
    void kvwire_place(char *dst, const char *src, size_t n)


cdef void segment_scatter(const segment_t *s, long long off, long long length, const char *src) noexcept nogil:
    """Copy `length` bytes from `src` to byte `off` onwards. The range must lie inside the segment."""
    cdef char *addr
    cdef long long n
    while length > 0:
        n = min(segment_piece(s, off, &addr), length)
        kvwire_place(addr, src, <size_t>n)
        src += n
        off += n
        length -= n


cdef void segment_gather(const segment_t *s, long long off, long long length, char *dst) noexcept nogil:
    """Copy `length` bytes from byte `off` onwards to `dst`. The range must lie inside the segment."""
    cdef char *addr
    cdef long long n
    while length > 0:
        n = min(segment_piece(s, off, &addr), length)
        memcpy(dst, addr, <size_t>n)
        dst += n
        off += n
        length -= n


cdef int segment_iovecs(const segment_t *s, long long off, long long length, iovec *out, int limit) noexcept nogil:
    """Describe the range in at most `limit` iovecs, neighbours merged; returns how many, -1 if `limit` is too few."""
    cdef char *addr
    cdef long long n
    cdef int count = 0
    while length > 0:
        n = min(segment_piece(s, off, &addr), length)
        if count and <char *>out[count - 1].iov_base + out[count - 1].iov_len == addr:
            out[count - 1].iov_len += <size_t>n
        elif count == limit:
            return -1
        else:
            out[count].iov_base = addr
            out[count].iov_len = <size_t>n
            count += 1
        off += n
        length -= n
    return count


cdef class Segment:
    """The bytes of one group in one layer, as they lie in this process's memory.

    Does not own the memory behind `base`: whoever makes a Segment keeps it alive (see `kvwire.pool.Pages`).
    """

    def __cinit__(self, base, block_offsets, long long pages_per_block, pattern, long long block_bytes):
        cdef const long long[::1] offsets = block_offsets
        cdef const long long[:, ::1] rows = pattern
        cdef long long at = 0, i
        cdef const row_t *row
        if pages_per_block < 1 or block_bytes < 1 or offsets.shape[0] % pages_per_block:
            raise SpecError(f"{offsets.shape[0]} offsets do not make blocks of {pages_per_block} pages")
        if rows.shape[0] < 1 or rows.shape[1] != 7:
            raise SpecError("a pattern is int64[n, 7] with n of at least 1")
        for i in range(rows.shape[0]):
            row = <const row_t *>&rows[i, 0]
            if (row.start != at or row.rows < 1 or row.row_bytes < 1 or row.nbytes != row.rows * row.row_bytes
                    or not 0 <= row.page < pages_per_block):
                raise SpecError(f"pattern row {i} does not continue at byte {at} of the block")
            at += row.nbytes
        if at != block_bytes:
            raise SpecError(f"the pattern describes {at} bytes of a block of {block_bytes}")
        self.offsets_owner = offsets
        self.pattern_owner = rows
        self.c.base = <char *><size_t>base
        self.c.offsets = &offsets[0] if offsets.shape[0] else NULL
        self.c.pattern = <const row_t *>&rows[0, 0]
        self.c.pages_per_block = pages_per_block
        self.c.npattern = rows.shape[0]
        self.c.block_bytes = block_bytes
        self.c.nbytes = offsets.shape[0] // pages_per_block * block_bytes

    @property
    def nbytes(self):
        return self.c.nbytes

    @property
    def block_bytes(self):
        return self.c.block_bytes

    def _check(self, long long offset, long long length):
        if offset < 0 or length < 0 or offset + length > self.c.nbytes:
            raise IndexError(f"bytes {offset}..{offset + length} of a segment of {self.c.nbytes}")

    def read(self, long long offset, long long length):
        self._check(offset, length)
        out = PyBytes_FromStringAndSize(NULL, length)
        segment_gather(&self.c, offset, length, PyBytes_AS_STRING(out))
        return out

    def write(self, long long offset, const unsigned char[::1] data not None):
        self._check(offset, data.shape[0])
        if data.shape[0]:
            segment_scatter(&self.c, offset, data.shape[0], <const char *>&data[0])

    def pieces(self, long long offset, long long length):
        cdef char *addr
        cdef long long n
        self._check(offset, length)
        out = []
        while length > 0:
            n = min(segment_piece(&self.c, offset, &addr), length)
            out.append((<size_t>addr, n))
            offset += n
            length -= n
        return out
