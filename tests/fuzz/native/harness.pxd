from libc.stdint cimport uint8_t, uint64_t

cdef extern from "harness.h" nogil:
    bint planted "kvwire_fuzz_planted"
    ctypedef ssize_t (*fuzz_recv_t)(void *buffer, size_t room) noexcept nogil
    fuzz_recv_t on_recv "kvwire_fuzz_recv"
    ctypedef struct input_t:
        const uint8_t *at
        const uint8_t *end
    size_t left(const input_t *input) noexcept
    uint64_t take(input_t *input, size_t bytes) noexcept
    void require(bint ok, const char *what) noexcept
