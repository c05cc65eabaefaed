/* One thread. A packet's way in one direction:
 *
 *   TUN -> take: what each segment of it meets (black hole, loss, full queue, mark) -> runs of segments that fared alike
 *       -> queue, first in, first out, served at the rate -> line, a heap by the time of arrival -> TUN
 *
 * The kernel hands over TCP's super-packets of up to 64 KB with a header that says how they are to be cut (vnet_hdr); as
 * long as all of a run fares alike it stays in one piece. That is what makes 1 Gbit/s cheap; a run holds at most RUN_NS
 * of the rate, so that what a receiver sees is no burst.
 *
 * Wake-ups are what costs. After a round that had work the next begins TICK_NS later, and what it finds is taken to have
 * come half of that before; without work the loop waits for input or for the next delivery. */

#define _GNU_SOURCE
#include "emulator_impl.h"
#include "packet_impl.h"

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PACKET_BYTES (65535 + VNET)
#define TICK_NS 500000
#define RUN_NS 1000000
#define ROUND_PACKETS 512               /* of one direction, before the other has its turn */
#define HELD_BYTES_MAX (512u << 20)     /* what an unbounded queue can hold: the host's memory is not endless */

typedef struct run {
    uint64_t came, due, order;  /* when it entered, when it leaves, and which of two that leave at once is first */
    struct run *next;           /* in the queue */
    uint32_t segments, bytes;   /* on the wire */
    uint32_t len;               /* of data */
    int overtakes;              /* everything: it does not wait out the delay */
    uint8_t data[];
} run_t;

typedef struct {
    int in, out, from_b;
    kv_way_t way;
    kv_counts_t counts;
    run_t *head, *tail;         /* the queue */
    uint64_t queued;            /* bytes in it, and of the run that is being cut */
    uint64_t free_at;           /* when the rate has served the one before the head */
    run_t **line;
    size_t line_len, line_room;
    uint64_t order, held_bytes;
    uint64_t random;
    int bad;                    /* Gilbert-Elliott's state */
    uint64_t swing;             /* jitter: number of the period, and what it leads from and to, -1 to 1 */
    double swing_from, swing_to;
} direction_t;

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* xorshift64*, Vigna 2016: 0 to 1. */
static double draw(direction_t *d)
{
    uint64_t x = d->random;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    d->random = x;
    return (double)((x * 2685821657736338717u) >> 11) / 9007199254740992.0;
}

static unsigned bucket(uint64_t ns)
{
    uint64_t us = ns / 1000;
    if (us < 16)
        return (unsigned)us;
    unsigned top = 63u - (unsigned)__builtin_clzll(us);
    unsigned b = (top - 3) * 16 + ((us >> (top - 4)) & 15);
    return b < KV_BUCKETS ? b : KV_BUCKETS - 1;
}

/* --- the line: a heap ------------------------------------------------------------------------------------------- */

static int before(const run_t *one, const run_t *other)
{
    return one->due != other->due ? one->due < other->due : one->order < other->order;
}

static void line_push(direction_t *d, run_t *run)
{
    if (d->line_len == d->line_room) {
        d->line_room = d->line_room ? d->line_room * 2 : 1024;
        d->line = realloc(d->line, d->line_room * sizeof(*d->line));
        if (!d->line)
            abort();
    }
    size_t i = d->line_len++;
    for (; i && before(run, d->line[(i - 1) / 2]); i = (i - 1) / 2)
        d->line[i] = d->line[(i - 1) / 2];
    d->line[i] = run;
}

static run_t *line_pop(direction_t *d)
{
    run_t *first = d->line[0], *last = d->line[--d->line_len];
    size_t i = 0, child;
    while ((child = 2 * i + 1) < d->line_len) {
        if (child + 1 < d->line_len && before(d->line[child + 1], d->line[child]))
            child++;
        if (!before(d->line[child], last))
            break;
        d->line[i] = d->line[child];
        i = child;
    }
    d->line[i] = last;
    return first;
}

/* --- the queue -------------------------------------------------------------------------------------------------- */

/* What is added to the delay changes at most half as fast as time passes: packets keep their order. */
static int64_t jitter(direction_t *d, uint64_t t)
{
    if (!d->way.jitter_ns)
        return 0;
    uint64_t period = 4 * d->way.jitter_ns, number = t / period;
    if (number != d->swing) {
        d->swing_from = number == d->swing + 1 ? d->swing_to : 2 * draw(d) - 1;
        d->swing_to = 2 * draw(d) - 1;
        d->swing = number;
    }
    double part = (double)(t % period) / (double)period;
    return (int64_t)((d->swing_from + (d->swing_to - d->swing_from) * part) * (double)d->way.jitter_ns);
}

static uint64_t starts(const direction_t *d)
{
    return d->free_at > d->head->came ? d->free_at : d->head->came;
}

static uint64_t leaves(const direction_t *d)
{
    double service = d->way.rate_bps > 0 ? d->head->bytes * 8e9 / d->way.rate_bps : 0;
    return starts(d) + (uint64_t)service;
}

/* What the rate has served until `t` goes on the line. */
static void serve(direction_t *d, uint64_t t)
{
    uint64_t left;
    while (d->head && (left = leaves(d)) <= t) {
        run_t *run = d->head;
        d->counts.queueing[bucket(starts(d) - run->came)] += run->segments;
        d->head = run->next;
        d->free_at = left;
        d->queued -= run->bytes;
        run->due = run->overtakes ? left : left + d->way.delay_ns + (uint64_t)jitter(d, left);
        run->order = d->order++;
        line_push(d, run);
    }
}

/* Bytes that wait at `t`, after serve: the part of the head that has left is not among them. */
static uint64_t waiting(const direction_t *d, uint64_t t)
{
    if (d->way.rate_bps <= 0)
        return 0;
    if (!d->head || starts(d) >= t)
        return d->queued;
    double served = (double)(t - starts(d)) * d->way.rate_bps / 8e9;
    return d->queued - (served < d->head->bytes ? (uint64_t)served : d->head->bytes);
}

/* --- in --------------------------------------------------------------------------------------------------------- */

/* Whether it belongs to a connection that is in the black hole: by the port that it has on a. */
static int vanishes(const direction_t *d, const kv_wishes_t *wishes, const kv_packet_t *p)
{
    if (wishes->black_hole || !wishes->some_ports)
        return (int)wishes->black_hole;
    if (p->ip[9] != IPPROTO_TCP || p->headers + p->payload < p->ip_header + 4)
        return 0;
    const uint8_t *at = p->ip + p->ip_header + (d->from_b ? 2 : 0);
    unsigned port = (unsigned)at[0] << 8 | at[1];
    return wishes->ports[port / 8] >> port % 8 & 1;
}

/* Loss of one packet on the wire: alone, or in bursts. */
static int lost(direction_t *d)
{
    if (d->way.into_bad > 0) {
        if (draw(d) < (d->bad ? d->way.out_of_bad : d->way.into_bad))
            d->bad = !d->bad;
        if (d->bad)
            return 1;
    }
    return d->way.loss > 0 && draw(d) < d->way.loss;
}

enum { GONE = -1, MARKED = 1, OVERTAKES = 2 };

/* What becomes of one segment of so many bytes: GONE, or flags. */
static int fate(direction_t *d, const kv_packet_t *p, uint32_t bytes, uint64_t t)
{
    if (lost(d)) {
        d->counts.lost++;
        return GONE;
    }
    uint64_t queue = waiting(d, t);
    if ((d->way.queue_bytes && queue + bytes > d->way.queue_bytes) || d->held_bytes > HELD_BYTES_MAX) {
        d->counts.overflowed++;
        return GONE;
    }
    int flags = 0;
    if (d->way.mark_bytes && queue > d->way.mark_bytes && p->ip[1] & 3) {   /* RFC 3168: what says that it knows ECN */
        d->counts.marked++;
        flags |= MARKED;
    }
    if (d->way.reorder > 0 && draw(d) < d->way.reorder) {
        d->counts.reordered++;
        flags |= OVERTAKES;
    }
    d->queued += bytes;
    if (d->way.rate_bps > 0 && queue + bytes > d->counts.queue_max_bytes)
        d->counts.queue_max_bytes = queue + bytes;
    return flags;
}

/* Segments `from` to `to` of a packet, which fared alike, wait for the rate. */
static void enqueue(direction_t *d, const uint8_t *buffer, const kv_packet_t *p, uint32_t from, uint32_t to, int flags,
                    uint64_t t)
{
    uint32_t len = kv_cut_bytes(p, from, to);
    run_t *run = malloc(sizeof(*run) + len);
    if (!run)
        abort();
    kv_cut(run->data, buffer, p, from, to);
    if (flags & MARKED)
        kv_mark(run->data);
    run->came = t;
    run->next = NULL;
    run->segments = to - from;
    run->len = len;
    run->bytes = len - (uint32_t)VNET + (run->segments - 1) * p->headers;
    run->overtakes = (flags & OVERTAKES) != 0;
    d->counts.held += run->segments;
    d->held_bytes += run->bytes;
    if (d->head)
        d->tail->next = run;
    else
        d->head = run;
    d->tail = run;
}

static void take(direction_t *d, const kv_wishes_t *wishes, uint8_t *buffer, size_t len, uint64_t t)
{
    kv_packet_t p;
    if (!kv_parse(buffer, len, &p))
        return;
    d->counts.segments_in += p.count;
    d->counts.bytes_in += (uint64_t)p.count * p.headers + p.payload;
    if (vanishes(d, wishes, &p)) {
        d->counts.black_holed += p.count;
        return;
    }
    serve(d, t);
    uint32_t most = p.count, from = 0;
    if (d->way.rate_bps > 0 && p.count > 1) {
        double fit = d->way.rate_bps * RUN_NS / 8e9 / (p.headers + p.segment);
        most = fit < 1 ? 1 : fit < p.count ? (uint32_t)fit : p.count;
    }
    int flags = GONE;
    for (uint32_t i = 0; i < p.count; i++) {
        uint32_t rest = p.payload - i * p.segment;
        int next = fate(d, &p, p.headers + (i + 1 < p.count ? p.segment : rest), t);
        if (next != flags || i - from == most) {
            if (flags != GONE)
                enqueue(d, buffer, &p, from, i, flags, t);
            from = i;
            flags = next;
        }
    }
    if (flags != GONE)
        enqueue(d, buffer, &p, from, p.count, flags, t);
}

/* Everything that waits at the device, up to the most of a round; `slept`: nobody has looked for a while. How many. */
static int receive(direction_t *d, const kv_wishes_t *wishes, uint8_t *buffer, int slept)
{
    int count = 0;
    uint64_t t = now_ns() - (slept ? TICK_NS / 2 : 0);
    for (; count < ROUND_PACKETS; count++) {
        ssize_t len = read(d->in, buffer, PACKET_BYTES);
        if (len <= 0)
            break;
        take(d, wishes, buffer, (size_t)len, t);
    }
    return count;
}

/* --- out -------------------------------------------------------------------------------------------------------- */

static int deliver(direction_t *d)
{
    int count = 0;
    uint64_t now = now_ns();
    serve(d, now);
    for (; d->line_len && d->line[0]->due <= now; count++) {
        run_t *run = line_pop(d);
        uint64_t late = now - run->due;
        kv_counts_t *c = &d->counts;
        c->late_ns += late * run->segments;
        c->lateness[bucket(late)] += run->segments;
        if (late > c->late_max_ns)
            c->late_max_ns = late;
        if (write(d->out, run->data, run->len) < 0) {
            c->failed += run->segments;
        } else {
            c->segments_out += run->segments;
            c->bytes_out += run->bytes;
        }
        c->held -= run->segments;
        d->held_bytes -= run->bytes;
        free(run);
        if (count % 16 == 15)
            now = now_ns();
    }
    return count;
}

/* When the next delivery is due; UINT64_MAX: nothing is held. */
static uint64_t next_due(const direction_t *d)
{
    uint64_t next = d->line_len ? d->line[0]->due : UINT64_MAX;
    if (d->head) {
        uint64_t left = leaves(d) + (d->head->overtakes ? 0 : d->way.delay_ns - d->way.jitter_ns);
        if (left < next)
            next = left;
    }
    return next;
}

/* --- control ---------------------------------------------------------------------------------------------------- */

/* Takes wishes and answers with what was counted. 0: the other end is gone. */
static int answer(int control, direction_t directions[2], kv_wishes_t *wishes, kv_wishes_t *fresh)
{
    ssize_t len = recv(control, fresh, sizeof(*fresh), MSG_DONTWAIT);
    if (len < 0)
        return errno == EAGAIN || errno == EINTR;
    if (len != (ssize_t)sizeof(*fresh))
        return 0;
    *wishes = *fresh;
    static kv_counts_t reply[2];
    uint64_t now = now_ns();
    for (int i = 0; i < 2; i++) {
        direction_t *d = &directions[i];
        serve(d, now);      /* at the rate that held until now */
        d->way = wishes->ways[i];
        serve(d, now);
        d->counts.queue_bytes = waiting(d, now);
        reply[i] = d->counts;
        d->counts.queue_max_bytes = d->counts.queue_bytes;
    }
    return send(control, reply, sizeof(reply), MSG_NOSIGNAL) == (ssize_t)sizeof(reply);
}

static void wait_for(const int tun[2], int control, uint64_t until)
{
    struct pollfd fds[3] = {{tun[0], POLLIN, 0}, {tun[1], POLLIN, 0}, {control, POLLIN, 0}};
    uint64_t now = now_ns(), left = until > now ? until - now : 0;
    struct timespec t = {(time_t)(left / 1000000000u), (long)(left % 1000000000u)};
    ppoll(fds, 3, until == UINT64_MAX ? NULL : &t, NULL);
}

int kv_emulate(const int tun[2], int control, uint64_t seed)
{
    uint8_t *buffer = malloc(PACKET_BYTES);
    kv_wishes_t *wishes = calloc(2, sizeof(*wishes));
    direction_t *d = calloc(2, sizeof(*d));
    if (!buffer || !wishes || !d)
        return ENOMEM;
    for (int i = 0; i < 2; i++) {
        d[i].in = tun[i];
        d[i].out = tun[1 - i];
        d[i].from_b = i;
        d[i].random = (seed * 2 + (uint64_t)i + 1) * 0x9e3779b97f4a7c15u | 1;
        for (int j = 0; j < 8; j++)
            draw(&d[i]);
    }
    prctl(PR_SET_TIMERSLACK, 1);
    int slept = 0;
    while (answer(control, d, &wishes[0], &wishes[1])) {
        int received = 0, work = 0;
        for (int i = 0; i < 2; i++) {
            int count = receive(&d[i], wishes, buffer, slept);
            received = received > count ? received : count;
            work += count + deliver(&d[i]);
        }
        slept = 0;
        if (received == ROUND_PACKETS)
            continue;
        if (work) {
            slept = 1;
            nanosleep(&(struct timespec){0, TICK_NS}, NULL);
        } else {
            uint64_t one = next_due(&d[0]), other = next_due(&d[1]);
            wait_for(tun, control, one < other ? one : other);
        }
    }
    return 0; /* and the process ends: what is held goes with it */
}
