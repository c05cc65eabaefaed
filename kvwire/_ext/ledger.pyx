"""The ledger: a bitmap of landed cells per segment, and the right to write each cell exactly once."""

from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset


cdef int ledger_init(ledger_t *l, const long long *cells, unsigned int segments) noexcept nogil:
    """Zeroed ledger of `cells[i]` cells in segment `i`; -1 without memory. A segment may have no cell."""
    cdef unsigned int i
    memset(l, 0, sizeof(ledger_t))
    l.segments = segments
    l.first = <long long *>malloc((segments + 1) * sizeof(long long))
    l.missing = <unsigned int *>malloc((segments + 1) * sizeof(unsigned int))
    if l.first == NULL or l.missing == NULL:
        ledger_free(l)
        return -1
    l.first[0] = 0
    for i in range(segments):
        l.first[i + 1] = l.first[i] + cells[i]
        l.missing[i] = <unsigned int>cells[i]
    l.cells = l.missing_total = l.first[segments]
    l.claimed = <unsigned char *>calloc(<size_t>(l.cells // 8 + 1), 1)
    l.landed = <unsigned char *>calloc(<size_t>(l.cells // 8 + 1), 1)
    if l.claimed == NULL or l.landed == NULL:
        ledger_free(l)
        return -1
    return 0


cdef void ledger_free(ledger_t *l) noexcept nogil:
    free(l.first)
    free(l.missing)
    free(l.claimed)
    free(l.landed)
    memset(l, 0, sizeof(ledger_t))


cdef class Ledger:
    """Ledger of a transfer whose segment `i` has `cells[i]` cells."""

    def __cinit__(self, cells):
        cdef long long[:] counts
        import array
        values = array.array("q", cells)
        if any(not 0 <= n < 1 << 32 for n in values):
            raise ValueError("a segment has 0 to 2**32 - 1 cells")
        values.append(0)
        counts = values
        if ledger_init(&self.c, &counts[0], <unsigned int>(len(values) - 1)):
            raise MemoryError

    def __dealloc__(self):
        ledger_free(&self.c)

    def claim(self, unsigned int segment, unsigned int cell):
        return ("own", "duplicate", "outside")[ledger_claim(&self.c, segment, cell)]

    def land(self, unsigned int segment, unsigned int cell):
        cdef long long at
        if segment >= self.c.segments or cell >= self.c.first[segment + 1] - self.c.first[segment]:
            raise IndexError(f"no cell {cell} in segment {segment}")
        at = self.c.first[segment] + cell
        if not self.c.claimed[at >> 3] & (1 << (at & 7)) or self.c.landed[at >> 3] & (1 << (at & 7)):
            raise ValueError(f"cell {cell} of segment {segment} was not claimed, or landed before")
        return bool(ledger_land(&self.c, segment, cell))

    def landed(self, unsigned int segment, unsigned int cell):
        cdef long long at
        if segment >= self.c.segments or cell >= self.c.first[segment + 1] - self.c.first[segment]:
            raise IndexError(f"no cell {cell} in segment {segment}")
        at = self.c.first[segment] + cell
        return bool(self.c.landed[at >> 3] & (1 << (at & 7)))

    def missing(self, unsigned int segment):
        if segment >= self.c.segments:
            raise IndexError(f"no segment {segment}")
        return self.c.missing[segment]

    @property
    def missing_total(self):
        return self.c.missing_total
