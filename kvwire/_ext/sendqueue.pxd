"""Ready cells in the order in which they leave. Shared by the engine (nogil, under the link's lock) and by tests."""

cdef enum:
    CLASSES = 3                    # 0 urgent, 1 demand, 2 background
    SHARE = 16                     # a class that waits gets one in so many of the bytes that leave

cdef enum by_t:                    # what a heap is ordered by
    LEAVES = 0
    AGE = 1

cdef struct run_t:
    void *owner                    # the transfer; the queue never looks inside
    unsigned long long deadline    # ns, 0: none
    unsigned long long order       # of becoming ready; a run that comes back keeps it, and
    unsigned long long ready_ns    # when that was
    unsigned int segment
    unsigned int first             # cell
    unsigned int count             # cells
    unsigned int cell_bytes
    unsigned int short_by          # bytes that the last cell of the run is shorter than the others
    unsigned char klass
    unsigned char rank             # 0: state that a decoder needs whole; 1: everything else

cdef struct slot_t:
    run_t run
    unsigned int at[2]             # where each heap has it

cdef struct class_t:
    slot_t *slot                   # [length], in no order
    unsigned int *heap[2]          # [length] numbers of slots, by by_t
    size_t length
    size_t capacity
    unsigned long long bytes
    unsigned long long passed      # bytes that others sent while it waited, less SHARE - 1 for each of its own

cdef struct queue_t:
    class_t klass[CLASSES]
    size_t length                  # runs of all classes
    unsigned long long next_order
    unsigned long long idle_ns     # for how long it was empty, up to the latest push
    unsigned long long empty_ns    # since when it is, if it is

cdef inline unsigned long long run_bytes(const run_t *run) noexcept nogil:
    return <unsigned long long>run.count * run.cell_bytes - run.short_by

cdef inline void keep_front(run_t *run, unsigned int count) noexcept nogil:
    """Cut a run behind its first `count` cells, fewer than it has."""
    run.count = count
    run.short_by = 0

cdef inline void drop_front(run_t *run, unsigned int count) noexcept nogil:
    run.first += count
    run.count -= count

cdef int queue_push(queue_t *q, const run_t *run, unsigned long long now) noexcept nogil
cdef bint queue_claim(queue_t *q, unsigned int max_cells, unsigned long long max_bytes, unsigned long long now,
                      run_t *out) noexcept nogil
cdef size_t queue_remove(queue_t *q, const void *owner, unsigned long long now) noexcept nogil
cdef void queue_clear(queue_t *q, unsigned long long now) noexcept nogil
cdef unsigned long long queue_oldest(const queue_t *q, int klass) noexcept nogil
cdef unsigned long long queue_idle(const queue_t *q, unsigned long long now) noexcept nogil
cdef void queue_free(queue_t *q) noexcept nogil

cdef class SendQueue:
    cdef queue_t c
