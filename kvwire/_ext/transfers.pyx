"""Transfers as the engine knows them: what leaves, what arrives. Every method may be called from any thread."""

cimport cython
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from kvwire._ext.core cimport *
from kvwire._ext.lanes cimport EngineLink
from kvwire._ext.layout cimport Segment, segment_t
from kvwire._ext.ledger cimport ledger_init
from kvwire._ext.link cimport (forget_dirty, in_end, in_unref, insert_in, insert_out, out_end, out_unref,
                               signal_engine, wake_all)
from kvwire._ext.sendqueue cimport queue_push, run_t

from kvwire.errors import AttachmentError, Closed, LimitExceeded, ReadyError, SpecError

_STATES = ("active", "committed", "aborted", "lost")

cdef int check_cell(EngineLink link, u32 cell_bytes) except -1:
    link.check()
    if not 0 < cell_bytes <= link.engine.c.max_cell_bytes:
        raise LimitExceeded(f"cells of {cell_bytes} bytes; the engine takes 1 to {link.engine.c.max_cell_bytes}")
    return 0


cdef void init_condition(pthread_cond_t *c) noexcept nogil:
    cdef pthread_condattr_t attr
    pthread_condattr_init(&attr)
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC)
    pthread_cond_init(c, &attr)
    pthread_condattr_destroy(&attr)


cdef timespec deadline_in(double timeout_s) noexcept nogil:
    cdef u64 at = now_ns() + <u64>(min(max(timeout_s, 0.0), 1e9) * 1e9)
    cdef timespec ts
    ts.tv_sec = <long>(at // 1000000000)
    ts.tv_nsec = <long>(at % 1000000000)
    return ts


cdef segment_t *copy_segments(list segments) except NULL:
    cdef segment_t *out = <segment_t *>calloc(len(segments) + 1, sizeof(segment_t))
    cdef Segment s
    cdef int i
    if out == NULL:
        raise MemoryError
    for i, segment in enumerate(segments):
        s = segment
        out[i] = s.c
    return out


@cython.no_gc_clear                     # __dealloc__ needs the link
cdef class OutTransfer:
    """The sending half of a transfer: which bytes are ready, and whether the receiver has them."""

    def __cinit__(self, EngineLink link not None, u64 transfer, list segments not None, u32 cell_bytes,
                  bint attachment, int klass=1, u64 deadline_ns=0):
        cdef out_t *t
        cdef u32 i
        cdef u64 cells = 0, blocks = 0, cell, left
        check_cell(link, cell_bytes)
        t = <out_t *>calloc(1, sizeof(out_t))
        if t == NULL:
            raise MemoryError
        init_condition(&t.changed)
        pthread_mutex_init(&t.ready_lock, NULL)
        t.link = &link.c
        t.refs = 1
        t.id = transfer
        t.klass = klass
        t.deadline = deadline_ns
        t.cell_bytes = cell_bytes
        t.dirty.handle = <void *>self
        self.t = t
        self.link = link
        self.keep = segments               # the pages stay alive as long as this handle
        t.segment = copy_segments(segments)
        t.segments = <u32>len(segments)
        t.first_cell = <u64 *>malloc((t.segments + 1) * sizeof(u64))
        t.first_block = <u64 *>malloc((t.segments + 1) * sizeof(u64))
        if t.first_cell == NULL or t.first_block == NULL:
            raise MemoryError
        for i in range(t.segments):
            t.first_cell[i] = cells
            t.first_block[i] = blocks
            cells += <u64>((t.segment[i].nbytes + cell_bytes - 1) // cell_bytes)
            blocks += <u64>(t.segment[i].nbytes // t.segment[i].block_bytes)
        t.first_cell[t.segments] = cells
        t.first_block[t.segments] = blocks
        t.unready = <u32 *>malloc((cells + 1) * sizeof(u32))
        t.block_ready = <unsigned char *>calloc(blocks + 1, 1)
        if t.unready == NULL or t.block_ready == NULL:
            raise MemoryError
        for i in range(t.segments):
            for cell in range(t.first_cell[i], t.first_cell[i + 1]):
                left = <u64>t.segment[i].nbytes - (cell - t.first_cell[i]) * cell_bytes
                t.unready[cell] = <u32>min(left, <u64>cell_bytes)
        t.has_attachment = attachment
        t.unready_cells = cells + attachment
        if cells + attachment == 0:
            raise SpecError("a transfer of nothing")
        pthread_mutex_lock(&link.c.lock)
        insert_out(&link.c, t)
        pthread_mutex_unlock(&link.c.lock)

    cdef unsigned char *flags(self, u32 segment, u64 first, u64 count) except NULL:
        """Where the ready flags of these blocks are."""
        cdef out_t *t = self.t
        cdef u64 blocks
        if segment >= t.segments:
            raise ReadyError(f"no segment {segment}; this transfer has {t.segments}")
        blocks = t.first_block[segment + 1] - t.first_block[segment]
        if first > blocks or count > blocks - first:
            raise ReadyError(f"blocks {first}..{first + count} of segment {segment}; {blocks} were granted")
        return t.block_ready + t.first_block[segment] + first

    def check_ready(self, u32 segment, u64 first, u64 count):
        cdef u64 i
        cdef unsigned char *flags = self.flags(segment, first, count)
        for i in range(count):
            if flags[i]:
                raise ReadyError(f"block {first + i} (in grant order) of segment {segment} was ready before")

    def ready(self, u32 segment, u64 first, u64 count):
        cdef out_t *t = self.t
        cdef unsigned char *flags
        cdef u64 i, at, end, cell, low, high, done_first = 0, done = 0
        self.link.check()
        flags = self.flags(segment, first, count)
        if count == 0:
            return
        pthread_mutex_lock(&t.ready_lock)
        for i in range(count):
            if flags[i]:
                pthread_mutex_unlock(&t.ready_lock)
                raise ReadyError(f"block {first + i} (in grant order) of segment {segment} was ready before")
        memset(flags, 1, count)
        at = first * <u64>t.segment[segment].block_bytes
        end = at + count * <u64>t.segment[segment].block_bytes
        # Cells between the first and the last are covered whole by this call, so those that it completes are one run.
        for cell in range(at // t.cell_bytes, (end - 1) // t.cell_bytes + 1):
            low = max(at, cell * t.cell_bytes)
            high = min(end, (cell + 1) * t.cell_bytes)
            i = t.first_cell[segment] + cell
            t.unready[i] -= <u32>(high - low)
            if t.unready[i] == 0:
                if done == 0:
                    done_first = cell
                done += 1
        pthread_mutex_unlock(&t.ready_lock)
        self.push(segment, <u32>done_first, <u32>done)

    cdef int push(self, u32 segment, u32 first, u32 count) except -1:
        """Queue cells that have become complete; wakes the workers."""
        cdef out_t *t = self.t
        cdef run_t run
        cdef u64 now = now_ns()
        cdef bint failed = False
        cdef int state
        pthread_mutex_lock(&t.link.lock)
        state = t.state
        if state == ACTIVE:
            if t.first_ready_ns == 0:
                t.first_ready_ns = now
            t.last_ready_ns = now
            if count:
                run.owner = t
                run.klass = t.klass
                run.deadline = t.deadline
                run.order = t.link.queue.next_order
                run.segment = segment
                run.first = first
                run.count = count
                t.link.queue.next_order += 1
                failed = queue_push(&t.link.queue, &run) != 0
                if not failed:
                    t.refs += 1
                    t.unready_cells -= count
        pthread_mutex_unlock(&t.link.lock)
        if failed:
            raise MemoryError
        if state != ACTIVE:
            raise Closed(f"the transfer is {_STATES[state]}")
        if count:
            wake_all(t.link.engine)
        return 0

    def attach(self, const unsigned char[::1] data not None):
        cdef out_t *t = self.t
        cdef char *copy
        self.link.check()
        if not t.has_attachment:
            raise AttachmentError("no attachment was announced for this transfer")
        if data.shape[0] > MAX_ATTACHMENT:
            raise AttachmentError(f"an attachment of {data.shape[0]} bytes; at most {MAX_ATTACHMENT} are allowed")
        copy = <char *>malloc(data.shape[0] + 1)
        if copy == NULL:
            raise MemoryError
        if data.shape[0]:
            memcpy(copy, &data[0], data.shape[0])
        pthread_mutex_lock(&t.ready_lock)
        if t.attachment != NULL:
            pthread_mutex_unlock(&t.ready_lock)
            free(copy)
            raise AttachmentError("this transfer has its attachment already")
        t.attachment = copy
        t.attachment_len = <u32>data.shape[0]
        pthread_mutex_unlock(&t.ready_lock)
        self.push(t.segments, 0, 1)

    @property
    def state(self):
        return _STATES[self.t.state]

    @property
    def all_ready(self):
        return self.t.unready_cells == 0

    @property
    def times_ns(self):
        return self.t.first_ready_ns, self.t.last_ready_ns, self.t.receipt_ns

    @property
    def cells(self):
        cdef u64 total = self.t.first_cell[self.t.segments] + self.t.has_attachment
        return (total if self.t.state == COMMITTED else self.t.acked_cells), total

    @property
    def resent_cells(self):
        return self.t.resent_cells

    def wait(self, double timeout_s):
        cdef out_t *t = self.t
        cdef timespec until = deadline_in(timeout_s)
        self.link.engine.c.gil_entries += 1
        with nogil:
            pthread_mutex_lock(&t.link.lock)
            while t.state == ACTIVE:
                if pthread_cond_timedwait(&t.changed, &t.link.lock, &until):
                    break
            pthread_mutex_unlock(&t.link.lock)
        return _STATES[t.state]

    def abort(self):
        cdef out_t *t = self.t
        with nogil:
            pthread_mutex_lock(&t.link.lock)
            out_end(t, ABORTED)
            while t.readers:
                pthread_cond_wait(&t.changed, &t.link.lock)
            pthread_mutex_unlock(&t.link.lock)
            signal_engine(t.link.engine)
        return _STATES[t.state]

    def __del__(self):
        """Before the collector takes anything apart: from here on no worker reads the pages."""
        if self.t != NULL and not self.link.engine.c.forked:
            forget_dirty(&self.link.engine.c, &self.t.dirty)
            self.abort()

    def __dealloc__(self):
        cdef out_t *t = self.t
        cdef pthread_mutex_t *lock
        if t == NULL or self.link.engine.c.forked:
            return
        lock = &self.link.c.lock
        forget_dirty(&self.link.engine.c, &t.dirty)
        with nogil:
            pthread_mutex_lock(lock)
            out_end(t, ABORTED)
            while t.readers:
                pthread_cond_wait(&t.changed, lock)
            out_unref(t)
            pthread_mutex_unlock(lock)


@cython.no_gc_clear                     # __dealloc__ needs the link
cdef class InTransfer:
    """The receiving half of a transfer: which segments are complete, and whether all is committed."""

    def __cinit__(self, EngineLink link not None, u64 transfer, list segments not None, u32 cell_bytes, bint attachment):
        cdef in_t *t
        cdef u32 i
        cdef long long *cells
        check_cell(link, cell_bytes)
        t = <in_t *>calloc(1, sizeof(in_t))
        if t == NULL:
            raise MemoryError
        init_condition(&t.changed)
        t.link = &link.c
        t.refs = 1
        t.id = transfer
        t.cell_bytes = cell_bytes
        t.has_attachment = attachment
        t.dirty.handle = <void *>self
        self.t = t
        self.link = link
        self.keep = segments               # the pages stay alive as long as this handle
        t.segment = copy_segments(segments)
        t.segments = <u32>len(segments)
        t.done = <u32 *>malloc((t.segments + 2) * sizeof(u32))
        t.attachment = <char *>malloc(MAX_ATTACHMENT) if attachment else NULL
        cells = <long long *>malloc((t.segments + 2) * sizeof(long long))
        if t.done == NULL or cells == NULL or (attachment and t.attachment == NULL):
            free(cells)
            raise MemoryError
        for i in range(t.segments):
            cells[i] = (t.segment[i].nbytes + cell_bytes - 1) // cell_bytes
        cells[t.segments] = 1
        failed = ledger_init(&t.ledger, cells, t.segments + attachment)
        free(cells)
        if failed:
            raise MemoryError
        if t.ledger.missing_total == 0:
            raise SpecError("a transfer of nothing", hint="refuse the offer instead")
        pthread_mutex_lock(&link.c.lock)
        insert_in(&link.c, t)
        pthread_mutex_unlock(&link.c.lock)

    def completed(self, u32 start=0):
        """Segment numbers in the order in which they became complete, from the `start`-th on, attachment included."""
        cdef in_t *t = self.t
        cdef u32 i, count
        self.link.engine.c.gil_entries += 1
        pthread_mutex_lock(&t.link.lock)
        count = t.done_count
        pthread_mutex_unlock(&t.link.lock)
        out = []
        for i in range(start, count):      # `done` is written once, before `done_count` grows
            out.append(t.done[i])
        return out

    @property
    def state(self):
        return _STATES[self.t.state]

    @property
    def cells(self):
        return self.t.ledger.cells - self.t.ledger.missing_total, self.t.ledger.cells

    @property
    def duplicates(self):
        return self.t.duplicates

    @property
    def times_ns(self):
        return self.t.first_ns, self.t.commit_ns

    @property
    def attachment(self):
        if self.t.state != COMMITTED or self.t.attachment == NULL:
            return None
        return self.t.attachment[:self.t.attachment_len]

    def wait(self, double timeout_s):
        cdef in_t *t = self.t
        cdef timespec until = deadline_in(timeout_s)
        self.link.engine.c.gil_entries += 1
        with nogil:
            pthread_mutex_lock(&t.link.lock)
            while t.state == ACTIVE:
                if pthread_cond_timedwait(&t.changed, &t.link.lock, &until):
                    break
            pthread_mutex_unlock(&t.link.lock)
        return _STATES[t.state]

    def missing(self, u32 segment):
        if segment >= self.t.ledger.segments:
            raise ReadyError(f"no segment {segment}; this transfer has {self.t.segments}")
        return self.t.ledger.missing[segment]

    def wait_segment(self, u32 segment, double timeout_s):
        cdef in_t *t = self.t
        cdef timespec until = deadline_in(timeout_s)
        cdef bint complete
        self.link.engine.c.gil_entries += 1
        if segment >= t.ledger.segments:
            raise ReadyError(f"no segment {segment}; this transfer has {t.segments}")
        with nogil:
            pthread_mutex_lock(&t.link.lock)
            while t.ledger.missing[segment] and t.state == ACTIVE:
                if pthread_cond_timedwait(&t.changed, &t.link.lock, &until):
                    break
            complete = t.ledger.missing[segment] == 0
            pthread_mutex_unlock(&t.link.lock)
        return bool(complete)

    def abort(self):
        cdef in_t *t = self.t
        with nogil:
            pthread_mutex_lock(&t.link.lock)
            in_end(t, ABORTED)
            while t.writers:
                pthread_cond_wait(&t.changed, &t.link.lock)
            pthread_mutex_unlock(&t.link.lock)
            signal_engine(t.link.engine)
        return _STATES[t.state]

    def __del__(self):
        """Before the collector takes anything apart: from here on no worker writes the slots."""
        if self.t != NULL and not self.link.engine.c.forked:
            forget_dirty(&self.link.engine.c, &self.t.dirty)
            self.abort()

    def __dealloc__(self):
        cdef in_t *t = self.t
        cdef pthread_mutex_t *lock
        if t == NULL or self.link.engine.c.forked:
            return
        lock = &self.link.c.lock
        forget_dirty(&self.link.engine.c, &t.dirty)
        with nogil:
            pthread_mutex_lock(lock)
            in_end(t, ABORTED)
            while t.writers:
                pthread_cond_wait(&t.changed, lock)
            in_unref(t)
            pthread_mutex_unlock(lock)
