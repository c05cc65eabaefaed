"""The lane log: which run of cells each sequence number carried, until the peer has acknowledged it.

Frames of one run have consecutive sequence numbers, so a run is one entry of a bounded ring. When a lane dies,
what is left in its log goes back to the send queue.

Of a lane that makes no progress runs can be hedged: a copy goes back to the queue while the lane still has the run. From
then on the copy stands for these cells: it is what counts when it is acknowledged, and what goes back when its lane
dies. So of every cell there is one run, in the queue or in some log, that is not hedged, until that is acknowledged.
Runs are hedged oldest first: those that are, are the first ones of the ring.
"""

from libc.stdlib cimport free, malloc
from libc.string cimport memset

from kvwire._ext.sendqueue cimport drop_front, keep_front, run_bytes


cdef int log_init(lanelog_t *l, size_t capacity) noexcept nogil:
    """Empty log for `capacity` runs (a power of two); -1 without memory."""
    memset(l, 0, sizeof(lanelog_t))
    l.ring = <entry_t *>malloc(capacity * sizeof(entry_t))
    l.capacity = capacity
    return -1 if l.ring == NULL else 0


cdef void log_free(lanelog_t *l) noexcept nogil:
    free(l.ring)
    l.ring = NULL


cdef bint log_append(lanelog_t *l, const run_t *run, unsigned long long now) noexcept nogil:
    """The next `run.count` frames carry this run; False when the log is full and the lane must wait."""
    cdef entry_t *e
    if l.length == l.capacity:
        return False
    e = &l.ring[(l.head + l.length) & (l.capacity - 1)]
    e.seq = l.next_seq
    e.run = run[0]
    e.claimed_ns = now
    l.length += 1
    l.next_seq += run.count
    return True


cdef bint log_pop_acked(lanelog_t *l, unsigned long long acked, entry_t *out) noexcept nogil:
    """Take the oldest run, or its front, as far as frames before `acked` go; False when nothing more is covered."""
    cdef entry_t *e
    cdef unsigned int covered
    if acked > l.acked:
        l.acked = acked
    if l.length == 0:
        return False
    e = &l.ring[l.head]
    if acked <= e.seq:
        return False
    if acked - e.seq >= e.run.count:
        return log_pop(l, out)
    out[0] = e[0]
    out.hedged = l.hedged != 0
    covered = <unsigned int>(acked - e.seq)
    keep_front(&out.run, covered)
    e.seq += covered
    drop_front(&e.run, covered)
    return True


cdef bint log_pop(lanelog_t *l, entry_t *out) noexcept nogil:
    """Take the oldest run, acknowledged or not."""
    if l.length == 0:
        return False
    out[0] = l.ring[l.head]
    out.hedged = l.hedged != 0
    l.hedged -= out.hedged
    l.head = (l.head + 1) & (l.capacity - 1)
    l.length -= 1
    return True


cdef bint log_hedge(lanelog_t *l, unsigned long long sent_seq, unsigned long long most_bytes, run_t *copy) noexcept nogil:
    """Copy the oldest run that was not hedged before; False where there is none, where it is worth more than
    `most_bytes`, or where not all of it has been given to the kernel: the rest may still go back by itself."""
    cdef entry_t *e
    if l.hedged == l.length:
        return False
    e = &l.ring[(l.head + l.hedged) & (l.capacity - 1)]
    if e.seq + e.run.count > sent_seq or run_bytes(&e.run) > most_bytes:
        return False
    copy[0] = e.run
    l.hedged += 1
    return True


cdef unsigned long long log_oldest(const lanelog_t *l) noexcept nogil:
    """When the oldest run was claimed; 0: there is none."""
    return l.ring[l.head].claimed_ns if l.length else 0


cdef void log_trim_last(lanelog_t *l, unsigned int cells) noexcept nogil:
    """The last `cells` frames of the newest run were not sent after all: their numbers are free again."""
    cdef entry_t *e = &l.ring[(l.head + l.length - 1) & (l.capacity - 1)]
    if cells:
        keep_front(&e.run, e.run.count - cells)
    l.next_seq -= cells
    if e.run.count == 0:
        l.length -= 1


cdef class LaneLog:
    """Log of one lane and incarnation; `capacity` runs, a power of two."""

    def __cinit__(self, size_t capacity=4096):
        if capacity == 0 or capacity & (capacity - 1):
            raise ValueError(f"capacity is {capacity}; expected a power of two")
        if log_init(&self.c, capacity):
            raise MemoryError

    def __dealloc__(self):
        log_free(&self.c)

    def __len__(self):
        return self.c.length

    @property
    def next_seq(self):
        return self.c.next_seq

    def append(self, size_t owner, unsigned int segment, unsigned int first, unsigned int count, *,
               unsigned int cell_bytes=1, unsigned int short_by=0, unsigned long long now_ns=0):
        cdef run_t run
        memset(&run, 0, sizeof(run))
        run.owner = <void *>owner
        run.segment = segment
        run.first = first
        run.count = count
        run.cell_bytes = cell_bytes
        run.short_by = short_by
        return bool(log_append(&self.c, &run, now_ns))

    def skip(self):
        self.c.next_seq += 1

    def trim_last(self, unsigned int cells):
        if self.c.length == 0 or cells > self.c.ring[(self.c.head + self.c.length - 1) & (self.c.capacity - 1)].run.count:
            raise ValueError("the newest run has fewer frames")
        if self.c.hedged == self.c.length:
            raise ValueError("the newest run was hedged: all of it was sent")
        log_trim_last(&self.c, cells)

    def ack(self, unsigned long long next_seq):
        cdef entry_t e
        if next_seq > self.c.next_seq:
            raise ValueError(f"frame {next_seq} was never sent; the next one is {self.c.next_seq}")
        out = []
        while log_pop_acked(&self.c, next_seq, &e):
            out.append((<size_t>e.run.owner, e.run.segment, e.run.first, e.run.count, bool(e.hedged)))
        return out

    def drain(self):
        cdef entry_t e
        out = []
        while log_pop(&self.c, &e):
            out.append((<size_t>e.run.owner, e.run.segment, e.run.first, e.run.count, bool(e.hedged)))
        return out

    def hedge(self, unsigned long long most_bytes, *, unsigned long long sent_seq=(1 << 64) - 1):
        cdef run_t run
        out = []
        while log_hedge(&self.c, sent_seq, most_bytes, &run):
            most_bytes -= run_bytes(&run)
            out.append((<size_t>run.owner, run.segment, run.first, run.count))
        return out

    @property
    def oldest_ns(self):
        return log_oldest(&self.c)
