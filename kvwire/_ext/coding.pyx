"""How the cells of a segment are coded: always, where they shrink, or by what is measured of their kind.

A gauge belongs to one kind of cell of a link: those of one model, group, layer and dtype. Workers ask it under the link's
lock whether to encode a cell, and tell it there what came of it. Whether the link can afford to encode at all is decided
elsewhere (kvwire/codecs/adaptive.py); while it cannot, a cell is encoded now and then, to know.
"""

from libc.stdlib cimport calloc

from kvwire._ext.core cimport kv_look, kv_show

from kvwire.errors import SpecError


cdef cell_t cell_at(const coding_t *c, u64 offset) noexcept nogil:
    """The cell that begins so many bytes into the segment."""
    cdef cell_t cell = c.cell
    cell.offset = (cell.offset + offset) % c.block_bytes if c.block_bytes else 0
    return cell


cdef bint gauge_wants(gauge_t *g, bint affordable, u64 *sample_due_ns, u64 now) noexcept nogil:
    """Whether to encode the next cell. `sample_due_ns`: the worker's, when it may again where nothing is to be gained."""
    kv_show(&g.unsampled, g.unsampled + 1)
    if affordable and g.on:
        return True
    if g.samples and g.unsampled < SAMPLE_CELLS or not affordable and now < sample_due_ns[0]:
        return False
    kv_show(&g.unsampled, 0)
    sample_due_ns[0] = now + SAMPLE_EVERY_NS
    return True


cdef void gauge_measured(gauge_t *g, u64 plain, u64 wire, u64 now) noexcept nogil:
    """A cell was encoded. `wire` as `plain`: it did not shrink."""
    cdef u64 share = wire * SHARE_ONE // plain
    cdef u64 worth
    if g.samples:
        share = (7 * g.share + share) >> 3
    kv_show(&g.share, share)
    kv_show(&g.samples, g.samples + 1)
    worth = share < SHARE_WORTH
    if worth != g.on and (g.changed_ns == 0 or now - g.changed_ns >= <u64>STEADY_NS):
        kv_show(&g.on, worth)
        g.changed_ns = now


cdef coding_t *codings_of(list codings, unsigned int segments) except? NULL:
    """As a transfer has them, to be freed; NULL where there are none. What they point to lives as long as `codings`."""
    cdef coding_t *out
    cdef Coding coding
    cdef unsigned int i
    if codings is None or not any(codings):
        return NULL
    if len(codings) != segments:
        raise SpecError(f"{len(codings)} codings for {segments} segments")
    out = <coding_t *>calloc(segments + 1, sizeof(coding_t))
    if out == NULL:
        raise MemoryError
    for i, each in enumerate(codings):
        coding = each
        if coding is not None:
            out[i].codec = &coding.codec.c
            out[i].cell = coding.cell.c
            out[i].block_bytes = coding.cell.block_bytes()
            out[i].gauge = NULL if coding.gauge is None else &coding.gauge.g
    return out


cdef class Gauge:
    """What is measured of one kind of cell, and whether it is worth encoding."""

    @property
    def samples(self):
        return kv_look(&self.g.samples)

    @property
    def ratio(self):
        cdef u64 share = kv_look(&self.g.share)
        return SHARE_ONE / <double>share if share else 0.0

    @property
    def on(self):
        return bool(kv_look(&self.g.on))

    def wants(self, bint affordable, u64 sample_due_ns, u64 now_ns):
        cdef u64 due = sample_due_ns
        return bool(gauge_wants(&self.g, affordable, &due, now_ns)), due

    def measured(self, u64 plain, u64 wire, u64 now_ns):
        if not 0 < wire <= plain:
            raise ValueError(f"a payload of {wire} bytes for a cell of {plain}")
        gauge_measured(&self.g, plain, wire, now_ns)


cdef class Coding:
    """The codec of one segment's cells."""

    def __cinit__(self, Native codec not None, Cell cell not None, Gauge gauge=None):
        self.codec = codec
        self.cell = cell
        self.gauge = gauge
