"""The pacer: two token buckets, of the average and of the peak rate, which a link's claims draw on.

A claim is allowed while both buckets have anything in them, and takes what it is worth even where that is more: so a
cell of any size passes any rate, and over any time no more leaves than rate * time, a burst and one claim. Tokens are
counted in bytes * 1e9 and never by division, so a rate is exact however often one looks.

A change holds at once. A bucket keeps no more than the new burst; what was overdrawn is waited for no longer than it
would have been at the old rate.
"""

cdef enum:
    SECOND_NS = 1000000000

cdef unsigned long long MOST_Bps = 100000000000    # 800 Gbit/s: 10 ms of it are 1e18 of an i64's 9.2e18


cdef void fill(bucket_t *b, unsigned long long now) noexcept nogil:
    cdef unsigned long long span
    if now > b.filled_ns:                  # workers read the clock one after the other: it may seem to go back a little
        span = now - b.filled_ns
        b.filled_ns = now
        # From whatever it is overdrawn by, a bucket is full after a time that depends on that: no product overflows.
        if b.tokens < 0 and span < <unsigned long long>(-b.tokens) // b.rate_Bps:
            b.tokens += <long long>(b.rate_Bps * span)
            return
        if b.tokens < 0:
            span -= <unsigned long long>(-b.tokens) // b.rate_Bps
            b.tokens += <long long>(<unsigned long long>(-b.tokens) // b.rate_Bps * b.rate_Bps)
        b.tokens = min(b.tokens + <long long>(b.rate_Bps * min(span, b.burst_ns)), <long long>(b.rate_Bps * b.burst_ns))


cdef void bucket_set(bucket_t *b, unsigned long long rate_Bps, unsigned long long least_bytes,
                     unsigned long long least_ns, unsigned long long now) noexcept nogil:
    cdef unsigned long long old_Bps = b.rate_Bps
    rate_Bps = min(rate_Bps, MOST_Bps)
    if old_Bps:
        fill(b, now)
    b.rate_Bps = rate_Bps
    if rate_Bps == 0:
        return
    b.burst_ns = max(least_ns, least_bytes * SECOND_NS // rate_Bps)
    if old_Bps == 0:
        b.filled_ns = now
        b.tokens = <long long>(rate_Bps * b.burst_ns)
    elif b.tokens < 0 and rate_Bps < old_Bps:
        b.tokens = -<long long>(<unsigned long long>(-b.tokens) // old_Bps * rate_Bps)
    b.tokens = min(b.tokens, <long long>(rate_Bps * b.burst_ns))


cdef inline unsigned long long bucket_wait(bucket_t *b, unsigned long long now) noexcept nogil:
    if b.rate_Bps == 0:
        return 0
    fill(b, now)
    return 0 if b.tokens > 0 else <unsigned long long>(-b.tokens) // b.rate_Bps + 1


cdef void pacer_set(pacer_t *p, unsigned long long average_Bps, unsigned long long peak_Bps,
                    unsigned long long now) noexcept nogil:
    """Both rates from now on, in bytes per second; 0: no cap."""
    bucket_set(&p.average, average_Bps, BURST_BYTES, WORTH_NS, now)
    bucket_set(&p.peak, peak_Bps, PEAK_BURST_BYTES, PEAK_NS, now)


cdef unsigned long long pacer_wait(pacer_t *p, unsigned long long now) noexcept nogil:
    """Nanoseconds until something may be claimed; 0: now."""
    return max(bucket_wait(&p.average, now), bucket_wait(&p.peak, now))


cdef void pacer_take(pacer_t *p, unsigned long long nbytes) noexcept nogil:
    """Something was claimed. `pacer_wait` comes first: it looks at the clock."""
    if p.average.rate_Bps:
        p.average.tokens -= <long long>(nbytes * SECOND_NS)
    if p.peak.rate_Bps:
        p.peak.tokens -= <long long>(nbytes * SECOND_NS)


cdef void bucket_give_back(bucket_t *b, unsigned long long nbytes) noexcept nogil:
    if b.rate_Bps:
        b.tokens = min(b.tokens + <long long>(nbytes * SECOND_NS), <long long>(b.rate_Bps * b.burst_ns))


cdef void pacer_give_back(pacer_t *p, unsigned long long nbytes) noexcept nogil:
    """Some of what was claimed goes back to the queue."""
    bucket_give_back(&p.average, nbytes)
    bucket_give_back(&p.peak, nbytes)


cdef unsigned long long pacer_worth(const pacer_t *p) noexcept nogil:
    """Bytes that a claim may be worth: 10 ms of the slower rate."""
    cdef unsigned long long rate = MOST_Bps
    if p.average.rate_Bps:
        rate = p.average.rate_Bps
    if p.peak.rate_Bps:
        rate = min(rate, p.peak.rate_Bps)
    return rate // (SECOND_NS // WORTH_NS)


cdef class Pacer:
    """Token buckets of a link's average and peak rate."""

    def __init__(self, unsigned long long now_ns=0, *, average_Bps=0, peak_Bps=0):
        self.set(average_Bps, peak_Bps, now_ns)

    def set(self, unsigned long long average_Bps, unsigned long long peak_Bps, unsigned long long now_ns):
        pacer_set(&self.c, average_Bps, peak_Bps, now_ns)

    def wait_ns(self, unsigned long long now_ns):
        return pacer_wait(&self.c, now_ns)

    def take(self, unsigned int nbytes, unsigned long long now_ns):
        if pacer_wait(&self.c, now_ns):
            raise ValueError("nothing may be claimed yet")
        pacer_take(&self.c, nbytes)

    def give_back(self, unsigned int nbytes):
        pacer_give_back(&self.c, nbytes)

    @property
    def claim_bytes(self):
        return pacer_worth(&self.c)

    @property
    def burst_bytes(self):
        return (self.c.average.rate_Bps * self.c.average.burst_ns // SECOND_NS,
                self.c.peak.rate_Bps * self.c.peak.burst_ns // SECOND_NS)


cdef class HedgeBudget:
    """How much a link may send twice: 4 MiB, and a byte more for every hundred that it has sent."""

    @property
    def left_bytes(self):
        return hedge_left(&self.c)

    def spend(self, unsigned long long nbytes):
        if nbytes > hedge_left(&self.c):
            raise ValueError(f"{nbytes} bytes; {hedge_left(&self.c)} are left")
        hedge_spend(&self.c, nbytes)

    def earn(self, unsigned long long sent_bytes):
        hedge_earn(&self.c, sent_bytes)
