"""What the extension modules were built with and for, as the compiler itself said it.

There is no date and no host among these facts: the same source and tools give the same bytes.
"""

from cpython.version cimport PY_MAJOR_VERSION, PY_MICRO_VERSION, PY_MINOR_VERSION


cdef extern from *:
    """
    #include <features.h>

    #if defined(__clang__)
    #define KVWIRE_COMPILER __VERSION__ /* names itself */
    #elif defined(__GNUC__)
    #define KVWIRE_COMPILER "GCC " __VERSION__
    #else
    #define KVWIRE_COMPILER "unknown"
    #endif

    #if defined(__x86_64__)
    #define KVWIRE_ARCHITECTURE "x86_64"
    #elif defined(__aarch64__)
    #define KVWIRE_ARCHITECTURE "aarch64"
    #else
    #define KVWIRE_ARCHITECTURE "another"
    #endif

    #if defined(__GLIBC__)
    enum { KVWIRE_GLIBC_MAJOR = __GLIBC__, KVWIRE_GLIBC_MINOR = __GLIBC_MINOR__ };
    #else
    enum { KVWIRE_GLIBC_MAJOR = 0, KVWIRE_GLIBC_MINOR = 0 };
    #endif

    #if defined(__OPTIMIZE__)
    enum { KVWIRE_OPTIMISED = 1 };
    #else
    enum { KVWIRE_OPTIMISED = 0 };
    #endif
    """
    const char *KVWIRE_COMPILER
    const char *KVWIRE_ARCHITECTURE
    const char *KVWIRE_FLAGS  # setup.py defines it
    const unsigned int CYTHON_HEX_VERSION
    const int KVWIRE_GLIBC_MAJOR
    const int KVWIRE_GLIBC_MINOR
    const int KVWIRE_OPTIMISED


def facts():
    """Compiler, Cython, C library, Python headers, architecture and flags of the build."""
    glibc = f"glibc {KVWIRE_GLIBC_MAJOR}.{KVWIRE_GLIBC_MINOR}"
    return {
        "compiler": KVWIRE_COMPILER.decode(),
        "cython": ".".join(str(CYTHON_HEX_VERSION >> shift & 0xFF) for shift in (24, 16, 8)),
        "python": f"{PY_MAJOR_VERSION}.{PY_MINOR_VERSION}.{PY_MICRO_VERSION}",
        "libc": glibc if KVWIRE_GLIBC_MAJOR else "unknown",
        "architecture": KVWIRE_ARCHITECTURE.decode(),
        "flags": KVWIRE_FLAGS.decode(),
        "optimised": bool(KVWIRE_OPTIMISED),
    }
