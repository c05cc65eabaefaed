"""What a lane has sent and nobody has acknowledged. Shared by the engine (nogil, under the link's lock) and tests."""

from kvwire._ext.sendqueue cimport run_t

cdef struct entry_t:
    unsigned long long seq         # of the first frame
    run_t run                      # run.owner NULL: the receipt of transfer run.order
    unsigned long long claimed_ns
    bint hedged                    # set when it is taken out: a copy stands for it

cdef struct lanelog_t:
    entry_t *ring
    size_t capacity                # a power of two
    size_t head                    # oldest
    size_t length
    size_t hedged                  # the oldest so many have been copied to go out on another lane
    unsigned long long next_seq    # of the next frame this lane sends
    unsigned long long acked       # all before it are acknowledged

cdef int log_init(lanelog_t *l, size_t capacity) noexcept nogil
cdef void log_free(lanelog_t *l) noexcept nogil
cdef bint log_append(lanelog_t *l, const run_t *run, unsigned long long now) noexcept nogil
cdef bint log_pop_acked(lanelog_t *l, unsigned long long acked, entry_t *out) noexcept nogil
cdef bint log_pop(lanelog_t *l, entry_t *out) noexcept nogil
cdef bint log_hedge(lanelog_t *l, unsigned long long sent_seq, unsigned long long most_bytes, run_t *copy) noexcept nogil
cdef unsigned long long log_oldest(const lanelog_t *l) noexcept nogil
cdef void log_trim_last(lanelog_t *l, unsigned int cells) noexcept nogil

cdef class LaneLog:
    cdef lanelog_t c
