from kvwire._ext.core cimport in_t, out_t, u32
from kvwire._ext.lanes cimport EngineLink

cdef class OutTransfer:
    cdef out_t *t
    cdef readonly EngineLink link
    cdef object keep
    cdef object __weakref__
    cdef int push(self, u32 segment, u32 first, u32 count) except -1

cdef class InTransfer:
    cdef in_t *t
    cdef readonly EngineLink link
    cdef object keep
    cdef object __weakref__
