"""What `EngineLink.lane_stats` says of a lane, copied while its worker goes on."""

from libc.string cimport memcpy

from kvwire._ext.core cimport *
from kvwire._ext.lanelog cimport log_oldest

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
    """What the worker shows is read as it is now, the rest as the lock guards it. Link lock held."""
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
