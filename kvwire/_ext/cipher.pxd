"""AES-256-GCM and HMAC-SHA256 behind a few function pointers, which workers call without the GIL."""

from kvwire._ext.layout cimport iovec
from kvwire._ext.libcrypto cimport Libcrypto

ctypedef unsigned char byte_t

cdef extern from "<string.h>" nogil:
    void explicit_bzero(void *data, size_t length)

cdef enum:
    SECRET_BYTES = 32              # of a key and of a chain
    IV_BYTES = 12
    TAG_BYTES = 16

cdef struct cipher_t:
    const void *provider           # what the functions need: evp_t, or the package's class
    # A key, ready to seal or to open; NULL without memory. One thread uses it at a time.
    void *(*new_key)(const cipher_t *c, const byte_t *secret, bint sealing) noexcept nogil
    void (*free_key)(const cipher_t *c, void *key) noexcept nogil
    # The pieces, one after the other, to `out`: as many bytes, and the tag. A piece may be `out` itself.
    bint (*seal)(const cipher_t *c, void *key, const byte_t *nonce, const void *header, int header_len,
                 const iovec *pieces, int count, byte_t *out) noexcept nogil
    # `data`, which its tag follows, in its place; False when the tag is not right, and then the bytes mean nothing.
    bint (*open)(const cipher_t *c, void *key, const byte_t *nonce, const void *header, int header_len,
                 byte_t *data, size_t length) noexcept nogil
    # HMAC-SHA256; False without memory.
    bint (*mac)(const cipher_t *c, const byte_t *secret, const byte_t *data, size_t length,
                byte_t *out) noexcept nogil

cdef struct evp_t:
    void *aes_256_gcm              # EVP_CIPHER *
    void (*free_cipher)(void *cipher) noexcept nogil
    void *(*new)() noexcept nogil
    void (*free)(void *ctx) noexcept nogil
    int (*encrypt_init)(void *ctx, void *cipher, const byte_t *key, const byte_t *iv, void *params) noexcept nogil
    int (*encrypt_update)(void *ctx, byte_t *out, int *n, const byte_t *data, int length) noexcept nogil
    int (*encrypt_final)(void *ctx, byte_t *out, int *n) noexcept nogil
    int (*decrypt_init)(void *ctx, void *cipher, const byte_t *key, const byte_t *iv, void *params) noexcept nogil
    int (*decrypt_update)(void *ctx, byte_t *out, int *n, const byte_t *data, int length) noexcept nogil
    int (*decrypt_final)(void *ctx, byte_t *out, int *n) noexcept nogil
    int (*control)(void *ctx, int what, int length, void *value) noexcept nogil
    byte_t *(*q_mac)(void *libctx, const char *name, const char *propq, const char *digest, void *params,
                     const void *key, size_t key_len, const void *data, size_t length,
                     byte_t *out, size_t out_size, size_t *out_len) noexcept nogil

cdef class Cipher:
    cdef cipher_t c
    cdef evp_t evp
    cdef object keep               # what `provider` points to, where that is a Python object
    cdef readonly str name
    cdef readonly bint native
