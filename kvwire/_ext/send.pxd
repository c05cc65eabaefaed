from kvwire._ext.core cimport lane_t, u64

cdef bint lane_send(lane_t *lane, u64 now) noexcept nogil
