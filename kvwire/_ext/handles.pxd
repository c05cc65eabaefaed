"""What both halves of a transfer share: names of states, checks, native waits."""

from kvwire._ext.coding cimport coding_t
from kvwire._ext.core cimport *
from kvwire._ext.lanes cimport EngineLink
from kvwire._ext.layout cimport segment_t

cdef int check_cell(EngineLink link, u32 cell_bytes) except -1
cdef void init_condition(pthread_cond_t *c) noexcept nogil
cdef timespec deadline_in(double timeout_s) noexcept nogil
cdef segment_t *copy_segments(list segments) except NULL
cdef list coded_bytes(link_t *link, const coding_t *coding, u32 segments)
