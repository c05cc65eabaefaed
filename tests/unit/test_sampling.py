"""From counters to samples: differences, and what of them may be believed."""

from typing import TYPE_CHECKING, Any

import pytest

from kvwire.congestion import TcpInfo, parse
from kvwire.congestion.tcp_info import _FIELDS
from kvwire.sampling import Sampler

if TYPE_CHECKING:
    from kvwire._ext.lanes import LaneStats, LinkStats


LANE = ("sent_bytes", "acked_bytes", "unacked_bytes", "stalled_ns", "added_ns")
CODED = ("encoded_bytes", "encode_ns", "coded_plain_bytes", "coded_wire_bytes", "decoded_bytes", "decode_ns")
LINK = ("sent_bytes", "acked_bytes", "idle_ns", "paced_ns", "hedged_bytes", "resent_bytes", *CODED)
"""The counters that a sample is made from."""


def info(**fields: int) -> bytes:
    """What the kernel would say of a connection."""
    return _FIELDS.pack(*TcpInfo(**fields))


def lane(number: int = 0, incarnation: int = 1, **more: Any) -> "LaneStats":
    stats: dict[str, Any] = dict.fromkeys(LANE, 0)
    return stats | {"lane": number, "incarnation": incarnation, "tcp_info": info()} | more  # type: ignore[return-value]


def link(now_ns: int, **more: Any) -> "LinkStats":
    stats: dict[str, Any] = dict.fromkeys(LINK, 0)
    return stats | {"now_ns": now_ns, "queued_bytes": (0, 0, 0), "oldest_ns": (0, 0, 0)} | more  # type: ignore[return-value]


SECOND = 1_000_000_000


def test_the_first_look_has_nothing_to_compare_with() -> None:
    assert Sampler().take([lane()], link(SECOND), {}) is None


def test_differences() -> None:
    sampler = Sampler()
    sampler.take([lane(acked_bytes=1000, tcp_info=info(bytes_sent=1500, total_retrans=3))], link(SECOND), {})
    now = lane(
        acked_bytes=5000,
        sent_bytes=6000,
        added_ns=SECOND // 2,
        tcp_info=info(
            bytes_sent=8500, bytes_retrans=500, total_retrans=7, dsack_dups=1, rtt_us=40_000, min_rtt_us=38_000
        ),
    )
    sample = sampler.take([now], link(3 * SECOND, acked_bytes=4000, idle_ns=SECOND, queued_bytes=(1, 2, 3)), {0: "bbr"})
    assert sample is not None
    assert sample.interval_s == 2.0
    assert sample.lanes[0].landed_bytes == 4000
    assert sample.lanes[0].congestion == "bbr"
    assert sample.lanes[0].age_s == 2.5
    assert (sample.wire_bytes, sample.retransmitted_bytes, sample.retransmitted_segments) == (7000, 500, 4)
    assert (sample.rtt_s, sample.lanes[0].min_rtt_s) == (0.04, 0.038)
    assert sample.queued_bytes == (1, 2, 3)
    assert sample.idle_s == 1.0
    assert sample.application_limited


def test_what_a_lane_says_stands_where_it_belongs() -> None:
    """Differences of counters, and the state that holds now; all of them different."""
    sampler = Sampler()
    counted = {name: 1000 * number for number, name in enumerate(TcpInfo._fields, 1)}
    before = lane(3, 2, sent_bytes=7, acked_bytes=8, unacked_bytes=9, stalled_ns=0, tcp_info=info(**counted))
    sampler.take([before], link(SECOND), {})
    more = {name: value + 10 * number for number, (name, value) in enumerate(counted.items(), 1)}
    now = lane(
        3,
        2,
        sent_bytes=107,
        acked_bytes=58,
        unacked_bytes=5,
        stalled_ns=30 * SECOND,
        added_ns=SECOND,
        tcp_info=info(**more),
    )
    sample = sampler.take([now], link(2 * SECOND), {3: "bbr"})
    assert sample is not None
    did = {name: more[name] - counted[name] for name in counted}
    assert sample.lanes[0]._asdict() == {
        "lane": 3,
        "incarnation": 2,
        "congestion": "bbr",
        "age_s": 1.0,
        "sent_bytes": 100,
        "landed_bytes": 50,
        "delivered_bytes": did["bytes_acked"],
        "retransmitted_bytes": did["bytes_retrans"],
        "wire_bytes": did["bytes_sent"],
        "segments": did["data_segs_out"],
        "retransmitted_segments": did["total_retrans"],
        "spurious_segments": did["dsack_dups"],
        "delivered_segments": did["delivered"],
        "marked_segments": did["delivered_ce"],
        "timeouts": did["total_rto"],
        "rtt_s": more["rtt_us"] / 1e6,
        "min_rtt_s": more["min_rtt_us"] / 1e6,
        "inflight_bytes": more["unacked"] * more["snd_mss"],
        "unsent_bytes": more["notsent_bytes"],
        "unacked_bytes": 5,
        "stalled_s": 30.0,
        "silent_s": more["last_ack_recv_ms"] / 1e3,
        "busy_s": did["busy_us"] / 1e6,
        "receiver_limited_s": did["rwnd_limited_us"] / 1e6,
        "buffer_limited_s": did["sndbuf_limited_us"] / 1e6,
    }


def test_counters_of_32_bits_begin_anew() -> None:
    counters = ("data_segs_out", "total_retrans", "dsack_dups", "delivered", "delivered_ce")
    sampler = Sampler()
    sampler.take([lane(tcp_info=info(**dict.fromkeys(counters, 0xFFFFFFF0)))], link(SECOND), {})
    sample = sampler.take([lane(tcp_info=info(**dict.fromkeys(counters, 9)))], link(2 * SECOND), {})
    assert sample is not None
    assert (sample.segments, sample.retransmitted_segments, sample.spurious_segments) == (25, 25, 25)
    assert (sample.delivered_segments, sample.marked_segments) == (25, 25)


def test_another_incarnation_of_a_lane_begins_at_nothing() -> None:
    sampler = Sampler()
    sampler.take([lane(tcp_info=info(bytes_sent=9000))], link(SECOND), {})
    sample = sampler.take([lane(incarnation=2, tcp_info=info(bytes_sent=100))], link(2 * SECOND), {})
    assert sample is not None
    assert sample.wire_bytes == 100


def test_after_a_pause_differences_begin_anew() -> None:
    sampler = Sampler()
    sampler.take([lane(acked_bytes=5, tcp_info=info(bytes_sent=9))], link(SECOND, acked_bytes=5), {})
    sampler.begin(link(100 * SECOND, acked_bytes=5))
    looked = [lane(acked_bytes=7, tcp_info=info(bytes_sent=1000)), lane(1, acked_bytes=2)]
    assert sampler.take(looked, link(100 * SECOND + 9, acked_bytes=9), {}, resumed=True) is None
    now = [lane(acked_bytes=15, tcp_info=info(bytes_sent=1010)), lane(1, acked_bytes=4)]
    sample = sampler.take(now, link(101 * SECOND, acked_bytes=19), {})
    assert sample is not None
    assert sample.interval_s == 1.0
    assert sample.landed_bytes == 14, "what has landed before the first look is not lost"
    assert [it.landed_bytes for it in sample.lanes] == [10, 4]
    assert sample.wire_bytes == 10, "and what the kernel counted in the pause is left out"


def test_what_came_coded_in_a_pause_is_not_lost() -> None:
    """A link that only receives is not looked at. What leaves coded leaves while it is."""
    sampler = Sampler()
    sampler.begin(link(SECOND, decoded_bytes=1000, decode_ns=SECOND, encoded_bytes=7, encode_ns=5))
    sampler.take([lane()], link(2 * SECOND, decoded_bytes=3000, decode_ns=SECOND), {}, resumed=True)
    last = {"coded_plain_bytes": 600, "coded_wire_bytes": 400, "sent_bytes": 800, "acked_bytes": 1000}
    now = link(3 * SECOND, decoded_bytes=4000, decode_ns=2 * SECOND, encoded_bytes=707, encode_ns=SECOND + 5, **last)
    sample = sampler.take([lane()], now, {})
    assert sample is not None
    assert (sample.decoded_bytes, sample.decode_s) == (4000, 2.0)
    assert (sample.encoded_bytes, sample.encode_s) == (700, 1.0)
    assert (sample.coded_plain_bytes, sample.coded_wire_bytes) == (600, 400)
    assert sample.wire_share == 0.8
    later = sampler.take([lane()], now | {"now_ns": 4 * SECOND}, {})
    assert later is not None
    assert (later.decoded_bytes, later.wire_share) == (0, 1.0)


def test_the_rtt_is_that_of_what_is_in_flight() -> None:
    """A lane that carries nothing has an RTT from some time ago."""
    sampler = Sampler()
    lanes = [
        lane(0, tcp_info=info(rtt_us=500_000, min_rtt_us=39_000)),
        lane(1, tcp_info=info(rtt_us=40_000, unacked=100, snd_mss=1448, min_rtt_us=1 << 32 - 1)),
    ]
    sampler.take(lanes, link(SECOND), {})
    sample = sampler.take(lanes, link(2 * SECOND), {})
    assert sample is not None
    assert sample.rtt_s == pytest.approx(0.04, rel=0.01)
    assert sample.lanes[1].min_rtt_s == 0.0, "the kernel's word for `none measured` is no RTT"


def test_the_smallest_rtt_is_a_smoothed_one_and_is_remembered_for_some_minutes() -> None:
    """A segment that overtook all others, where a path reorders, is not the path."""
    sampler = Sampler()

    def look(second: int, rtt_ms: float) -> float:
        lanes = [lane(0, tcp_info=info(rtt_us=int(rtt_ms * 1000), min_rtt_us=100))]
        sample = sampler.take(lanes, link(second * SECOND), {})
        return sample.min_rtt_s if sample else 0.0

    assert look(1, 40) == 0.0, "nothing to compare with"
    assert look(2, 70) == 0.04
    assert look(140, 70) == 0.04
    assert look(160, 80) == 0.04, "of the time before"
    assert look(311, 80) == 0.08, "forgotten: the path is longer now"
    assert look(312, 60) == 0.06
    assert look(600, 0) == 0.06, "a kernel that tells nothing takes nothing back"


def test_the_smallest_rtt_is_not_that_of_a_single_lane() -> None:
    sampler = Sampler()
    lanes = [lane(number, tcp_info=info(rtt_us=rtt_us)) for number, rtt_us in enumerate((9_000, 40_000, 41_000))]
    sampler.take(lanes, link(SECOND), {})
    sample = sampler.take(lanes, link(2 * SECOND), {})
    assert sample is not None
    assert sample.min_rtt_s == 0.04


@pytest.mark.parametrize(
    ("stalled_s", "heard_ms", "unacked", "silent_s"),
    [
        (2.0, 1900, 5, 1.9),  # nothing has come since it began to wait
        (2.0, 50, 5, 0.0500),  # its kernel is there: the peer is slow
        (0.3, 60_000, 5, 0.3),  # it was idle for a minute before
        (2.0, 1900, 0, 0.0),  # its kernel has everything: the peer is slow
    ],
)
def test_a_path_that_is_gone_is_not_a_peer_that_is_slow(
    stalled_s: float, heard_ms: int, unacked: int, silent_s: float
) -> None:
    sampler = Sampler()
    waits = lane(stalled_ns=int(stalled_s * 1e9), tcp_info=info(unacked=unacked, last_ack_recv_ms=heard_ms))
    sampler.take([waits], link(SECOND), {})
    sample = sampler.take([waits], link(2 * SECOND), {})
    assert sample is not None
    assert sample.lanes[0].silent_s == pytest.approx(silent_s)


@pytest.mark.parametrize("length", [0, 1, 104, 192, 232, 280])
def test_tcp_info_of_any_length(length: int) -> None:
    """Kernels know more and more of a connection; a sandbox may say nothing."""
    whole = info(snd_mss=1448, rtt_us=40_000, total_rto=9) + bytes(64)
    found = parse(whole[:length])
    assert found.rtt_us == (40_000 if length >= 72 else 0)
    assert found.total_rto == (9 if length >= 242 else 0)
