"""The cipher of sealed lanes: AES-256-GCM by OpenSSL's EVP, called without the GIL, or by the `cryptography` package.

OpenSSL's functions are looked up at run time in the libcrypto that `libcrypto.find` has found; signatures and
constants are those of openssl/evp.h, version 3.0 and newer. Where there is no libcrypto the package does the work. It
takes the GIL for each frame, so that a busy Python slows the lanes down, and it cannot wipe its keys.
"""

import hmac
import warnings

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.string cimport memcpy

from kvwire._ext import libcrypto
from kvwire.errors import ConfigError

cdef enum:                         # openssl/evp.h
    EVP_CTRL_AEAD_GET_TAG = 0x10
    EVP_CTRL_AEAD_SET_TAG = 0x11


# --- OpenSSL ------------------------------------------------------------------------------------------------------


cdef void *evp_new_key(const cipher_t *c, const byte_t *secret, bint sealing) noexcept nogil:
    cdef const evp_t *evp = <const evp_t *>c.provider
    cdef void *ctx = evp.new()
    if ctx != NULL and (evp.encrypt_init if sealing else evp.decrypt_init)(ctx, evp.aes_256_gcm, secret, NULL, NULL) != 1:
        evp.free(ctx)
        ctx = NULL
    return ctx


cdef void evp_free_key(const cipher_t *c, void *key) noexcept nogil:
    (<const evp_t *>c.provider).free(key)  # wipes the key schedule


cdef bint evp_seal(const cipher_t *c, void *key, const byte_t *nonce, const void *header, int header_len,
                   const iovec *pieces, int count, byte_t *out) noexcept nogil:
    cdef const evp_t *evp = <const evp_t *>c.provider
    cdef int i, n
    if evp.encrypt_init(key, NULL, NULL, nonce, NULL) != 1:
        return False
    if evp.encrypt_update(key, NULL, &n, <const byte_t *>header, header_len) != 1:
        return False
    for i in range(count):
        if evp.encrypt_update(key, out, &n, <const byte_t *>pieces[i].iov_base, <int>pieces[i].iov_len) != 1:
            return False
        out += pieces[i].iov_len
    return evp.encrypt_final(key, out, &n) == 1 and evp.control(key, EVP_CTRL_AEAD_GET_TAG, TAG_BYTES, out) == 1


cdef bint evp_open(const cipher_t *c, void *key, const byte_t *nonce, const void *header, int header_len,
                   byte_t *data, size_t length) noexcept nogil:
    cdef const evp_t *evp = <const evp_t *>c.provider
    cdef int n
    return (evp.decrypt_init(key, NULL, NULL, nonce, NULL) == 1
            and evp.control(key, EVP_CTRL_AEAD_SET_TAG, TAG_BYTES, data + length) == 1
            and evp.decrypt_update(key, NULL, &n, <const byte_t *>header, header_len) == 1
            and (length == 0 or evp.decrypt_update(key, data, &n, data, <int>length) == 1)
            and evp.decrypt_final(key, data + length, &n) == 1)


cdef bint evp_mac(const cipher_t *c, const byte_t *secret, const byte_t *data, size_t length, byte_t *out) noexcept nogil:
    cdef size_t n
    return (<const evp_t *>c.provider).q_mac(NULL, b"HMAC", NULL, b"SHA256", NULL, secret, SECRET_BYTES, data, length,
                                             out, SECRET_BYTES, &n) != NULL


def of_libcrypto(Libcrypto library not None):
    """AES-256-GCM by this libcrypto; OSError where it has none."""
    cdef Cipher made = Cipher.__new__(Cipher)
    cdef evp_t *evp = &made.evp
    evp.new = <void *(*)() noexcept nogil>library.symbol(b"EVP_CIPHER_CTX_new")
    evp.free = <void (*)(void *) noexcept nogil>library.symbol(b"EVP_CIPHER_CTX_free")
    evp.encrypt_init = <int (*)(void *, void *, const byte_t *, const byte_t *, void *) noexcept nogil>(
        library.symbol(b"EVP_EncryptInit_ex2"))
    evp.encrypt_update = <int (*)(void *, byte_t *, int *, const byte_t *, int) noexcept nogil>(
        library.symbol(b"EVP_EncryptUpdate"))
    evp.encrypt_final = <int (*)(void *, byte_t *, int *) noexcept nogil>library.symbol(b"EVP_EncryptFinal_ex")
    evp.decrypt_init = <int (*)(void *, void *, const byte_t *, const byte_t *, void *) noexcept nogil>(
        library.symbol(b"EVP_DecryptInit_ex2"))
    evp.decrypt_update = <int (*)(void *, byte_t *, int *, const byte_t *, int) noexcept nogil>(
        library.symbol(b"EVP_DecryptUpdate"))
    evp.decrypt_final = <int (*)(void *, byte_t *, int *) noexcept nogil>library.symbol(b"EVP_DecryptFinal_ex")
    evp.control = <int (*)(void *, int, int, void *) noexcept nogil>library.symbol(b"EVP_CIPHER_CTX_ctrl")
    evp.q_mac = <byte_t *(*)(void *, const char *, const char *, const char *, void *, const void *, size_t,
                             const void *, size_t, byte_t *, size_t, size_t *) noexcept nogil>(
        library.symbol(b"EVP_Q_mac"))
    evp.free_cipher = <void (*)(void *) noexcept nogil>library.symbol(b"EVP_CIPHER_free")
    evp.aes_256_gcm = (<void *(*)(void *, const char *, const char *) noexcept nogil>(
        library.symbol(b"EVP_CIPHER_fetch")))(NULL, b"AES-256-GCM", NULL)
    if evp.aes_256_gcm == NULL:
        raise OSError(f"{library.path} has no AES-256-GCM")
    made.c.provider = evp
    made.c.new_key = evp_new_key
    made.c.free_key = evp_free_key
    made.c.seal = evp_seal
    made.c.open = evp_open
    made.c.mac = evp_mac
    made.name = f"OpenSSL {library.version} ({library.found_as})"
    made.native = True
    return made                        # an engine keeps it, and with it what was fetched


# --- the package --------------------------------------------------------------------------------------------------


cdef void *package_new_key(const cipher_t *c, const byte_t *secret, bint sealing) noexcept with gil:
    try:
        key = (<object>c.provider)(PyBytes_FromStringAndSize(<const char *>secret, SECRET_BYTES))
    except Exception:
        return NULL
    Py_INCREF(key)
    return <void *>key


cdef void package_free_key(const cipher_t *c, void *key) noexcept with gil:
    Py_DECREF(<object>key)


cdef bint package_seal(const cipher_t *c, void *key, const byte_t *nonce, const void *header, int header_len,
                       const iovec *pieces, int count, byte_t *out) noexcept with gil:
    cdef bytes sealed
    cdef int i
    try:
        data = b"".join([PyBytes_FromStringAndSize(<const char *>pieces[i].iov_base, <Py_ssize_t>pieces[i].iov_len)
                         for i in range(count)])
        sealed = (<object>key).encrypt(PyBytes_FromStringAndSize(<const char *>nonce, IV_BYTES), data,
                                       PyBytes_FromStringAndSize(<const char *>header, header_len))
    except Exception:
        return False
    memcpy(out, PyBytes_AS_STRING(sealed), <size_t>len(sealed))
    return True


cdef bint package_open(const cipher_t *c, void *key, const byte_t *nonce, const void *header, int header_len,
                       byte_t *data, size_t length) noexcept with gil:
    cdef bytes opened
    try:
        opened = (<object>key).decrypt(PyBytes_FromStringAndSize(<const char *>nonce, IV_BYTES),
                                       PyBytes_FromStringAndSize(<const char *>data, <Py_ssize_t>length + TAG_BYTES),
                                       PyBytes_FromStringAndSize(<const char *>header, header_len))
    except Exception:
        return False
    memcpy(data, PyBytes_AS_STRING(opened), length)
    return True


cdef bint package_mac(const cipher_t *c, const byte_t *secret, const byte_t *data, size_t length,
                      byte_t *out) noexcept with gil:
    cdef bytes digest
    try:
        digest = hmac.digest(PyBytes_FromStringAndSize(<const char *>secret, SECRET_BYTES),
                             PyBytes_FromStringAndSize(<const char *>data, <Py_ssize_t>length), "sha256")
    except Exception:
        return False
    memcpy(out, PyBytes_AS_STRING(digest), SECRET_BYTES)
    return True


def of_package():
    """AES-256-GCM by the `cryptography` package."""
    import cryptography
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    cdef Cipher made = Cipher.__new__(Cipher)
    made.keep = AESGCM
    made.c.provider = <void *>made.keep
    made.c.new_key = package_new_key
    made.c.free_key = package_free_key
    made.c.seal = package_seal
    made.c.open = package_open
    made.c.mac = package_mac
    made.name = f"cryptography {cryptography.__version__}"
    made.native = False
    return made


# --- which --------------------------------------------------------------------------------------------------------


@cython.no_gc_clear                     # keys are freed through it, and `provider` points to what it keeps
cdef class Cipher:
    """AES-256-GCM, as an engine uses it."""

    def __dealloc__(self):
        if self.evp.aes_256_gcm != NULL:
            self.evp.free_cipher(self.evp.aes_256_gcm)

    def __init__(self):
        raise TypeError("find() makes it")

    def __repr__(self):
        return f"<AES-256-GCM by {self.name}>"


_found = None


def find():
    """The cipher of this process, looked for once."""
    global _found
    if _found is None:
        library = libcrypto.find()
        try:
            _found = of_package() if library is None else of_libcrypto(library)
        except OSError as error:
            raise ConfigError(f"this libcrypto cannot seal: {error}", hint=f"name another one in {libcrypto.ENVIRONMENT}") from None
        if library is None:
            warnings.warn(f"no libcrypto was found: {_found.name} seals and opens frames, and takes the GIL for each",
                          RuntimeWarning, stacklevel=2)
    return _found
