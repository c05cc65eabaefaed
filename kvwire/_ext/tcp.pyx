"""What a lane tells the kernel's TCP (how much may wait unsent, how fast it may send), and asks it (TCP_INFO).

A lane's socket is its worker's: Python asks by a number in the link, and each worker answers for its own lanes when it
looks at them next.
"""

from libc.string cimport memcpy

from kvwire._ext.core cimport *
from kvwire._ext.link cimport lane_sampled, signal_engine

cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned int socklen_t
    int setsockopt(int fd, int level, int name, const void *value, socklen_t length)
    int getsockopt(int fd, int level, int name, void *value, socklen_t *length)
    int SOL_SOCKET

cdef extern from "<netinet/in.h>" nogil:
    int IPPROTO_TCP

cdef enum:
    SO_MAX_PACING_RATE = 47            # asm-generic/socket.h
    TCP_INFO = 11                      # linux/tcp.h
    TCP_NOTSENT_LOWAT = 25


cdef void set_lowat(lane_t *lane) noexcept nogil:
    """What waits in the socket's buffer can no longer be overtaken, nor leave on another lane: no more than a claim."""
    cdef int value = <int>lane.claim_bytes
    setsockopt(lane.fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &value, sizeof(value))


cdef void set_pace(lane_t *lane) noexcept nogil:
    """Have the kernel pace the lane as its link wants; a host that cannot is remembered, and the link's pacer remains."""
    lane.pace_Bps = kv_load64(&lane.link.lane_Bps)
    if setsockopt(lane.fd, SOL_SOCKET, SO_MAX_PACING_RATE, &lane.pace_Bps, sizeof(lane.pace_Bps)) < 0:
        kv_exchange(&lane.link.pacing_refused, 1)


cdef void sample(lane_t *lane) noexcept nogil:
    """Read TCP_INFO. The last lane of the link to do so has Python told."""
    cdef link_t *link = lane.link
    cdef char info[TCP_INFO_BYTES]
    cdef socklen_t length = TCP_INFO_BYTES
    cdef bint all_sampled
    if getsockopt(lane.fd, IPPROTO_TCP, TCP_INFO, info, &length) < 0:
        length = 0
    pthread_mutex_lock(&link.lock)
    memcpy(lane.info, info, length)
    lane.info_len = length
    all_sampled = lane_sampled(lane)
    pthread_mutex_unlock(&link.lock)
    if all_sampled:
        signal_engine(link.engine)
