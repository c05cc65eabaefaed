"""CRC32C (Castagnoli, RFC 3720 appendix B.4), by the fastest code that this CPU runs.

Other extension modules call `kvwire_crc32c` of crc32c_impl.h without the GIL, through the `.pxd`.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer


cdef object _over(kvwire_crc32c_fn fn, object data, uint32_t crc):
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    with nogil:
        crc = fn(crc, view.buf, <size_t> view.len)
    PyBuffer_Release(&view)
    return crc


def crc32c(data, uint32_t crc=0):
    """CRC32C of a contiguous buffer; `crc` is the result for the bytes before it.

    Raises BufferError for a buffer with gaps.
    """
    return _over(kvwire_crc32c, data, crc)


def crc32c_with(str name not None, data, uint32_t crc=0):
    """`crc32c` by the implementation of that name; ValueError where this CPU does not run it."""
    cdef kvwire_crc32c_fn fn = kvwire_crc32c_find(name.encode())
    if fn == NULL:
        raise ValueError(f"CRC32C implementation {name!r} does not run here; these do: {', '.join(implementations())}")
    return _over(fn, data, crc)


def implementations():
    """Names of the implementations that this CPU runs, best first."""
    cdef list names = []
    while kvwire_crc32c_name(len(names)) != NULL:
        names.append(kvwire_crc32c_name(len(names)).decode())
    return tuple(names)


def selected():
    """Name of the implementation that `crc32c` uses."""
    return kvwire_crc32c_selected().decode()
