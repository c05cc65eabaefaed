/* A wide area link between two TUN devices: what is asked of it, what it counts, and its loop. */

#ifndef KVWIRE_EMULATOR_IMPL_H
#define KVWIRE_EMULATOR_IMPL_H

#include <stdint.h>

#define KV_BUCKETS 368    /* of a histogram: 16 to the octave, in microseconds, up to 67 s */
#define KV_PORTS_BYTES 8192  /* a bit for each port */

/* One direction. 0 means: no rate, no bound on the queue, no marks. */
typedef struct {
    uint64_t delay_ns, jitter_ns, queue_bytes, mark_bytes;
    double rate_bps, loss, into_bad, out_of_bad, reorder;
} kv_way_t;

typedef struct {
    kv_way_t ways[2];       /* from a to b, from b to a */
    uint32_t black_hole;    /* nothing passes */
    uint32_t some_ports;    /* nothing passes of connections whose port on a is set in `ports` */
    uint8_t ports[KV_PORTS_BYTES];
} kv_wishes_t;

/* One direction, since the start, in packets and bytes of IP on the wire: a super-packet counts as its segments.
 * in = out + lost + overflowed + black_holed + failed + held. */
typedef struct {
    uint64_t segments_in, bytes_in, segments_out, bytes_out;
    uint64_t lost, overflowed, black_holed, failed, held, marked, reordered;
    uint64_t queue_bytes, queue_max_bytes;      /* now, and the most since the reply before */
    uint64_t late_ns, late_max_ns;              /* sum over lateness[], the most */
    uint64_t queueing[KV_BUCKETS];              /* wait in the queue */
    uint64_t lateness[KV_BUCKETS];              /* behind the time at which the link should have delivered */
} kv_counts_t;

/* Joins two TUN devices (IFF_NO_PI, IFF_VNET_HDR, not blocking) until the other end of `control` is closed. On that
 * sequenced-packet socket come kv_wishes_t; each is answered with two kv_counts_t once it holds. 0, or an errno. */
int kv_emulate(const int tun[2], int control, uint64_t seed);

#endif
