from kvwire._ext.cipher cimport Cipher
from kvwire._ext.core cimport engine_t
from kvwire._ext.zstdlib cimport Zstd

cdef class Engine:
    cdef engine_t c
    cdef Cipher cipher             # that c.cipher points into; None: all lanes are plain
    cdef Zstd zstd                 # that c.zstd points into; None: there is none
    cdef int threads               # that were started
    cdef bint is_open
    cdef object __weakref__
    cdef void check_process(self) except *
    cdef void check(self) except *
