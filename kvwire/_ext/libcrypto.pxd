"""A libcrypto that was opened at run time."""

cdef class Libcrypto:
    cdef void *handle
    cdef readonly str path
    cdef readonly str version
    cdef readonly unsigned long number
    cdef readonly str found_as
    cdef void *symbol(self, const char *name) except NULL
