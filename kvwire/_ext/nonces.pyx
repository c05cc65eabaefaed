"""An instrument for tests: a cipher that writes down every key and nonce it seals with, before it does.

Where it is not used it costs nothing: workers call a cipher through its function pointers, and these are others.
"""

from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from posix.unistd cimport write

from kvwire._ext.cipher cimport IV_BYTES, SECRET_BYTES, Cipher, byte_t, cipher_t
from kvwire._ext.layout cimport iovec

cdef enum:
    ID_BYTES = 16

cdef struct recorder_t:
    const cipher_t *inner
    int fd

cdef struct key_t:
    void *inner
    byte_t id[ID_BYTES]

cdef packed struct record_t:
    byte_t id[ID_BYTES]
    byte_t nonce[IV_BYTES]


cdef void *new_key(const cipher_t *c, const byte_t *secret, bint sealing) noexcept nogil:
    cdef const cipher_t *inner = (<const recorder_t *>c.provider).inner
    cdef byte_t digest[SECRET_BYTES]
    cdef key_t *k = <key_t *>calloc(1, sizeof(key_t))
    if k != NULL and inner.mac(inner, secret, <const byte_t *>b"key id", 6, digest):
        memcpy(k.id, digest, ID_BYTES)
        k.inner = inner.new_key(inner, secret, sealing)
    if k != NULL and k.inner == NULL:
        free(k)
        k = NULL
    return k


cdef void free_key(const cipher_t *c, void *key) noexcept nogil:
    cdef const cipher_t *inner = (<const recorder_t *>c.provider).inner
    inner.free_key(inner, (<key_t *>key).inner)
    free(key)


cdef bint seal(const cipher_t *c, void *key, const byte_t *nonce, const void *header, int header_len,
               const iovec *pieces, int count, byte_t *out) noexcept nogil:
    cdef const recorder_t *recorder = <const recorder_t *>c.provider
    cdef record_t record
    memcpy(record.id, (<key_t *>key).id, ID_BYTES)
    memcpy(record.nonce, nonce, IV_BYTES)
    return (write(recorder.fd, &record, sizeof(record)) == <ssize_t>sizeof(record)
            and recorder.inner.seal(recorder.inner, (<key_t *>key).inner, nonce, header, header_len, pieces, count, out))


cdef bint open(const cipher_t *c, void *key, const byte_t *nonce, const void *header, int header_len,
               byte_t *data, size_t length) noexcept nogil:
    cdef const cipher_t *inner = (<const recorder_t *>c.provider).inner
    return inner.open(inner, (<key_t *>key).inner, nonce, header, header_len, data, length)


cdef bint mac(const cipher_t *c, const byte_t *secret, const byte_t *data, size_t length, byte_t *out) noexcept nogil:
    cdef const cipher_t *inner = (<const recorder_t *>c.provider).inner
    return inner.mac(inner, secret, data, length, out)


cdef class NonceRecorder(Cipher):
    """Seals as `cipher` does, and writes a record for each frame."""

    cdef recorder_t recorder

    def __init__(self, Cipher cipher not None, int fd):
        self.keep = cipher
        self.recorder.inner = &cipher.c
        self.recorder.fd = fd
        self.c.provider = &self.recorder
        self.c.new_key = new_key
        self.c.free_key = free_key
        self.c.seal = seal
        self.c.open = open
        self.c.mac = mac
        self.name = cipher.name
        self.native = cipher.native


RECORD_BYTES = <int>sizeof(record_t)
