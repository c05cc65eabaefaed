"""What lanes of a link share: transfers, receipts, the dirty list, the end of a lane. All under the link's lock."""

from kvwire._ext.core cimport *
from kvwire._ext.sendqueue cimport run_t

cdef void wake_worker(worker_t *w) noexcept nogil
cdef void wake_all(engine_t *e) noexcept nogil
cdef void mark_dirty(engine_t *e, dirty_t *d) noexcept nogil
cdef void forget_dirty(engine_t *e, dirty_t *d) noexcept nogil
cdef void signal_engine(engine_t *e) noexcept nogil
cdef out_t *find_out(link_t *link, u64 id) noexcept nogil
cdef in_t *find_in(link_t *link, u64 id) noexcept nogil
cdef void insert_out(link_t *link, out_t *t) noexcept nogil
cdef void insert_in(link_t *link, in_t *t) noexcept nogil
cdef void remove_out(link_t *link, out_t *t) noexcept nogil
cdef void remove_in(link_t *link, in_t *t) noexcept nogil
cdef void out_empty(out_t *t) noexcept nogil
cdef void out_unref(out_t *t) noexcept nogil
cdef void in_unref(in_t *t) noexcept nogil
cdef void out_end(out_t *t, state_t state) noexcept nogil
cdef void in_end(in_t *t, state_t state) noexcept nogil
cdef bint push_receipt(link_t *link, u64 id) noexcept nogil
cdef bint requeue(link_t *link, const run_t *run) noexcept nogil
cdef void hold_back(link_t *link, u64 now, u64 until) noexcept nogil
cdef u64 held_for(const link_t *link, u64 now) noexcept nogil
cdef void let_go(link_t *link, u64 now) noexcept nogil
cdef u64 lane_hedge(lane_t *lane, u64 most_bytes) noexcept nogil
cdef void lane_release(lane_t *lane, const run_t *run) noexcept nogil
cdef bint lane_sampled(lane_t *lane) noexcept nogil
cdef void lane_fail(lane_t *lane, lane_close_t reason, int detail) noexcept nogil
cdef void lane_rekeyed(lane_t *lane) noexcept nogil
cdef void lane_retire(lane_t *lane) noexcept nogil
cdef bint has_scratch(worker_t *w) noexcept nogil
cdef void lane_free(lane_t *lane) noexcept nogil
