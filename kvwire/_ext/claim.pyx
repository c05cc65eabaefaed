"""What a lane is to send next: acknowledgements and receipts, and as late as possible cells from the queue.

Whether a cell is encoded is decided here, and what came of it is noted here, where the link's lock is held anyway.
Pacer and the cap on what is in flight are asked here. Acknowledgements and receipts pass both: what they answer has left
already, and the peer's own pacing may wait for them.
"""

from libc.string cimport memcpy, memmove, memset

from kvwire._ext.cipher cimport TAG_BYTES
from kvwire._ext.coding cimport AUTOMATIC, SHARE_ONE, coding_t, gauge_measured, gauge_wants
from kvwire._ext.core cimport *
from kvwire._ext.frame cimport ACK, ACK_ENTRY_BYTES, HEADER_BYTES, RECEIPT, frame_header, header_t
from kvwire._ext.lanelog cimport log_append, log_trim_last
from kvwire._ext.link cimport hold_back, lane_release, let_go, requeue, wake_all
from kvwire._ext.pacer cimport hedge_earn, pacer_give_back, pacer_take, pacer_wait, pacer_worth
from kvwire._ext.sendqueue cimport drop_front, queue_claim, run_bytes, run_t

cdef enum:
    OVERSLEEP_NS = 2000000         # a worker sleeps for whole milliseconds


cdef void control_frame(lane_t *lane, batch_t *b, const header_t *h, const void *payload) noexcept nogil:
    memcpy(lane.control + b.control, h, sizeof(header_t))
    if h.wire_len:
        memcpy(lane.control + b.control + sizeof(header_t), payload, h.wire_len)
    b.control += sizeof(header_t) + h.wire_len


cdef bint takes_work(const lane_t *lane) noexcept nogil:
    """Whether a lane may take what any lane could. Link lock held."""
    return not lane.shunned and not kv_load(&lane.drain_request)


cdef void claim_control(lane_t *lane, batch_t *b, bint receipts, u64 now) noexcept nogil:
    """Put the acknowledgement that is due, and receipts, at the front of the batch. Link lock held."""
    cdef link_t *link = lane.link
    cdef header_t h
    cdef unsigned char entry[ACK_ENTRY_BYTES]
    cdef run_t run
    cdef size_t taken = 0
    if lane.ack_due_ns:
        frame_header(&h, ACK, lane.log.next_seq, 0, 0, 0, ACK_ENTRY_BYTES)
        memcpy(entry, &lane.id, 4)
        memcpy(entry + 4, &lane.incarnation, 4)
        memcpy(entry + 8, &lane.rx_seq, 8)
        control_frame(lane, b, &h, entry)
        lane.log.next_seq += 1             # nobody acknowledges an acknowledgement: it needs no log entry
        lane.rx_acked = lane.rx_seq
        lane.rx_unacked_bytes = 0
        lane.ack_due_ns = 0
    memset(&run, 0, sizeof(run))
    run.count = 1
    while receipts and taken < link.receipt_count and b.control + HEADER_BYTES <= CONTROL_BYTES:
        frame_header(&h, RECEIPT, lane.log.next_seq, link.receipts[taken], 0, 0, 0)
        run.order = link.receipts[taken]
        if not log_append(&lane.log, &run, now):
            break
        control_frame(lane, b, &h, entry)   # no payload
        taken += 1
    if taken:
        link.receipt_count -= taken
        memmove(link.receipts, link.receipts + taken, link.receipt_count * sizeof(u64))


cdef bint may_claim(lane_t *lane, u64 now) noexcept nogil:
    """Whether there is something to claim, and link and lane may. Link lock held.

    A lane that waits for the pacer says until when, and its worker sleeps no longer (`sleep_ms`); other rates wake it
    (`set_pace`). What waits for acknowledgements is woken where they come (`on_ack`). Both look at `link.pacer` and
    `link.inflight_bytes` under the link's lock, as whoever changes them does before it wakes.
    """
    cdef link_t *link = lane.link
    cdef u64 wait
    if link.queue.length == 0:
        return False
    wait = pacer_wait(&link.pacer, now)
    if wait:
        lane.paced_until_ns = now + wait
        hold_back(link, now, now + wait + OVERSLEEP_NS)
        return False
    if at_cap(link):
        hold_back(link, now, <u64>-1)
        return False
    if link.held_ns:
        let_go(link, now)
    return lane.log.length < lane.log.capacity


cdef u64 overhead(const lane_t *lane, u32 frames) noexcept nogil:
    """Bytes of so many frames beside their payload."""
    return <u64>frames * (HEADER_BYTES if lane.sealer == NULL else HEADER_BYTES + TAG_BYTES)


cdef u32 mark_sent(out_t *t, const run_t *run) noexcept nogil:
    """A receipt may come for these cells from here on. Returns a bit for each that was never sent before. Link lock
    held."""
    cdef u64 cell = t.first_cell[run.segment] + run.first
    cdef u32 i, fresh = 0
    for i in range(run.count):
        if not t.sent[cell >> 3] & (1 << (cell & 7)):
            t.sent[cell >> 3] |= <unsigned char>(1 << (cell & 7))
            t.unsent_cells -= 1
            fresh |= <u32>1 << i
        cell += 1
    return fresh


cdef void unmark_sent(out_t *t, const run_t *run, u32 fresh) noexcept nogil:
    """They were not sent after all; `fresh` as `mark_sent` gave it. Link lock held."""
    cdef u64 cell = t.first_cell[run.segment] + run.first
    cdef u32 i
    for i in range(run.count):
        if fresh & (<u32>1 << i):
            t.sent[cell >> 3] &= <unsigned char>~(1 << (cell & 7))
            t.unsent_cells += 1
        cell += 1


cdef u32 to_encode(const lane_t *lane, const out_t *t, const run_t *run, u64 now) noexcept nogil:
    """A bit for each cell of a run that is to go through its codec. Link lock held."""
    cdef coding_t *coding = NULL
    cdef u32 i, chosen = 0
    if t.coding != NULL and run.segment < t.segments:
        coding = &t.coding[run.segment]
    if coding == NULL or coding.codec == NULL:
        return 0
    if coding.gauge == NULL:
        return (<u32>1 << run.count) - 1
    for i in range(run.count):
        if gauge_wants(coding.gauge, lane.link.affordable, &lane.worker.sample_due_ns, now):
            chosen |= <u32>1 << i
    return chosen


cdef void note_encoded(lane_t *lane, const batch_t *b) noexcept nogil:
    """What came of the cells that went through codecs: the pacer had reckoned with all of them. Link lock held."""
    cdef link_t *link = lane.link
    cdef int i, frame = 0
    cdef u32 cell, plain, wire
    cdef u64 batch_plain = 0, batch_wire = 0, now = now_ns()
    cdef const run_t *run
    cdef out_t *t
    cdef coding_t *coding
    for i in range(b.runs):
        run = &b.run[i]
        t = <out_t *>run.owner
        batch_plain += run_bytes(run)
        for cell in range(run.first, run.first + run.count):
            if b.encodes & (<u32>1 << frame) and b.payload[frame]:
                coding = &t.coding[run.segment]
                plain, wire = out_cell_len(t, run.segment, cell), b.payload[frame]
                link.encoded_bytes += plain
                if coding.codec.id == AUTOMATIC:
                    link.auto_encoded_bytes += plain
                if coding.gauge != NULL:
                    gauge_measured(coding.gauge, plain, wire, now)
                if wire < plain:
                    coding.plain_bytes += plain
                    coding.wire_bytes += wire
                    link.coded_plain_bytes += plain
                    link.coded_wire_bytes += wire
                    batch_wire -= plain - wire       # of what is added below
            frame += 1
    batch_wire += batch_plain
    link.encode_ns += b.encode_ns
    link.auto_encode_ns += b.auto_encode_ns
    pacer_give_back(&link.pacer, batch_plain - batch_wire)
    if batch_plain:
        link.wire_share = (3 * link.wire_share + batch_wire * SHARE_ONE // batch_plain) >> 2


cdef void claim_data(lane_t *lane, batch_t *b, u64 now) noexcept nogil:
    """Claim ready cells worth `claim_bytes`, at least one cell; `may_claim` has said so. Link lock held.

    Every run in the queue and every run in a lane log holds a reference to its transfer.
    """
    cdef link_t *link = lane.link
    cdef run_t *run
    cdef out_t *t
    cdef size_t before
    cdef u64 claimed = 0, room = min(<u64>lane.claim_bytes, pacer_worth(&link.pacer))
    while True:
        run = &b.run[b.runs]
        before = link.queue.length
        queue_claim(&link.queue, <u32>(<int>BATCH_FRAMES - b.frames), room - claimed, now, run)
        t = <out_t *>run.owner
        if link.queue.length == before:
            t.refs += 1
        else:
            t.queued -= 1
        b.fresh |= mark_sent(t, run) << b.frames
        b.encodes |= to_encode(lane, t, run, now) << b.frames
        log_append(&lane.log, run, now)
        lane.unacked_bytes += run_bytes(run)
        link.inflight_bytes += run_bytes(run)
        pacer_take(&link.pacer, run_bytes(run) + overhead(lane, run.count))
        t.readers += 1
        t.last_claim_ns = now
        b.runs += 1
        b.frames += <int>run.count
        claimed += run_bytes(run)
        if claimed >= room or b.frames >= <int>BATCH_FRAMES or not may_claim(lane, now):
            return


cdef bint claim(lane_t *lane, batch_t *b) noexcept nogil:
    """Give sequence numbers to what the lane is to send next; False when there is nothing."""
    cdef link_t *link = lane.link
    cdef bint takes, data
    cdef u64 now
    b.runs = b.frames = 0
    b.fresh = b.encodes = 0
    b.encode_ns = b.auto_encode_ns = 0
    b.control = 0
    lane.paced_until_ns = 0
    pthread_mutex_lock(&link.lock)
    now = now_ns()
    takes = takes_work(lane)
    data = takes and may_claim(lane, now)
    if lane.ack_due_ns and (lane.ack_due_ns <= now or data) or takes and link.receipt_count:
        claim_control(lane, b, takes, now)
    b.sequence = lane.log.next_seq
    if data and lane.log.length < lane.log.capacity:
        claim_data(lane, b, now)
    pthread_mutex_unlock(&link.lock)
    return b.control != 0 or b.frames != 0


cdef void settle(lane_t *lane, batch_t *b, int unsent) noexcept nogil:
    """Pages are no longer read; the last `unsent` frames go back to the queue."""
    cdef link_t *link = lane.link
    cdef bint was_empty, wake
    cdef int i = b.runs - 1, frame = b.frames
    cdef u32 back
    cdef u64 claimed = 0, given_back = 0
    cdef out_t *t
    cdef run_t run
    pthread_mutex_lock(&link.lock)
    if b.encodes or link.wire_share < SHARE_ONE - 8:
        note_encoded(lane, b)
    was_empty = link.queue.length == 0
    while i >= 0:
        run = b.run[i]
        frame -= <int>run.count
        claimed += run_bytes(&run)
        t = <out_t *>run.owner
        t.readers -= 1
        if t.readers == 0 and t.state != ACTIVE:
            pthread_cond_broadcast(&t.changed)
        if unsent:
            back = min(<u32>unsent, run.count)
            unsent -= <int>back
            if back < run.count:
                t.refs += 1                # the front of the run stays in the log
            log_trim_last(&lane.log, back)
            unmark_sent(t, &b.run[i], b.fresh >> frame & ~((<u32>1 << (run.count - back)) - 1))
            drop_front(&run, run.count - back)
            lane_release(lane, &run)
            pacer_give_back(&link.pacer, run_bytes(&run) + overhead(lane, back))
            given_back += run_bytes(&run)
            requeue(link, &run)            # may free the transfer
        i -= 1
    hedge_earn(&link.hedge_budget, claimed - given_back)
    lane.sent_seq = lane.log.next_seq
    # Other lanes have seen an empty queue, or wait for the tokens that have come back, and sleep.
    wake = given_back and link.queue.length and (was_empty or link.held_ns)
    pthread_mutex_unlock(&link.lock)
    if wake:
        wake_all(link.engine)
