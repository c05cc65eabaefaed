"""The engine: native worker threads, each an epoll loop over its lanes. Workers never take the GIL."""

import atexit
import os
import weakref

cimport cython
from cpython.ref cimport PyObject, Py_DECREF, Py_INCREF
from libc.errno cimport errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free, malloc
from posix.unistd cimport close, read

from kvwire._ext.cipher cimport TAG_BYTES, Cipher
from kvwire._ext.codec cimport scratch_free
from kvwire._ext.core cimport *
from kvwire._ext.link cimport lane_fail, lane_retire, wake_worker
from kvwire._ext.receive cimport lane_receive
from kvwire._ext.seal cimport limits_of
from kvwire._ext.send cimport lane_send
from kvwire._ext.tcp cimport sample, set_lowat, set_pace
from kvwire._ext.zstdlib cimport Zstd

from kvwire._ext.seal import MOST
from kvwire._ext.zstdlib import find as find_zstd
from kvwire.errors import Closed, LocalError

cdef extern from "<sys/epoll.h>" nogil:
    cdef union epoll_data_t:
        void *ptr
    cdef struct epoll_event:
        unsigned int events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    int epoll_wait(int epfd, epoll_event *events, int count, int timeout_ms)
    int EPOLL_CTL_ADD, EPOLL_CLOEXEC
    unsigned int EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLLHUP, EPOLLERR, EPOLLET

cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd(unsigned int value, int flags)
    int EFD_NONBLOCK, EFD_CLOEXEC

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    int sigfillset(sigset_t *s)
    int pthread_sigmask(int how, const sigset_t *new, sigset_t *old)
    int SIG_SETMASK

cdef extern from "<pthread.h>" nogil:
    int pthread_create(pthread_t *thread, void *attr, void *(*main)(void *) noexcept nogil, void *arg)
    int pthread_join(pthread_t thread, void **result)
    int pthread_setname_np(pthread_t thread, const char *name)

cdef enum:
    EVENTS = 64
    LONGEST_SLEEP_MS = 1000000             # a pacer may want one to sleep for days


cdef void adopt_inbox(worker_t *w) noexcept nogil:
    """Take over lanes that Python has added: from here on their sockets are this worker's."""
    cdef lane_t *lane
    cdef lane_t *next_lane
    cdef epoll_event event
    pthread_mutex_lock(&w.inbox_lock)
    lane = w.inbox
    w.inbox = NULL
    pthread_mutex_unlock(&w.inbox_lock)
    while lane != NULL:
        next_lane = lane.next_in_worker
        lane.next_in_worker = w.lanes
        w.lanes = lane
        lane.rate_mark_ns = now_ns()
        set_lowat(lane)
        event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET
        event.data.ptr = lane
        if epoll_ctl(w.epoll_fd, EPOLL_CTL_ADD, lane.fd, &event) < 0:
            lane_fail(lane, LANE_ERRNO, errno)
        lane = next_lane


cdef void retire_failed(worker_t *w) noexcept nogil:
    cdef lane_t **at = &w.lanes
    cdef lane_t *lane
    while at[0] != NULL:
        lane = at[0]
        if lane.fd < 0:
            at[0] = lane.next_in_worker
            if w.turn == lane:
                w.turn = lane.next_in_worker
            lane_retire(lane)              # frees nothing, but Python may from here on
        else:
            at = &lane.next_in_worker


cdef inline u64 earlier(u64 a, u64 b) noexcept nogil:
    """Of two times, 0 being never."""
    return b if a == 0 or (b and b < a) else a


cdef int sleep_ms(worker_t *w) noexcept nogil:
    """Until the earliest time at which a lane has something to do by itself; -1: none has."""
    cdef lane_t *lane = w.lanes
    cdef u64 due = 0, now
    while lane != NULL:
        if lane.writable:
            due = earlier(earlier(due, lane.ack_due_ns), lane.paced_until_ns)
        due = earlier(due, lane.drain_due_ns)
        lane = lane.next_in_worker
    if due == 0:
        return -1
    now = now_ns()
    return 0 if due <= now else <int>min((due - now + 999999) // 1000000, <u64>LONGEST_SLEEP_MS)


cdef void drain(lane_t *lane, u64 now) noexcept nogil:
    """Close a lane that is no longer needed, once the peer's engine has acknowledged all that it sent and it has said all
    that it has to say. What the peer has under way on it then would be lost, so nothing may have come for a while."""
    cdef u64 quiet_since
    cdef bint empty
    lane.drain_due_ns = 0
    pthread_mutex_lock(&lane.link.lock)
    empty = lane.log.length == 0
    quiet_since = max(lane.rx_ns, lane.drain_ns)
    pthread_mutex_unlock(&lane.link.lock)
    if empty and lane.rest_len == 0 and lane.ack_due_ns == 0:
        if now >= quiet_since + DRAIN_QUIET_NS:
            lane_fail(lane, LANE_DRAINED, 0)
        else:
            lane.drain_due_ns = quiet_since + DRAIN_QUIET_NS


cdef bint serve(lane_t *lane, u64 now) noexcept nogil:
    """Do what a lane has to do; True if there may be more."""
    cdef bint busy = False
    if kv_load(&lane.close_request):
        lane_fail(lane, LANE_REQUESTED, 0)
    if lane.readable and lane_receive(lane, now):
        busy = True
    if lane.writable and lane_send(lane, now):
        busy = True
    if lane.fd >= 0 and lane.pace_Bps != kv_load64(&lane.link.lane_Bps):
        set_pace(lane)
    if lane.fd >= 0 and lane.sampled != kv_load64(&lane.link.asked):
        sample(lane)
    if lane.fd >= 0 and kv_load(&lane.drain_request):
        drain(lane, now)
    return busy


cdef void *worker_main(void *arg) noexcept nogil:
    cdef worker_t *w = <worker_t *>arg
    cdef epoll_event events[EVENTS]
    cdef lane_t *lane
    cdef lane_t *first
    cdef uint64_t count
    cdef u64 now
    cdef int i, n
    cdef bint busy = False
    while not kv_load(&w.engine.stop):
        n = epoll_wait(w.epoll_fd, events, EVENTS, 0 if busy else sleep_ms(w))
        busy = False
        for i in range(n):
            lane = <lane_t *>events[i].data.ptr
            if lane == NULL:
                read(w.wake_fd, &count, sizeof(count))
                kv_exchange(&w.wake, 0)    # before any queue is looked at, see wake_worker
                adopt_inbox(w)
                continue
            if events[i].events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR):
                lane.readable = True
                lane.hangup = lane.hangup or (events[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0
            if events[i].events & EPOLLOUT:
                lane.writable = True
        now = now_ns()
        # Another lane begins each time: where tokens are scarce, the first would have them all.
        first = lane = w.lanes if w.turn == NULL else w.turn
        while lane != NULL:
            busy = serve(lane, now) or busy
            lane = w.lanes if lane.next_in_worker == NULL else lane.next_in_worker
            if lane == first:
                break
        w.turn = NULL if first == NULL else first.next_in_worker
        retire_failed(w)
    adopt_inbox(w)
    lane = w.lanes
    while lane != NULL:
        lane_fail(lane, LANE_REQUESTED, 0)
        lane = lane.next_in_worker
    retire_failed(w)
    return NULL


@cython.no_gc_clear                     # lanes point into the cipher until they are freed
cdef class Engine:
    """Worker threads and the list of handles that changed; one per node."""

    def __cinit__(self, int workers=2, size_t stream_bytes=512 * 1024, u32 max_cell_bytes=256 * 1024,
                  rekey=MOST, Cipher cipher=None):
        cdef int i
        cdef worker_t *w
        cdef epoll_event event
        cdef sigset_t all_signals, old
        cdef int failed
        self.c.event_fd = -1
        self.zstd = find_zstd()
        self.c.zstd = NULL if self.zstd is None else &self.zstd.z
        self.c.rekey = limits_of(rekey)
        self.cipher = cipher
        self.c.cipher = NULL if cipher is None else &cipher.c
        pthread_mutex_init(&self.c.dirty_lock, NULL)
        self.c.workers = <worker_t *>calloc(workers, sizeof(worker_t))
        if self.c.workers == NULL:
            raise MemoryError
        self.c.worker_count = workers
        self.c.max_cell_bytes = max(max_cell_bytes, <u32>MAX_ATTACHMENT)   # an attachment is one frame, too
        self.c.stream_bytes = max(stream_bytes, <size_t>(HEADER_BYTES + TAG_BYTES) + self.c.max_cell_bytes)   # a whole frame
        self.is_open = True
        self.c.event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        for i in range(workers):
            self.c.workers[i].epoll_fd = self.c.workers[i].wake_fd = -1
        sigfillset(&all_signals)
        for i in range(workers):
            w = &self.c.workers[i]
            w.engine = &self.c
            w.index = i
            w.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
            w.wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
            pthread_mutex_init(&w.inbox_lock, NULL)
            w.gathered = <char *>malloc(CLAIM_BYTES_MAX + self.c.max_cell_bytes)
            if w.gathered == NULL:
                self.close()
                raise MemoryError
            event.events = EPOLLIN
            event.data.ptr = NULL
            if (self.c.event_fd < 0 or w.epoll_fd < 0 or w.wake_fd < 0
                    or epoll_ctl(w.epoll_fd, EPOLL_CTL_ADD, w.wake_fd, &event) < 0):
                self.close()
                raise LocalError(f"cannot make the engine's descriptors: {os.strerror(errno)}",
                                 hint="raise the limit on open files (ulimit -n)")
            pthread_sigmask(SIG_SETMASK, &all_signals, &old)   # the process's own threads take the signals
            failed = pthread_create(&w.thread, NULL, worker_main, w)
            pthread_sigmask(SIG_SETMASK, &old, NULL)
            if failed:
                self.close()
                raise LocalError(f"cannot start a worker thread: {os.strerror(failed)}")
            pthread_setname_np(w.thread, b"kvwire")            # as top and perf show it
            self.threads += 1
        _engines.add(self)

    cdef void check_process(self) except *:
        """Closed in a forked child, where nothing happens any more that one could wait for."""
        self.c.gil_entries += 1
        if self.c.forked:
            raise Closed("the engine belongs to the parent process", hint="make a new node after the fork")

    cdef void check(self) except *:
        self.check_process()
        if not self.is_open:
            raise Closed("the engine is closed")

    def fileno(self):
        return self.c.event_fd

    def drain(self):
        cdef uint64_t count
        cdef dirty_t *d
        cdef PyObject **found
        cdef size_t n = 0, i
        self.c.gil_entries += 1
        read(self.c.event_fd, &count, sizeof(count))
        kv_exchange(&self.c.signalled, 0)
        # No Python allocation under the lock: it could collect a handle, whose end takes the same lock.
        pthread_mutex_lock(&self.c.dirty_lock)
        d = self.c.dirty_first
        while d != NULL:
            n += 1
            d = d.next
        found = <PyObject **>malloc((n + 1) * sizeof(void *))
        n = 0
        d = self.c.dirty_first if found != NULL else NULL
        while d != NULL:
            d.queued = False
            found[n] = <PyObject *>d.handle
            Py_INCREF(<object>found[n])
            n += 1
            d = d.next
        if found != NULL:
            self.c.dirty_first = self.c.dirty_last = NULL
        pthread_mutex_unlock(&self.c.dirty_lock)
        handles = []
        for i in range(n):
            handles.append(<object>found[i])
            Py_DECREF(<object>found[i])
        free(found)
        return handles

    def gil_entries(self):
        return self.c.gil_entries

    def close(self):
        cdef int i, n = self.threads
        cdef worker_t *w
        if not self.is_open:
            return
        self.is_open = False
        if not self.c.forked:
            with nogil:
                kv_exchange(&self.c.stop, 1)
                for i in range(n):
                    wake_worker(&self.c.workers[i])
                for i in range(n):
                    pthread_join(self.c.workers[i].thread, NULL)
        self.threads = 0
        for i in range(self.c.worker_count):
            w = &self.c.workers[i]
            if w.epoll_fd >= 0:
                close(w.epoll_fd)
            if w.wake_fd >= 0:
                close(w.wake_fd)
            w.epoll_fd = w.wake_fd = -1
        if self.c.event_fd >= 0:
            close(self.c.event_fd)
        self.c.event_fd = -1

    def _after_fork(self):
        """In a forked child: the sockets are the parent's, so they are closed here without a shutdown."""
        cdef int i
        cdef lane_t *lane
        self.c.forked = True
        for i in range(self.c.worker_count):
            lane = self.c.workers[i].lanes
            while lane != NULL:
                if lane.fd >= 0:
                    close(lane.fd)
                lane = lane.next_in_worker
        self.close()

    def __dealloc__(self):
        cdef int i
        self.close()
        for i in range(self.c.worker_count):
            free(self.c.workers[i].gathered)
            if self.c.workers[i].cell != NULL and not self.c.forked:
                scratch_free(&self.c.workers[i].scratch)
                free(self.c.workers[i].cell)
        pthread_mutex_destroy(&self.c.dirty_lock)
        free(self.c.workers)


_engines = weakref.WeakSet()


def _after_fork_in_child():
    for engine in list(_engines):
        engine._after_fork()


def _close_all():
    """While Python still runs: a worker whose cipher is a package's could not take the GIL any more."""
    for engine in list(_engines):
        engine.close()


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_close_all)
