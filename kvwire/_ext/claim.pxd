"""What a lane is to send next: claimed under the link's lock, settled under it once the pages are read."""

from kvwire._ext.core cimport *
from kvwire._ext.frame cimport header_t
from kvwire._ext.layout cimport iovec
from kvwire._ext.sendqueue cimport run_t

cdef struct batch_t:
    run_t run[BATCH_FRAMES]
    int runs
    int frames                     # data frames, in the order of the runs
    u64 sequence                   # of the first data frame
    u32 fresh                      # a bit for each data frame whose cell no lane had claimed before
    u32 encodes                    # and for each whose cell goes through its codec
    u32 payload[BATCH_FRAMES]      # what of that cell leaves; 0: not known, because the lane has failed
    u64 encode_ns
    u64 auto_encode_ns             # of this
    size_t control                 # bytes of control frames in lane.control, checksums missing
    # of a plain batch
    size_t bytes                   # control and data
    u32 frame_bytes[BATCH_FRAMES]
    header_t header[BATCH_FRAMES]
    iovec vec[BATCH_IOVECS]
    int vecs

cdef bint claim(lane_t *lane, batch_t *b) noexcept nogil
cdef void settle(lane_t *lane, batch_t *b, int unsent) noexcept nogil
