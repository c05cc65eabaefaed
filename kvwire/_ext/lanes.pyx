"""A link as the engine knows it: its lanes and what they share."""

import os

cimport cython
from libc.stdlib cimport calloc, free, malloc
from posix.unistd cimport close

from kvwire._ext.cipher cimport TAG_BYTES
from kvwire._ext.coding cimport SHARE_ONE
from kvwire._ext.core cimport *
from kvwire._ext.engine cimport Engine
from kvwire._ext.frame cimport HEADER_BYTES
from kvwire._ext.lanelog cimport entry_t, log_init
from kvwire._ext.lanestats cimport copy_link_stats, copy_stats, link_stats_t, stats_t
from kvwire._ext.link cimport (forget_dirty, in_end, lane_free, lane_hedge, let_go, mark_dirty, out_end,
                               out_unref, signal_engine, wake_all, wake_worker)
from kvwire._ext.pacer cimport pacer_set
from kvwire._ext.seal cimport seal_free, seal_of
from kvwire._ext.sendqueue cimport CLASSES, queue_clear, queue_free

from kvwire._ext.frame import ERRORS
from kvwire.errors import Closed, LocalError

_REASONS = {
    LANE_EOF: "the peer closed the connection",
    LANE_ERRNO: "system error",
    LANE_BAD_FRAME: "a damaged frame",
    LANE_UNKNOWN_TRANSFER: "a cell of a transfer that was never granted",
    LANE_OUTSIDE_GRANT: "a cell outside the grant",
    LANE_BAD_ACK: "an acknowledgement of frames that were never sent",
    LANE_BAD_RECEIPT: "a receipt for what was never sent",
    LANE_REQUESTED: "closed by this side",
    LANE_NO_MEMORY: "out of memory",
    LANE_BAD_TAG: "a frame with a wrong tag",
    LANE_NOT_SEALED: "a frame could not be sealed",
    LANE_DRAINED: "no longer needed",
    LANE_BAD_CODEC: "a cell in a codec that was not agreed on",
    LANE_BAD_PAYLOAD: "a payload that its codec cannot have made",
}


FAULTS = frozenset({LANE_BAD_FRAME, LANE_BAD_TAG, LANE_UNKNOWN_TRANSFER, LANE_OUTSIDE_GRANT, LANE_BAD_ACK,
                    LANE_BAD_RECEIPT, LANE_BAD_CODEC, LANE_BAD_PAYLOAD})
TAG_FAILURE = <int>LANE_BAD_TAG
DRAINED = <int>LANE_DRAINED
EOF = <int>LANE_EOF

cdef u64 UNLIMITED = <u64>-1            # SO_MAX_PACING_RATE: no cap



@cython.no_gc_clear                     # __dealloc__ needs the engine
cdef class EngineLink:
    """Lanes, send queue and transfers of one link."""

    def __cinit__(self, Engine engine not None):
        engine.check()
        self.engine = engine
        self.c.engine = &engine.c
        pthread_mutex_init(&self.c.lock, NULL)
        pthread_cond_init(&self.c.changed, NULL)
        self.c.dirty.handle = <void *>self
        self.c.queue.empty_ns = now_ns()
        self.c.lane_Bps = UNLIMITED
        self.c.wire_share = SHARE_ONE

    cdef void check(self) except *:
        self.engine.check()
        if self.c.closed:
            raise Closed("the link is closed")

    def add_lane(self, int fd, u32 lane, u32 incarnation, secrets=None):
        cdef lane_t *l
        cdef worker_t *w
        cdef size_t rest_bytes = (2 * CONTROL_BYTES + CLAIM_BYTES_MAX + self.engine.c.max_cell_bytes
                                  + BATCH_FRAMES * (HEADER_BYTES + TAG_BYTES))
        cdef seal_t *sealer = NULL
        cdef seal_t *opener = NULL
        try:
            os.set_blocking(fd, False)
            if secrets is not None:
                if self.engine.cipher is None:
                    raise LocalError("this engine has no cipher to seal a lane with")
                sending, receiving = secrets
                sealer = seal_of(self.engine.cipher, sending, True)
                opener = seal_of(self.engine.cipher, receiving, False)
            self.check()                   # no Python from here to the inbox: the engine cannot close in between
        except BaseException:
            seal_free(sealer)
            seal_free(opener)
            close(fd)
            raise
        l = <lane_t *>calloc(1, sizeof(lane_t))
        if l != NULL:
            l.fd = fd
            l.id = lane
            l.incarnation = incarnation
            l.link = &self.c
            l.claim_bytes = 4 * CLAIM_BYTES_MIN
            l.pace_Bps = UNLIMITED
            l.added_ns = now_ns()
            l.stream = <char *>malloc(self.engine.c.stream_bytes)
            l.control = <char *>malloc(CONTROL_BYTES)
            l.rest = <char *>malloc(rest_bytes)
            l.memory_bytes = (sizeof(lane_t) + self.engine.c.stream_bytes + CONTROL_BYTES + rest_bytes
                              + LOG_RUNS * sizeof(entry_t))
            if secrets is not None:
                l.sealer = sealer
                l.opener = opener
                l.tx_epoch = l.rx_epoch = 1
        if (l == NULL or l.stream == NULL or l.control == NULL or l.rest == NULL
                or log_init(&l.log, LOG_RUNS)):
            if l != NULL:
                lane_free(l)               # and what seals it
            else:
                seal_free(sealer)
                seal_free(opener)
            close(fd)
            raise MemoryError
        w = &self.engine.c.workers[self.engine.c.next_worker]
        self.engine.c.next_worker = (self.engine.c.next_worker + 1) % self.engine.c.worker_count
        l.worker = w
        pthread_mutex_lock(&self.c.lock)
        l.sampled = self.c.asked           # a request that is under way does not wait for it
        l.next_in_link = self.c.lanes
        self.c.lanes = l
        self.c.lanes_open += 1
        pthread_mutex_unlock(&self.c.lock)
        pthread_mutex_lock(&w.inbox_lock)
        l.next_in_worker = w.inbox
        w.inbox = l
        pthread_mutex_unlock(&w.inbox_lock)
        wake_worker(w)

    @property
    def lanes_open(self):
        return locked_int(&self.c, &self.c.lanes_open)

    def close_lane(self, u32 lane):
        cdef lane_t *l
        cdef worker_t *w = NULL
        self.check()
        pthread_mutex_lock(&self.c.lock)
        l = self.c.lanes
        while l != NULL:
            if l.id == lane and not l.retired:
                kv_exchange(&l.close_request, 1)
                w = l.worker
            l = l.next_in_link
        pthread_mutex_unlock(&self.c.lock)
        if w != NULL:
            wake_worker(w)

    def drain_lane(self, u32 lane):
        cdef lane_t *l
        self.check()
        pthread_mutex_lock(&self.c.lock)
        l = self.c.lanes
        while l != NULL:
            if l.id == lane and not l.retired and not kv_load(&l.drain_request):
                l.drain_ns = now_ns()
                kv_exchange(&l.drain_request, 1)
            l = l.next_in_link
        pthread_mutex_unlock(&self.c.lock)
        wake_all(&self.engine.c)

    def hedge(self, u32 lane, u64 most_bytes):
        cdef lane_t *l
        cdef u64 copied = 0
        self.check()
        pthread_mutex_lock(&self.c.lock)
        l = self.c.lanes
        while l != NULL:
            if l.id == lane and not l.retired:
                copied += lane_hedge(l, most_bytes - copied)
            l = l.next_in_link
        pthread_mutex_unlock(&self.c.lock)
        wake_all(&self.engine.c)
        return copied

    def set_pace(self, u64 average_Bps, u64 peak_Bps, u64 lane_Bps, u64 inflight_cap):
        self.check()
        pthread_mutex_lock(&self.c.lock)
        pacer_set(&self.c.pacer, average_Bps, peak_Bps, now_ns())
        self.c.inflight_cap = inflight_cap
        kv_store64(&self.c.lane_Bps, lane_Bps if lane_Bps else UNLIMITED)
        pthread_mutex_unlock(&self.c.lock)
        wake_all(&self.engine.c)

    def set_affordable(self, bint on):
        pthread_mutex_lock(&self.c.lock)
        self.c.affordable = on
        pthread_mutex_unlock(&self.c.lock)

    @property
    def pacing_refused(self):
        return bool(kv_load(&self.c.pacing_refused))

    def request_sample(self):
        cdef bint nobody
        self.check()
        pthread_mutex_lock(&self.c.lock)
        kv_store64(&self.c.asked, self.c.asked + 1)
        self.c.unsampled = self.c.lanes_open
        nobody = self.c.lanes_open == 0
        if nobody:
            self.c.sampled = self.c.asked
            mark_dirty(&self.engine.c, &self.c.dirty)
        pthread_mutex_unlock(&self.c.lock)
        if nobody:
            signal_engine(&self.engine.c)
        else:
            wake_all(&self.engine.c)

    @property
    def sampled(self):
        return locked_u64(&self.c, &self.c.sampled)

    def take_closed(self):
        cdef lane_t **at
        cdef lane_t *l
        cdef lane_t *gone = NULL
        self.engine.c.gil_entries += 1
        look_at(&self.c)
        at = &self.c.lanes
        while at[0] != NULL:
            l = at[0]
            if l.retired:
                at[0] = l.next_in_link
                l.next_in_link = gone
                gone = l
            else:
                at = &l.next_in_link
        looked_at(&self.c)
        out = []
        while gone != NULL:
            l = gone
            gone = l.next_in_link
            text = _REASONS[l.close_reason]
            if l.close_reason == LANE_ERRNO:
                text = os.strerror(l.close_detail)
            elif l.close_reason == LANE_BAD_FRAME:
                text = f"a frame with a wrong {ERRORS[l.close_detail]}"
            out.append((l.id, l.incarnation, l.close_reason, text, l.rx_seq))
            lane_free(l)
        return out

    def lane_stats(self):
        cdef stats_t *copies
        cdef stats_t *s
        cdef lane_t *l
        cdef int n = 0, i
        cdef u64 now
        look_at(&self.c)
        now = now_ns()
        copies = <stats_t *>malloc((self.c.lanes_open + 1) * sizeof(stats_t))
        l = self.c.lanes if copies != NULL else NULL
        while l != NULL:
            if not l.retired:
                copy_stats(l, &copies[n])
                n += 1
            l = l.next_in_link
        looked_at(&self.c)
        out = []
        for i in range(n):
            s = &copies[i]
            out.append({
                "lane": s.id, "incarnation": s.incarnation, "sent_bytes": s.tx_bytes,
                "received_bytes": s.rx_bytes, "sent_frames": s.tx_frames, "received_frames": s.rx_frames,
                "acked_bytes": s.acked_bytes, "rate_Bps": s.rate_Bps, "sent_epoch": s.tx_epoch, "received_epoch": s.rx_epoch,
                "unacked_bytes": s.unacked_bytes,
                "stalled_ns": now - s.waits_since_ns if s.waits_since_ns and now > s.waits_since_ns else 0,
                "added_ns": s.added_ns, "tcp_info": s.info[:s.info_len],
            })
        free(copies)
        return out

    def link_stats(self):
        cdef link_stats_t s
        look_at(&self.c)
        copy_link_stats(&self.c, &s)
        looked_at(&self.c)
        return {
            "now_ns": s.now_ns, "queued_bytes": tuple([s.queued[k] for k in range(CLASSES)]),
            "oldest_ns": tuple([s.now_ns - s.oldest[k] if s.oldest[k] and s.now_ns > s.oldest[k] else 0
                                for k in range(CLASSES)]),
            "idle_ns": s.idle_ns, "paced_ns": s.paced_ns, "sent_bytes": s.sent_bytes, "acked_bytes": s.acked_bytes,
            "hedged_bytes": s.hedged_bytes, "resent_bytes": s.resent_bytes, "inflight_bytes": s.inflight_bytes,
            "encoded_bytes": s.encoded_bytes, "encode_ns": s.encode_ns, "coded_plain_bytes": s.coded_plain_bytes,
            "coded_wire_bytes": s.coded_wire_bytes, "decoded_bytes": s.decoded_bytes, "decode_ns": s.decode_ns,
            "auto_encoded_bytes": s.auto_encoded_bytes, "auto_encode_ns": s.auto_encode_ns,
            "auto_decoded_bytes": s.auto_decoded_bytes, "auto_decode_ns": s.auto_decode_ns,
        }

    @property
    def memory_bytes(self):
        cdef lane_t *l
        cdef u64 held = 0
        look_at(&self.c)
        l = self.c.lanes
        while l != NULL:
            held += l.memory_bytes
            l = l.next_in_link
        looked_at(&self.c)
        return held

    @property
    def queued_runs(self):
        cdef size_t queued
        look_at(&self.c)
        queued = self.c.queue.length
        looked_at(&self.c)
        return queued

    cdef void close_lanes(self):
        """Ends all lanes and waits for the workers that hold them."""
        cdef lane_t *l
        cdef int i
        pthread_mutex_lock(&self.c.lock)
        l = self.c.lanes
        while l != NULL:
            kv_exchange(&l.close_request, 1)
            l = l.next_in_link
        pthread_mutex_unlock(&self.c.lock)
        for i in range(self.engine.threads):
            wake_worker(&self.engine.c.workers[i])
        with nogil:
            pthread_mutex_lock(&self.c.lock)
            while self.c.lanes_open:
                pthread_cond_wait(&self.c.changed, &self.c.lock)
            pthread_mutex_unlock(&self.c.lock)

    cdef void empty_queue(self) noexcept nogil:
        """Nothing of what is ready is to leave. Link lock held."""
        cdef size_t at
        cdef int k
        cdef out_t *t
        for k in range(CLASSES):
            for at in range(self.c.queue.klass[k].length):
                t = <out_t *>self.c.queue.klass[k].slot[at].run.owner
                t.queued -= 1
                out_unref(t)
        queue_clear(&self.c.queue, now_ns())
        let_go(&self.c, now_ns())

    def suspend(self):
        cdef out_t *t
        cdef int i
        self.check()
        with nogil:                        # first: what one lane gives back must not leave on the next
            pthread_mutex_lock(&self.c.lock)
            for i in range(TABLE_SIZE):
                t = self.c.out[i]
                while t != NULL:
                    t.suspended = True
                    t = t.next
            self.empty_queue()
            pthread_mutex_unlock(&self.c.lock)
        self.close_lanes()
        pthread_mutex_lock(&self.c.lock)
        # A ledger says the same; and to another life of the peer these numbers mean other transfers.
        self.c.receipt_count = self.c.receipts_unacked = 0
        pthread_mutex_unlock(&self.c.lock)

    def close(self):
        cdef int i
        if self.c.closed or self.engine.c.forked:
            return
        self.c.closed = True
        self.close_lanes()
        with nogil:
            pthread_mutex_lock(&self.c.lock)
            self.empty_queue()
            for i in range(TABLE_SIZE):
                while self.c.out[i] != NULL:
                    out_end(self.c.out[i], LOST)
                while self.c.inc[i] != NULL:
                    in_end(self.c.inc[i], LOST)
            pthread_mutex_unlock(&self.c.lock)
        signal_engine(&self.engine.c)      # with the GIL: the engine must not close its descriptor in between

    def __del__(self):
        """Before the collector takes anything apart: `drain` no longer gives this handle out, and lanes are closed."""
        if self.engine is not None and not self.engine.c.forked:
            forget_dirty(&self.engine.c, &self.c.dirty)
            self.close()

    def __dealloc__(self):
        cdef lane_t *l
        if self.engine is None or self.engine.c.forked:
            return
        self.close()
        forget_dirty(&self.engine.c, &self.c.dirty)
        while self.c.lanes != NULL:
            l = self.c.lanes
            self.c.lanes = l.next_in_link
            lane_free(l)
        queue_free(&self.c.queue)
        free(self.c.receipts)
        pthread_cond_destroy(&self.c.changed)
        pthread_mutex_destroy(&self.c.lock)
