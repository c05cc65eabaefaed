"""How fast a link may claim, and how much of it again. Shared by the engine (nogil, under the link's lock) and by tests."""

cdef enum:
    WORTH_NS = 10000000            # a claim, and the burst of the average rate: 10 ms
    PEAK_NS = 2000000              # the burst of the peak rate
    BURST_BYTES = 256 * 1024       # and the smallest bursts of the two
    PEAK_BURST_BYTES = 64 * 1024
    HEDGE_SHARE = 100              # one byte in so many may be sent again
    HEDGE_BURST_BYTES = 4 * 1024 * 1024

cdef struct bucket_t:
    unsigned long long rate_Bps    # 0: no cap
    unsigned long long burst_ns    # how long an empty bucket takes to fill
    long long tokens               # bytes * 1e9, so that no time is lost to rounding; below 0: overdrawn
    unsigned long long filled_ns   # up to when

cdef struct pacer_t:
    bucket_t average
    bucket_t peak

cdef struct hedge_budget_t:
    unsigned long long spent       # bytes * HEDGE_SHARE, 0 at the start: a full burst is left

cdef void pacer_set(pacer_t *p, unsigned long long average_Bps, unsigned long long peak_Bps,
                    unsigned long long now) noexcept nogil
cdef unsigned long long pacer_wait(pacer_t *p, unsigned long long now) noexcept nogil
cdef void pacer_take(pacer_t *p, unsigned long long nbytes) noexcept nogil
cdef void pacer_give_back(pacer_t *p, unsigned long long nbytes) noexcept nogil
cdef unsigned long long pacer_worth(const pacer_t *p) noexcept nogil

cdef inline unsigned long long hedge_left(const hedge_budget_t *b) noexcept nogil:
    return HEDGE_BURST_BYTES - b.spent // HEDGE_SHARE if b.spent < <unsigned long long>HEDGE_BURST_BYTES * HEDGE_SHARE else 0

cdef inline void hedge_spend(hedge_budget_t *b, unsigned long long nbytes) noexcept nogil:
    b.spent += nbytes * HEDGE_SHARE

cdef inline void hedge_earn(hedge_budget_t *b, unsigned long long sent_bytes) noexcept nogil:
    b.spent -= min(b.spent, sent_bytes)

cdef class Pacer:
    cdef pacer_t c

cdef class HedgeBudget:
    cdef hedge_budget_t c
