from kvwire._ext.core cimport out_t, u32, u64
from kvwire._ext.lanes cimport EngineLink

cdef class OutTransfer:
    cdef out_t *t
    cdef readonly EngineLink link
    cdef object keep
    cdef object __weakref__
    cdef unsigned char *flags(self, u32 segment, u64 first, u64 count) except NULL
    cdef bint is_ready(self, u64 cell) noexcept
    cdef int push(self, u32 segment, u32 first, u32 count, bint again) noexcept
