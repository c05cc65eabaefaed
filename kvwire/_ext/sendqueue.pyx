"""The send queue: runs of ready cells, by (class, deadline, order), claimed as late as possible.

A binary heap of runs. A claim takes cells from the front of the first run; what is left keeps its place, so a
layer of thousands of cells is one entry.
"""

from libc.stdlib cimport free, realloc
from libc.string cimport memset


cdef inline bint before(const run_t *a, const run_t *b) noexcept nogil:
    if a.klass != b.klass:
        return a.klass < b.klass
    if a.deadline != b.deadline:
        return a.deadline != 0 and (b.deadline == 0 or a.deadline < b.deadline)
    return a.order < b.order


cdef int queue_push(queue_t *q, const run_t *run) noexcept nogil:
    """Add a run; -1 without memory. The caller sets `order`: `next_order++` for a new run."""
    cdef size_t at, parent, capacity
    cdef run_t *heap
    if q.length == q.capacity:
        capacity = q.capacity * 2 if q.capacity else 64
        heap = <run_t *>realloc(q.heap, capacity * sizeof(run_t))
        if heap == NULL:
            return -1
        q.heap = heap
        q.capacity = capacity
    at = q.length
    q.length += 1
    while at > 0:
        parent = (at - 1) >> 1
        if not before(run, &q.heap[parent]):
            break
        q.heap[at] = q.heap[parent]
        at = parent
    q.heap[at] = run[0]
    return 0


cdef void sift_down(queue_t *q, size_t at, run_t run) noexcept nogil:
    """Put a run at `at`, or below, where what is there leaves later."""
    cdef size_t child
    while True:
        child = 2 * at + 1
        if child >= q.length:
            break
        if child + 1 < q.length and before(&q.heap[child + 1], &q.heap[child]):
            child += 1
        if not before(&q.heap[child], &run):
            break
        q.heap[at] = q.heap[child]
        at = child
    q.heap[at] = run


cdef void pop_first(queue_t *q) noexcept nogil:
    q.length -= 1
    if q.length:
        sift_down(q, 0, q.heap[q.length])


cdef bint queue_claim(queue_t *q, unsigned int max_cells, run_t *out) noexcept nogil:
    """Take up to `max_cells` (at least 1) from the front of the first run; False when nothing is ready."""
    cdef run_t *top
    if q.length == 0:
        return False
    top = &q.heap[0]
    out[0] = top[0]
    if top.count > max_cells:
        out.count = max_cells
        top.first += max_cells
        top.count -= max_cells
    else:
        pop_first(q)
    return True


cdef size_t queue_remove(queue_t *q, const void *owner) noexcept nogil:
    """Take out all runs of an owner; returns how many there were."""
    cdef size_t kept = 0, at, removed
    for at in range(q.length):
        if q.heap[at].owner != owner:
            q.heap[kept] = q.heap[at]
            kept += 1
    removed = q.length - kept
    q.length = kept
    if removed:
        for at in range(kept // 2, 0, -1):
            sift_down(q, at - 1, q.heap[at - 1])
    return removed


cdef void queue_free(queue_t *q) noexcept nogil:
    free(q.heap)
    memset(q, 0, sizeof(queue_t))


cdef class SendQueue:
    """Runs of ready cells; `owner` is any integer that stands for the transfer."""

    def __dealloc__(self):
        queue_free(&self.c)

    def __len__(self):
        return self.c.length

    def push(self, size_t owner, unsigned int segment, unsigned int first, unsigned int count,
             *, int klass=1, unsigned long long deadline_ns=0, order=None):
        cdef run_t run
        if count == 0:
            raise ValueError("a run has at least one cell")
        run.owner = <void *>owner
        run.segment = segment
        run.first = first
        run.count = count
        run.klass = klass
        run.deadline = deadline_ns
        if order is None:
            run.order = self.c.next_order
            self.c.next_order += 1
        else:
            run.order = order
        if queue_push(&self.c, &run):
            raise MemoryError
        return run.order

    def claim(self, unsigned int max_cells):
        cdef run_t run
        if max_cells == 0:
            raise ValueError("a claim takes at least one cell")
        if not queue_claim(&self.c, max_cells, &run):
            return None
        return <size_t>run.owner, run.segment, run.first, run.count, run.order

    def remove(self, size_t owner):
        return queue_remove(&self.c, <void *>owner)
