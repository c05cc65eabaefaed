"""One direction of a sealed lane: keys, their chain, and frames. Shared by the engine (nogil) and by tests."""

from kvwire._ext.cipher cimport IV_BYTES, SECRET_BYTES, Cipher, byte_t, cipher_t
from kvwire._ext.frame cimport frame_error_t, header_t
from kvwire._ext.layout cimport iovec

cdef struct limits_t:              # of one key
    unsigned long long bytes
    unsigned long long frames
    unsigned long long ns

cdef struct keys_t:                # of one epoch
    void *key                      # AES-256-GCM's, with its schedule
    byte_t iv[IV_BYTES]
    byte_t chain[SECRET_BYTES]     # of the epoch after it

cdef struct seal_t:
    const cipher_t *cipher
    bint sealing
    keys_t keys
    unsigned int epoch             # from 1
    unsigned long long bytes       # that this key has sealed
    unsigned long long frames
    unsigned long long since_ns    # its first frame

cdef seal_t *seal_new(const cipher_t *cipher, const byte_t *secret, bint sealing) noexcept nogil
cdef void seal_free(seal_t *s) noexcept nogil
cdef size_t seal_frame(seal_t *s, const limits_t *limits, header_t *h, const iovec *pieces, int count,
                       char *out, unsigned long long now) noexcept nogil
cdef frame_error_t open_frame(seal_t *s, const header_t *h, char *payload) noexcept nogil
cdef limits_t limits_of(object rekey) except *
cdef seal_t *seal_of(Cipher cipher, bytes secret, bint sealing) except NULL
