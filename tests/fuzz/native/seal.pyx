"""Sealed frames, by the cipher that lanes use: seal and open, tamper, repeat, leave out, and keys that change.

What was sealed opens in order, as it was. What was changed in any byte, was opened before, comes out of order or was
made up does not, and changes nothing in the opener. Every frame lies in memory of just its own length.
"""

from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy

from harness cimport input_t, left, planted, require, take
from kvwire._ext.cipher cimport SECRET_BYTES, TAG_BYTES, Cipher, byte_t, cipher_t
from kvwire._ext.frame cimport (BAD_EPOCH, BAD_SEQUENCE, BAD_TAG, DATA, FRAME_OK, HEADER_BYTES, frame_check_header,
                                frame_error_t, frame_header, header_t)
from kvwire._ext.layout cimport iovec
from kvwire._ext.seal cimport limits_t, open_frame, seal_frame, seal_free, seal_new, seal_t

from kvwire._ext.cipher import find

ctypedef unsigned long long u64

cdef enum:
    LONGEST = 80                   # payload; max_len of the lane
    FRAMES = 24                    # of one input: each key costs as much as several of them
    PIECES = 3

cdef struct pair_t:
    seal_t *sealer
    seal_t *opener
    limits_t limits
    u64 sequence                   # of the sealer
    u64 opened                     # of the opener
    u64 now
    u64 key_frames                 # of the sealer's key, as it has to be
    u64 key_bytes
    u64 key_since
    unsigned int epoch

# --- the cipher ---------------------------------------------------------------------------------------------------

# Keys and chains are the same for every input, so they are made once: OpenSSL takes longer for them than for frames.

cdef enum:
    EPOCHS = FRAMES + 2
    LABELS = 3
    LABEL_BYTES = 16

cdef struct made_t:
    byte_t secret[SECRET_BYTES]
    void *key[2]                   # to open, to seal
    byte_t label[LABELS][LABEL_BYTES]
    byte_t mac[LABELS][SECRET_BYTES]
    int labels

cdef Cipher _found = find()
cdef const cipher_t *inner = &_found.c
cdef cipher_t kept
cdef made_t[2 * EPOCHS] _made      # secrets of keys, and of chains
cdef int _count = 0
cdef int _keys = 0                 # that are in use


cdef made_t *of_secret(const byte_t *secret) noexcept nogil:
    global _count
    cdef int i
    for i in range(_count):
        if memcmp(_made[i].secret, secret, SECRET_BYTES) == 0:
            return &_made[i]
    require(_count < 2 * EPOCHS, b"keys of a chain that this secret does not begin")
    memcpy(_made[_count].secret, secret, SECRET_BYTES)
    _count += 1
    return &_made[_count - 1]


cdef void *new_key(const cipher_t *c, const byte_t *secret, bint sealing) noexcept nogil:
    global _keys
    cdef made_t *made = of_secret(secret)
    if made.key[sealing] == NULL:
        made.key[sealing] = inner.new_key(inner, secret, sealing)
    _keys += 1
    return made.key[sealing]


cdef void free_key(const cipher_t *c, void *key) noexcept nogil:
    global _keys
    _keys -= 1


cdef bint mac(const cipher_t *c, const byte_t *secret, const byte_t *data, size_t length, byte_t *out) noexcept nogil:
    cdef made_t *made = of_secret(secret)
    cdef int i = 0
    require(length <= LABEL_BYTES, b"a longer label than there is")
    while i < made.labels and memcmp(made.label[i], data, length):
        i += 1
    if i == made.labels:
        require(i < LABELS and inner.mac(inner, secret, data, length, made.mac[i]), b"more labels than there are")
        memcpy(made.label[i], data, length)
        made.labels += 1
    memcpy(out, made.mac[i], SECRET_BYTES)
    return True


cdef bint seal(const cipher_t *c, void *key, const byte_t *nonce, const void *header, int header_len,
               const iovec *pieces, int count, byte_t *out) noexcept nogil:
    return inner.seal(inner, key, nonce, header, header_len, pieces, count, out)


cdef bint open(const cipher_t *c, void *key, const byte_t *nonce, const void *header, int header_len,
               byte_t *data, size_t length) noexcept nogil:
    return inner.open(inner, key, nonce, header, header_len, data, length)


kept.provider = NULL
kept.new_key = new_key
kept.free_key = free_key
kept.seal = seal
kept.open = open
kept.mac = mac


# --- frames -------------------------------------------------------------------------------------------------------



cdef frame_error_t deliver(pair_t *p, const char *frame, size_t length, char *payload) noexcept nogil:
    """As a lane does: the header is checked, then all of the frame has to be there. A copy of that length is opened.

    Planted: the highest bit of the transfer is not authenticated.
    """
    cdef char *copy
    cdef header_t *h
    cdef frame_error_t error
    if length < HEADER_BYTES:
        return BAD_TAG
    copy = <char *>malloc(length)
    memcpy(copy, frame, length)
    h = <header_t *>copy
    if planted:
        h.transfer &= (<u64>1 << 63) - 1
    error = frame_check_header(h, p.opened, p.opener.epoch, LONGEST)
    if error == FRAME_OK:
        if length < HEADER_BYTES + h.wire_len + TAG_BYTES:
            error = BAD_TAG                # a lane waits for the rest
        else:
            error = open_frame(p.opener, h, copy + HEADER_BYTES)
    if error == FRAME_OK:
        p.opened += 1
        memcpy(payload, copy + HEADER_BYTES, h.wire_len)
    free(copy)
    return error


cdef void refused(pair_t *p, const char *frame, size_t length, const char *what) noexcept nogil:
    """It does not open, and the opener is as it was."""
    cdef char payload[LONGEST]
    cdef unsigned int epoch = p.opener.epoch
    cdef const void *key = p.opener.keys.key
    require(deliver(p, frame, length, payload) != FRAME_OK, what)
    require(p.opener.epoch == epoch and p.opener.keys.key == key, b"a frame that did not open has changed the key")


cdef char *seal_one(pair_t *p, input_t *inp, char *plain, size_t *length) noexcept nogil:
    """The next frame, in pieces; epoch and length are what they have to be."""
    cdef header_t h
    cdef iovec pieces[PIECES]
    cdef size_t n, at = 0, cut
    cdef int count
    cdef char *out
    n = <size_t>(take(inp, 1) % (LONGEST + 1))
    for count in range(<int>n):
        plain[count] = <char>(n + count)
    count = 0
    while at < n:
        cut = n - at if count == PIECES - 1 else min(n - at, <size_t>(1 + take(inp, 1) % LONGEST))
        pieces[count].iov_base = plain + at
        pieces[count].iov_len = cut
        at += cut
        count += 1
    if p.key_frames and (p.key_frames >= p.limits.frames or p.key_bytes >= p.limits.bytes
                         or p.now - p.key_since >= p.limits.ns):
        p.epoch += 1
        p.key_frames = p.key_bytes = 0
    if p.key_frames == 0:
        p.key_since = p.now
    p.key_frames += 1
    p.key_bytes += n
    frame_header(&h, DATA, p.sequence, take(inp, 1), 0, 0, <unsigned int>n)
    length[0] = HEADER_BYTES + n + TAG_BYTES
    out = <char *>malloc(length[0])
    require(seal_frame(p.sealer, &p.limits, &h, pieces, count, out, p.now) == length[0], b"a frame was not sealed")
    require(p.sealer.epoch == p.epoch and (<header_t *>out).epoch == p.epoch, b"a key was kept too long, or too short")
    require((<header_t *>out).sequence == p.sequence and (<header_t *>out).crc == 0, b"the header of a sealed frame")
    p.sequence += 1
    return out


cdef void tamper(pair_t *p, input_t *inp, const char *frame, size_t length) noexcept nogil:
    """One to four bytes are others; or its end is missing; or it claims another place in the order."""
    cdef char *copy = <char *>malloc(length + 1)
    cdef int how = <int>take(inp, 1), i
    memcpy(copy, frame, length)
    if how & 0xF == 0xF:
        refused(p, copy, length - 1 - take(inp, 1) % length, b"a frame without its end was opened")
    elif how & 0xF == 0xE:
        (<header_t *>copy).sequence += 1 + take(inp, 1)
        refused(p, copy, length, b"a frame out of order was opened")
    elif how & 0xF == 0xD:
        (<header_t *>copy).epoch += 1
        refused(p, copy, length, b"a frame of another key was opened")
    else:
        for i in range(1 + (how >> 4 & 3)):
            copy[take(inp, 1) % length] ^= <char>take(inp, 1)
        if memcmp(copy, frame, length):
            refused(p, copy, length, b"a changed frame was opened")
    free(copy)


cdef void one_frame(pair_t *p, input_t *inp, int what) noexcept nogil:
    cdef char plain[LONGEST]
    cdef char payload[LONGEST]
    cdef size_t length
    cdef u64 before = p.opened
    cdef char *frame = seal_one(p, inp, plain, &length)
    cdef frame_error_t error
    cdef bint skipped = p.opened != p.sequence - 1
    if what & 4:
        tamper(p, inp, frame, length)
    if what & 8 == 0:                      # else the network has lost it, which TCP does not allow
        error = deliver(p, frame, length, payload)
        if skipped:
            require(error == BAD_SEQUENCE or error == BAD_EPOCH, b"a frame behind one that is missing was opened")
        else:
            require(error == FRAME_OK and p.opened == before + 1, b"a frame did not open")
            require(p.opener.epoch == p.epoch, b"the opener has another key")
            require(memcmp(payload, plain, length - HEADER_BYTES - TAG_BYTES) == 0, b"a payload is another one")
        if what & 16:
            refused(p, frame, length, b"a frame was opened twice")
            (<header_t *>frame).sequence = p.opened
            refused(p, frame, length, b"a frame was opened twice, with another number")
    free(frame)


cdef void made_up(pair_t *p, input_t *inp, int what) noexcept nogil:
    """The rest of the input is a frame, with the right number and key where it has got room for that."""
    cdef size_t length = min(left(inp), <size_t>(HEADER_BYTES + LONGEST + TAG_BYTES))
    cdef char *copy = <char *>malloc(max(length, <size_t>1))
    cdef header_t h
    memcpy(copy, inp.at, length)
    inp.at += length
    if what & 8 and length >= HEADER_BYTES + TAG_BYTES:
        frame_header(&h, DATA, p.opened, 0, 0, 0, <unsigned int>(length - HEADER_BYTES - TAG_BYTES))
        h.epoch = p.opener.epoch + (what >> 4 & 1)
        memcpy(copy, &h, HEADER_BYTES)
    refused(p, copy, length, b"what nobody sealed was opened")
    free(copy)


cdef int one_input(const unsigned char *data, size_t size) noexcept nogil:
    cdef input_t inp
    cdef pair_t p
    cdef byte_t secret[SECRET_BYTES]
    cdef int what, i, frames = 0
    inp.at = data
    inp.end = data + size
    for i in range(SECRET_BYTES):
        secret[i] = <byte_t>i
    p.limits.frames = 1 + take(&inp, 1)
    p.limits.bytes = 1 + take(&inp, 2)
    p.limits.ns = 1 + take(&inp, 2)
    p.sequence = p.opened = p.key_frames = p.key_bytes = p.key_since = p.now = 0
    p.epoch = 1
    p.sealer = seal_new(&kept, secret, True)
    p.opener = seal_new(&kept, secret, False)
    require(p.sealer != NULL and p.opener != NULL, b"no memory")
    while left(&inp) and frames < FRAMES:
        what = <int>take(&inp, 1)
        frames += 1
        if what & 3 == 3:
            made_up(&p, &inp, what)
        elif what & 3 == 2:
            p.now += take(&inp, 2)
        else:
            one_frame(&p, &inp, what)
    seal_free(p.sealer)
    seal_free(p.opener)
    require(_keys == 0, b"a key was not given back, or was twice")
    return 0


ONE_INPUT = <size_t>&one_input
