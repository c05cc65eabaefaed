"""What `EngineLink` says of itself and its lanes, copied while their workers go on. Link lock held."""

from libc.string cimport memcpy

from kvwire._ext.core cimport *
from kvwire._ext.lanelog cimport log_oldest
from kvwire._ext.link cimport held_for
from kvwire._ext.sendqueue cimport CLASSES, queue_idle, queue_oldest

cdef struct stats_t:
    u32 id
    u32 incarnation
    u64 tx_bytes
    u64 rx_bytes
    u64 tx_frames
    u64 rx_frames
    u32 tx_epoch
    u32 rx_epoch
    u64 acked_bytes
    u64 unacked_bytes
    u64 rate_Bps
    u64 waits_since_ns             # 0: for no acknowledgement
    u64 added_ns
    u32 info_len
    char info[TCP_INFO_BYTES]

cdef inline void copy_stats(const lane_t *l, stats_t *s) noexcept nogil:
    """What the worker shows is read as it is now, the rest as the lock guards it."""
    s.id = l.id
    s.incarnation = l.incarnation
    s.tx_bytes = kv_look(&l.tx_bytes)
    s.rx_bytes = kv_look(&l.rx_bytes)
    s.tx_frames = kv_look(&l.tx_frames)
    s.rx_frames = kv_look(&l.rx_frames)
    s.tx_epoch = l.tx_epoch
    s.rx_epoch = l.rx_epoch
    s.acked_bytes = l.acked_bytes
    s.unacked_bytes = l.unacked_bytes
    s.rate_Bps = kv_look(&l.rate_Bps)
    s.waits_since_ns = max(l.acked_ns, log_oldest(&l.log)) if l.log.length else 0
    s.added_ns = l.added_ns
    s.info_len = l.info_len
    memcpy(s.info, l.info, l.info_len)


cdef struct link_stats_t:
    u64 now_ns
    u64 queued[CLASSES]
    u64 oldest[CLASSES]            # when it became ready; 0: there is none
    u64 idle_ns
    u64 paced_ns
    u64 sent_bytes
    u64 acked_bytes
    u64 hedged_bytes
    u64 resent_bytes
    u64 inflight_bytes
    u64 encoded_bytes
    u64 encode_ns
    u64 coded_plain_bytes
    u64 coded_wire_bytes
    u64 decoded_bytes
    u64 decode_ns
    u64 auto_encoded_bytes
    u64 auto_encode_ns
    u64 auto_decoded_bytes
    u64 auto_decode_ns

cdef inline void copy_link_stats(const link_t *c, link_stats_t *s) noexcept nogil:
    cdef const lane_t *l = c.lanes
    cdef int k
    s.now_ns = now_ns()
    for k in range(CLASSES):
        s.queued[k] = c.queue.klass[k].bytes
        s.oldest[k] = queue_oldest(&c.queue, k)
    s.idle_ns = queue_idle(&c.queue, s.now_ns)
    s.paced_ns = c.paced_ns + held_for(c, s.now_ns)
    s.sent_bytes = c.ended_sent_bytes
    while l != NULL:
        s.sent_bytes += 0 if l.retired else kv_look(&l.tx_bytes)
        l = l.next_in_link
    s.acked_bytes, s.inflight_bytes = c.acked_bytes, c.inflight_bytes
    s.hedged_bytes, s.resent_bytes = c.hedged_bytes, c.resent_bytes
    s.encoded_bytes, s.encode_ns = c.encoded_bytes, c.encode_ns
    s.coded_plain_bytes, s.coded_wire_bytes = c.coded_plain_bytes, c.coded_wire_bytes
    s.decoded_bytes, s.decode_ns = c.decoded_bytes, c.decode_ns
    s.auto_encoded_bytes, s.auto_encode_ns = c.auto_encoded_bytes, c.auto_encode_ns
    s.auto_decoded_bytes, s.auto_decode_ns = c.auto_decoded_bytes, c.auto_decode_ns
