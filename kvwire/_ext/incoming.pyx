"""The receiving half of a transfer. Every method may be called from any thread."""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from kvwire._ext.coding cimport codings_of
from kvwire._ext.core cimport *
from kvwire._ext.handles cimport check_cell, coded_bytes, copy_segments, deadline_in, init_condition
from kvwire._ext.lanes cimport EngineLink
from kvwire._ext.ledger cimport ledger_init
from kvwire._ext.link cimport forget_dirty, in_end, in_unref, insert_in, signal_engine

from kvwire._ext.handles import STATES
from kvwire.errors import ReadyError, SpecError


@cython.no_gc_clear                     # __dealloc__ needs the link
cdef class InTransfer:
    """The receiving half of a transfer: which segments are complete, and whether all is committed."""

    def __cinit__(self, EngineLink link not None, u64 transfer, list segments not None, u32 cell_bytes, bint attachment,
                  list codings=None):
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
        self.keep = segments, codings      # the pages and the codecs stay alive as long as this handle
        t.segment = copy_segments(segments)
        t.segments = <u32>len(segments)
        t.coding = codings_of(codings, t.segments)
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
        look_at(t.link)
        count = t.done_count
        looked_at(t.link)
        out = []
        for i in range(start, count):      # `done` is written once, before `done_count` grows
            out.append(t.done[i])
        return out

    def coded(self):
        return coded_bytes(self.t.link, self.t.coding, self.t.segments)

    @property
    def state(self):
        # By the lock, whoever sees that it is committed sees all that workers have placed.
        return STATES[locked_int(self.t.link, &self.t.state)]

    @property
    def cells(self):
        cdef long long missing
        look_at(self.t.link)
        missing = self.t.ledger.missing_total
        looked_at(self.t.link)
        return self.t.ledger.cells - missing, self.t.ledger.cells

    def landed(self):
        cdef in_t *t = self.t
        cdef size_t n = <size_t>((t.ledger.cells + 7) >> 3)
        cdef bytes copy = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>n)  # its own memory also where n is 1
        look_at(t.link)
        memcpy(<char *>copy, t.ledger.landed, n)
        looked_at(t.link)
        return copy

    @property
    def duplicates(self):
        return locked_u64(self.t.link, &self.t.duplicates)

    @property
    def times_ns(self):
        cdef u64 first, commit
        look_at(self.t.link)
        first, commit = self.t.first_ns, self.t.commit_ns
        looked_at(self.t.link)
        return first, commit

    @property
    def attachment(self):
        if locked_int(self.t.link, &self.t.state) != COMMITTED or self.t.attachment == NULL:
            return None
        return self.t.attachment[:self.t.attachment_len]

    def wait(self, double timeout_s):
        cdef int state
        cdef in_t *t = self.t
        cdef timespec until = deadline_in(timeout_s)
        self.link.engine.check_process()
        with nogil:
            pthread_mutex_lock(&t.link.lock)
            while t.state == ACTIVE:
                if pthread_cond_timedwait(&t.changed, &t.link.lock, &until):
                    break
            state = t.state
            pthread_mutex_unlock(&t.link.lock)
        return STATES[state]

    def missing(self, u32 segment):
        cdef u32 missing
        if segment >= self.t.ledger.segments:
            raise ReadyError(f"no segment {segment}; this transfer has {self.t.segments}")
        look_at(self.t.link)
        missing = self.t.ledger.missing[segment]
        looked_at(self.t.link)
        return missing

    def wait_segment(self, u32 segment, double timeout_s):
        cdef in_t *t = self.t
        cdef timespec until = deadline_in(timeout_s)
        cdef bint complete
        self.link.engine.check_process()
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
        cdef int state
        cdef in_t *t = self.t
        if t.link.engine.forked:           # what the parent's workers do with its memory, no child can stop
            return STATES[t.state]
        with nogil:
            pthread_mutex_lock(&t.link.lock)
            in_end(t, ABORTED)
            while t.writers:
                pthread_cond_wait(&t.changed, &t.link.lock)
            state = t.state
            pthread_mutex_unlock(&t.link.lock)
        signal_engine(t.link.engine)       # with the GIL: the engine must not close its descriptor in between
        return STATES[state]

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
