"""Send queue and pacer: push, claim, give back and abort, against a plain list of runs.

Nothing is lost, nothing comes twice, what leaves is what the rules of the queue say, no class starves, the counters
are right, and over the whole run no more leaves than the pacer's rate, its burst and one claim.
"""

from libc.string cimport memmove, memset

from harness cimport input_t, left, planted, require, take
from kvwire._ext.pacer cimport (PEAK_BURST_BYTES, PEAK_NS, pacer_give_back, pacer_set, pacer_t, pacer_take, pacer_wait,
                                pacer_worth)
from kvwire._ext.sendqueue cimport (CLASSES, SHARE, drop_front, queue_claim, queue_free, queue_idle, queue_oldest,
                                    queue_push, queue_remove, queue_t, run_bytes, run_t)

cdef enum:
    RUNS = 80                      # of a class: more than a heap's first capacity, which is 64
    CLAIMED = 64
    OPERATIONS = 60                # of one input
    SECOND_NS = 1000000000

ctypedef unsigned long long u64
ctypedef long long i64

cdef extern from *:
    ctypedef int i128 "__int128"

cdef struct model_t:
    run_t[CLASSES][RUNS] run       # in the queue, in the order in which they leave
    int[CLASSES] runs
    run_t[CLAIMED] claimed         # sent, and not settled
    int sent
    u64[CLASSES] credit            # bytes that others sent while it waited, less its own in the same measure
    u64 largest                    # claim so far, and
    u64 widest                     # cell
    u64 rate                       # of both buckets; 0: no cap
    u64 since_ns                   # when that was set, and
    i64 taken                      # what left since, less what came back
    u64 idle_ns
    u64 empty_ns
    u64 next_order
    u64 pushed                     # cells
    u64 gone


cdef bint leaves_before(const run_t *a, const run_t *b) noexcept nogil:
    cdef u64 never = <u64>-1
    cdef u64 due_a = a.deadline if a.deadline else never
    cdef u64 due_b = b.deadline if b.deadline else never
    if due_a != due_b:
        return due_a < due_b
    return a.order < b.order if a.rank == b.rank else a.rank < b.rank


cdef void forget(model_t *m, int klass, int at) noexcept nogil:
    m.runs[klass] -= 1
    memmove(&m.run[klass][at], &m.run[klass][at + 1], <size_t>(m.runs[klass] - at) * sizeof(run_t))


cdef bint nothing(const model_t *m) noexcept nogil:
    return m.runs[0] + m.runs[1] + m.runs[2] == 0


cdef void push(queue_t *q, model_t *m, const run_t *run, u64 now) noexcept nogil:
    cdef int klass = run.klass, at = m.runs[klass]
    if nothing(m) and now > m.empty_ns:
        m.idle_ns += now - m.empty_ns
    require(queue_push(q, run, now) == 0, b"no memory")
    while at and leaves_before(run, &m.run[klass][at - 1]):
        m.run[klass][at] = m.run[klass][at - 1]
        at -= 1
    m.run[klass][at] = run[0]
    m.runs[klass] += 1


cdef void new_runs(queue_t *q, model_t *m, input_t *inp, int count, u64 now) noexcept nogil:
    """So many that differ in their deadlines only: heaps that have to grow."""
    cdef run_t run
    cdef int i, shape = <int>take(inp, 1)
    memset(&run, 0, sizeof(run))
    run.klass = <unsigned char>(shape % CLASSES)
    run.rank = shape >> 2 & 1
    run.owner = <void *><size_t>(1 + (shape >> 3 & 3))
    run.deadline = take(inp, 1) if shape & 0x20 else 0
    run.count = <unsigned int>(1 + take(inp, 1) % 32)
    run.cell_bytes = <unsigned int>take(inp, 2 if shape & 0x40 else 1)
    m.widest = max(m.widest, <u64>run.cell_bytes)
    run.short_by = <unsigned int>take(inp, 1) % run.cell_bytes if run.cell_bytes else 0
    run.ready_ns = now
    for i in range(min(count, RUNS - m.runs[run.klass])):
        run.first = <unsigned int>m.next_order * 64
        run.order = m.next_order
        if run.deadline:
            run.deadline ^= <u64>i
        m.next_order += 1
        m.pushed += run.count
        push(q, m, &run, now)


cdef bint waits(pacer_t *p, u64 now) noexcept nogil:
    """Whether nothing may be claimed yet; and that it is so up to the very nanosecond that the pacer says."""
    cdef pacer_t copy = p[0]
    cdef u64 wait = pacer_wait(p, now)
    if wait:
        require(pacer_wait(&copy, now + wait - 1) != 0, b"the pacer says to wait for longer than it does")
        require(pacer_wait(&copy, now + wait) == 0, b"the pacer waits for longer than it says")
    return wait != 0


cdef void set_rate(pacer_t *p, model_t *m, u64 rate, u64 now) noexcept nogil:
    cdef u64 before = pacer_wait(p, now)
    pacer_set(p, rate, rate, now)
    require(pacer_wait(p, now) <= before, b"a change of the rate makes what was claimed before wait for longer")
    m.rate = rate
    m.since_ns = now
    m.taken = 0


cdef void check_rate(const model_t *m, u64 now) noexcept nogil:
    """Since the rate was set no more has left than the rate, the smaller of the two bursts and one claim."""
    cdef i128 burst = max(<u64>PEAK_BURST_BYTES, m.rate * PEAK_NS // SECOND_NS)
    cdef i128 allowed = <i128>m.rate * (now - m.since_ns) + (burst + m.largest) * SECOND_NS
    require(m.rate == 0 or <i128>m.taken * SECOND_NS <= allowed, b"more left than the rate allows")


cdef int whose_turn(const model_t *m, u64 *max_bytes) noexcept nogil:
    """The first class with work, but for the last of those behind it that have waited for their share."""
    cdef int k, first = -1, turn = -1
    for k in range(CLASSES):
        if m.runs[k] == 0:
            continue
        if first < 0:
            first = k
        if k == first or m.credit[k] >= (SHARE - 1) * max(<u64>1, <u64>m.run[k][0].cell_bytes):
            turn = k
    if turn > first:
        max_bytes[0] = min(max_bytes[0], m.credit[turn] // (SHARE - 1))
    return turn


cdef void count_waiting(model_t *m, const run_t *out) noexcept nogil:
    """What a class that waits has seen others send: no more than makes its share, and a few claims."""
    cdef int k
    cdef u64 nbytes = run_bytes(out)
    for k in range(CLASSES):
        if m.runs[k] == 0:
            m.credit[k] = 0
        elif k == out.klass:
            m.credit[k] -= min(m.credit[k], (SHARE - 1) * nbytes)
        else:
            m.credit[k] += nbytes
            require(m.credit[k] <= (SHARE - 1) * m.widest + SHARE * m.largest, b"a class starves")


cdef bint claim(queue_t *q, pacer_t *p, model_t *m, unsigned int max_cells, u64 max_bytes, u64 now) noexcept nogil:
    cdef run_t out
    cdef run_t *run
    cdef int klass, at = 0
    cdef u64 cells
    if m.sent == CLAIMED or waits(p, now):
        return False
    max_bytes = min(max_bytes, pacer_worth(p))
    if not queue_claim(q, max_cells, max_bytes, now, &out):
        require(nothing(m), b"there was something to claim")
        return False
    require(not nothing(m), b"something came out of an empty queue")
    klass = whose_turn(m, &max_bytes)
    require(out.klass == klass, b"another class than the one whose turn it is")
    # What came back and what stayed of one run have the same place.
    while at < m.runs[klass] and (m.run[klass][at].order != out.order or m.run[klass][at].first != out.first):
        at += 1
    require(at < m.runs[klass], b"something came out that is not in the queue")
    run = &m.run[klass][at]
    require(not leaves_before(&m.run[klass][0], run), b"another run than the first")
    require(out.owner == run.owner and out.ready_ns == run.ready_ns and out.deadline == run.deadline
            and out.rank == run.rank and out.cell_bytes == run.cell_bytes, b"a run changed")
    cells = min(<u64>max_cells, max(<u64>1, max_bytes // max(<u64>1, <u64>run.cell_bytes)))
    require(out.count == min(<u64>run.count, cells), b"how many cells came out")
    require(run_bytes(&out) == (<u64>out.count * run.cell_bytes
                                - (run.short_by if out.count == run.count else 0)), b"bytes of a claim")
    m.largest = max(m.largest, run_bytes(&out))
    if out.count == run.count:
        forget(m, klass, at)
    else:
        run.first += out.count
        run.count -= out.count
    if nothing(m):
        m.empty_ns = now
    count_waiting(m, &out)
    pacer_take(p, run_bytes(&out))
    m.taken += <i64>run_bytes(&out)
    m.claimed[m.sent] = out
    m.sent += 1
    return True


cdef void settle(queue_t *q, pacer_t *p, model_t *m, unsigned int unsent, u64 now) noexcept nogil:
    """The kernel took all of the latest claim but its last `unsent` cells, which go back to their place.

    Planted: where that is in the middle of a run, a cell is lost.
    """
    cdef run_t run
    cdef unsigned int lost
    if m.sent == 0:
        return
    m.sent -= 1
    run = m.claimed[m.sent]
    unsent = min(unsent, run.count)
    m.gone += run.count - unsent
    if unsent == 0 or m.runs[run.klass] == RUNS:
        m.gone += unsent
        return
    lost = 1 if planted and 1 < unsent < run.count else 0
    drop_front(&run, run.count - unsent + lost)
    pacer_give_back(p, run_bytes(&run))
    m.taken -= <i64>run_bytes(&run)
    push(q, m, &run, now)


cdef void abort_transfer(queue_t *q, model_t *m, void *owner, u64 now) noexcept nogil:
    cdef size_t removed = 0
    cdef int klass, at
    for klass in range(CLASSES):
        at = m.runs[klass] - 1
        while at >= 0:
            if m.run[klass][at].owner == owner:
                m.gone += m.run[klass][at].count
                forget(m, klass, at)
                removed += 1
            at -= 1
        if m.runs[klass] == 0:
            m.credit[klass] = 0
    require(queue_remove(q, owner, now) == removed, b"how many runs an abort took out")
    if removed and nothing(m):
        m.empty_ns = now


cdef void compare(const queue_t *q, const model_t *m, u64 now) noexcept nogil:
    """Counters, and that each cell that was pushed is in the queue, claimed, or gone."""
    cdef int i, k
    cdef u64 nbytes, oldest, cells = m.gone
    cdef size_t length = 0
    cdef const run_t *run
    for k in range(CLASSES):
        nbytes = 0
        oldest = m.run[k][0].ready_ns if m.runs[k] else 0
        for i in range(m.runs[k]):
            run = &m.run[k][i]
            oldest = min(oldest, run.ready_ns)
            nbytes += run_bytes(run)
            cells += run.count
        length += <size_t>m.runs[k]
        require(q.klass[k].bytes == nbytes, b"queued bytes of a class")
        require(queue_oldest(q, k) == oldest, b"the oldest run of a class")
    for i in range(m.sent):
        cells += m.claimed[i].count
    require(cells == m.pushed, b"a cell was lost, or is there twice")
    require(q.length == length, b"runs in the queue")
    require(queue_idle(q, now) == m.idle_ns + (now - m.empty_ns if length == 0 and now > m.empty_ns else 0),
            b"idle time")


cdef void drain(queue_t *q, pacer_t *p, model_t *m, u64 now) noexcept nogil:
    """Without a cap, and until nothing is left: each run comes out, in order."""
    cdef run_t none
    set_rate(p, m, 0, now)
    while not nothing(m):
        m.sent = 0
        require(claim(q, p, m, 1 << 10, 1 << 30, now), b"something stayed in the queue")
    require(not queue_claim(q, 8, 1 << 20, now, &none), b"something came twice")


cdef int one_input(const unsigned char *data, size_t size) noexcept nogil:
    cdef input_t inp
    cdef queue_t q
    cdef pacer_t p
    cdef model_t m
    cdef int what, operation = 0
    cdef u64 now = 1
    inp.at = data
    inp.end = data + size
    memset(&q, 0, sizeof(q))
    memset(&p, 0, sizeof(p))
    m.runs[0] = m.runs[1] = m.runs[2] = m.sent = 0
    m.credit[0] = m.credit[1] = m.credit[2] = 0
    m.largest = m.widest = m.idle_ns = m.empty_ns = m.next_order = m.pushed = m.gone = 0
    set_rate(&p, &m, take(&inp, 4), now)
    while left(&inp) and operation < OPERATIONS:
        what = <int>take(&inp, 1)
        operation += 1
        if what & 7 < 3:
            new_runs(&q, &m, &inp, 70 if what >> 3 == 31 else 1, now)
        elif what & 7 == 3:
            claim(&q, &p, &m, <unsigned int>(1 + (what >> 3)), take(&inp, 2), now)
        elif what & 7 == 4:
            settle(&q, &p, &m, <unsigned int>take(&inp, 1), now)
        elif what & 7 == 5:
            now += take(&inp, 1) << (what >> 3)
        elif what & 7 == 6:
            abort_transfer(&q, &m, <void *><size_t>(1 + (what >> 3 & 3)), now)
        else:
            set_rate(&p, &m, take(&inp, 4), now)
        check_rate(&m, now)
    compare(&q, &m, now)
    drain(&q, &p, &m, now)
    queue_free(&q)
    return 0


ONE_INPUT = <size_t>&one_input
