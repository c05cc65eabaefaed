"""Ready cells in the order in which they leave. Shared by the engine (nogil, under the link's lock) and by tests."""

cdef struct run_t:
    void *owner                    # the transfer; the queue never looks inside
    unsigned long long deadline    # ns, 0: none
    unsigned long long order       # of becoming ready; a run that comes back keeps it
    unsigned int segment
    unsigned int first             # cell
    unsigned int count             # cells
    int klass                      # 0 urgent, 1 demand, 2 background

cdef struct queue_t:
    run_t *heap
    size_t length
    size_t capacity
    unsigned long long next_order

cdef int queue_push(queue_t *q, const run_t *run) noexcept nogil
cdef bint queue_claim(queue_t *q, unsigned int max_cells, run_t *out) noexcept nogil
cdef size_t queue_remove(queue_t *q, const void *owner) noexcept nogil
cdef void queue_free(queue_t *q) noexcept nogil

cdef class SendQueue:
    cdef queue_t c
