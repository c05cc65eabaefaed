"""Sealed frames: AES-256-GCM with a chain of keys for each lane and direction.

chain_1 is the lane secret of the direction. For epoch e, from 1 (HKDF-Expand of RFC 5869 with SHA-256, which for 32
bytes or less is one HMAC(chain, info || 0x01)):

    key_e       = HKDF-Expand(chain_e, L("kvwire key"), 32)
    iv_e        = HKDF-Expand(chain_e, L("kvwire iv"), 12)
    chain_{e+1} = HKDF-Expand(chain_e, L("kvwire next"), 32)        L(x) = length of x, u16 little-endian || x

    header      the frame's 48 bytes: epoch e, CRC32C zero, wire length without the tag
    nonce       iv_e XOR (4 zero bytes || sequence, u64 big-endian)     as in RFC 8446, 5.3
    frame       header || AES-256-GCM(key_e, nonce, payload, additional data = header), ending in its 16-byte tag

The sequence is the lane's and direction's, and a new key does not reset it: a nonce comes once under all keys of a
chain. Whoever seals goes on to the next epoch before a frame when the key has done its bytes, its frames or its time.
Whoever opens takes epoch e, or e + 1 and goes on with it once a tag was valid. Keys and chains that are done with are
wiped: what is left here opens nothing of the past.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, strlen

from kvwire._ext.cipher cimport TAG_BYTES, explicit_bzero
from kvwire._ext.frame cimport (BAD_TAG, FRAME_OK, HEADER_BYTES, NO_KEY, frame_check_header, frame_header, frame_type_t)

from kvwire._ext.frame import ERRORS, TYPES
from kvwire.errors import LocalError

cdef enum:
    LABEL_BYTES = 32               # room for the longest label, its length and the counter
    LAST_EPOCH = 0xFFFFFFFF

cdef extern from *:
    """
    /* The sequence of a frame, in network order, over the last 8 of the 12 bytes. */
    static inline void kv_nonce(unsigned char *nonce, const unsigned char *iv, unsigned long long sequence)
    {
        for (int i = 0; i < 12; i++)
            nonce[i] = i < 4 ? iv[i] : (unsigned char)(iv[i] ^ (sequence >> (8 * (11 - i))));
    }
    """
    void kv_nonce(byte_t *nonce, const byte_t *iv, unsigned long long sequence) noexcept nogil


# --- keys ---------------------------------------------------------------------------------------------------------


cdef bint expand(const cipher_t *c, const byte_t *chain, const char *label, byte_t *out, size_t length) noexcept nogil:
    """HKDF-Expand for one block of HMAC-SHA256 at most."""
    cdef byte_t info[LABEL_BYTES]
    cdef byte_t block[SECRET_BYTES]
    cdef size_t n = strlen(label)
    cdef bint done
    info[0] = <byte_t>n
    info[1] = 0
    memcpy(info + 2, label, n)
    info[2 + n] = 1
    done = c.mac(c, chain, info, n + 3, block)
    memcpy(out, block, length)
    explicit_bzero(block, sizeof(block))
    return done


cdef void drop_keys(const cipher_t *c, keys_t *k) noexcept nogil:
    if k.key != NULL:
        c.free_key(c, k.key)
    explicit_bzero(k, sizeof(keys_t))


cdef bint derive_keys(const cipher_t *c, const byte_t *chain, bint sealing, keys_t *k) noexcept nogil:
    """The keys of the epoch that starts from this chain; False without memory, and then there are none."""
    cdef byte_t secret[SECRET_BYTES]
    k.key = NULL
    if (expand(c, chain, b"kvwire key", secret, SECRET_BYTES) and expand(c, chain, b"kvwire iv", k.iv, IV_BYTES)
            and expand(c, chain, b"kvwire next", k.chain, SECRET_BYTES)):
        k.key = c.new_key(c, secret, sealing)
    explicit_bzero(secret, sizeof(secret))
    if k.key == NULL:
        drop_keys(c, k)
    return k.key != NULL


cdef void next_epoch(seal_t *s, const keys_t *k) noexcept nogil:
    drop_keys(s.cipher, &s.keys)
    s.keys = k[0]
    s.epoch += 1
    s.bytes = s.frames = 0


cdef seal_t *seal_new(const cipher_t *cipher, const byte_t *secret, bint sealing) noexcept nogil:
    """One direction at epoch 1; NULL without memory."""
    cdef seal_t *s = <seal_t *>calloc(1, sizeof(seal_t))
    if s != NULL:
        s.cipher = cipher
        s.sealing = sealing
        s.epoch = 1
        if not derive_keys(cipher, secret, sealing, &s.keys):
            free(s)
            s = NULL
    return s


cdef void seal_free(seal_t *s) noexcept nogil:
    if s != NULL:
        drop_keys(s.cipher, &s.keys)
        free(s)


# --- frames -------------------------------------------------------------------------------------------------------


cdef bint may_seal(seal_t *s, const limits_t *limits, unsigned long long now) noexcept nogil:
    """Go on to the next key where this one is spent; False where there is none to go on to."""
    cdef keys_t k
    cdef bint spent = s.frames != 0 and (s.bytes >= limits.bytes or s.frames >= limits.frames
                                         or now - s.since_ns >= limits.ns)
    if spent:
        if s.epoch == LAST_EPOCH or not derive_keys(s.cipher, s.keys.chain, True, &k):
            return False
        next_epoch(s, &k)
        explicit_bzero(&k, sizeof(k))
    if s.frames == 0:
        s.since_ns = now
    return True


cdef size_t seal_frame(seal_t *s, const limits_t *limits, header_t *h, const iovec *pieces, int count,
                       char *out, unsigned long long now) noexcept nogil:
    """Write header, sealed pieces and tag to `out`; returns how many bytes, 0 when it cannot be done.

    A sequence number is given to one call only, whatever becomes of it. Pieces may lie where they are to go.
    """
    cdef byte_t nonce[IV_BYTES]
    if not may_seal(s, limits, now):
        return 0
    h.epoch = s.epoch
    h.crc = 0
    memcpy(out, h, sizeof(header_t))
    kv_nonce(nonce, s.keys.iv, h.sequence)
    s.frames += 1
    s.bytes += h.wire_len
    if not s.cipher.seal(s.cipher, s.keys.key, nonce, h, sizeof(header_t), pieces, count,
                         <byte_t *>out + sizeof(header_t)):
        return 0
    return sizeof(header_t) + h.wire_len + TAG_BYTES


cdef frame_error_t open_frame(seal_t *s, const header_t *h, char *payload) noexcept nogil:
    """Verify a frame whose header has been checked, and decrypt its payload, which the tag follows, in place."""
    cdef byte_t nonce[IV_BYTES]
    cdef keys_t k
    cdef bint right
    if h.epoch == s.epoch:
        kv_nonce(nonce, s.keys.iv, h.sequence)
        right = s.cipher.open(s.cipher, s.keys.key, nonce, h, sizeof(header_t), <byte_t *>payload, h.wire_len)
    else:
        if not derive_keys(s.cipher, s.keys.chain, False, &k):
            return NO_KEY
        kv_nonce(nonce, k.iv, h.sequence)
        right = s.cipher.open(s.cipher, k.key, nonce, h, sizeof(header_t), <byte_t *>payload, h.wire_len)
        if right:
            next_epoch(s, &k)
            explicit_bzero(&k, sizeof(k))
        else:
            drop_keys(s.cipher, &k)
    return FRAME_OK if right else BAD_TAG


# --- from Python --------------------------------------------------------------------------------------------------


MOST = (64 << 30, 1 << 24, 3600.0)
"""Bytes, frames and seconds of one key."""


cdef limits_t limits_of(object rekey) except *:
    """What (bytes, frames, seconds) of one key mean; ValueError where there is none or they go beyond what is safe."""
    cdef limits_t limits
    if not all(0 < value <= most for value, most in zip(rekey, MOST, strict=True)):
        raise ValueError(f"a key for (bytes, frames, seconds) of {rekey}; the most are {MOST}")
    limits.bytes, limits.frames = rekey[0], rekey[1]
    limits.ns = max(int(rekey[2] * 1e9), 1)
    return limits


cdef seal_t *seal_of(Cipher cipher, bytes secret, bint sealing) except NULL:
    """One direction of a lane, at epoch 1."""
    cdef seal_t *made
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES} bytes, not {len(secret)}")
    made = seal_new(&cipher.c, <const byte_t *>PyBytes_AS_STRING(secret), sealing)
    if made == NULL:
        raise MemoryError
    return made


# --- for tests ----------------------------------------------------------------------------------------------------


@cython.no_gc_clear                     # __dealloc__ needs the cipher
cdef class Sealer:
    """Seals the frames of one lane and direction, in order from 0."""

    cdef Cipher cipher
    cdef seal_t *c
    cdef limits_t limits
    cdef readonly unsigned long long sequence

    def __cinit__(self, Cipher cipher not None, bytes secret not None, rekey=MOST):
        self.limits = limits_of(rekey)
        self.cipher = cipher
        self.c = seal_of(cipher, secret, True)

    def __dealloc__(self):
        seal_free(self.c)

    @property
    def epoch(self):
        return self.c.epoch

    def seal(self, str type, unsigned long long transfer, unsigned int segment, unsigned int cell, bytes payload not None,
             unsigned long long now_ns=0):
        cdef header_t h
        cdef iovec piece
        cdef bytes frame = PyBytes_FromStringAndSize(NULL, HEADER_BYTES + len(payload) + TAG_BYTES)
        frame_header(&h, <frame_type_t><int>TYPES[type], self.sequence, transfer, segment, cell, <unsigned int>len(payload))
        piece.iov_base = PyBytes_AS_STRING(payload)
        piece.iov_len = <size_t>len(payload)
        self.sequence += 1
        if not seal_frame(self.c, &self.limits, &h, &piece, 1, PyBytes_AS_STRING(frame), now_ns):
            raise LocalError("the frame could not be sealed")
        return frame


@cython.no_gc_clear
cdef class Opener:
    """Opens the frames of one lane and direction, in order from 0."""

    cdef Cipher cipher
    cdef seal_t *c
    cdef readonly unsigned long long sequence

    def __cinit__(self, Cipher cipher not None, bytes secret not None):
        self.cipher = cipher
        self.c = seal_of(cipher, secret, False)

    def __dealloc__(self):
        seal_free(self.c)

    @property
    def epoch(self):
        return self.c.epoch

    def open(self, bytes data not None, unsigned int max_len):
        cdef bytearray copy = bytearray(data)
        cdef const header_t *h = <const header_t *><char *>copy
        cdef frame_error_t error
        cdef Py_ssize_t end
        if len(copy) < HEADER_BYTES:
            return "incomplete", 0
        error = frame_check_header(h, self.sequence, self.c.epoch, max_len)
        if error == FRAME_OK:
            end = <Py_ssize_t>HEADER_BYTES + h.wire_len
            if len(copy) < end + TAG_BYTES:
                return "incomplete", 0
            error = open_frame(self.c, h, <char *>copy + HEADER_BYTES)
        if error == NO_KEY:
            raise MemoryError
        if error != FRAME_OK:
            return ERRORS[<int>error], 0
        self.sequence += 1
        type = next(name for name, number in TYPES.items() if number == h.type)
        return "ok", end + TAG_BYTES, type, h.transfer, h.segment, h.cell, bytes(copy[HEADER_BYTES:end])
