"""The ledger: claim, unclaim and land in any order, against one byte for each cell."""

from libc.string cimport memset

from harness cimport input_t, left, planted, require, take
from kvwire._ext.ledger cimport (DUPLICATE, OUTSIDE, OWN, claim_t, ledger_claim, ledger_free, ledger_init, ledger_land,
                                 ledger_t, ledger_unclaim)

cdef enum:
    SEGMENTS = 6
    CELLS = 40                     # of a segment, at most: bitmaps begin and end in the middle of a byte

cdef enum cell_t:
    FREE = 0
    CLAIMED = 1
    LANDED = 2


cdef claim_t claim(ledger_t *l, unsigned int segment, unsigned int cell) noexcept nogil:
    """Planted: the cell behind the last one of a segment counts as its own."""
    if planted and segment + 1 < l.segments and cell == l.first[segment + 1] - l.first[segment]:
        return ledger_claim(l, segment + 1, 0)
    return ledger_claim(l, segment, cell)


cdef void compare(const ledger_t *l, const unsigned char[SEGMENTS][CELLS] model, const long long *cells,
                  unsigned int segments) noexcept nogil:
    cdef unsigned int s, c
    cdef long long at, missing, total = 0
    for s in range(segments):
        missing = 0
        for c in range(<unsigned int>cells[s]):
            at = l.first[s] + c
            require(((l.claimed[at >> 3] >> (at & 7)) & 1) == (model[s][c] != FREE), b"claimed is not what was claimed")
            require(((l.landed[at >> 3] >> (at & 7)) & 1) == (model[s][c] == LANDED), b"landed is not what landed")
            missing += model[s][c] != LANDED
        require(l.missing[s] == missing, b"missing of a segment")
        total += missing
    require(l.missing_total == total, b"missing in all")


cdef int one_input(const unsigned char *data, size_t size) noexcept nogil:
    cdef input_t inp
    cdef ledger_t ledger
    cdef unsigned char[SEGMENTS][CELLS] model
    cdef long long[SEGMENTS] cells
    cdef unsigned int segments, s, segment, cell
    cdef int what
    cdef claim_t expected
    cdef bint inside, complete
    inp.at = data
    inp.end = data + size
    segments = <unsigned int>(take(&inp, 1) % (SEGMENTS + 1))
    memset(model, FREE, sizeof(model))
    memset(cells, 0, sizeof(cells))
    for s in range(segments):
        cells[s] = <long long>(take(&inp, 1) % (CELLS + 1))
    require(ledger_init(&ledger, cells, segments) == 0, b"no memory")
    while left(&inp):
        what = <int>take(&inp, 1)
        segment = <unsigned int>take(&inp, 4 if what & 0x80 else 1)
        cell = <unsigned int>take(&inp, 4 if what & 0x40 else 1)
        inside = segment < segments and cell < cells[segment]
        if what & 3 < 2:
            expected = OUTSIDE
            if inside:
                expected = OWN if model[segment][cell] == FREE else DUPLICATE
            require(claim(&ledger, segment, cell) == expected, b"a claim")
            if expected == OWN:
                model[segment][cell] = CLAIMED
        elif not inside or model[segment][cell] != CLAIMED:
            continue                       # the engine lands and gives up only what it has claimed
        elif what & 3 == 2:
            ledger_unclaim(&ledger, segment, cell)
            model[segment][cell] = FREE
        else:
            complete = ledger_land(&ledger, segment, cell)
            model[segment][cell] = LANDED
            require(complete == (ledger.missing[segment] == 0), b"whether a segment is complete")
    compare(&ledger, model, cells, segments)
    ledger_free(&ledger)
    return 0


ONE_INPUT = <size_t>&one_input
