"""What a codec is (codec_impl.h), and those that kvwire has."""

from kvwire._ext.zstdlib cimport Zstd, zstd_t

ctypedef unsigned char byte_t

cdef extern from "codec_impl.h" nogil:
    enum:
        OTHER "KVWIRE_OTHER"
        BF16 "KVWIRE_BF16"
        FP16 "KVWIRE_FP16"
        FP32 "KVWIRE_FP32"
        FP64 "KVWIRE_FP64"
        SCRATCH_FACTOR "KVWIRE_SCRATCH_FACTOR"

    ctypedef struct part_t "kvwire_part_t":
        unsigned long long outer, tokens, inner
        byte_t per_channel

    ctypedef struct cell_t "kvwire_cell_t":
        const part_t *parts
        unsigned int nparts
        byte_t element
        byte_t itemsize
        unsigned int layer, layers
        unsigned long long offset

    ctypedef struct scratch_t "kvwire_scratch_t":
        byte_t *bytes
        size_t cell_bytes
        const zstd_t *zstd
        void *encoder
        void *decoder

    ctypedef struct codec_t "kvwire_codec_t":
        const void *provider
        long long (*encode)(const codec_t *c, const cell_t *cell, const byte_t *src, size_t n, byte_t *dst,
                            size_t capacity, scratch_t *scratch) noexcept nogil
        int (*decode)(const codec_t *c, const cell_t *cell, const byte_t *src, size_t length, byte_t *dst, size_t n,
                      scratch_t *scratch) noexcept nogil
        byte_t id

cdef enum:
    MAX_CELL_BYTES = 262144            # Config's bound of a claim, which is one cell at least
    MAX_PARTS = 16                     # kvwire.types.MAX_PARTS

cdef bint scratch_init(scratch_t *s, size_t cell_bytes, const zstd_t *zstd) noexcept nogil
cdef void scratch_free(scratch_t *s) noexcept nogil

cdef class Scratch:
    cdef scratch_t s
    cdef Zstd zstd

cdef class Cell:
    cdef cell_t c
    cdef part_t[MAX_PARTS] parts
    cdef unsigned long long block_bytes(self) noexcept

cdef class Native:
    cdef codec_t c
    cdef object keep                   # what `provider` points to, where that is a Python object
    cdef readonly str name
    cdef readonly bint needs_zstd
    cdef readonly bint nogil           # whether it works without the GIL
