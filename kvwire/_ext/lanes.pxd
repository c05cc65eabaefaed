from kvwire._ext.core cimport lane_t, link_t, u32
from kvwire._ext.engine cimport Engine

cdef class EngineLink:
    cdef link_t c
    cdef readonly Engine engine
    cdef object __weakref__
    cdef void check(self) except *
    cdef void close_lanes(self)
    cdef void empty_queue(self) noexcept nogil
