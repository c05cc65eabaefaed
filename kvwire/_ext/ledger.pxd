"""Which cells of a transfer have landed. Shared by the engine (nogil, under the link's lock) and by tests."""

cdef enum claim_t:
    OWN = 0
    DUPLICATE = 1
    OUTSIDE = 2

cdef struct ledger_t:
    unsigned int segments
    long long cells                # of all segments
    long long *first               # [segments + 1] number of each segment's first cell
    unsigned char *claimed         # bitmaps over all cells
    unsigned char *landed
    unsigned int *missing          # [segments] cells that have not landed
    long long missing_total

cdef int ledger_init(ledger_t *l, const long long *cells, unsigned int segments) noexcept nogil
cdef void ledger_free(ledger_t *l) noexcept nogil

cdef inline claim_t ledger_claim(ledger_t *l, unsigned int segment, unsigned int cell) noexcept nogil:
    """Take the right to write a cell. Exactly one caller gets OWN."""
    cdef long long at
    if segment >= l.segments or cell >= l.first[segment + 1] - l.first[segment]:
        return OUTSIDE
    at = l.first[segment] + cell
    if l.claimed[at >> 3] & (1 << (at & 7)):
        return DUPLICATE
    l.claimed[at >> 3] |= 1 << (at & 7)
    return OWN

cdef inline void ledger_unclaim(ledger_t *l, unsigned int segment, unsigned int cell) noexcept nogil:
    """A claimed cell will not land: it is anybody's again."""
    cdef long long at = l.first[segment] + cell
    l.claimed[at >> 3] &= ~(1 << (at & 7))

cdef inline bint ledger_land(ledger_t *l, unsigned int segment, unsigned int cell) noexcept nogil:
    """A claimed cell is in place. True when that completes its segment."""
    cdef long long at = l.first[segment] + cell
    l.landed[at >> 3] |= 1 << (at & 7)
    l.missing[segment] -= 1
    l.missing_total -= 1
    return l.missing[segment] == 0

cdef class Ledger:
    cdef ledger_t c
