"""The engine's structures: who owns what, and which lock guards it.

    engine_t   one per node; owns workers and the list of handles that Python has to look at
    worker_t   one native thread and its epoll; owns the sockets and buffers of its lanes
    link_t     what the lanes of a link share: send queue, transfers, receipts. `lock` guards all of it
    lane_t     one TCP connection; fields are its worker's alone unless marked: "lock", "shown" (it writes them with
               `kv_show` or `kv_count`, and anybody reads them with `kv_look`)
    out_t      a transfer that leaves; in_t: a transfer that arrives

Lock order: link_t.lock, then engine_t.dirty_lock. No lock is held over a system call (waking a condition aside).
Workers never take the GIL; Python holds a lock only for work that does not grow with the data, and to look
through the queue for what a transfer that ends has left there.
"""

from kvwire._ext.cipher cimport cipher_t
from kvwire._ext.codec cimport scratch_t, zstd_t
from kvwire._ext.coding cimport SHARE_ONE, coding_t
from kvwire._ext.frame cimport HEADER_BYTES
from kvwire._ext.lanelog cimport lanelog_t
from kvwire._ext.layout cimport segment_t
from kvwire._ext.ledger cimport ledger_t
from kvwire._ext.pacer cimport hedge_budget_t, pacer_t
from kvwire._ext.seal cimport limits_t, seal_t
from kvwire._ext.sendqueue cimport queue_t

ctypedef unsigned long long u64
ctypedef unsigned int u32

cdef extern from "<time.h>" nogil:
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *ts)
    int CLOCK_MONOTONIC

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_t:
        pass
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    ctypedef struct pthread_condattr_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *m, void *attr)
    int pthread_mutex_destroy(pthread_mutex_t *m)
    int pthread_mutex_lock(pthread_mutex_t *m)
    int pthread_mutex_unlock(pthread_mutex_t *m)
    int pthread_condattr_init(pthread_condattr_t *a)
    int pthread_condattr_setclock(pthread_condattr_t *a, int clock)
    int pthread_condattr_destroy(pthread_condattr_t *a)
    int pthread_cond_init(pthread_cond_t *c, pthread_condattr_t *attr)
    int pthread_cond_destroy(pthread_cond_t *c)
    int pthread_cond_wait(pthread_cond_t *c, pthread_mutex_t *m)
    int pthread_cond_timedwait(pthread_cond_t *c, pthread_mutex_t *m, timespec *deadline)
    int pthread_cond_broadcast(pthread_cond_t *c)

cdef extern from *:
    """
    static inline int kv_exchange(int *p, int v) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }
    static inline int kv_load(const int *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
    static inline unsigned long long kv_load64(const unsigned long long *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
    static inline void kv_store64(unsigned long long *p, unsigned long long v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }
    /* A number that one thread writes and others look at, whenever: in order with nothing, and as cheap as a plain one. */
    static inline unsigned long long kv_look(const unsigned long long *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
    static inline void kv_show(unsigned long long *p, unsigned long long v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
    static inline void kv_count(unsigned long long *p, unsigned long long n) { kv_show(p, *p + n); }
    """
    int kv_exchange(int *p, int v) noexcept nogil
    int kv_load(const int *p) noexcept nogil
    unsigned long long kv_load64(const unsigned long long *p) noexcept nogil
    void kv_store64(unsigned long long *p, unsigned long long v) noexcept nogil
    unsigned long long kv_look(const unsigned long long *p) noexcept nogil
    void kv_show(unsigned long long *p, unsigned long long v) noexcept nogil
    void kv_count(unsigned long long *p, unsigned long long n) noexcept nogil

cdef enum:
    LOG_RUNS = 4096                # a lane's unacknowledged runs: above any socket's buffers in cells
    BATCH_FRAMES = 16              # data frames in one sendmsg
    BATCH_IOVECS = 1024            # UIO_MAXIOV, linux/uio.h
    CELL_IOVECS = 60               # a cell in more pieces is gathered first: BATCH_FRAMES * (1 + 60) fits
    MIN_PIECE_BYTES = 2048         # pieces smaller than this on average are gathered first
    CONTROL_BYTES = 4096           # acknowledgements and receipts at the front of a batch
    TURN_BYTES = 2 * 1024 * 1024   # what one lane may move before its worker looks at the others
    CLAIM_BYTES_MIN = 16 * 1024    # TCP_NOTSENT_LOWAT and claims: 10 ms of the lane's rate inside these
    CLAIM_BYTES_MAX = 256 * 1024   # sealed lanes, too: smaller ones cost the sender more (bench/README.md)
    ACK_BYTES = 1024 * 1024        # landed bytes after which an acknowledgement goes out at once
    ACK_DELAY_NS = 2000000         # and the longest that fewer wait
    MAX_RECEIPTS = 65536           # not acknowledged: as many as transfers may be under way (Config.max_transfers)
    MAX_ATTACHMENT = 65536         # kvwire.types.MAX_ATTACHMENT_BYTES
    TABLE_SIZE = 1024              # buckets of a transfer table
    DRAIN_QUIET_NS = 100000000     # a lane that drains closes once nothing has come for so long
    TCP_INFO_BYTES = 280           # linux/tcp.h of Linux 6.18; older ones return less

cdef enum state_t:
    ACTIVE = 0
    COMMITTED = 1
    ABORTED = 2
    LOST = 3                       # the link was closed under it

cdef enum lane_close_t:
    LANE_OPEN = 0
    LANE_EOF = 1
    LANE_ERRNO = 2
    LANE_BAD_FRAME = 3             # detail: frame_error_t
    LANE_UNKNOWN_TRANSFER = 4
    LANE_OUTSIDE_GRANT = 5
    LANE_BAD_ACK = 6
    LANE_BAD_RECEIPT = 7
    LANE_REQUESTED = 8
    LANE_NO_MEMORY = 9
    LANE_BAD_TAG = 10
    LANE_NOT_SEALED = 11           # the cipher failed
    LANE_DRAINED = 12
    LANE_BAD_CODEC = 13
    LANE_BAD_PAYLOAD = 14          # no payload of its codec

cdef struct dirty_t:
    void *handle                   # PyObject *, NULL once the Python side is gone
    dirty_t *next
    bint queued

cdef struct out_t:
    link_t *link
    out_t *next                    # in the link's table
    dirty_t dirty
    u64 id
    int refs                       # lock: the Python handle, and every run in the queue or in a lane log
    int state                      # lock: state_t
    int queued                     # lock: runs in the queue, none once it is over
    int readers                    # lock: workers that read its pages just now
    int klass
    u64 deadline
    u32 cell_bytes
    u32 segments                   # without the attachment
    bint has_attachment
    segment_t *segment
    coding_t *coding               # [segments]; NULL: all cells leave as they are
    unsigned char *rank            # [segments + 1]
    char *attachment
    u32 attachment_len
    u32 *unready                   # ready_lock: [all cells] bytes that are not ready
    u64 *first_cell                # [segments + 1] number of each segment's first cell
    unsigned char *block_ready     # ready_lock: [all blocks]
    u64 *first_block               # [segments + 1]
    u64 unready_cells              # lock: attachment included
    unsigned char *sent            # lock: a bit for each cell that a lane has claimed, or that landed before a resume
    u64 unsent_cells               # lock: those without
    pthread_mutex_t ready_lock     # taken before the link's lock
    u64 first_ready_ns
    u64 last_ready_ns
    u64 last_claim_ns              # lock
    u64 receipt_ns
    u64 acked_cells                # lock
    u64 unacked_bytes              # lock: payload that became ready and that the link's `acked_bytes` is yet to count
    bint suspended                 # lock: the link is down; what becomes ready is only marked
    u64 resent_cells
    pthread_cond_t changed

cdef struct in_t:
    link_t *link
    in_t *next
    dirty_t dirty
    u64 id
    int refs                       # lock: the Python handle, and every worker that places a cell of it
    int state                      # lock
    int writers                    # lock: workers that write its slots just now
    u32 cell_bytes
    u32 segments
    bint has_attachment
    segment_t *segment
    coding_t *coding               # [segments]; NULL: all cells come as they are
    ledger_t ledger                # lock
    u32 *done                      # lock: complete segments in the order in which they became so
    u32 done_count                 # lock
    char *attachment
    u32 attachment_len
    u64 first_ns
    u64 commit_ns
    u64 duplicates
    pthread_cond_t changed

cdef struct lane_t:
    worker_t *worker
    link_t *link
    lane_t *next_in_link           # lock
    lane_t *next_in_worker
    int fd
    u32 id
    u32 incarnation
    int close_reason               # lane_close_t
    int close_detail
    int close_request              # atomic
    int drain_request              # atomic
    u64 drain_ns                   # lock: when that was
    u64 drain_due_ns               # when it may close; 0: there is something to wait for yet
    u64 added_ns
    size_t memory_bytes            # what was allocated for it, keys aside
    bint retired                   # lock: the worker has let it go; Python may read and free it
    bint readable
    bint writable
    bint hangup                    # the peer has closed: read to the end
    # receive
    char *stream
    size_t stream_head
    size_t stream_tail
    u64 rx_seq
    u64 rx_acked
    u64 rx_ns                      # when something came last
    u64 rx_unacked_bytes
    u64 ack_due_ns                 # 0: nothing to acknowledge
    seal_t *opener                 # NULL: a plain lane
    # send
    lanelog_t log                  # lock
    u64 sent_seq                   # lock: frames before it are settled: a plain lane's are the kernel's, a sealed one's
                                   # may wait in `rest` yet
    u64 unacked_bytes              # lock: payload in the log
    u64 acked_ns                   # lock: when an acknowledgement moved last
    bint shunned                   # lock: it was hedged, and claims nothing until an acknowledgement moves
    u64 paced_until_ns             # when it may claim again; 0: nothing holds it back, or nobody knows for how long
    char *control                  # CONTROL_BYTES
    char *rest                     # whole frames of a batch, and then what of them the kernel did not take yet
    size_t rest_at
    size_t rest_len
    u32 claim_bytes
    seal_t *sealer                 # NULL: a plain lane
    # rate, from acknowledged bytes
    u64 acked_bytes                # lock
    u64 rate_mark_bytes
    u64 rate_mark_ns
    u64 rate_Bps                   # shown
    # the socket
    u64 pace_Bps                   # what it was told last
    u64 sampled                    # the request that `info` answers
    u32 info_len                   # lock
    char info[TCP_INFO_BYTES]      # lock
    # totals
    u64 tx_bytes                   # shown, as the next three
    u64 rx_bytes
    u64 tx_frames
    u64 rx_frames
    u32 tx_epoch                   # 0: a plain lane; its worker writes these two under the lock, and reads them without
    u32 rx_epoch

cdef struct link_t:
    engine_t *engine
    pthread_mutex_t lock
    pthread_cond_t changed
    dirty_t dirty
    queue_t queue
    u64 *receipts                  # ids of transfers whose receipt has to leave
    size_t receipt_count           # that wait for a lane
    size_t receipts_unacked        # these and those in the logs of lanes, which may come back: there is room for all
    size_t receipt_capacity
    lane_t *lanes
    int lanes_open
    out_t *out[TABLE_SIZE]
    in_t *inc[TABLE_SIZE]
    u64 newest_in                  # largest id that was ever registered; smaller unknown ones are over
    u64 newest_out                 # lock: the same of what is sent
    bint closed
    # pacing
    pacer_t pacer                  # lock
    u64 inflight_cap               # lock; 0: none
    u64 inflight_bytes             # lock: bytes of cells in the logs of lanes
    u64 held_ns                    # lock: since when the pacer or the cap keeps lanes from claiming; 0: neither does
    u64 held_until_ns              # lock: and no longer than
    u64 paced_ns                   # lock: for how long they did so before
    u64 lane_Bps                   # atomic: SO_MAX_PACING_RATE of every lane
    int pacing_refused             # atomic
    # samples
    u64 asked                      # atomic: requests
    u64 sampled                    # lock: how many of them are answered
    int unsampled                  # lock: open lanes that the latest one waits for
    # hedges and totals
    hedge_budget_t hedge_budget    # lock
    u64 hedged_bytes               # lock
    u64 resent_bytes               # lock
    u64 acked_bytes                # lock: each cell once
    u64 ended_sent_bytes           # lock: `tx_bytes` of lanes that have ended
    # codecs
    bint affordable                # lock: encoding is worth its time on this link, for cells that shrink
    u64 wire_share                 # lock: of SHARE_ONE, smoothed: what of the latest cells has gone over the wire
    u64 encoded_bytes              # lock: that went into codecs, whether or not they shrank
    u64 encode_ns                  # lock
    u64 coded_plain_bytes          # lock: of the cells that left coded
    u64 coded_wire_bytes           # lock: of their payloads
    u64 decoded_bytes              # lock: that came out of codecs
    u64 decode_ns                  # lock
    u64 auto_encoded_bytes         # lock: of these, and of the times, what the codec has that "auto" goes through
    u64 auto_encode_ns             # lock
    u64 auto_decoded_bytes         # lock
    u64 auto_decode_ns             # lock

cdef struct worker_t:
    engine_t *engine
    pthread_t thread
    int index
    int epoll_fd
    int wake_fd
    int wake                       # atomic: a wake-up is on its way
    lane_t *lanes
    lane_t *turn                   # the one to look at first; NULL: the first of them
    char *gathered                 # cells in small pieces, of the batch that it sends
    scratch_t scratch              # what codecs work in, made when the first one is used
    char *cell                     # a cell as it is, before it is encoded or after it was decoded
    u64 sample_due_ns              # when it may encode again where that is only to know
    lane_t *inbox                  # guarded by inbox_lock
    pthread_mutex_t inbox_lock

cdef struct engine_t:
    worker_t *workers
    int worker_count
    int next_worker
    int stop                       # atomic
    bint forked                    # this is a child's copy: no lock may be taken, no thread is there
    int event_fd
    int signalled                  # atomic: event_fd was written and Python has not looked yet
    pthread_mutex_t dirty_lock
    dirty_t *dirty_first
    dirty_t *dirty_last
    size_t stream_bytes
    u32 max_cell_bytes
    const cipher_t *cipher         # NULL: all lanes are plain
    const zstd_t *zstd             # NULL: there is none
    limits_t rekey
    u64 gil_entries                # guarded by the GIL itself

cdef inline u64 now_ns() noexcept nogil:
    cdef timespec ts
    clock_gettime(CLOCK_MONOTONIC, &ts)
    return <u64>ts.tv_sec * 1000000000 + <u64>ts.tv_nsec

cdef inline bint at_cap(const link_t *link) noexcept nogil:
    """Whether as much is under way, on the wire, as may be. Link lock held."""
    return link.inflight_cap != 0 and link.inflight_bytes * link.wire_share // SHARE_ONE >= link.inflight_cap

cdef inline void look_at(link_t *link) noexcept nogil:
    """Take the link's lock to read what workers change; `looked_at` follows. In a forked child nothing changes any more,
    and the lock is as some thread of the parent held it."""
    if not link.engine.forked:
        pthread_mutex_lock(&link.lock)

cdef inline void looked_at(link_t *link) noexcept nogil:
    if not link.engine.forked:
        pthread_mutex_unlock(&link.lock)

cdef inline u64 locked_u64(link_t *link, const u64 *value) noexcept nogil:
    """One number that the link's lock guards."""
    cdef u64 read
    look_at(link)
    read = value[0]
    looked_at(link)
    return read

cdef inline int locked_int(link_t *link, const int *value) noexcept nogil:
    cdef int read
    look_at(link)
    read = value[0]
    looked_at(link)
    return read

cdef inline u32 out_cell_len(const out_t *t, u32 segment, u32 cell) noexcept nogil:
    cdef long long left
    if segment == t.segments:
        return t.attachment_len
    left = t.segment[segment].nbytes - <long long>cell * t.cell_bytes
    return <u32>left if left < t.cell_bytes else t.cell_bytes
