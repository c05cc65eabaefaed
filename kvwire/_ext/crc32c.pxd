from libc.stdint cimport uint32_t


cdef extern from "crc32c_impl.h" nogil:
    ctypedef uint32_t (*kvwire_crc32c_fn)(uint32_t crc, const void *data, size_t n) noexcept nogil

    uint32_t kvwire_crc32c(uint32_t crc, const void *data, size_t n) noexcept
    const char *kvwire_crc32c_name(size_t index) noexcept
    kvwire_crc32c_fn kvwire_crc32c_find(const char *name) noexcept
    int kvwire_crc32c_select(const char *name) noexcept
    const char *kvwire_crc32c_selected() noexcept
