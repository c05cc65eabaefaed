"""A lane's way in: what a peer sends, cut anywhere, through the engine's own lane_receive.

The input says where to cut and how the connection ends, and then has the bytes. Beside the engine a plain reading of
the format (docs/design.md) says what has to come of them: how the lane ends, which cells land, what is acknowledged
and what is committed. Where the input asks for it, sequence numbers and checksums are made right before the bytes are
sent, so that what lies behind them is reached as well. One segment may come in a codec, of which the harness has its own:
a payload is repeated until its cell is full, unless it begins with the byte that says that it is none.
"""

from libc.errno cimport EAGAIN, ECONNRESET, errno
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

from harness cimport input_t, left, on_recv, planted, require, take
from kvwire._ext.codec cimport byte_t, cell_t, codec_t, scratch_t
from kvwire._ext.coding cimport coding_t
from kvwire._ext.core cimport *
from kvwire._ext.frame cimport HEADER_BYTES, header_t
from kvwire._ext.layout cimport row_t
from kvwire._ext.link cimport in_end, in_unref, lane_fail, lane_free, lane_retire, out_empty, out_end, out_unref
from kvwire._ext.receive cimport lane_receive
from kvwire._ext.sendqueue cimport queue_free
from lanekit cimport arriving, leaving, new_lane, row, segment, sent

cdef enum:
    LIMIT = 96                     # the engine's max_cell_bytes
    STREAM_BYTES = HEADER_BYTES + LIMIT + 16
    BYTES_MOST = 2048              # of one input
    # The grants: transfer 2 has two segments and an attachment, transfer 4 one segment of one cell.
    CELL_BYTES = 64
    SEGMENTS = 2
    PAGE_BYTES = 150               # segment 0: one page of three cells
    STRIDED_BYTES = 120            # segment 1: two blocks of 4 rows of 15 bytes, 20 apart: two cells
    SMALL_BYTES = 10
    CODEC = 9                      # of segment 0
    NO_PAYLOAD = 0xEE
    NEWEST = 6                     # transfer 6 is over; 8 was never granted
    # What this side has sent: on lane 1 cells 0 to 3 of transfer 3, a receipt, cells 4 and 5, an acknowledgement, of
    # which the kernel has not got the last; on lane 2 two cells of transfer 5, which is not all ready yet.
    SENT = 8
    SENT_SETTLED = 7
    SENT_CELL = 40
    SENT_2 = 2

cdef struct expected_t:
    u64 sequence
    int close                      # lane_close_t
    int detail
    bint landed[8]                 # cells of transfer 2: 3 + 2 + attachment; of transfer 4 in 6
    u32 attachment_len
    u64 duplicates
    u64 decoded_bytes
    u64 payload_bytes              # of what was decoded
    bint over[2]                   # transfers 2 and 4 are committed
    u64 acked[2]                   # by lane
    bint out_over                  # transfer 3 has its receipt
    int receipts                   # to be sent
    char page[PAGE_BYTES]
    char strided[STRIDED_BYTES]
    char small[SMALL_BYTES]
    char attachment[LIMIT]

cdef struct side_t:
    engine_t engine
    worker_t worker
    link_t link
    lane_t *lane[2]
    out_t *out[2]
    in_t *inc[2]
    char *page
    char *strided
    char *small
    row_t rows[3]
    long long offsets[2]

cdef side_t side
cdef const unsigned char *cuts
cdef size_t cut_count
cdef size_t cut_at
cdef const char *coming
cdef size_t coming_bytes
cdef int ending


# --- bytes --------------------------------------------------------------------------------------------------------


cdef ssize_t receive(void *buffer, size_t room) noexcept nogil:
    """The next piece, and then that nothing is there, that there is nothing more, or that the connection is gone."""
    global coming, coming_bytes, cut_at, errno
    cdef size_t n = min(room, coming_bytes)
    if n == 0:
        require(room > 0, b"the stream buffer is full and no frame is whole")
        if ending == 0:
            return 0
        errno = EAGAIN if ending == 1 else ECONNRESET
        return -1
    if cut_count:
        n = min(n, <size_t>cuts[cut_at % cut_count] + 1)
        cut_at += 1
    memcpy(buffer, coming, n)
    coming += n
    coming_bytes -= n
    return <ssize_t>n


cdef u32 reference_crc(const unsigned char *header, const unsigned char *payload, size_t n) noexcept nogil:
    """CRC32C bit by bit would take most of the time: by a table, as no implementation of the engine's does."""
    cdef u32 crc = 0xFFFFFFFF
    cdef size_t i
    for i in range(HEADER_BYTES):
        crc = table[(crc ^ (0 if i >= HEADER_BYTES - 4 else header[i])) & 0xFF] ^ (crc >> 8)
    for i in range(n):
        crc = table[(crc ^ payload[i]) & 0xFF] ^ (crc >> 8)
    return ~crc


cdef u32[256] table
cdef u32 _byte, _bit, _value
for _byte in range(256):
    _value = _byte
    for _bit in range(8):
        _value = (_value >> 1) ^ (<u32>0x82F63B78 if _value & 1 else 0)
    table[_byte] = _value


cdef void make_right(char *stream, size_t size, int how) noexcept nogil:
    """Give each frame its magic, its number, lengths that agree and its checksum."""
    cdef u64 sequence = 0
    cdef size_t at = 0, n
    cdef header_t *h
    while size - at >= HEADER_BYTES:
        h = <header_t *>(stream + at)
        h.magic = 0x4657564B
        h.version = 1
        h.flags = 0
        h.epoch = 0
        if how & 2:
            h.type = 1 + h.type % 3
            h.wire_len %= LIMIT + 2
        h.sequence = sequence
        if h.codec & 1 and how & 2:
            h.codec = CODEC
            h.plain_len = CELL_BYTES if h.plain_len & 1 else PAGE_BYTES - 2 * CELL_BYTES
        else:
            h.codec = 0
            h.plain_len = h.wire_len
        n = min(<size_t>h.wire_len, size - at - HEADER_BYTES)
        h.crc = reference_crc(<unsigned char *>h, <unsigned char *>h + HEADER_BYTES, n)
        at += HEADER_BYTES + n
        sequence += 1


# --- a codec ------------------------------------------------------------------------------------------------------


cdef int repeat(const codec_t *c, const cell_t *cell, const byte_t *src, size_t length, byte_t *dst, size_t n,
                scratch_t *scratch) noexcept nogil:
    cdef size_t i
    require(scratch.bytes != NULL and cell.offset % CELL_BYTES == 0, b"what a codec is told")
    for i in range(n):
        dst[i] = src[i % length]
    return src[0] != NO_PAYLOAD


cdef codec_t codec
codec.id = CODEC
codec.decode = repeat


# --- what has to come of them -------------------------------------------------------------------------------------


cdef int expect_data(expected_t *s, const header_t *h, const char *payload) noexcept nogil:
    cdef u32 n = h.plain_len, i
    cdef int which = 0
    if h.transfer != 2 and h.transfer != 4 or s.over[h.transfer == 4]:
        return LANE_OPEN if h.transfer <= NEWEST else LANE_UNKNOWN_TRANSFER
    if h.codec and (h.codec != CODEC or h.transfer != 2 or h.segment != 0):
        return LANE_BAD_CODEC
    if h.transfer == 4:
        if h.segment or h.cell or n != SMALL_BYTES:
            return LANE_OUTSIDE_GRANT
        memcpy(s.small, payload, SMALL_BYTES)
        s.landed[6] = s.over[1] = True
        s.receipts += 1
        return LANE_OPEN
    if h.segment == 0:
        if h.cell > 2 or n != (PAGE_BYTES - 2 * CELL_BYTES if h.cell == 2 else CELL_BYTES):
            return LANE_OUTSIDE_GRANT
        which = <int>h.cell
    elif h.segment == 1:
        if h.cell > 1 or n != (STRIDED_BYTES - CELL_BYTES if h.cell == 1 else CELL_BYTES):
            return LANE_OUTSIDE_GRANT
        which = 3 + <int>h.cell
    elif h.segment == 2 and h.cell == 0:
        which = 5
    else:
        return LANE_OUTSIDE_GRANT
    if s.landed[which]:
        s.duplicates += 1
        return LANE_OPEN
    if h.codec:
        if <unsigned char>payload[0] == NO_PAYLOAD:
            return LANE_BAD_PAYLOAD
        for i in range(n):
            s.page[which * CELL_BYTES + i] = payload[i % h.wire_len]
        s.decoded_bytes += n
        s.payload_bytes += h.wire_len
    s.landed[which] = True
    if h.codec:
        pass
    elif which < 3:
        memcpy(s.page + which * CELL_BYTES, payload, n)
    elif which < 5:
        memcpy(s.strided + (which - 3) * CELL_BYTES, payload, n)
    else:
        memcpy(s.attachment, payload, n)
        s.attachment_len = n
    s.over[0] = s.landed[0] and s.landed[1] and s.landed[2] and s.landed[3] and s.landed[4] and s.landed[5]
    s.receipts += s.over[0]
    return LANE_OPEN


cdef int expect_ack(expected_t *s, const header_t *h, const char *payload) noexcept nogil:
    cdef u32 i, lane, incarnation
    cdef u64 upto
    for i in range(h.wire_len // 16):
        memcpy(&lane, payload + 16 * i, 4)
        memcpy(&incarnation, payload + 16 * i + 4, 4)
        memcpy(&upto, payload + 16 * i + 8, 8)
        if lane == 1 and incarnation == 5:
            if upto > SENT:
                return LANE_BAD_ACK
            s.acked[0] = max(s.acked[0], min(upto, <u64>SENT_SETTLED))
        elif lane == 2 and incarnation == 7:
            if upto > SENT_2:
                return LANE_BAD_ACK
            s.acked[1] = max(s.acked[1], upto)
    return LANE_OPEN


cdef int expect_header(const header_t *h, u64 sequence) noexcept nogil:
    """0, or the number of the error, in the order in which the format checks."""
    if h.magic != 0x4657564B:
        return 1
    if h.version != 1 or h.flags:
        return 2
    if h.type == 0 or h.type > 3:
        return 3
    if h.codec and h.type != 1:
        return 9
    if h.epoch:
        return 7
    if h.sequence != sequence:
        return 4
    if h.plain_len > LIMIT or h.wire_len > h.plain_len:
        return 5
    if (h.wire_len == h.plain_len or h.wire_len == 0) if h.codec else h.wire_len < h.plain_len:
        return 5
    if h.type == 2 and (h.wire_len % 16 or not 1 <= h.wire_len // 16 <= 64) or h.type == 3 and h.wire_len:
        return 5
    return 0


cdef void expect(expected_t *s, const char *stream, size_t size) noexcept nogil:
    cdef const header_t *h
    cdef const char *payload
    cdef size_t at = 0
    while size - at >= HEADER_BYTES and s.close == LANE_OPEN:
        h = <const header_t *>(stream + at)
        payload = stream + at + HEADER_BYTES
        s.detail = expect_header(h, s.sequence)
        if s.detail == 0 and size - at < HEADER_BYTES + h.wire_len:
            return
        if s.detail == 0 and reference_crc(<const unsigned char *>h, <const unsigned char *>payload,
                                           h.wire_len) != h.crc:
            s.detail = 6
        if s.detail:
            s.close = LANE_BAD_FRAME
            return
        s.sequence += 1
        if h.type == 1:
            s.close = expect_data(s, h, payload)
        elif h.type == 2:
            s.close = expect_ack(s, h, payload)
        elif h.transfer == 3:
            s.out_over = True
        elif h.transfer >= 5:                  # it is not all sent, and later ones never were
            s.close = LANE_BAD_RECEIPT
        at += HEADER_BYTES + h.wire_len


# --- this side ----------------------------------------------------------------------------------------------------


cdef void set_up() noexcept nogil:
    """Planted: the engine takes a segment to be a byte longer than its page is."""
    cdef long long cells[4]
    memset(&side.link, 0, sizeof(link_t))
    pthread_mutex_init(&side.link.lock, NULL)
    pthread_cond_init(&side.link.changed, NULL)
    side.link.engine = &side.engine
    side.link.receipt_capacity = 4         # there is room for those that are on their way, see push_receipt
    side.link.receipts = <u64 *>malloc(4 * sizeof(u64))
    side.page = <char *>malloc(PAGE_BYTES)
    side.strided = <char *>malloc(4 * 20 * 2)
    side.small = <char *>malloc(SMALL_BYTES)
    memset(side.page, 0, PAGE_BYTES)
    memset(side.strided, 0, 4 * 20 * 2)
    memset(side.small, 0, SMALL_BYTES)
    cells[0], cells[1], cells[2] = 3, 2, 1
    side.inc[0] = arriving(&side.link, 2, CELL_BYTES, SEGMENTS, LIMIT, cells)
    segment(&side.inc[0].segment[0], side.page, &side.rows[0], side.offsets, PAGE_BYTES + planted, 1)
    segment(&side.inc[0].segment[1], side.strided, &side.rows[1], side.offsets, STRIDED_BYTES // 2, 2)
    side.inc[0].coding = <coding_t *>calloc(SEGMENTS, sizeof(coding_t))
    side.inc[0].coding[0].codec = &codec
    cells[0] = 1
    side.inc[1] = arriving(&side.link, 4, CELL_BYTES, 1, 0, cells)
    segment(&side.inc[1].segment[0], side.small, &side.rows[2], side.offsets, SMALL_BYTES, 1)
    side.link.newest_in = NEWEST
    side.lane[0] = new_lane(&side.link, &side.worker, 1, 5, STREAM_BYTES)
    side.lane[1] = new_lane(&side.link, &side.worker, 2, 7, STREAM_BYTES)
    side.out[0] = leaving(&side.link, 3, 0, 6 * SENT_CELL)
    side.out[1] = leaving(&side.link, 5, 2, 2 * SENT_CELL)
    sent(side.lane[0], side.out[0], 0, 0, 4, SENT_CELL)
    sent(side.lane[0], NULL, 9, 0, 1, SENT_CELL)
    sent(side.lane[0], side.out[0], 0, 4, 2, SENT_CELL)
    side.lane[0].log.next_seq += 1         # an acknowledgement, which has no entry
    side.lane[0].sent_seq = SENT_SETTLED
    sent(side.lane[1], side.out[1], 0, 0, 2, SENT_CELL)
    side.lane[1].sent_seq = SENT_2


cdef void tear_down() noexcept nogil:
    """As a link that closes does it; what is still referenced then is a leak, which the sanitizer finds."""
    cdef int i
    for i in range(2):
        if side.lane[i].fd >= 0:
            lane_fail(side.lane[i], LANE_REQUESTED, 0)
        in_end(side.inc[i], LOST)
        out_end(side.out[i], LOST)
    for i in range(2):
        lane_retire(side.lane[i])
        lane_free(side.lane[i])
    require(side.link.inflight_bytes == 0 and side.link.lanes_open == 0, b"what is in flight on lanes that are gone")
    for i in range(2):
        in_unref(side.inc[i])
        out_empty(side.out[i])
        out_unref(side.out[i])
    queue_free(&side.link.queue)
    free(side.link.receipts)
    free(side.page)
    free(side.strided)
    free(side.small)


# --- the comparison -----------------------------------------------------------------------------------------------


cdef void compare_arrived(const expected_t *s) noexcept nogil:
    cdef const in_t *t = side.inc[0]
    cdef char bytes[STRIDED_BYTES]
    cdef int i, missing = 0
    for i in range(8):                     # rows of 15 bytes; what lies between them stays zero
        memcpy(bytes + 15 * i, side.strided + 20 * i, 15)
        require(memcmp(side.strided + 20 * i + 15, b"\0\0\0\0\0", 5) == 0, b"bytes between the rows were written")
    require(memcmp(side.page, s.page, PAGE_BYTES) == 0, b"the page is not what arrived")
    require(memcmp(bytes, s.strided, STRIDED_BYTES) == 0, b"the strided pages are not what arrived")
    require(memcmp(side.small, s.small, SMALL_BYTES) == 0, b"the small transfer is not what arrived")
    require(side.link.decoded_bytes == s.decoded_bytes and t.coding[0].plain_bytes == s.decoded_bytes
            and t.coding[0].wire_bytes == s.payload_bytes and t.coding[1].plain_bytes == 0, b"what was decoded")
    for i in range(6):
        missing += not s.landed[i]
    require(t.ledger.missing_total == missing and t.duplicates == s.duplicates, b"the ledger")
    require(t.writers == 0 and t.refs == 1, b"somebody writes still")
    require((t.state == COMMITTED) == s.over[0] and (side.inc[1].state == COMMITTED) == s.over[1], b"what is committed")
    if s.landed[5]:
        require(t.attachment_len == s.attachment_len and memcmp(t.attachment, s.attachment, s.attachment_len) == 0,
                b"the attachment is not what arrived")
    require(side.link.receipt_count == <size_t>s.receipts, b"receipts to be sent")


cdef void compare_acknowledged(const expected_t *s) noexcept nogil:
    cdef u64 of_first = min(s.acked[0], <u64>4) + (s.acked[0] - 5 if s.acked[0] > 5 else 0)
    cdef u64 in_flight = (6 - of_first + SENT_2 - s.acked[1]) * SENT_CELL
    cdef bint receipt_acked = s.acked[0] > 4
    require(side.link.inflight_bytes == in_flight, b"bytes in flight")
    require(side.lane[0].acked_bytes == of_first * SENT_CELL, b"acknowledged bytes of the lane")
    require(side.lane[0].log.length == <size_t>((s.acked[0] < 4) + (s.acked[0] < 5) + (s.acked[0] < 7)),
            b"the lane's log")
    require(side.lane[1].log.length == <size_t>(s.acked[1] < SENT_2), b"the other lane's log")
    require(side.link.receipts_unacked == <size_t>(1 - receipt_acked + s.receipts), b"receipts not acknowledged")
    require((side.out[0].state == COMMITTED) == s.out_over and side.out[1].state == ACTIVE, b"what has its receipt")
    require(side.link.acked_bytes == ((6 if s.out_over else of_first) + s.acked[1]) * SENT_CELL, b"acknowledged bytes")
    require(side.out[0].refs == 1 + (s.acked[0] < 4) + (s.acked[0] < 7), b"references to a transfer")


cdef void compare(const expected_t *s) noexcept nogil:
    cdef const lane_t *lane = side.lane[0]
    cdef int reason = s.close
    if reason == LANE_OPEN and ending != 1:
        reason = LANE_EOF if ending == 0 else LANE_ERRNO
    require(lane.close_reason == reason and (lane.fd >= 0) == (reason == LANE_OPEN), b"how the lane ended")
    require(reason != LANE_BAD_FRAME or lane.close_detail == s.detail, b"what was wrong with the frame")
    require(lane.rx_seq == s.sequence and lane.rx_frames == s.sequence, b"how many frames were taken")
    compare_arrived(s)
    compare_acknowledged(s)


cdef int one_input(const unsigned char *data, size_t size) noexcept nogil:
    global cuts, cut_count, cut_at, coming, coming_bytes, ending
    cdef input_t inp
    cdef expected_t expected
    cdef int how
    cdef char *stream
    cdef u64 now = 1000000000
    inp.at = data
    inp.end = data + size
    how = <int>take(&inp, 1)
    ending = how >> 2 & 3
    if ending == 3:
        ending = 1
    cut_count = min(<size_t>(how >> 4 & 7), left(&inp))
    cuts = inp.at
    inp.at += cut_count
    cut_at = 0
    coming_bytes = min(left(&inp), <size_t>BYTES_MOST)
    coming = stream = <char *>malloc(coming_bytes + 1)
    memcpy(stream, inp.at, coming_bytes)
    if how & 1:
        make_right(stream, coming_bytes, how)
    memset(&expected, 0, sizeof(expected))
    expect(&expected, stream, coming_bytes)
    set_up()
    side.lane[0].hangup = how & 0x80
    while side.lane[0].fd >= 0:
        side.lane[0].readable = True       # an edge
        lane_receive(side.lane[0], now)
        require(side.lane[0].stream_head == 0 or side.lane[0].fd < 0, b"frames that are done with stay in the buffer")
        require(side.lane[0].stream_tail <= STREAM_BYTES, b"more in the stream buffer than it has room for")
        now += 3000000
        if coming_bytes == 0 and ending == 1 and not side.lane[0].readable:
            break
    compare(&expected)
    tear_down()
    free(stream)
    return 0


row(&side.rows[0], 1, PAGE_BYTES + 1, 0)
row(&side.rows[1], 4, 15, 20)
row(&side.rows[2], 1, SMALL_BYTES, 0)
side.offsets[0], side.offsets[1] = 0, 80
side.engine.stream_bytes = STREAM_BYTES
side.engine.max_cell_bytes = LIMIT
side.engine.signalled = 1                  # nobody listens: nothing is written to its eventfd
side.worker.engine = &side.engine
pthread_mutex_init(&side.engine.dirty_lock, NULL)
on_recv = receive

ONE_INPUT = <size_t>&one_input
