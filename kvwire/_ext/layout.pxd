"""Where the bytes of a segment lie in this process. Shared by the engine (nogil) and by tests (`Segment`)."""

cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void *iov_base
        size_t iov_len

cdef struct row_t:
    long long start       # first byte inside the block
    long long nbytes      # rows * row_bytes
    long long page        # which of the block's pages
    long long offset      # from the page's first byte
    long long rows
    long long row_bytes
    long long row_stride

cdef struct segment_t:
    char *base
    const long long *offsets     # of each page of each block, from base
    const row_t *pattern         # the same in every block
    long long pages_per_block
    long long npattern
    long long block_bytes
    long long nbytes

cdef inline long long segment_piece(const segment_t *s, long long off, char **addr) noexcept nogil:
    """Address of byte `off` in `addr`; returns how many bytes follow it without a gap."""
    cdef long long block = off // s.block_bytes
    cdef long long inside = off - block * s.block_bytes
    cdef const row_t *row
    cdef long long row_no, low = 0, high = s.npattern, middle
    while high - low > 1:                  # usually one or two rows; thousands where pages are repaged finely
        middle = (low + high) >> 1
        if s.pattern[middle].start <= inside:
            low = middle
        else:
            high = middle
    row = &s.pattern[low]
    inside -= row.start
    addr[0] = s.base + s.offsets[block * s.pages_per_block + row.page] + row.offset
    if row.rows == 1:
        addr[0] += inside
        return row.nbytes - inside
    row_no = inside // row.row_bytes
    inside -= row_no * row.row_bytes
    addr[0] += row_no * row.row_stride + inside
    return row.row_bytes - inside

cdef void segment_scatter(const segment_t *s, long long off, long long length, const char *src) noexcept nogil
cdef void segment_gather(const segment_t *s, long long off, long long length, char *dst) noexcept nogil
cdef int segment_iovecs(const segment_t *s, long long off, long long length, iovec *out, int limit) noexcept nogil

cdef class Segment:
    cdef segment_t c
    cdef object offsets_owner
    cdef object pattern_owner
