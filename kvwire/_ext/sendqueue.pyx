"""The send queue: runs of ready cells, by class, claimed as late as possible.

Within a class the earliest deadline leaves first (a run without one after those that have one), then what a decoder
needs whole (`rank`), then what became ready first. Between classes priority is strict, but for one thing: a class that
waits while others leave gets one byte in SHARE, so that none starves. That is counted in bytes, without a clock.

A claim takes cells from the front of the first run; what is left keeps its place, so a layer of thousands of cells is
one entry. Of each class there are two heaps over the same runs: what leaves next, and what has waited longest.
"""

from libc.stdlib cimport free, realloc
from libc.string cimport memset


cdef inline bint before(int by, const run_t *a, const run_t *b) noexcept nogil:
    if by == AGE:
        return a.ready_ns < b.ready_ns
    if a.deadline != b.deadline:
        return a.deadline != 0 and (b.deadline == 0 or a.deadline < b.deadline)
    if a.rank != b.rank:
        return a.rank < b.rank
    return a.order < b.order


cdef inline void put(class_t *c, int by, size_t at, unsigned int slot) noexcept nogil:
    c.heap[by][at] = slot
    c.slot[slot].at[by] = <unsigned int>at


cdef void sift(class_t *c, int by, size_t at) noexcept nogil:
    """Move the run at `at` up or down a heap to where it belongs."""
    cdef unsigned int *heap = c.heap[by]
    cdef unsigned int slot = heap[at]
    cdef const run_t *run = &c.slot[slot].run
    cdef size_t child, parent
    while at > 0:
        parent = (at - 1) >> 1
        if not before(by, run, &c.slot[heap[parent]].run):
            break
        put(c, by, at, heap[parent])
        at = parent
    while True:
        child = 2 * at + 1
        if child >= c.length:
            break
        if child + 1 < c.length and before(by, &c.slot[heap[child + 1]].run, &c.slot[heap[child]].run):
            child += 1
        if not before(by, &c.slot[heap[child]].run, run):
            break
        put(c, by, at, heap[child])
        at = child
    put(c, by, at, slot)


cdef bint grow(class_t *c) noexcept nogil:
    """Room for twice as many runs; False without memory."""
    cdef size_t capacity = c.capacity * 2 if c.capacity else 64
    cdef slot_t *slots = <slot_t *>realloc(c.slot, capacity * sizeof(slot_t))
    cdef unsigned int *heap
    cdef int by
    if slots == NULL:
        return False
    c.slot = slots
    for by in range(2):
        heap = <unsigned int *>realloc(c.heap[by], capacity * sizeof(unsigned int))
        if heap == NULL:
            return False
        c.heap[by] = heap
    c.capacity = capacity
    return True


cdef void take_out(class_t *c, unsigned int slot) noexcept nogil:
    """Remove a run from both heaps; the last slot takes its place."""
    cdef unsigned int last = <unsigned int>c.length - 1
    cdef unsigned int at
    cdef int by
    c.bytes -= run_bytes(&c.slot[slot].run)
    c.length = last
    for by in range(2):
        at = c.slot[slot].at[by]
        if at != last:
            put(c, by, at, c.heap[by][last])
            sift(c, by, at)
    if slot != last:
        c.slot[slot] = c.slot[last]
        for by in range(2):
            c.heap[by][c.slot[slot].at[by]] = slot
    if last == 0:
        c.passed = 0                       # what has nothing to send saves nothing up


cdef inline void note_empty(queue_t *q, unsigned long long now) noexcept nogil:
    if q.length == 0:
        q.empty_ns = now


cdef int queue_push(queue_t *q, const run_t *run, unsigned long long now) noexcept nogil:
    """Add a run; -1 without memory. The caller sets `order` and `ready_ns`: `next_order++` and `now` for a new run."""
    cdef class_t *c = &q.klass[run.klass]
    cdef int by
    if c.length == c.capacity and not grow(c):
        return -1
    q.idle_ns = queue_idle(q, now)
    c.slot[c.length].run = run[0]
    c.bytes += run_bytes(run)
    c.length += 1
    for by in range(2):
        put(c, by, c.length - 1, <unsigned int>c.length - 1)
        sift(c, by, c.length - 1)
    q.length += 1
    return 0


cdef class_t *whose_turn(queue_t *q, unsigned long long *max_bytes) noexcept nogil:
    """The first class that has work, or one that has waited for its share, and then no more bytes than that is."""
    cdef int first = 0, k
    cdef unsigned long long cell
    cdef class_t *c
    while q.klass[first].length == 0:
        first += 1
    for k in range(CLASSES - 1, first, -1):
        c = &q.klass[k]
        if c.length:
            cell = max(1, c.slot[c.heap[<int>LEAVES][0]].run.cell_bytes)
            if c.passed >= (SHARE - 1) * cell:
                max_bytes[0] = min(max_bytes[0], c.passed // (SHARE - 1))
                return c
    return &q.klass[first]


cdef bint queue_claim(queue_t *q, unsigned int max_cells, unsigned long long max_bytes, unsigned long long now,
                      run_t *out) noexcept nogil:
    """Take up to `max_cells` and `max_bytes`, at least one cell, from the front of a run; False when nothing is ready."""
    cdef class_t *c
    cdef run_t *run
    cdef unsigned int slot
    cdef unsigned long long cells, taken
    cdef int k
    if q.length == 0:
        return False
    c = whose_turn(q, &max_bytes)
    slot = c.heap[<int>LEAVES][0]
    run = &c.slot[slot].run
    out[0] = run[0]
    cells = max(<unsigned long long>1, max_bytes // max(1, run.cell_bytes))
    cells = min(cells, max_cells)
    if cells < run.count:
        keep_front(out, <unsigned int>cells)
        drop_front(run, <unsigned int>cells)
        c.bytes -= run_bytes(out)
    else:
        take_out(c, slot)
        q.length -= 1
        note_empty(q, now)
    taken = run_bytes(out)
    for k in range(CLASSES):
        if k == out.klass:
            c.passed -= min(c.passed, (SHARE - 1) * taken)
        elif q.klass[k].length:
            q.klass[k].passed += taken
    return True


cdef size_t queue_remove(queue_t *q, const void *owner, unsigned long long now) noexcept nogil:
    """Take out all runs of an owner; returns how many there were."""
    cdef size_t before = q.length, slot
    cdef class_t *c
    cdef int k
    for k in range(CLASSES):
        c = &q.klass[k]
        slot = c.length
        while slot:
            slot -= 1                      # what takes its place has been looked at
            if c.slot[slot].run.owner == owner:
                take_out(c, <unsigned int>slot)
                q.length -= 1
    if before != q.length:
        note_empty(q, now)
    return before - q.length


cdef void queue_clear(queue_t *q, unsigned long long now) noexcept nogil:
    """Drop all runs. The caller has seen to their owners."""
    cdef int k
    for k in range(CLASSES):
        q.klass[k].length = q.klass[k].bytes = q.klass[k].passed = 0
    if q.length:
        q.length = 0
        note_empty(q, now)


cdef unsigned long long queue_oldest(const queue_t *q, int klass) noexcept nogil:
    """When the run became ready that has waited longest; 0: there is none."""
    cdef const class_t *c = &q.klass[klass]
    return c.slot[c.heap[<int>AGE][0]].run.ready_ns if c.length else 0


cdef unsigned long long queue_idle(const queue_t *q, unsigned long long now) noexcept nogil:
    """For how long it has been empty in all. Workers read the clock one after the other: `now` may lag a little."""
    return q.idle_ns + (now - q.empty_ns if q.length == 0 and now > q.empty_ns else 0)


cdef void queue_free(queue_t *q) noexcept nogil:
    cdef int k
    for k in range(CLASSES):
        free(q.klass[k].slot)
        free(q.klass[k].heap[0])
        free(q.klass[k].heap[1])
    memset(q, 0, sizeof(queue_t))


cdef class SendQueue:
    """Runs of ready cells; `owner` is any integer that stands for the transfer."""

    def __cinit__(self, unsigned long long now_ns=0):
        self.c.empty_ns = now_ns

    def __dealloc__(self):
        queue_free(&self.c)

    def __len__(self):
        return self.c.length

    def push(self, size_t owner, unsigned int segment, unsigned int first, unsigned int count, *, int klass=1,
             unsigned long long deadline_ns=0, unsigned char rank=1, order=None, ready_ns=None,
             unsigned int cell_bytes=1, unsigned int short_by=0, unsigned long long now_ns=0):
        cdef run_t run
        if count == 0:
            raise ValueError("a run has at least one cell")
        if not 0 <= klass < CLASSES:
            raise ValueError(f"class {klass}; there are {CLASSES}")
        run.owner = <void *>owner
        run.segment = segment
        run.first = first
        run.count = count
        run.cell_bytes = cell_bytes
        run.short_by = short_by
        run.klass = <unsigned char>klass
        run.rank = rank
        run.deadline = deadline_ns
        run.ready_ns = now_ns if ready_ns is None else ready_ns
        if order is None:
            run.order = self.c.next_order
            self.c.next_order += 1
        else:
            run.order = order
        if queue_push(&self.c, &run, now_ns):
            raise MemoryError
        return run.order

    def claim(self, unsigned int max_cells, *, unsigned long long max_bytes=1 << 62, unsigned long long now_ns=0):
        cdef run_t run
        if max_cells == 0:
            raise ValueError("a claim takes at least one cell")
        if not queue_claim(&self.c, max_cells, max_bytes, now_ns, &run):
            return None
        return <size_t>run.owner, run.segment, run.first, run.count, run.order

    def remove(self, size_t owner, *, unsigned long long now_ns=0):
        return queue_remove(&self.c, <void *>owner, now_ns)

    @property
    def queued_bytes(self):
        return tuple([self.c.klass[k].bytes for k in range(CLASSES)])

    @property
    def oldest_ns(self):
        return tuple([queue_oldest(&self.c, k) for k in range(CLASSES)])

    def idle_ns(self, unsigned long long now_ns):
        return queue_idle(&self.c, now_ns)
