"""Bugs that a sanitizer has to find, one of each kind. Built as one more module of kvwire/_ext, in the copy only."""

from libc.stdlib cimport free, malloc

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_t:
        pass
    int pthread_create(pthread_t *thread, void *attr, void *(*main)(void *) noexcept nogil, void *arg)
    int pthread_join(pthread_t thread, void **result)

cdef int counter = 0


def overflow(size_t length):
    """Writes one byte behind a block of `length` bytes of the heap."""
    cdef unsigned char *block = <unsigned char *>malloc(length)
    block[length] = 1
    free(block)


def leak(size_t length):
    """Forgets a block of the heap."""
    cdef unsigned char *block = <unsigned char *>malloc(length)
    block[0] = 1


def overrun(int number):
    """Leaves the range of a signed integer, where `number` is large."""
    return number + <int>0x7FFFFFF0


cdef void *count(void *arg) noexcept nogil:
    global counter
    cdef int i
    for i in range(100):
        counter += 1
    return arg


def race():
    """Two native threads count with nothing between them."""
    cdef pthread_t threads[2]
    cdef int i, started = 0
    with nogil:
        for i in range(2):
            started += pthread_create(&threads[i], NULL, count, NULL) == 0
        for i in range(started):
            pthread_join(threads[i], NULL)
    return counter
