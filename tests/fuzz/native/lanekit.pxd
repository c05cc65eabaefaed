"""Lanes and transfers of a link without threads and sockets, as EngineLink, InTransfer and OutTransfer make them."""

from libc.stdlib cimport calloc, malloc
from libc.string cimport memset

from kvwire._ext.core cimport *
from kvwire._ext.lanelog cimport log_append, log_init
from kvwire._ext.layout cimport row_t, segment_t
from kvwire._ext.ledger cimport ledger_init
from kvwire._ext.link cimport insert_in, insert_out
from kvwire._ext.sendqueue cimport run_t

cdef enum:
    NO_FD = 0x3FFFFFFF             # what is asked of the kernel about it fails


cdef inline void segment(segment_t *s, char *base, const row_t *row, const long long *offsets, long long block_bytes,
                         long long blocks) noexcept nogil:
    s.base = base
    s.offsets = offsets
    s.pattern = row
    s.pages_per_block = s.npattern = 1
    s.block_bytes = block_bytes
    s.nbytes = block_bytes * blocks


cdef inline void row(row_t *r, long long rows, long long row_bytes, long long stride) noexcept nogil:
    r.start = r.page = r.offset = 0
    r.rows = rows
    r.row_bytes = row_bytes
    r.row_stride = stride
    r.nbytes = rows * row_bytes


cdef inline in_t *arriving(link_t *link, u64 id, u32 cell_bytes, u32 segments, u32 attachment_bytes,
                           const long long *cells) noexcept nogil:
    """No cell is longer than `attachment_bytes`, which may be less than the engine has room for; 0: no attachment."""
    cdef in_t *t = <in_t *>calloc(1, sizeof(in_t))
    pthread_cond_init(&t.changed, NULL)
    t.link = link
    t.refs = 1
    t.id = id
    t.cell_bytes = cell_bytes
    t.has_attachment = attachment_bytes != 0
    t.segments = segments
    t.segment = <segment_t *>calloc(segments, sizeof(segment_t))
    t.done = <u32 *>malloc((segments + 1) * sizeof(u32))
    t.attachment = <char *>malloc(attachment_bytes) if attachment_bytes else NULL
    ledger_init(&t.ledger, cells, segments + t.has_attachment)
    insert_in(link, t)
    return t


cdef inline out_t *leaving(link_t *link, u64 id, u64 unsent, u64 bytes_ready) noexcept nogil:
    cdef out_t *t = <out_t *>calloc(1, sizeof(out_t))
    pthread_cond_init(&t.changed, NULL)
    pthread_mutex_init(&t.ready_lock, NULL)
    t.link = link
    t.refs = 1
    t.id = id
    t.unready_cells = t.unsent_cells = unsent
    t.unacked_bytes = bytes_ready
    insert_out(link, t)
    return t


cdef inline void sent(lane_t *lane, out_t *t, u64 receipt, u32 first, u32 count, u32 cell_bytes) noexcept nogil:
    """A run is in the lane's log."""
    cdef run_t run
    memset(&run, 0, sizeof(run))
    run.owner = t
    run.order = receipt
    run.first = first
    run.count = count
    if t == NULL:
        lane.link.receipts_unacked += 1
    else:
        run.cell_bytes = cell_bytes
        t.refs += 1
        lane.unacked_bytes += count * cell_bytes
        lane.link.inflight_bytes += count * cell_bytes
    log_append(&lane.log, &run, 1)


cdef inline lane_t *new_lane(link_t *link, worker_t *worker, u32 id, u32 incarnation,
                             size_t stream_bytes) noexcept nogil:
    cdef lane_t *lane = <lane_t *>calloc(1, sizeof(lane_t))
    lane.fd = NO_FD
    lane.id = id
    lane.incarnation = incarnation
    lane.link = link
    lane.worker = worker
    lane.claim_bytes = 4 * CLAIM_BYTES_MIN
    lane.stream = <char *>malloc(stream_bytes)
    log_init(&lane.log, 4)
    lane.next_in_link = link.lanes
    link.lanes = lane
    link.lanes_open += 1
    return lane
