"""The way out of a byte: claim, and then either gather, checksum and one sendmsg, or encode, seal and send.

A batch is control frames (acknowledgements, receipts) and then a run of cells that is worth at most 10 ms of the
lane's rate. Pages are read by this worker only, from the claim until the batch is settled. So a transfer can be
aborted, and its pages reused, without waiting for the peer.

A plain batch leaves straight from the pages and is settled after sendmsg: what the kernel did not take is either copied
(the rest of the frame that it stopped in) or goes back to the queue (whole frames), so that a cell binds to a lane as late
as the socket has room. One that is sealed, or has a cell that goes through a codec, is staged: made whole in the lane's
scratch, and settled before it is sent. A frame that is sealed has used its sequence number up, which another frame may
never have under the same key, and one that is encoded has cost its time, so these are never given back. They wait until
the kernel takes them: such a lane that stands still keeps up to a claim from the others.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.string cimport memcpy, memset

from kvwire._ext.claim cimport batch_t, claim, settle
from kvwire._ext.coding cimport AUTOMATIC, cell_at, coding_t
from kvwire._ext.codec cimport byte_t, cell_t
from kvwire._ext.core cimport *
from kvwire._ext.crc32c cimport kvwire_crc32c
from kvwire._ext.frame cimport DATA, frame_crc, frame_header, header_t
from kvwire._ext.layout cimport iovec, segment_gather, segment_iovecs
from kvwire._ext.link cimport has_scratch, lane_fail, lane_rekeyed
from kvwire._ext.seal cimport seal_frame
from kvwire._ext.sendqueue cimport run_t

cdef extern from "<sys/socket.h>" nogil:
    cdef struct msghdr:
        void *msg_name
        iovec *msg_iov
        size_t msg_iovlen
    ssize_t sendmsg(int fd, const msghdr *message, int flags)
    ssize_t c_send "send"(int fd, const void *data, size_t length, int flags)
    int MSG_NOSIGNAL
    int MSG_DONTWAIT


cdef int cell_pieces(const out_t *t, const run_t *run, u32 cell, u32 length, iovec *pieces, char *gathered) noexcept nogil:
    """Where the bytes of a cell are: in its pages, or gathered first where those pieces are small. Returns how many."""
    cdef int n
    if run.segment == t.segments:
        pieces.iov_base = t.attachment
        pieces.iov_len = length
        return 1 if length else 0
    n = segment_iovecs(&t.segment[run.segment], <long long>cell * t.cell_bytes, length, pieces, CELL_IOVECS)
    if n < 0 or (n > 1 and length // <u32>n < MIN_PIECE_BYTES):
        segment_gather(&t.segment[run.segment], <long long>cell * t.cell_bytes, length, gathered)
        pieces.iov_base = gathered
        pieces.iov_len = length
        n = 1
    return n


# --- straight from the pages --------------------------------------------------------------------------------------


cdef void build(lane_t *lane, batch_t *b) noexcept nogil:
    """Headers, checksums and iovecs of the batch; reads the pages of its cells."""
    cdef int i, k, n, frame = 0
    cdef u32 cell, length, crc
    cdef size_t at = 0
    cdef char *gathered = lane.worker.gathered
    cdef out_t *t
    cdef run_t *run
    cdef header_t *h
    cdef iovec *vec
    b.vecs = 0
    b.bytes = b.control
    while at < b.control:
        h = <header_t *>(lane.control + at)
        at += sizeof(header_t)
        h.crc = frame_crc(h, lane.control + at)
        at += h.wire_len
    if b.control:
        b.vec[0].iov_base = lane.control
        b.vec[0].iov_len = b.control
        b.vecs = 1
    for i in range(b.runs):
        run = &b.run[i]
        t = <out_t *>run.owner
        for cell in range(run.first, run.first + run.count):
            length = out_cell_len(t, run.segment, cell)
            h = &b.header[frame]
            frame_header(h, DATA, b.sequence + <u64>frame, t.id, run.segment, cell, length)
            b.vec[b.vecs].iov_base = h
            b.vec[b.vecs].iov_len = sizeof(header_t)
            vec = &b.vec[b.vecs + 1]
            n = cell_pieces(t, run, cell, length, vec, gathered)
            if n and vec.iov_base == gathered:
                gathered += length
            crc = kvwire_crc32c(0, h, sizeof(header_t))
            for k in range(n):
                crc = kvwire_crc32c(crc, vec[k].iov_base, vec[k].iov_len)
            h.crc = crc
            b.vecs += 1 + n
            b.frame_bytes[frame] = <u32>sizeof(header_t) + length
            b.bytes += b.frame_bytes[frame]
            frame += 1


cdef int keep_rest(lane_t *lane, batch_t *b, size_t sent) noexcept nogil:
    """Copy the rest of the frame that `sent` bytes stop in (or of the control frames); returns how many whole
    data frames were not begun."""
    cdef size_t end = b.control, at = 0, skip, n
    cdef int frame = 0, i = 0
    while end < sent:
        end += b.frame_bytes[frame]
        frame += 1
    lane.rest_at = lane.rest_len = 0
    while at < end:
        skip = min(max(sent, at) - at, b.vec[i].iov_len)
        n = min(b.vec[i].iov_len, end - at) - skip
        memcpy(lane.rest + lane.rest_len, <char *>b.vec[i].iov_base + skip, n)
        lane.rest_len += n
        at += b.vec[i].iov_len
        i += 1
    return b.frames - frame


cdef void send_plain(lane_t *lane, batch_t *b) noexcept nogil:
    """Send a batch straight from the pages, which are read until the kernel has taken what it takes."""
    cdef msghdr message
    cdef ssize_t n
    cdef int unsent = 0
    build(lane, b)
    memset(&message, 0, sizeof(message))
    message.msg_iov = b.vec
    message.msg_iovlen = <size_t>b.vecs
    n = sendmsg(lane.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT)
    while n < 0 and errno == EINTR:
        n = sendmsg(lane.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT)
    if n < 0:
        if errno != EAGAIN:
            lane_fail(lane, LANE_ERRNO, errno)
            settle(lane, b, 0)             # all stay in the log, which goes back to the queue when the lane retires
            return
        n = 0
    if <size_t>n < b.bytes:
        lane.writable = n > 0              # a short write is tried again at once; only EAGAIN arms the edge
        unsent = keep_rest(lane, b, <size_t>n)
    settle(lane, b, unsent)
    kv_count(&lane.tx_bytes, <u64>n)
    kv_count(&lane.tx_frames, <u64>(b.frames - unsent))


# --- staged -------------------------------------------------------------------------------------------------------


cdef bint stage(lane_t *lane, header_t *h, const iovec *pieces, int count, u64 now) noexcept nogil:
    """Make one frame behind those that the scratch holds already; its payload may be in its place there. False when the
    cipher failed."""
    cdef char *at = lane.rest + lane.rest_len
    cdef size_t n = sizeof(header_t)
    cdef u32 crc
    cdef int k
    if lane.sealer != NULL:
        n = seal_frame(lane.sealer, &lane.link.engine.rekey, h, pieces, count, at, now)
        if lane.sealer.epoch != lane.tx_epoch:
            lane_rekeyed(lane)
    else:
        crc = kvwire_crc32c(0, h, sizeof(header_t))
        for k in range(count):
            crc = kvwire_crc32c(crc, pieces[k].iov_base, pieces[k].iov_len)
            if pieces[k].iov_base != at + n:
                memcpy(at + n, pieces[k].iov_base, pieces[k].iov_len)
            n += pieces[k].iov_len
        h.crc = crc
        memcpy(at, h, sizeof(header_t))
    lane.rest_len += n
    return n != 0


cdef int encoded(lane_t *lane, batch_t *b, const run_t *run, u32 cell, header_t *h, iovec *pieces, int frame,
                 char *payload) noexcept nogil:
    """A cell through its codec: its payload, or the cell as it is where it did not shrink. As `cell_pieces`."""
    cdef out_t *t = <out_t *>run.owner
    cdef coding_t *coding = &t.coding[run.segment]
    cdef cell_t view = cell_at(coding, <u64>cell * t.cell_bytes)
    cdef int n
    cdef long long made
    cdef u64 start, took
    if not has_scratch(lane.worker):
        return cell_pieces(t, run, cell, h.plain_len, pieces, payload)
    n = cell_pieces(t, run, cell, h.plain_len, pieces, lane.worker.cell)
    if n > 1:                              # codecs take a cell in one piece
        segment_gather(&t.segment[run.segment], <long long>cell * t.cell_bytes, h.plain_len, lane.worker.cell)
        pieces.iov_base = lane.worker.cell
        pieces.iov_len = h.plain_len
    start = now_ns()
    made = coding.codec.encode(coding.codec, &view, <byte_t *>pieces.iov_base, h.plain_len, <byte_t *>payload,
                               h.plain_len, &lane.worker.scratch)
    took = now_ns() - start
    b.encode_ns += took
    if coding.codec.id == AUTOMATIC:
        b.auto_encode_ns += took
    b.payload[frame] = h.plain_len
    if 0 < made < <long long>h.plain_len:
        b.payload[frame] = h.wire_len = <u32>made
        h.codec = coding.codec.id
        pieces.iov_base = payload
        pieces.iov_len = <size_t>made
    return 1


cdef bint stage_all(lane_t *lane, batch_t *b, u64 now) noexcept nogil:
    """Make the frames of the batch in the scratch; reads the pages of its cells. False when the cipher failed."""
    cdef int i, n, frame = 0
    cdef u32 cell, length
    cdef size_t at = 0
    cdef out_t *t
    cdef run_t *run
    cdef header_t header
    cdef header_t *h
    cdef char *payload
    cdef iovec pieces[CELL_IOVECS]
    lane.rest_at = lane.rest_len = 0
    while at < b.control:
        h = <header_t *>(lane.control + at)
        pieces[0].iov_base = lane.control + at + sizeof(header_t)
        pieces[0].iov_len = h.wire_len
        at += sizeof(header_t) + h.wire_len
        if not stage(lane, h, pieces, 1 if h.wire_len else 0, now):
            return False
    for i in range(b.runs):
        run = &b.run[i]
        t = <out_t *>run.owner
        for cell in range(run.first, run.first + run.count):
            length = out_cell_len(t, run.segment, cell)
            frame_header(&header, DATA, b.sequence + <u64>frame, t.id, run.segment, cell, length)
            payload = lane.rest + lane.rest_len + sizeof(header_t)
            if b.encodes & (<u32>1 << frame):
                n = encoded(lane, b, run, cell, &header, pieces, frame, payload)
            else:
                n = cell_pieces(t, run, cell, length, pieces, payload)
            if not stage(lane, &header, pieces, n, now):
                return False
            frame += 1
    return True


cdef void send_staged(lane_t *lane, batch_t *b, u64 now) noexcept nogil:
    """Make the frames of a batch and let its pages go. They leave as the rest of a batch does."""
    b.encode_ns = b.auto_encode_ns = 0
    memset(b.payload, 0, sizeof(b.payload))
    if stage_all(lane, b, now):
        kv_count(&lane.tx_frames, <u64>b.frames)
    else:
        lane_fail(lane, LANE_NOT_SEALED, 0)
    settle(lane, b, 0)


# --- both ---------------------------------------------------------------------------------------------------------


cdef bint flush_rest(lane_t *lane) noexcept nogil:
    """Send what is left of an earlier batch; False when the kernel takes no more."""
    cdef ssize_t n
    while lane.rest_len:
        n = c_send(lane.fd, lane.rest + lane.rest_at, lane.rest_len, MSG_NOSIGNAL | MSG_DONTWAIT)
        if n < 0:
            if errno == EINTR:
                continue
            if errno == EAGAIN:
                lane.writable = False
            else:
                lane_fail(lane, LANE_ERRNO, errno)
            return False
        lane.rest_at += <size_t>n
        lane.rest_len -= <size_t>n
        kv_count(&lane.tx_bytes, <u64>n)
    return True


cdef bint lane_send(lane_t *lane, u64 now) noexcept nogil:
    """Send while the socket takes it and something is there to send; True if a turn's worth went and there may be more.

    EPOLLOUT is edge-triggered and armed once: `writable` is cleared only after the kernel has refused bytes, which
    is when it promises another edge. A lane that is writable and finds nothing to send waits for `wake_worker`.
    """
    cdef batch_t b
    cdef u64 before = lane.tx_bytes
    cdef u64 encoded = 0                   # cells may shrink to nothing, and take their time all the same
    while lane.writable:
        if lane.rest_len and not flush_rest(lane):
            return False
        if lane.tx_bytes - before + encoded >= TURN_BYTES:
            return True
        if not claim(lane, &b):
            return False
        if b.encodes:
            encoded += lane.claim_bytes
        if lane.sealer != NULL or b.encodes:
            send_staged(lane, &b, now)
        else:
            send_plain(lane, &b)
    return False
