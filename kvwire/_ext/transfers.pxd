from kvwire._ext.core cimport in_t, out_t, u32, u64
from kvwire._ext.lanes cimport EngineLink

cdef class OutTransfer:
    cdef out_t *t
    cdef readonly EngineLink link
    cdef object keep
    cdef object __weakref__
    cdef unsigned char *flags(self, u32 segment, u64 first, u64 count) except NULL
    cdef int push(self, u32 segment, u32 first, u32 count) except -1

cdef class InTransfer:
    cdef in_t *t
    cdef readonly EngineLink link
    cdef object keep
    cdef object __weakref__
