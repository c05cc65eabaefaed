"""The lane log: append, acknowledge, hedge, trim and drain in any order, against one entry for each frame."""

from libc.string cimport memset

from harness cimport input_t, left, planted, require, take
from kvwire._ext.lanelog cimport (entry_t, lanelog_t, log_append, log_free, log_hedge, log_init, log_oldest, log_pop,
                                  log_pop_acked, log_trim_last)
from kvwire._ext.sendqueue cimport run_bytes, run_t

cdef enum:
    CAPACITY = 4
    FRAMES = 512                   # of one input, at most
    CELL_BYTES = 100

cdef struct frame_t:
    int run                        # which append it came with; -1: an acknowledgement, which the log does not have
    unsigned int cell
    unsigned int nbytes
    bint hedged

cdef struct model_t:
    frame_t[FRAMES] frame
    unsigned long long first       # frames before it have left the log
    unsigned long long next_seq
    int runs                       # appended so far
    int newest                     # the run that the last append made, while nothing followed it; else -1


cdef unsigned long long skip_none(const model_t *m, unsigned long long seq) noexcept nogil:
    while seq < m.next_seq and m.frame[seq].run < 0:
        seq += 1
    return seq


cdef int in_log(const model_t *m, bint hedged) noexcept nogil:
    """Runs that the log has, all or those that were hedged."""
    cdef unsigned long long seq
    cdef int last = -1, count = 0
    for seq in range(m.first, m.next_seq):
        if m.frame[seq].run >= 0 and m.frame[seq].run != last:
            last = m.frame[seq].run
            count += not hedged or m.frame[seq].hedged
    return count


cdef void left_the_log(model_t *m, const entry_t *e, unsigned long long before) noexcept nogil:
    """What came out is the oldest run's front, whole where all frames of it are covered."""
    cdef unsigned long long seq = skip_none(m, m.first), nbytes = 0
    cdef unsigned int i
    cdef int run
    require(seq < m.next_seq, b"a run came out of an empty log")
    require(e.seq == seq, b"another frame than the oldest came out")
    run = m.frame[seq].run
    require(e.run.order == <unsigned long long>run, b"another run than the oldest came out")
    require(e.run.count > 0 and seq + e.run.count <= before, b"more came out than was acknowledged")
    require(e.hedged == m.frame[seq].hedged, b"whether a run was hedged")
    for i in range(e.run.count):
        require(m.frame[seq + i].run == run and m.frame[seq + i].cell == e.run.first + i, b"other cells came out")
        nbytes += m.frame[seq + i].nbytes
    require(run_bytes(&e.run) == nbytes, b"bytes of what came out")
    m.first = seq + e.run.count
    require(m.first == before or m.frame[m.first].run != run, b"less came out than was acknowledged")


cdef void append(lanelog_t *l, model_t *m, input_t *inp, unsigned long long now) noexcept nogil:
    cdef run_t run
    cdef unsigned int i, count = <unsigned int>(1 + take(inp, 1) % 16)
    cdef bint full = l.length == CAPACITY
    memset(&run, 0, sizeof(run))
    run.order = <unsigned long long>m.runs
    run.first = <unsigned int>take(inp, 1)
    run.count = count
    run.cell_bytes = CELL_BYTES
    run.short_by = <unsigned int>(take(inp, 1) % CELL_BYTES)
    require(log_append(l, &run, now) == (not full), b"whether there is room")
    if full:
        return
    for i in range(count):
        m.frame[m.next_seq].run = m.runs
        m.frame[m.next_seq].cell = run.first + i
        m.frame[m.next_seq].nbytes = <unsigned int>CELL_BYTES - (run.short_by if i == count - 1 else 0)
        m.frame[m.next_seq].hedged = False
        m.next_seq += 1
    m.newest = m.runs
    m.runs += 1


cdef void acknowledge(lanelog_t *l, model_t *m, unsigned long long acked) noexcept nogil:
    """Planted: an acknowledgement reaches one frame too far."""
    cdef entry_t e
    cdef unsigned long long told = min(acked + 1, m.next_seq) if planted else acked
    while log_pop_acked(l, told, &e):
        left_the_log(m, &e, min(acked, next_of_run(m, e.seq)))
    require(skip_none(m, m.first) >= acked or m.frame[skip_none(m, m.first)].run < 0, b"an acknowledged frame stayed")


cdef unsigned long long next_of_run(const model_t *m, unsigned long long seq) noexcept nogil:
    """Where the run of this frame ends."""
    cdef unsigned long long end = seq
    while end < m.next_seq and m.frame[end].run == m.frame[seq].run:
        end += 1
    return end


cdef void hedge(lanelog_t *l, model_t *m, unsigned long long sent, unsigned long long most) noexcept nogil:
    cdef run_t run
    cdef unsigned long long seq, end, i, nbytes
    while True:
        seq = m.first
        while seq < m.next_seq and (m.frame[seq].run < 0 or m.frame[seq].hedged):
            seq += 1
        end = next_of_run(m, seq) if seq < m.next_seq else seq
        nbytes = 0
        for i in range(seq, end):
            nbytes += m.frame[i].nbytes
        if not log_hedge(l, sent, most, &run):
            require(seq == end or end > sent or nbytes > most, b"a run was not hedged that could be")
            return
        require(seq < end and end <= sent and nbytes <= most, b"a run was hedged that could not be")
        require(run.order == <unsigned long long>m.frame[seq].run and run.count == end - seq, b"another run was hedged")
        require(run.first == m.frame[seq].cell and run_bytes(&run) == nbytes, b"other cells were hedged")
        for i in range(seq, end):
            m.frame[i].hedged = True
        most -= nbytes


cdef void trim(lanelog_t *l, model_t *m, unsigned int cells) noexcept nogil:
    """As settle does: of the newest run only, before anything else is sent, hedged or acknowledged past it."""
    cdef unsigned long long start = m.next_seq
    if m.newest < 0 or l.length == 0:
        return
    while start > m.first and m.frame[start - 1].run == m.newest:
        start -= 1
    if start == m.next_seq or m.frame[start].hedged:
        return
    cells = min(cells, <unsigned int>(m.next_seq - start))
    log_trim_last(l, cells)
    m.next_seq -= cells


cdef int one_input(const unsigned char *data, size_t size) noexcept nogil:
    cdef input_t inp
    cdef lanelog_t log
    cdef model_t m
    cdef entry_t e
    cdef unsigned long long now = 0
    cdef int what
    inp.at = data
    inp.end = data + size
    m.first = m.next_seq = 0
    m.runs = 0
    m.newest = -1
    require(log_init(&log, CAPACITY) == 0, b"no memory")
    while left(&inp) and m.next_seq < FRAMES - 16:
        what = <int>take(&inp, 1)
        now += 1
        if what & 7 < 3:
            append(&log, &m, &inp, now)
        elif what & 7 == 3:
            acknowledge(&log, &m, min(m.first + take(&inp, 1), m.next_seq))
        elif what & 7 == 4:
            hedge(&log, &m, min(m.first + take(&inp, 1), m.next_seq), take(&inp, 2))
        elif what & 7 == 5:
            trim(&log, &m, <unsigned int>take(&inp, 1))
        elif what & 7 == 6:                # an acknowledgement leaves: it has a number and no entry
            m.frame[m.next_seq].run = -1
            m.next_seq += 1
            log.next_seq += 1
            m.newest = -1
        elif log_pop(&log, &e):
            left_the_log(&m, &e, next_of_run(&m, e.seq))
        require(log.next_seq == m.next_seq, b"the next sequence number")
        require(log.length == <size_t>in_log(&m, False) and log.hedged == <size_t>in_log(&m, True), b"runs in the log")
        require((log_oldest(&log) != 0) == (log.length != 0), b"the oldest run")
    while log_pop(&log, &e):
        left_the_log(&m, &e, next_of_run(&m, e.seq))
    require(skip_none(&m, m.first) == m.next_seq, b"a run was lost")
    log_free(&log)
    return 0


ONE_INPUT = <size_t>&one_input
