"""What a lane tells the kernel's TCP, and asks it. Without locks, by the lane's worker."""

from kvwire._ext.core cimport lane_t

cdef void set_lowat(lane_t *lane) noexcept nogil
cdef void set_pace(lane_t *lane) noexcept nogil
cdef void sample(lane_t *lane) noexcept nogil
