"""The sending half of a transfer. Every method may be called from any thread."""

cimport cython
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from kvwire._ext.coding cimport codings_of
from kvwire._ext.core cimport *
from kvwire._ext.handles cimport check_cell, coded_bytes, copy_segments, deadline_in, init_condition
from kvwire._ext.lanes cimport EngineLink
from kvwire._ext.link cimport forget_dirty, insert_out, out_empty, out_end, out_unref, signal_engine, wake_all
from kvwire._ext.sendqueue cimport CLASSES, queue_push, run_bytes, run_t

from kvwire._ext.handles import STATES
from kvwire.errors import AttachmentError, Closed, ProtocolError, ReadyError, SpecError


cdef int check_pushed(int state) except -1:
    """What `push` returned, once no lock is held: the transfer's state, or -1 without memory."""
    if state == -1:
        raise MemoryError
    if state != ACTIVE:
        raise Closed(f"the transfer is {STATES[state]}")
    return 0


@cython.no_gc_clear                     # __dealloc__ needs the link
cdef class OutTransfer:
    """The sending half of a transfer: which bytes are ready, and whether the receiver has them."""

    def __cinit__(self, EngineLink link not None, u64 transfer, list segments not None, u32 cell_bytes,
                  bint attachment, int klass=1, u64 deadline_ns=0, ranks=None, list codings=None):
        cdef out_t *t
        cdef u32 i
        cdef u64 cells = 0, blocks = 0, cell, left
        check_cell(link, cell_bytes)
        if not 0 <= klass < CLASSES:
            raise SpecError(f"class {klass}; expected 0 urgent, 1 demand or 2 background")
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
        self.keep = segments, codings      # the pages and the codecs stay alive as long as this handle
        t.segment = copy_segments(segments)
        t.segments = <u32>len(segments)
        t.coding = codings_of(codings, t.segments)
        t.rank = <unsigned char *>malloc(t.segments + 1)
        t.first_cell = <u64 *>malloc((t.segments + 1) * sizeof(u64))
        t.first_block = <u64 *>malloc((t.segments + 1) * sizeof(u64))
        if t.rank == NULL or t.first_cell == NULL or t.first_block == NULL:
            raise MemoryError
        memset(t.rank, 1, t.segments + 1)
        for i, rank in enumerate(() if ranks is None else ranks):
            if i >= t.segments:
                raise SpecError(f"more ranks than the {t.segments} segments")
            t.rank[i] = rank
        for i in range(t.segments):
            t.first_cell[i] = cells
            t.first_block[i] = blocks
            cells += <u64>((t.segment[i].nbytes + cell_bytes - 1) // cell_bytes)
            blocks += <u64>(t.segment[i].nbytes // t.segment[i].block_bytes)
        t.first_cell[t.segments] = cells
        t.first_block[t.segments] = blocks
        t.unready = <u32 *>malloc((cells + 1) * sizeof(u32))
        t.block_ready = <unsigned char *>calloc(blocks + 1, 1)
        t.sent = <unsigned char *>calloc((cells >> 3) + 1, 1)
        if t.unready == NULL or t.block_ready == NULL or t.sent == NULL:
            raise MemoryError
        for i in range(t.segments):
            for cell in range(t.first_cell[i], t.first_cell[i + 1]):
                left = <u64>t.segment[i].nbytes - (cell - t.first_cell[i]) * cell_bytes
                t.unready[cell] = <u32>min(left, <u64>cell_bytes)
        t.has_attachment = attachment
        t.unready_cells = t.unsent_cells = cells + attachment
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
        cdef int state
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
        state = self.push(segment, <u32>done_first, <u32>done, False)
        pthread_mutex_unlock(&t.ready_lock)
        check_pushed(state)

    cdef int push(self, u32 segment, u32 first, u32 count, bint again) noexcept:
        """Queue cells that have become complete, or (`again`) were before; wakes the workers. For `check_pushed`.

        The caller holds `ready_lock`: `resume` looks at what is ready, and must not queue a cell that `ready` will.
        Nobody raises under that lock: what runs Python may hand the GIL to a thread that waits for the lock.
        """
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
            if not again:
                t.last_ready_ns = now
            if count:
                run.owner = t
                run.klass = <unsigned char>t.klass
                run.deadline = t.deadline
                run.order = t.link.queue.next_order
                run.ready_ns = now
                run.segment = segment
                run.first = first
                run.count = count
                run.cell_bytes = t.attachment_len if segment == t.segments else t.cell_bytes
                run.short_by = run.cell_bytes - out_cell_len(t, segment, first + count - 1)
                run.rank = t.rank[segment]
                t.link.queue.next_order += 1
                failed = not t.suspended and queue_push(&t.link.queue, &run, now) != 0
                if not failed:
                    t.queued += not t.suspended
                    t.refs += not t.suspended
                    if not again:
                        t.unready_cells -= count
                        t.unacked_bytes += run_bytes(&run)
        pthread_mutex_unlock(&t.link.lock)
        if failed:
            return -1
        if count and state == ACTIVE:
            wake_all(t.link.engine)
        return state

    def attach(self, const unsigned char[::1] data not None):
        cdef out_t *t = self.t
        cdef char *copy
        cdef int state
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
        state = self.push(t.segments, 0, 1, False)
        pthread_mutex_unlock(&t.ready_lock)
        check_pushed(state)

    def resume(self, const unsigned char[::1] landed not None):
        cdef out_t *t = self.t
        cdef u64 total = t.first_cell[t.segments] + t.has_attachment, count = 0, cell, end
        cdef size_t at = 0, size = <size_t>landed.shape[0]
        cdef u32 segment
        cdef int state = ACTIVE
        cdef unsigned char wrong = 0
        cdef bint suspended = False
        self.link.check()
        if <u64>landed.shape[0] != (total + 7) >> 3:
            raise ProtocolError(f"a ledger of {landed.shape[0]} bytes; {total} cells take {(total + 7) >> 3}")
        for cell in range(size * 8):
            count += landed[cell >> 3] >> (cell & 7) & 1
        pthread_mutex_lock(&t.ready_lock)
        pthread_mutex_lock(&t.link.lock)
        while at < size and not wrong:
            wrong = landed[at] & ~t.sent[at]
            at += 1
        if not wrong:
            suspended = t.suspended        # else granted after the link came back: nothing of it was lost
            t.suspended = False
        if suspended:
            t.acked_cells = count
            t.unsent_cells = total - count   # of the rest the peer has nothing: a receipt has to wait for it
            memcpy(t.sent, &landed[0], size)
        pthread_mutex_unlock(&t.link.lock)
        if wrong:
            pthread_mutex_unlock(&t.ready_lock)
            cell = 8 * (at - 1)
            while not wrong & 1:
                wrong >>= 1
                cell += 1
            raise ProtocolError(f"a ledger with cell {cell}, which was never sent")
        for segment in range(t.segments + t.has_attachment if suspended else 0):
            cell = t.first_cell[segment]
            end = t.first_cell[segment + 1] if segment < t.segments else total
            while cell < end and state == ACTIVE:
                count = 0
                while cell + count < end and self.is_ready(cell + count) \
                        and not landed[(cell + count) >> 3] & (1 << ((cell + count) & 7)):
                    count += 1
                if count:
                    state = self.push(segment, <u32>(cell - t.first_cell[segment]), <u32>count, True)
                cell += count + 1          # the one behind a run is not to be sent
        pthread_mutex_unlock(&t.ready_lock)
        if state == -1:                    # aborted meanwhile, by another thread, is no error
            raise MemoryError

    def ready_blocks(self, u32 segment):
        cdef out_t *t = self.t
        if segment >= t.segments:
            raise ReadyError(f"no segment {segment}; this transfer has {t.segments}")
        return (<char *>t.block_ready)[t.first_block[segment]:t.first_block[segment + 1]]

    @property
    def attachment(self):
        return None if self.t.attachment == NULL else (<char *>self.t.attachment)[:self.t.attachment_len]

    cdef bint is_ready(self, u64 cell) noexcept:
        """Whether a cell, the attachment included, is complete. `ready_lock` held."""
        if cell == self.t.first_cell[self.t.segments]:
            return self.t.attachment != NULL
        return self.t.unready[cell] == 0

    def commit(self):
        cdef out_t *t = self.t
        cdef bint honest
        self.link.engine.check_process()
        pthread_mutex_lock(&t.link.lock)
        honest = t.unsent_cells == 0
        if honest and t.state == ACTIVE:
            t.receipt_ns = now_ns()
            out_end(t, COMMITTED)
        pthread_mutex_unlock(&t.link.lock)
        signal_engine(t.link.engine)
        if not honest:
            raise ProtocolError("a ledger that says committed, and not every cell was ever sent")

    def coded(self):
        return coded_bytes(self.t.link, self.t.coding, self.t.segments)

    @property
    def state(self):
        return STATES[locked_int(self.t.link, &self.t.state)]

    @property
    def all_ready(self):
        return locked_u64(self.t.link, &self.t.unready_cells) == 0

    @property
    def last_claim_ns(self):
        return locked_u64(self.t.link, &self.t.last_claim_ns)

    @property
    def times_ns(self):
        cdef u64 first, last, receipt
        look_at(self.t.link)
        first, last, receipt = self.t.first_ready_ns, self.t.last_ready_ns, self.t.receipt_ns
        looked_at(self.t.link)
        return first, last, receipt

    @property
    def cells(self):
        cdef u64 acked, total = self.t.first_cell[self.t.segments] + self.t.has_attachment
        look_at(self.t.link)
        acked = total if self.t.state == COMMITTED else self.t.acked_cells
        looked_at(self.t.link)
        return acked, total

    @property
    def resent_cells(self):
        return locked_u64(self.t.link, &self.t.resent_cells)

    def wait(self, double timeout_s):
        cdef int state
        cdef out_t *t = self.t
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

    def abort(self):
        cdef int state
        cdef out_t *t = self.t
        if t.link.engine.forked:           # what the parent's workers do with its memory, no child can stop
            return STATES[t.state]
        with nogil:
            pthread_mutex_lock(&t.link.lock)
            out_end(t, ABORTED)
            while t.readers:
                pthread_cond_wait(&t.changed, &t.link.lock)
            state = t.state
            pthread_mutex_unlock(&t.link.lock)
        signal_engine(t.link.engine)       # with the GIL: the engine must not close its descriptor in between
        return STATES[state]

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
            out_empty(t)
            out_unref(t)
            pthread_mutex_unlock(lock)
