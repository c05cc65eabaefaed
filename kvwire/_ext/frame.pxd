"""Frames on a lane: a fixed little-endian header, then the payload. Shared by the engine (nogil) and by tests."""

cdef enum:
    FRAME_MAGIC = 0x4657564B       # "KVWF" on the wire
    FRAME_VERSION = 1
    HEADER_BYTES = 48
    ACK_ENTRY_BYTES = 16           # lane u32, incarnation u32, next sequence u64
    MAX_ACK_ENTRIES = 64

cdef enum frame_type_t:
    DATA = 1
    ACK = 2
    RECEIPT = 3

cdef enum frame_error_t:
    FRAME_OK = 0
    BAD_MAGIC = 1
    BAD_VERSION = 2
    BAD_TYPE = 3
    BAD_SEQUENCE = 4
    BAD_LENGTH = 5
    BAD_CHECKSUM = 6
    BAD_EPOCH = 7
    BAD_TAG = 8
    BAD_CODEC = 9
    NO_KEY = 10                    # not the frame's fault: no memory for the key of the next epoch

cdef packed struct header_t:
    unsigned int magic
    unsigned char version
    unsigned char type
    unsigned char flags            # 0; bits are given a meaning by later versions
    unsigned char codec            # of a cell's payload; 0: as it is
    unsigned int epoch             # key epoch; 0 when plain
    unsigned int segment
    unsigned long long sequence    # of the lane and direction, from 0
    unsigned long long transfer
    unsigned int cell
    unsigned int plain_len
    unsigned int wire_len
    unsigned int crc               # CRC32C over the header, this field as zero, and the payload; 0 when sealed

cdef void frame_header(header_t *h, frame_type_t type, unsigned long long sequence, unsigned long long transfer,
                       unsigned int segment, unsigned int cell, unsigned int length) noexcept nogil
cdef frame_error_t frame_check_header(const header_t *h, unsigned long long sequence, unsigned int epoch,
                                      unsigned int max_len) noexcept nogil
cdef frame_error_t frame_check_payload(const header_t *h, const char *payload) noexcept nogil
cdef unsigned int frame_crc(const header_t *h, const char *payload) noexcept nogil
