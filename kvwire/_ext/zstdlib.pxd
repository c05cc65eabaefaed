"""A libzstd that was opened at run time."""

cdef extern from "codec_impl.h" nogil:
    ctypedef struct zstd_t "kvwire_zstd_t":
        void *(*new_encoder)() noexcept nogil
        size_t (*free_encoder)(void *ctx) noexcept nogil
        size_t (*set)(void *ctx, int parameter, int value) noexcept nogil
        size_t (*compress)(void *ctx, void *dst, size_t capacity, const void *src, size_t n) noexcept nogil
        void *(*new_decoder)() noexcept nogil
        size_t (*free_decoder)(void *ctx) noexcept nogil
        size_t (*decompress)(void *ctx, void *dst, size_t capacity, const void *src, size_t n) noexcept nogil
        unsigned (*is_error)(size_t code) noexcept nogil

cdef class Zstd:
    cdef zstd_t z
    cdef readonly str path
    cdef readonly str version
    cdef readonly str found_as
