"""What the lanes of a link share, and how a lane ends. Called by workers and, for O(1) work, by Python.

Unless said otherwise a function is called with the link's lock held.
"""

from libc.stdlib cimport free, malloc, realloc
from libc.stdint cimport uint64_t
from posix.unistd cimport close, write

from kvwire._ext.codec cimport scratch_free, scratch_init
from kvwire._ext.core cimport *
from kvwire._ext.lanelog cimport entry_t, log_free, log_hedge, log_pop
from kvwire._ext.ledger cimport ledger_free
from kvwire._ext.pacer cimport hedge_left, hedge_spend
from kvwire._ext.seal cimport seal_free
from kvwire._ext.sendqueue cimport queue_push, queue_remove, run_bytes, run_t


cdef extern from "<sys/epoll.h>" nogil:
    int epoll_ctl(int epfd, int op, int fd, void *event)
    int EPOLL_CTL_DEL


# --- waking ---------------------------------------------------------------------------------------------------


cdef void wake_worker(worker_t *w) noexcept nogil:
    """Make a worker look at its lanes again; called without locks.

    `wake` is set before the eventfd is written and cleared by the worker after it has read the eventfd and before
    it looks at any queue: whatever was pushed before the exchange below is seen by that look.
    """
    cdef uint64_t one = 1
    if kv_exchange(&w.wake, 1) == 0:
        write(w.wake_fd, &one, sizeof(one))


cdef void wake_all(engine_t *e) noexcept nogil:
    """Wake every worker: each looks for work on its own lanes; called without locks."""
    cdef int i
    for i in range(e.worker_count):
        wake_worker(&e.workers[i])


cdef void mark_dirty(engine_t *e, dirty_t *d) noexcept nogil:
    """Python has to look at this handle. `signal_engine` follows, once no lock is held."""
    pthread_mutex_lock(&e.dirty_lock)
    if not d.queued and d.handle != NULL:
        d.queued = True
        d.next = NULL
        if e.dirty_last == NULL:
            e.dirty_first = d
        else:
            e.dirty_last.next = d
        e.dirty_last = d
    pthread_mutex_unlock(&e.dirty_lock)


cdef void forget_dirty(engine_t *e, dirty_t *d) noexcept nogil:
    """The Python handle goes away."""
    cdef dirty_t *at
    cdef dirty_t *previous = NULL
    pthread_mutex_lock(&e.dirty_lock)
    d.handle = NULL
    if d.queued:
        at = e.dirty_first
        while at != NULL and at != d:
            previous = at
            at = at.next
        if at != NULL:
            if previous == NULL:
                e.dirty_first = d.next
            else:
                previous.next = d.next
            if e.dirty_last == d:
                e.dirty_last = previous
        d.queued = False
    pthread_mutex_unlock(&e.dirty_lock)


cdef void signal_engine(engine_t *e) noexcept nogil:
    """Tell the event loop that the dirty list is not empty; called without locks, by workers or with the GIL."""
    cdef uint64_t one = 1
    if kv_exchange(&e.signalled, 1) == 0:
        write(e.event_fd, &one, sizeof(one))


# --- transfers ------------------------------------------------------------------------------------------------


cdef out_t *find_out(link_t *link, u64 id) noexcept nogil:
    cdef out_t *t = link.out[(id >> 1) % TABLE_SIZE]
    while t != NULL and t.id != id:
        t = t.next
    return t


cdef in_t *find_in(link_t *link, u64 id) noexcept nogil:
    cdef in_t *t = link.inc[(id >> 1) % TABLE_SIZE]
    while t != NULL and t.id != id:
        t = t.next
    return t


cdef void insert_out(link_t *link, out_t *t) noexcept nogil:
    t.next = link.out[(t.id >> 1) % TABLE_SIZE]
    link.out[(t.id >> 1) % TABLE_SIZE] = t
    if t.id > link.newest_out:
        link.newest_out = t.id


cdef void insert_in(link_t *link, in_t *t) noexcept nogil:
    t.next = link.inc[(t.id >> 1) % TABLE_SIZE]
    link.inc[(t.id >> 1) % TABLE_SIZE] = t
    if t.id > link.newest_in:
        link.newest_in = t.id


cdef void remove_out(link_t *link, out_t *t) noexcept nogil:
    cdef out_t **at = &link.out[(t.id >> 1) % TABLE_SIZE]
    while at[0] != NULL:
        if at[0] == t:
            at[0] = t.next
            return
        at = &at[0].next


cdef void remove_in(link_t *link, in_t *t) noexcept nogil:
    cdef in_t **at = &link.inc[(t.id >> 1) % TABLE_SIZE]
    while at[0] != NULL:
        if at[0] == t:
            at[0] = t.next
            return
        at = &at[0].next


cdef void out_empty(out_t *t) noexcept nogil:
    """Give back what only its handle and its readers need. A lane's log may hold the rest until the peer acknowledges."""
    free(t.segment)
    free(t.coding)
    free(t.rank)
    free(t.attachment)
    free(t.unready)
    free(t.sent)
    free(t.first_cell)
    free(t.block_ready)
    free(t.first_block)
    t.segment = NULL
    t.coding = NULL
    t.rank = NULL
    t.attachment = NULL
    t.unready = NULL
    t.sent = NULL
    t.first_cell = NULL
    t.block_ready = NULL
    t.first_block = NULL


cdef void out_unref(out_t *t) noexcept nogil:
    t.refs -= 1
    if t.refs == 0:
        pthread_cond_destroy(&t.changed)
        pthread_mutex_destroy(&t.ready_lock)
        free(t)


cdef void in_unref(in_t *t) noexcept nogil:
    t.refs -= 1
    if t.refs == 0:
        pthread_cond_destroy(&t.changed)
        ledger_free(&t.ledger)
        free(t.segment)
        free(t.coding)
        free(t.done)
        free(t.attachment)
        free(t)


cdef void out_end(out_t *t, state_t state) noexcept nogil:
    """The transfer is over, and what it has in the queue is dropped: a lane may never come for it. That looks through
    the queue, which is as long as Config.max_queued_runs has it; but what commits has nothing there as a rule."""
    if t.state == ACTIVE:
        t.state = state
        if t.queued:
            queue_remove(&t.link.queue, t, now_ns())
            if t.link.queue.length == 0:
                let_go(t.link, now_ns())
            t.refs -= t.queued             # its handle holds it still
            t.queued = 0
        if state == COMMITTED:             # all has landed, whether or not that is acknowledged yet, or ever will be
            t.link.acked_bytes += t.unacked_bytes
        remove_out(t.link, t)
        pthread_cond_broadcast(&t.changed)
        mark_dirty(t.link.engine, &t.dirty)


cdef void in_end(in_t *t, state_t state) noexcept nogil:
    """The transfer is over: no cell is claimed any more. Its slots are quiet once `writers` is 0."""
    if t.state == ACTIVE:
        t.state = state
        remove_in(t.link, t)
        pthread_cond_broadcast(&t.changed)
        mark_dirty(t.link.engine, &t.dirty)


cdef bint push_receipt(link_t *link, u64 id) noexcept nogil:
    """Have a receipt sent. False without memory, or where the peer sends and sends and acknowledges no receipt."""
    cdef size_t capacity
    cdef u64 *grown
    if link.receipts_unacked == MAX_RECEIPTS:
        return False
    if link.receipts_unacked == link.receipt_capacity:
        capacity = link.receipt_capacity * 2 if link.receipt_capacity else 16
        grown = <u64 *>realloc(link.receipts, capacity * sizeof(u64))
        if grown == NULL:
            return False
        link.receipts = grown
        link.receipt_capacity = capacity
    link.receipts_unacked += 1
    push_receipt_again(link, id)
    return True


cdef void push_receipt_again(link_t *link, u64 id) noexcept nogil:
    """A receipt that nobody has acknowledged: there is room for it."""
    link.receipts[link.receipt_count] = id
    link.receipt_count += 1


cdef bint requeue(link_t *link, const run_t *run) noexcept nogil:
    """A run that holds a reference goes back to the queue in its old place, or is dropped if its transfer is over, or
    waits for the link: then its ledger will tell what is to be sent."""
    cdef out_t *t = <out_t *>run.owner
    if t.state == ACTIVE and not t.suspended and queue_push(&link.queue, run, now_ns()) == 0:
        t.queued += 1
        return True
    out_unref(t)
    return False


# --- pacing ---------------------------------------------------------------------------------------------------


cdef void hold_back(link_t *link, u64 now, u64 until) noexcept nogil:
    """The pacer, or the cap on what is in flight, keeps lanes from claiming what is there."""
    if link.held_ns and now > link.held_until_ns:
        let_go(link, now)
    if link.held_ns == 0:
        link.held_ns = now
    link.held_until_ns = until


cdef u64 held_for(const link_t *link, u64 now) noexcept nogil:
    """For how long that has been so, by now."""
    now = min(now, link.held_until_ns)
    return now - link.held_ns if link.held_ns and now > link.held_ns else 0


cdef void let_go(link_t *link, u64 now) noexcept nogil:
    """It does not, or there is nothing to claim."""
    link.paced_ns += held_for(link, now)
    link.held_ns = 0


# --- hedging, samples -----------------------------------------------------------------------------------------


cdef u64 lane_hedge(lane_t *lane, u64 most_bytes) noexcept nogil:
    """Have other lanes send, too, what a lane without progress has sent, the oldest first; returns bytes of payload.

    The lane itself claims nothing more until an acknowledgement moves: it would take the copies back.
    """
    cdef link_t *link = lane.link
    cdef u64 copied = 0, now = now_ns()
    cdef run_t run
    cdef out_t *t
    most_bytes = min(most_bytes, hedge_left(&link.hedge_budget))
    while log_hedge(&lane.log, lane.sent_seq, most_bytes - copied, &run):
        t = <out_t *>run.owner
        if t == NULL:
            if not push_receipt(link, run.order):
                lane.log.hedged -= 1       # it still stands for itself
                break
        elif t.state == ACTIVE and not t.suspended:
            if queue_push(&link.queue, &run, now):
                lane.log.hedged -= 1
                break
            t.refs += 1
            t.queued += 1
            copied += run_bytes(&run)
    hedge_spend(&link.hedge_budget, copied)
    link.hedged_bytes += copied
    lane.shunned = lane.log.length != 0
    return copied


cdef void lane_release(lane_t *lane, const run_t *run) noexcept nogil:
    """A run leaves the lane's log."""
    lane.unacked_bytes -= run_bytes(run)
    lane.link.inflight_bytes -= run_bytes(run)


cdef bint lane_sampled(lane_t *lane) noexcept nogil:
    """The lane has answered the latest request for samples, or will not; True, and `signal_engine` has to follow, where
    that was the last one."""
    cdef link_t *link = lane.link
    if lane.sampled == link.asked:
        return False
    lane.sampled = link.asked
    link.unsampled -= 1
    if link.unsampled:
        return False
    link.sampled = link.asked
    mark_dirty(link.engine, &link.dirty)
    return True


# --- codecs ---------------------------------------------------------------------------------------------------


cdef bint has_scratch(worker_t *w) noexcept nogil:
    """Whether this worker, which asks, has what codecs work in; it is made here. Without locks."""
    cdef engine_t *e = w.engine
    if w.cell == NULL:
        if not scratch_init(&w.scratch, e.max_cell_bytes, e.zstd):
            return False
        w.cell = <char *>malloc(e.max_cell_bytes)
        if w.cell == NULL:
            scratch_free(&w.scratch)
    return w.cell != NULL


# --- the end of a lane ----------------------------------------------------------------------------------------


cdef void lane_fail(lane_t *lane, lane_close_t reason, int detail) noexcept nogil:
    """Stop a lane, in its worker, without locks; the worker retires it once its turn is over."""
    if lane.fd < 0:
        return
    epoll_ctl(lane.worker.epoll_fd, EPOLL_CTL_DEL, lane.fd, NULL)   # a fork may keep the socket open beyond `close`
    close(lane.fd)
    lane.fd = -1
    lane.readable = lane.writable = False
    lane.ack_due_ns = 0
    lane.rest_len = 0
    lane.close_reason = reason
    lane.close_detail = detail


cdef void lane_rekeyed(lane_t *lane) noexcept nogil:
    """A direction goes on with another key: Python may want to know. Without locks."""
    pthread_mutex_lock(&lane.link.lock)
    lane.tx_epoch = lane.sealer.epoch
    lane.rx_epoch = lane.opener.epoch
    pthread_mutex_unlock(&lane.link.lock)
    mark_dirty(lane.link.engine, &lane.link.dirty)
    signal_engine(lane.link.engine)


cdef void lane_retire(lane_t *lane) noexcept nogil:
    """The worker lets a failed lane go, without locks: what nobody acknowledged goes back to the queue.

    The struct stays in the link's list until Python has read why it ended.
    """
    cdef link_t *link = lane.link
    cdef engine_t *engine = link.engine
    cdef entry_t entry
    cdef out_t *t
    pthread_mutex_lock(&link.lock)
    while log_pop(&lane.log, &entry):
        lane_release(lane, &entry.run)
        t = <out_t *>entry.run.owner
        if t == NULL and entry.hedged:
            link.receipts_unacked -= 1
        elif t == NULL:
            push_receipt_again(link, entry.run.order)
        elif entry.hedged:
            out_unref(t)                       # its copy stands for it
        else:
            t.resent_cells += entry.run.count
            if requeue(link, &entry.run):
                link.resent_bytes += run_bytes(&entry.run)
    lane_sampled(lane)
    lane.retired = True
    link.ended_sent_bytes += lane.tx_bytes
    link.lanes_open -= 1
    if link.lanes_open == 0:
        let_go(link, now_ns())
    mark_dirty(engine, &link.dirty)
    pthread_cond_broadcast(&link.changed)
    pthread_mutex_unlock(&link.lock)           # from here on Python may free the lane, and the link with it
    signal_engine(engine)
    wake_all(engine)


cdef void lane_free(lane_t *lane) noexcept nogil:
    """Free a lane that its worker has let go."""
    log_free(&lane.log)
    free(lane.stream)
    free(lane.control)
    free(lane.rest)
    seal_free(lane.sealer)
    seal_free(lane.opener)
    free(lane)
