"""Frames on a lane.

Header, 48 bytes, little-endian: magic "KVWF", version, type, flags, codec, key epoch u32, segment u32, sequence
u64, transfer u64, cell u32, plain length u32, wire length u32, CRC32C u32. A cell that went through a codec is shorter on
the wire than it is; everything else is as long. The sequence must be exactly the next
one of its lane and direction: TCP keeps order, so anything else is damage or a lie. A sealed frame has no CRC32C
(the field is zero); its tag follows the payload, and the wire length does not count it (`seal.pyx`).
"""

from libc.string cimport memset
from cpython.bytes cimport PyBytes_FromStringAndSize

from kvwire._ext.crc32c cimport kvwire_crc32c


cdef void frame_header(header_t *h, frame_type_t type, unsigned long long sequence, unsigned long long transfer,
                       unsigned int segment, unsigned int cell, unsigned int length) noexcept nogil:
    """Fill a plain header; `crc` is left zero for whoever has the payload at hand."""
    memset(h, 0, sizeof(header_t))
    h.magic = FRAME_MAGIC
    h.version = FRAME_VERSION
    h.type = <unsigned char>type
    h.sequence = sequence
    h.transfer = transfer
    h.segment = segment
    h.cell = cell
    h.plain_len = length
    h.wire_len = length


cdef frame_error_t frame_check_header(const header_t *h, unsigned long long sequence, unsigned int epoch,
                                      unsigned int max_len) noexcept nogil:
    """Everything that can be known before the payload is here, so that a damaged length is never waited for.

    `epoch` is the key epoch of the latest frame: the same or the next one is right. 0 is a plain lane's, for good.
    """
    if h.magic != FRAME_MAGIC:
        return BAD_MAGIC
    if h.version != FRAME_VERSION or h.flags:
        return BAD_VERSION
    if h.type < DATA or h.type > RECEIPT:
        return BAD_TYPE
    if h.codec and h.type != DATA:
        return BAD_CODEC
    if h.epoch != epoch and (epoch == 0 or h.epoch == 0 or h.epoch - 1 != epoch):
        return BAD_EPOCH
    if epoch and h.crc:
        return BAD_CHECKSUM
    if h.sequence != sequence:
        return BAD_SEQUENCE
    if h.plain_len > max_len or (h.wire_len == 0 or h.wire_len >= h.plain_len if h.codec else h.wire_len != h.plain_len):
        return BAD_LENGTH
    if h.type == ACK and (h.wire_len == 0 or h.wire_len % ACK_ENTRY_BYTES or h.wire_len > MAX_ACK_ENTRIES * ACK_ENTRY_BYTES):
        return BAD_LENGTH
    if h.type == RECEIPT and h.wire_len:
        return BAD_LENGTH
    return FRAME_OK


cdef unsigned int frame_crc(const header_t *h, const char *payload) noexcept nogil:
    """CRC32C (Castagnoli) over header (crc field as zero) and payload."""
    cdef header_t copy = h[0]
    cdef unsigned int crc
    copy.crc = 0
    crc = kvwire_crc32c(0, &copy, sizeof(header_t))
    return kvwire_crc32c(crc, payload, h.wire_len) if h.wire_len else crc


cdef frame_error_t frame_check_payload(const header_t *h, const char *payload) noexcept nogil:
    return FRAME_OK if frame_crc(h, payload) == h.crc else BAD_CHECKSUM


ERRORS = ("ok", "magic", "version", "type", "sequence", "length", "checksum", "epoch", "tag", "codec")
TYPES = {"data": DATA, "ack": ACK, "receipt": RECEIPT}


def encode(str type, unsigned long long sequence, unsigned long long transfer=0, unsigned int segment=0,
           unsigned int cell=0, bytes payload=b"", unsigned char codec=0, plain_len=None):
    cdef header_t h
    frame_header(&h, <frame_type_t><int>TYPES[type], sequence, transfer, segment, cell, <unsigned int>len(payload))
    h.codec = codec
    h.plain_len = h.wire_len if plain_len is None else plain_len
    h.crc = frame_crc(&h, <const char *>payload)
    return PyBytes_FromStringAndSize(<const char *>&h, sizeof(header_t)) + payload


def check(bytes data, unsigned long long sequence, unsigned int max_len):
    cdef const header_t *h = <const header_t *><const char *>data
    cdef frame_error_t error
    if len(data) < HEADER_BYTES:
        return "incomplete", 0
    error = frame_check_header(h, sequence, 0, max_len)
    if error != FRAME_OK:
        return ERRORS[<int>error], 0
    if len(data) < HEADER_BYTES + h.wire_len:
        return "incomplete", 0
    return ERRORS[<int>frame_check_payload(h, <const char *>data + HEADER_BYTES)], HEADER_BYTES + h.wire_len
