"""A wide area link between two TUN devices: the loop, and how its control socket is spoken to.

It imports nothing of kvwire and is loaded by its file name alone into the process that runs the loop (tun.py).
"""

import os

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

cdef extern from "emulator_impl.h" nogil:
    enum:
        KV_BUCKETS
        KV_PORTS_BYTES
    ctypedef struct kv_way_t:
        uint64_t delay_ns, jitter_ns, queue_bytes, mark_bytes
        double rate_bps, loss, into_bad, out_of_bad, reorder
    ctypedef struct kv_wishes_t:
        kv_way_t ways[2]
        uint32_t black_hole, some_ports
        uint8_t *ports
    ctypedef struct kv_counts_t:
        uint64_t segments_in, bytes_in, segments_out, bytes_out
        uint64_t lost, overflowed, black_holed, failed, held, marked, reordered
        uint64_t queue_bytes, queue_max_bytes, late_ns, late_max_ns
        uint64_t *queueing
        uint64_t *lateness
    int kv_emulate(const int *tun, int control, uint64_t seed)

REPLY_BYTES = 2 * sizeof(kv_counts_t)


cdef void fill(kv_way_t *way, object path) except *:
    way.delay_ns = <uint64_t> (path.delay_s * 1e9)
    way.jitter_ns = <uint64_t> (path.jitter_s * 1e9)
    way.queue_bytes = path.queue_bytes or 0
    way.mark_bytes = path.mark_bytes or 0
    way.rate_bps = path.rate_bps or 0.0
    way.loss = path.loss
    way.into_bad, way.out_of_bad = path.burst or (0.0, 0.0)
    way.reorder = path.reorder


def wishes(object wished):
    """A Wishes, as the control socket takes it."""
    cdef kv_wishes_t w
    memset(&w, 0, sizeof(w))
    fill(&w.ways[0], wished.there)
    fill(&w.ways[1], wished.back)
    w.black_hole = wished.black_hole
    w.some_ports = len(wished.ports) > 0
    for port in wished.ports:
        w.ports[<uint32_t> port // 8] |= <uint8_t> (1 << (<uint32_t> port % 8))
    return (<char *> &w)[:sizeof(w)]


cdef dict counts_of(kv_counts_t *c):
    return {
        "segments_in": c.segments_in, "bytes_in": c.bytes_in,
        "segments_out": c.segments_out, "bytes_out": c.bytes_out,
        "lost": c.lost, "overflowed": c.overflowed, "black_holed": c.black_holed, "failed": c.failed,
        "held": c.held, "marked": c.marked, "reordered": c.reordered,
        "queue_bytes": c.queue_bytes, "queue_max_bytes": c.queue_max_bytes,
        "late_s": c.late_ns / 1e9, "late_max_s": c.late_max_ns / 1e9,
        "queueing": tuple([c.queueing[i] for i in range(KV_BUCKETS)]),
        "lateness": tuple([c.lateness[i] for i in range(KV_BUCKETS)]),
    }


def counts(bytes reply not None):
    """What the control socket answers, each way: the fields of Counters. ValueError for another length."""
    cdef kv_counts_t c[2]
    if len(reply) != sizeof(c):
        raise ValueError(f"{len(reply)} bytes; expected {sizeof(c)}")
    memcpy(c, <char *> reply, sizeof(c))
    return counts_of(&c[0]), counts_of(&c[1])


def emulate(int tun_a, int tun_b, int control, uint64_t seed):
    """Joins the devices until the other end of `control` is closed. No Python meanwhile; memory is left to exit."""
    cdef int tun[2]
    cdef int fault
    tun[0], tun[1] = tun_a, tun_b
    with nogil:
        fault = kv_emulate(tun, control, seed)
    if fault:
        raise OSError(fault, os.strerror(fault))
