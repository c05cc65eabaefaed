"""What the kernel and an engine count: TCP_INFO of any length, samples of any numbers, and what controllers make of it;
and what an emulated link is told to do."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

from kvwire.congestion import Budget, LaneSample, PathSample, controllers, make_controller, parse
from kvwire.congestion.bounds import check_budget
from kvwire.congestion.delay import Delay
from kvwire.congestion.guarded import Guarded, check_decision
from kvwire.emulate.path import Histogram, Path
from kvwire.errors import ConfigError
from kvwire.sampling import Sampler
from tests.fuzz.pure.reading import Cursor
from tests.unit.path_samples import lane_sample, path_sample

if TYPE_CHECKING:
    from kvwire._ext.lanes import LaneStats, LinkStats

UNDER_TEST = (
    "kvwire.congestion.tcp_info",
    "kvwire.congestion.aimd",
    "kvwire.congestion.delay",
    "kvwire.congestion.budgeted",
    "kvwire.congestion.guarded",
    "kvwire.congestion.samples",
    "kvwire.sampling",
    "kvwire.emulate.path",
)

NAMES = [name if name != "fixed" else "fixed:pace_bps=1e9" for name in controllers()]
MOST_STEPS = 16
COUNTED = ("delivered_bytes", "segments", "retransmitted_segments", "spurious_segments", "inflight_bytes")
MOST_COUNT = 1 << 63
SECONDS = (0.0, 1e-6, 0.001, 0.02, 0.1, 1.0, 30.0, 1e6)


def fuzz(data: bytes) -> None:
    cursor = Cursor(data)
    match cursor.byte() % 5:
        case 0:
            _tcp_info(cursor.rest())
        case 1:
            _sampler(cursor)
        case 2:
            _controller(cursor)
        case 3:
            _path(cursor)
        case _:
            _budget(cursor)


def _tcp_info(raw: bytes) -> None:
    info = parse(raw)
    assert all(0 <= value < 1 << 64 for value in info)
    assert parse(raw + b"\xff" * 64 if len(raw) >= 244 else raw + bytes(64)) == info, "more than a kernel tells counts"
    assert any(info) <= any(raw)


def _sampler(cursor: Cursor) -> None:
    """From raw counters to what a controller is told, tick by tick."""
    sampler, controller = Sampler(), make_controller(cursor.choose(NAMES))
    now_ns = 0
    for _ in range(MOST_STEPS):
        if not cursor:
            return
        now_ns += cursor.word() * 1000
        lanes = [_stats(cursor, number) for number in range(cursor.byte() % 4)]
        link: dict[str, Any] = {
            "now_ns": now_ns,
            **{name: cursor.word() for name in ("sent_bytes", "acked_bytes", "idle_ns", "paced_ns", "hedged_bytes")},
            **dict.fromkeys(("resent_bytes", "encoded_bytes", "encode_ns", "decoded_bytes", "decode_ns"), 0),
            "coded_plain_bytes": cursor.byte(),
            "coded_wire_bytes": cursor.byte(),
            "queued_bytes": (0, cursor.byte(), 0),
            "oldest_ns": (0, cursor.word(), 0),
        }
        sample = sampler.take(cast("list[LaneStats]", lanes), cast("LinkStats", link), {0: "cubic"}, cursor.flag())
        if sample is None:
            continue
        assert sample.interval_s > 0
        assert len(sample.lanes) == len(lanes)
        assert 0.0 <= sample.lost_share <= 1.0
        assert math.isfinite(sample.rtt_s)
        assert 0.0 < sample.wire_share <= 1.0
        controller.on_sample(now_ns / 1e9, sample)
        check_decision(controller.decide(now_ns / 1e9))


def _stats(cursor: Cursor, number: int) -> dict[str, Any]:
    names = ("added_ns", "sent_bytes", "acked_bytes", "unacked_bytes", "stalled_ns")
    stats = {name: cursor.word() for name in names}
    raw = bytearray(cursor.choose((0, 104, 232, 248, 280)))
    for _ in range(cursor.byte() % 8):
        at = 4 * cursor.byte()
        raw[at : at + 4] = cursor.take(4) if at + 4 <= len(raw) else raw[at : at + 4]
    return {"lane": number, "incarnation": 1 + cursor.byte() % 2, "tcp_info": bytes(raw), **stats}


def _count(cursor: Cursor) -> int:
    return min(MOST_COUNT, abs(cursor.integer()))


def _seconds(cursor: Cursor) -> float:
    return cursor.choose(SECONDS) if cursor.flag() else cursor.word() / 1e4


def _sample(cursor: Cursor) -> PathSample:
    lanes: tuple[LaneSample, ...] = tuple(
        lane_sample(
            number,
            **{name: _count(cursor) for name in COUNTED},
            rtt_s=_seconds(cursor),
            min_rtt_s=_seconds(cursor),
        )
        for number in range(cursor.byte() % 3)
    )
    return path_sample(_seconds(cursor), lanes, idle_s=_seconds(cursor), paced_s=_seconds(cursor))


def _controller(cursor: Cursor) -> None:
    """No controller raises, or decides on what cannot be; so its guard has nothing to do."""
    guard = Guarded(make_controller(cursor.choose(NAMES)))
    now = cursor.choose(SECONDS)
    for _ in range(MOST_STEPS):
        if not cursor:
            return
        now += _seconds(cursor)
        kind = cursor.byte() % 8
        if kind == 0:
            guard.on_budget(now, Budget(max_bps=1e8, min_bps=1e6, lease_s=1.0))
        elif kind == 1:
            guard.on_lane(now, 1, False, "lost")
            guard.on_landed(now, 1, 0.0, 0.1)
        else:
            guard.on_sample(now, _sample(cursor))
        check_decision(guard.decide(now))
        if guard.fault is not None:
            raise guard.fault


def _budget(cursor: Cursor) -> None:
    lease_s, floor = cursor.number(), cursor.choose((None, cursor.number()))
    try:
        budget = check_budget(cursor.number(), floor, lease_s)
    except ConfigError:
        return
    assert 0 < budget.min_bps <= budget.max_bps <= 1e13
    assert math.isfinite(budget.lease_s)


def _path(cursor: Cursor) -> None:
    """What a link may be told is finite and in bounds; what it counted has quantiles that rise."""
    odds = (cursor.number(), cursor.number())
    sizes = [cursor.choose((None, cursor.integer())) for _ in range(2)]
    try:
        path = Path(
            delay_s=cursor.number(),
            jitter_s=cursor.number(),
            rate_bps=cursor.choose((None, 1e6, cursor.number())),
            queue_bytes=sizes[0],
            loss=cursor.number(),
            burst=cursor.choose((None, odds)),
            reorder=cursor.number(),
            mark_bytes=sizes[1],
        )
    except ValueError:
        pass
    else:
        assert 0 <= path.jitter_s <= path.delay_s <= 60
        assert all(0 <= share <= 1 for share in (path.loss, path.reorder, *(path.burst or ())))
        assert path.rate_bps is None or 1e3 <= path.rate_bps <= 1e12
        assert path.rate_bps is not None or (path.queue_bytes, path.mark_bytes) == (None, None)
    counted = Histogram(tuple(cursor.rest()))
    quantiles = [counted.quantile_s(share / 8) for share in range(9)]
    assert quantiles == sorted(quantiles)
    assert (counted - counted).total == 0


def plant() -> None:
    """A controller whose rate has no floor."""

    def unbounded(self: Delay, bps: float) -> None:
        self._pace_bps = bps

    Delay._set = unbounded  # type: ignore[method-assign]
