from kvwire._ext.core cimport in_t
from kvwire._ext.lanes cimport EngineLink

cdef class InTransfer:
    cdef in_t *t
    cdef readonly EngineLink link
    cdef object keep
    cdef object __weakref__
