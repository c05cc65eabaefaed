"""How the cells of a segment are coded, and what is measured of it."""

from kvwire._ext.codec cimport Cell, Native, cell_t, codec_t

ctypedef unsigned long long u64

cdef enum:
    SAMPLE_CELLS = 64              # of one kind, one in so many is encoded to measure it
    SAMPLE_EVERY_NS = 50000000     # and by one worker no more often, where the link is not worth encoding for
    STEADY_NS = 5000000000         # for how long nothing changes once it has
    SHARE_ONE = 1 << 16            # a payload as long as its cell
    SHARE_WORTH = 59578            # SHARE_ONE / 1.1: what it has to be below
    AUTOMATIC = 1                  # id of the codec that "auto" goes through (kvwire/codecs/choice.py)

cdef struct gauge_t:
    u64 samples                    # shown, as all of them; written under the link's lock
    u64 share                      # smoothed, of SHARE_ONE: payload to cell
    u64 on                         # whether its cells are worth encoding
    u64 unsampled                  # cells since the last that was measured
    u64 changed_ns                 # 0: never

cdef struct coding_t:
    const codec_t *codec           # NULL: its cells go as they are
    cell_t cell                    # its first one
    u64 block_bytes                # where a codec's view of a cell begins anew
    gauge_t *gauge                 # NULL: every cell that shrinks
    u64 plain_bytes                # lock: of cells that went coded
    u64 wire_bytes                 # lock: the same, of their payloads

cdef cell_t cell_at(const coding_t *c, u64 offset) noexcept nogil
cdef bint gauge_wants(gauge_t *g, bint affordable, u64 *sample_due_ns, u64 now) noexcept nogil
cdef void gauge_measured(gauge_t *g, u64 plain, u64 wire, u64 now) noexcept nogil
cdef coding_t *codings_of(list codings, unsigned int segments) except? NULL

cdef class Gauge:
    cdef gauge_t g

cdef class Coding:
    cdef readonly Native codec
    cdef readonly Cell cell
    cdef readonly Gauge gauge
