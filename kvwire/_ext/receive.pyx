"""The way in of a byte: read into the lane's stream buffer, verify, claim, decode, place, land.

Frames are verified whole in the stream buffer, and sealed ones decrypted there, before anything else happens, so no unverified byte enters a slot,
the time in which a slot is written is one copy long, and a duplicate costs nothing.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.string cimport memcpy, memmove

from kvwire._ext.codec cimport byte_t, cell_t
from kvwire._ext.coding cimport AUTOMATIC, cell_at, coding_t
from kvwire._ext.core cimport *
from kvwire._ext.cipher cimport TAG_BYTES
from kvwire._ext.frame cimport (ACK, ACK_ENTRY_BYTES, BAD_TAG, DATA, FRAME_OK, HEADER_BYTES, NO_KEY,
                                frame_check_header, frame_check_payload, frame_error_t, header_t)
from kvwire._ext.lanelog cimport entry_t, log_pop_acked
from kvwire._ext.layout cimport segment_scatter
from kvwire._ext.ledger cimport DUPLICATE, OUTSIDE, OWN, claim_t, ledger_claim, ledger_land, ledger_unclaim
from kvwire._ext.link cimport (find_in, find_out, has_scratch, in_end, in_unref, lane_fail, lane_rekeyed, lane_release, mark_dirty,
                               out_end, out_unref, push_receipt, signal_engine, wake_all)
from kvwire._ext.seal cimport open_frame
from kvwire._ext.sendqueue cimport run_bytes
from kvwire._ext.tcp cimport set_lowat

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int fd, void *buffer, size_t length, int flags)
    int MSG_DONTWAIT

cdef enum:
    RATE_WINDOW_NS = 10000000


cdef void measure_rate(lane_t *lane, u64 acked_bytes, u64 now) noexcept nogil:
    """Rate of acknowledged bytes, smoothed over windows of at least 10 ms; sets what a claim may be worth."""
    cdef u64 rate, span = now - lane.rate_mark_ns
    cdef u32 worth
    if span < RATE_WINDOW_NS:
        return
    rate = (acked_bytes - lane.rate_mark_bytes) * 1000000000 // span
    lane.rate_mark_ns = now
    lane.rate_mark_bytes = acked_bytes
    # A lane that was idle for part of the window says too little; rates fall by an eighth a window at most.
    kv_show(&lane.rate_Bps, max(rate, lane.rate_Bps - (lane.rate_Bps >> 3)))
    worth = <u32>min(max(lane.rate_Bps // 100, <u64>CLAIM_BYTES_MIN), <u64>CLAIM_BYTES_MAX)
    if worth > lane.claim_bytes + (lane.claim_bytes >> 2) or worth < lane.claim_bytes - (lane.claim_bytes >> 2):
        lane.claim_bytes = worth
        set_lowat(lane)


cdef bint on_ack(lane_t *via, const header_t *h, const char *payload, u64 now) noexcept nogil:
    """Release what the peer has dealt with; False when it acknowledges what was never sent."""
    cdef link_t *link = via.link
    cdef lane_t *lane
    cdef entry_t entry
    cdef out_t *t
    cdef size_t before
    cdef u32 at, lane_id, incarnation
    cdef u64 acked, acked_bytes
    cdef bint honest = True, wake = False, capped
    pthread_mutex_lock(&link.lock)
    capped = at_cap(link)
    for at in range(h.wire_len // ACK_ENTRY_BYTES):
        payload += ACK_ENTRY_BYTES if at else 0
        memcpy(&lane_id, payload, 4)
        memcpy(&incarnation, payload + 4, 4)
        memcpy(&acked, payload + 8, 8)
        lane = link.lanes
        while lane != NULL and (lane.id != lane_id or lane.incarnation != incarnation):
            lane = lane.next_in_link
        if lane == NULL:
            continue                       # a lane that has ended meanwhile
        if acked > lane.log.next_seq:
            honest = False
            break
        acked = min(acked, lane.sent_seq)
        if acked > lane.log.acked:
            lane.acked_ns = now
            wake = wake or lane.shunned or kv_load(&lane.drain_request)
            lane.shunned = False
        while True:
            before = lane.log.length
            if not log_pop_acked(&lane.log, acked, &entry):
                break
            lane_release(lane, &entry.run)
            t = <out_t *>entry.run.owner
            if t == NULL:
                link.receipts_unacked -= 1
                continue
            lane.acked_bytes += run_bytes(&entry.run)
            if not entry.hedged and t.state != COMMITTED:   # else its copy counts, or all of it does already
                link.acked_bytes += run_bytes(&entry.run)
                t.unacked_bytes -= run_bytes(&entry.run)
                t.acked_cells += entry.run.count
            if lane.log.length < before:
                out_unref(t)
    wake = wake or (capped and not at_cap(link))
    acked_bytes = via.acked_bytes          # what comes over another lane may count for this one, too
    pthread_mutex_unlock(&link.lock)
    if wake:
        wake_all(link.engine)
    if honest:
        measure_rate(via, acked_bytes, now)
    return honest


cdef bint on_receipt(lane_t *lane, const header_t *h, u64 now) noexcept nogil:
    """The receiver has committed; False if it cannot have, because not every cell was sent, or nothing ever was."""
    cdef link_t *link = lane.link
    cdef out_t *t
    pthread_mutex_lock(&link.lock)
    t = find_out(link, h.transfer)
    if t != NULL and t.unsent_cells or t == NULL and h.transfer > link.newest_out:
        pthread_mutex_unlock(&link.lock)
        return False
    if t != NULL:
        t.receipt_ns = now
        out_end(t, COMMITTED)
    pthread_mutex_unlock(&link.lock)
    if t != NULL:
        signal_engine(link.engine)
    return True


cdef lane_close_t decode(worker_t *w, const in_t *t, const header_t *h, const char *payload, u64 *ns) noexcept nogil:
    """A verified cell as it was before its codec, into the worker's `cell`. As `place`."""
    cdef const coding_t *coding = &t.coding[h.segment]
    cdef cell_t view = cell_at(coding, <u64>h.cell * t.cell_bytes)
    cdef u64 start = now_ns()
    if not has_scratch(w):
        return LANE_NO_MEMORY
    if not coding.codec.decode(coding.codec, &view, <const byte_t *>payload, h.wire_len, <byte_t *>w.cell, h.plain_len,
                               &w.scratch):
        return LANE_BAD_PAYLOAD
    ns[0] = now_ns() - start
    return LANE_OPEN


cdef void place(in_t *t, const header_t *h, const char *cell) noexcept nogil:
    """Copy a verified cell into its slots. The caller has claimed it; no lock is held."""
    if h.segment < t.segments:
        segment_scatter(&t.segment[h.segment], <long long>h.cell * t.cell_bytes, h.plain_len, cell)
    else:
        memcpy(t.attachment, cell, h.plain_len)
        t.attachment_len = h.plain_len


cdef bint fits(const in_t *t, const header_t *h) noexcept nogil:
    """Whether a cell was granted and is as long as the grant says it must be."""
    cdef long long left
    if h.segment >= t.segments:
        return t.has_attachment and h.segment == t.segments and h.plain_len <= MAX_ATTACHMENT
    left = t.segment[h.segment].nbytes - <long long>h.cell * t.cell_bytes
    return h.plain_len > 0 and h.plain_len == (left if left < t.cell_bytes else t.cell_bytes)


cdef bint agreed_on(const in_t *t, const header_t *h) noexcept nogil:
    """Whether a cell of its segment may come in this codec."""
    if h.codec == 0:
        return True
    return (t.coding != NULL and h.segment < t.segments and t.coding[h.segment].codec != NULL
            and t.coding[h.segment].codec.id == h.codec)


cdef lane_close_t on_data(lane_t *lane, const header_t *h, const char *payload, u64 now) noexcept nogil:
    """Claim, decode, place, land; the last cell of a transfer commits it. Returns why the lane must end, or LANE_OPEN."""
    cdef link_t *link = lane.link
    cdef engine_t *engine = link.engine
    cdef in_t *t
    cdef claim_t claim
    cdef lane_close_t verdict = LANE_OPEN
    cdef bint tell = False, committed = False
    cdef u64 decode_ns = 0
    pthread_mutex_lock(&link.lock)
    t = find_in(link, h.transfer)
    if t == NULL:                          # aborted or committed: rightly dropped
        verdict = LANE_OPEN if h.transfer <= link.newest_in else LANE_UNKNOWN_TRANSFER
        pthread_mutex_unlock(&link.lock)
        return verdict
    if not agreed_on(t, h):
        pthread_mutex_unlock(&link.lock)
        return LANE_BAD_CODEC
    claim = ledger_claim(&t.ledger, h.segment, h.cell) if fits(t, h) else OUTSIDE
    if claim != OWN:
        t.duplicates += claim == DUPLICATE
        pthread_mutex_unlock(&link.lock)
        return LANE_OPEN if claim == DUPLICATE else LANE_OUTSIDE_GRANT
    t.writers += 1
    t.refs += 1
    if t.first_ns == 0:
        t.first_ns = now
    pthread_mutex_unlock(&link.lock)

    if h.codec:
        verdict = decode(lane.worker, t, h, payload, &decode_ns)
        payload = lane.worker.cell
    if verdict == LANE_OPEN:
        place(t, h, payload)

    pthread_mutex_lock(&link.lock)
    t.writers -= 1
    if h.codec and verdict == LANE_OPEN:
        link.decoded_bytes += h.plain_len
        link.decode_ns += decode_ns
        if h.codec == AUTOMATIC:
            link.auto_decoded_bytes += h.plain_len
            link.auto_decode_ns += decode_ns
        t.coding[h.segment].plain_bytes += h.plain_len
        t.coding[h.segment].wire_bytes += h.wire_len
    if t.state != ACTIVE:
        if t.writers == 0:
            pthread_cond_broadcast(&t.changed)
    elif verdict != LANE_OPEN:
        ledger_unclaim(&t.ledger, h.segment, h.cell)
    elif t.ledger.missing_total == 1 and not push_receipt(link, t.id):
        ledger_unclaim(&t.ledger, h.segment, h.cell)   # not acknowledged, so it will come again
        verdict = LANE_NO_MEMORY
    elif ledger_land(&t.ledger, h.segment, h.cell):
        t.done[t.done_count] = h.segment
        t.done_count += 1
        tell = True
        if t.ledger.missing_total == 0:
            t.commit_ns = now_ns()
            in_end(t, COMMITTED)
            committed = True
        else:
            pthread_cond_broadcast(&t.changed)
            mark_dirty(engine, &t.dirty)
    in_unref(t)
    pthread_mutex_unlock(&link.lock)
    if tell:
        signal_engine(engine)
    if committed:
        wake_all(engine)                   # the receipt leaves on whichever lane takes it first
    return verdict


cdef lane_close_t fault(frame_error_t error) noexcept nogil:
    if error == BAD_TAG:
        return LANE_BAD_TAG
    return LANE_NO_MEMORY if error == NO_KEY else LANE_BAD_FRAME


cdef bint consume(lane_t *lane, u64 now) noexcept nogil:
    """Deal with every whole frame in the stream buffer; False when the lane has ended."""
    cdef const header_t *h
    cdef char *payload
    cdef frame_error_t error
    cdef lane_close_t verdict
    cdef u32 limit = lane.link.engine.max_cell_bytes
    cdef bint sealed = lane.opener != NULL
    cdef size_t tag_len = TAG_BYTES if sealed else 0
    while lane.stream_tail - lane.stream_head >= HEADER_BYTES:
        h = <const header_t *>(lane.stream + lane.stream_head)
        payload = lane.stream + lane.stream_head + HEADER_BYTES
        error = frame_check_header(h, lane.rx_seq, lane.rx_epoch, limit)
        if error == FRAME_OK:
            if lane.stream_tail - lane.stream_head < HEADER_BYTES + h.wire_len + tag_len:
                break
            error = open_frame(lane.opener, h, payload) if sealed else frame_check_payload(h, payload)
        if error != FRAME_OK:
            lane_fail(lane, fault(error), <int>error)
            return False
        if h.epoch != lane.rx_epoch:
            lane_rekeyed(lane)
        lane.rx_seq += 1
        kv_count(&lane.rx_frames, 1)
        if h.type == ACK:
            verdict = LANE_OPEN if on_ack(lane, h, payload, now) else LANE_BAD_ACK
        else:
            if h.type == DATA:
                verdict = on_data(lane, h, payload, now)
            else:
                verdict = LANE_OPEN if on_receipt(lane, h, now) else LANE_BAD_RECEIPT
            lane.rx_unacked_bytes += HEADER_BYTES + h.wire_len
            if lane.ack_due_ns == 0:
                lane.ack_due_ns = now + ACK_DELAY_NS
            if lane.rx_unacked_bytes >= ACK_BYTES:
                lane.ack_due_ns = now
        if verdict != LANE_OPEN:
            lane_fail(lane, verdict, 0)
            return False
        lane.stream_head += HEADER_BYTES + h.wire_len + tag_len
    if lane.stream_head:
        lane.stream_tail -= lane.stream_head
        memmove(lane.stream, lane.stream + lane.stream_head, lane.stream_tail)
        lane.stream_head = 0
    return True


cdef bint lane_receive(lane_t *lane, u64 now) noexcept nogil:
    """Read and deal with what has come; True if a turn's worth came and there may be more.

    EPOLLIN is edge-triggered: `readable` is cleared when the kernel gave less than it was asked for, and whatever
    comes after that raises a new edge. An end of stream may have come with the bytes: its edge sets `hangup`.
    """
    cdef ssize_t n
    cdef size_t turn = 0, room
    while lane.readable:
        if turn >= TURN_BYTES:
            return True
        room = lane.link.engine.stream_bytes - lane.stream_tail
        n = recv(lane.fd, lane.stream + lane.stream_tail, room, MSG_DONTWAIT)
        if n < 0:
            if errno == EINTR:
                continue
            lane.readable = False
            if errno != EAGAIN:
                lane_fail(lane, LANE_ERRNO, errno)
            return False
        if n == 0:
            lane_fail(lane, LANE_EOF, 0)
            return False
        if <size_t>n < room and not lane.hangup:
            lane.readable = False
        kv_count(&lane.rx_bytes, <u64>n)
        lane.rx_ns = now
        lane.stream_tail += <size_t>n
        turn += <size_t>n
        if not consume(lane, now):
            return False
    return False
