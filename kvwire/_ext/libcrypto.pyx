"""The libcrypto that sealed mode will use, opened at run time: a build needs no headers of OpenSSL, and the wheel's
own, the one Python has loaded anyway, or the system's will do.
"""

import os

from kvwire.errors import ConfigError

cdef extern from "<dlfcn.h>" nogil:
    int RTLD_NOW, RTLD_LOCAL, RTLD_NOLOAD
    void *dlopen(const char *file, int flags)
    void *dlsym(void *handle, const char *symbol)
    char *dlerror()
    ctypedef struct Dl_info:
        const char *dli_fname
    int dladdr(const void *address, Dl_info *info)

cdef enum:
    OLDEST = 0x30000000  # 3.0.0: version 3 is the first with the EVP calls that stay
    OPENSSL_FULL_VERSION_STRING = 7  # openssl/crypto.h

ctypedef unsigned long (*version_num_fn)() noexcept nogil
ctypedef const char *(*version_fn)(int type) noexcept nogil

ENVIRONMENT = "KVWIRE_LIBCRYPTO"
SYSTEM = "libcrypto.so.3"
BUNDLED = os.path.join(os.path.dirname(__file__), "lib", SYSTEM)


cdef class Libcrypto:
    """An opened libcrypto, 3.0 or newer. It is never closed: OpenSSL registers handlers for the exit of its process."""

    def __init__(self):
        raise TypeError("find() makes it")

    def __repr__(self):
        return f"<libcrypto {self.version}, {self.path} ({self.found_as})>"

    cdef void *symbol(self, const char *name) except NULL:
        """The function of this name; OSError where there is none."""
        cdef void *address = dlsym(self.handle, name)
        if address == NULL:
            raise OSError(f"{self.path} has no {name.decode()}")
        return address


cdef str defined_in(const void *address):
    """The file of the loaded object that has this address."""
    cdef Dl_info info
    return os.fsdecode(info.dli_fname) if dladdr(address, &info) and info.dli_fname != NULL else ""


def load(str file, str found_as=ENVIRONMENT):
    """`file`, as dlopen takes it. OSError says why it cannot be used."""
    cdef bytes name = os.fsencode(file)
    cdef void *handle = dlopen(name, RTLD_NOW | RTLD_LOCAL)
    if handle == NULL:
        raise OSError(os.fsdecode(dlerror()))
    cdef version_num_fn number = <version_num_fn> dlsym(handle, "OpenSSL_version_num")
    cdef version_fn version = <version_fn> dlsym(handle, "OpenSSL_version")
    if number == NULL or version == NULL:
        raise OSError("it is no libcrypto: it has no OpenSSL_version_num and OpenSSL_version")
    if number() < OLDEST:
        raise OSError(f"it is {os.fsdecode(version(0))}, number {number():#x}, older than 3.0")
    cdef Libcrypto found = Libcrypto.__new__(Libcrypto)
    found.handle = handle
    found.path = defined_in(<const void *> number) or file
    found.version = os.fsdecode(version(OPENSSL_FULL_VERSION_STRING))
    found.number = number()
    found.found_as = found_as
    return found


cdef str pythons():
    """The file of the libcrypto that Python's ssl module is linked with; "" where it has OpenSSL inside itself."""
    try:
        import _ssl
        file = _ssl.__file__
    except (ImportError, AttributeError):
        return ""
    cdef bytes name = os.fsencode(file)
    cdef void *module = dlopen(name, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD)
    cdef void *symbol = dlsym(module, "OpenSSL_version_num") if module != NULL else NULL
    cdef str path = defined_in(symbol) if symbol != NULL else ""
    return path if "libcrypto" in os.path.basename(path) else ""


def find():
    """The first that can be used: KVWIRE_LIBCRYPTO, the wheel's own, the one Python's ssl module uses, the system's.

    ConfigError where KVWIRE_LIBCRYPTO names one that cannot be used; None where there is none at all.
    """
    named = os.environ.get(ENVIRONMENT, "")
    if named:
        try:
            return load(named, ENVIRONMENT)
        except OSError as error:
            raise ConfigError(
                f"{ENVIRONMENT} is {named!r}, which cannot be used: {error}",
                hint="name an OpenSSL libcrypto, 3.0 or newer, or unset it",
            ) from None
    for file, found_as in ((BUNDLED, "bundled"), (pythons(), "python"), (SYSTEM, "system")):
        try:
            if file:
                return load(file, found_as)
        except OSError:
            continue
    return None
