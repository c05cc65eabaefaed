"""The libzstd that codecs use, opened at run time and called without the GIL: a build needs no headers of it.

The package `zstandard` has one inside itself, and calls it with the GIL taken for each call. Of its extension modules
the one made for CFFI shows zstd's functions to others, in the wheels of 0.25; the other one does where it is linked with
the system's. Signatures are those of zstd.h, 1.4.0 and newer.
"""

import importlib.util
import os
from glob import escape, glob

from kvwire.errors import ConfigError

cdef extern from "<dlfcn.h>" nogil:
    int RTLD_NOW, RTLD_LOCAL
    void *dlopen(const char *file, int flags)
    void *dlsym(void *handle, const char *symbol)
    int dlclose(void *handle)
    char *dlerror()

cdef enum:
    OLDEST = 10400                     # 1.4.0: ZSTD_compress2 and ZSTD_CCtx_setParameter are stable from there on

ENVIRONMENT = "KVWIRE_LIBZSTD"
SYSTEM = "libzstd.so.1"
MODULES = ("backend_c", "_cffi")


cdef class Zstd:
    """An opened libzstd, 1.4.0 or newer. It is never closed: contexts that were made by it live as long as they like."""

    def __init__(self):
        raise TypeError("find() makes it")

    def __repr__(self):
        return f"<libzstd {self.version}, {self.path} ({self.found_as})>"


cdef void *symbol(void *handle, const char *name) except NULL:
    cdef void *address = dlsym(handle, name)
    if address == NULL:
        raise OSError(f"it has no {name.decode()}")
    return address


cdef void take(Zstd found, void *handle) except *:
    cdef unsigned number = (<unsigned (*)() noexcept nogil>symbol(handle, b"ZSTD_versionNumber"))()
    if number < OLDEST:
        raise OSError(f"it is zstd {number // 10000}.{number // 100 % 100}.{number % 100}, older than 1.4.0")
    cdef zstd_t *z = &found.z
    z.new_encoder = <void *(*)() noexcept nogil>symbol(handle, b"ZSTD_createCCtx")
    z.free_encoder = <size_t (*)(void *) noexcept nogil>symbol(handle, b"ZSTD_freeCCtx")
    z.set = <size_t (*)(void *, int, int) noexcept nogil>symbol(handle, b"ZSTD_CCtx_setParameter")
    z.compress = <size_t (*)(void *, void *, size_t, const void *, size_t) noexcept nogil>(
        symbol(handle, b"ZSTD_compress2"))
    z.new_decoder = <void *(*)() noexcept nogil>symbol(handle, b"ZSTD_createDCtx")
    z.free_decoder = <size_t (*)(void *) noexcept nogil>symbol(handle, b"ZSTD_freeDCtx")
    z.decompress = <size_t (*)(void *, void *, size_t, const void *, size_t) noexcept nogil>(
        symbol(handle, b"ZSTD_decompressDCtx"))
    z.is_error = <unsigned (*)(size_t) noexcept nogil>symbol(handle, b"ZSTD_isError")
    found.version = (<const char *(*)() noexcept nogil>symbol(handle, b"ZSTD_versionString"))().decode()


def load(str file, str found_as=ENVIRONMENT):
    """`file`, as dlopen takes it. OSError says why it cannot be used."""
    cdef bytes name = os.fsencode(file)
    cdef void *handle = dlopen(name, RTLD_NOW | RTLD_LOCAL)
    if handle == NULL:
        raise OSError(os.fsdecode(dlerror()))
    cdef Zstd found = Zstd.__new__(Zstd)
    try:
        take(found, handle)
    except OSError:
        dlclose(handle)
        raise
    found.path = file
    found.found_as = found_as
    return found


def packages():
    """Extension modules of the package `zstandard`, which is not imported for that; none where it is not installed."""
    try:
        spec = importlib.util.find_spec("zstandard")
    except (ImportError, ValueError):
        spec = None
    folders = [] if spec is None else spec.submodule_search_locations or []
    return [file for folder in folders for module in MODULES for file in sorted(glob(f"{escape(folder)}/{module}*.so"))]


_found = None


def find():
    """The first that can be used, looked for once: KVWIRE_LIBZSTD, that of the package `zstandard`, the system's.

    ConfigError where KVWIRE_LIBZSTD names one that cannot be used; None where there is none at all.
    """
    global _found
    if _found is not None:
        return _found
    named = os.environ.get(ENVIRONMENT, "")
    if named:
        try:
            _found = load(named)
        except OSError as error:
            raise ConfigError(f"{ENVIRONMENT} is {named!r}, which cannot be used: {error}",
                              hint="name a libzstd, 1.4.0 or newer, or unset it") from None
        return _found
    for file, found_as in [*((file, "zstandard") for file in packages()), (SYSTEM, "system")]:
        try:
            _found = load(file, found_as)
            break
        except OSError:
            continue
    return _found
