"""What both halves of a transfer share."""

from libc.stdlib cimport calloc

from kvwire._ext.coding cimport coding_t
from kvwire._ext.core cimport *
from kvwire._ext.lanes cimport EngineLink
from kvwire._ext.layout cimport Segment, segment_t

from kvwire.errors import LimitExceeded

STATES = ("active", "committed", "aborted", "lost")

cdef int check_cell(EngineLink link, u32 cell_bytes) except -1:
    link.check()
    if not 0 < cell_bytes <= link.engine.c.max_cell_bytes:
        raise LimitExceeded(f"cells of {cell_bytes} bytes; the engine takes 1 to {link.engine.c.max_cell_bytes}")
    return 0


cdef void init_condition(pthread_cond_t *c) noexcept nogil:
    cdef pthread_condattr_t attr
    pthread_condattr_init(&attr)
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC)
    pthread_cond_init(c, &attr)
    pthread_condattr_destroy(&attr)


cdef timespec deadline_in(double timeout_s) noexcept nogil:
    cdef u64 at = now_ns() + <u64>(min(max(timeout_s, 0.0), 1e9) * 1e9)
    cdef timespec ts
    ts.tv_sec = <long>(at // 1000000000)
    ts.tv_nsec = <long>(at % 1000000000)
    return ts


cdef segment_t *copy_segments(list segments) except NULL:
    cdef segment_t *out = <segment_t *>calloc(len(segments) + 1, sizeof(segment_t))
    cdef Segment s
    cdef int i
    if out == NULL:
        raise MemoryError
    for i, segment in enumerate(segments):
        s = segment
        out[i] = s.c
    return out


cdef list coded_bytes(link_t *link, const coding_t *coding, u32 segments):
    """By segment, what went coded: bytes of cells and of their payloads."""
    cdef u64 plain, wire
    cdef u32 i
    cdef list out = []
    for i in range(segments if coding != NULL else 0):
        look_at(link)
        plain, wire = coding[i].plain_bytes, coding[i].wire_bytes
        looked_at(link)
        out.append((plain, wire))
    return out or [(0, 0)] * segments
