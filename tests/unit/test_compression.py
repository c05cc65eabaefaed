"""A link's gauges, what it tells the engine, and what it says to the peer; with a stand-in for the engine."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest

from kvwire import DType, GroupSpec, ModelTag
from kvwire._ext.coding import Gauge
from kvwire.codecs.adaptive import Reason
from kvwire.compression import MOST_GAUGES, CodecRate, Compression
from kvwire.congestion import PathSample
from kvwire.cores import Cores
from tests.unit.telemetry_kit import at_rate

if TYPE_CHECKING:
    from kvwire._ext.lanes import EngineLink, LinkStats

SPEC = GroupSpec.attention("full", range(4), DType.BF16, block_tokens=16, heads=2, head_dim=32)
MODEL = ModelTag("m")
CELL = 65536
COUNTED = [
    f"{of}{what}" for of in ("", "auto_") for what in ("encoded_bytes", "encode_ns", "decoded_bytes", "decode_ns")
]


class Engine:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.told: list[bool] = []
        self.stats = dict.fromkeys(COUNTED, 0)

    def set_affordable(self, on: bool) -> None:
        self.told.append(on)

    def link_stats(self) -> LinkStats:
        return cast("LinkStats", self.stats)


class Spare:
    def idle(self, now: float) -> float:
        return 2.0


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def link(engine: Engine) -> Compression:
    return Compression(cast("EngineLink", engine), 2, cast("Cores", Spare()))


def encoded(engine: Engine, gauge: Gauge, wire: int, cells: int = 1, now_ns: int = 1) -> None:
    """So many cells went through a codec, 1 GB/s, and left so many bytes each."""
    for _ in range(cells):
        gauge.measured(CELL, wire, now_ns)
    engine.stats["auto_encoded_bytes"] += CELL * cells
    engine.stats["auto_encode_ns"] += CELL * cells


def tick(link: Compression, engine: Engine, now: float, sample: PathSample) -> None:
    link.look(now, sample, engine.link_stats())


def test_the_same_gauge_for_the_same_kind(link: Compression) -> None:
    gauge = link.gauge(MODEL, SPEC, 0)
    assert gauge is link.gauge(ModelTag("m"), SPEC, 0)
    others: list[tuple[Any, ...]] = [
        (ModelTag("n"), SPEC, 0),
        (MODEL, replace(SPEC, name="other"), 0),
        (MODEL, SPEC, 1),
        (MODEL, replace(SPEC, dtype=DType.FP16), 0),
    ]
    assert len({id(gauge), *(id(link.gauge(*other)) for other in others)}) == 5


def test_gauges_are_bounded(link: Compression) -> None:
    """Those that were asked for last are kept."""
    found = [link.gauge(MODEL, SPEC, layer) for layer in range(MOST_GAUGES)]
    assert link.gauge(MODEL, SPEC, 0) is found[0]
    more = link.gauge(MODEL, SPEC, MOST_GAUGES)
    assert link.gauge(MODEL, SPEC, 0) is found[0]
    assert link.gauge(MODEL, SPEC, 2) is found[2]
    assert link.gauge(MODEL, SPEC, MOST_GAUGES) is more
    assert len(link._gauges) == MOST_GAUGES
    assert link.gauge(MODEL, SPEC, 1) is not found[1]


def test_what_is_sampled_of_many_kinds_is_bounded(link: Compression, engine: Engine) -> None:
    for layer in range(MOST_GAUGES + 100):
        encoded(engine, link.gauge(MODEL, SPEC, layer), CELL // 2)
        if layer % 1000 == 0:
            tick(link, engine, 2.0 * layer, at_rate(2e8))
    tick(link, engine, 1e6, at_rate(2e8))
    assert len(link._sampled) <= MOST_GAUGES
    assert link.state.ratio == pytest.approx(2.0)


def test_a_link_without_automatic_codecs_tells_nobody_anything(link: Compression, engine: Engine) -> None:
    for number in range(50):
        tick(link, engine, number / 10, at_rate(2e8))
    assert engine.told == []
    assert (link.state.on, link.state.reason) == (False, Reason.UNUSED)


def test_a_slow_link_is_coded_until_the_peer_says_that_it_is_slow(link: Compression, engine: Engine) -> None:
    encoded(engine, link.gauge(MODEL, SPEC, 0), CELL // 2, cells=8)
    for number in range(20):
        tick(link, engine, number / 10, at_rate(2e8))
    assert engine.told == [True]
    state = link.state
    assert (state.on, state.reason) == (True, Reason.WORTH_IT)
    assert state.ratio == pytest.approx(2.0)
    assert state.encode_Bps == pytest.approx(1e9)
    assert 8 * state.link_Bps == pytest.approx(2e8, rel=0.05)
    link.peer_decodes(int(1e7))
    link.peer_decodes(0)
    for number in range(20, 90):
        tick(link, engine, number / 10, at_rate(2e8))
    assert engine.told == [True, False]
    assert (link.state.reason, link.state.peer_decode_Bps) == (Reason.PEER_SLOWER, 1e7)


def test_the_ratio_is_that_of_what_is_sent_now(link: Compression, engine: Engine) -> None:
    """Of each kind as many cells as there were; kinds of which none come any more do not count."""
    one, other = link.gauge(MODEL, SPEC, 0), link.gauge(MODEL, SPEC, 1)
    encoded(engine, one, CELL // 2, cells=10)
    encoded(engine, other, CELL, cells=30)
    tick(link, engine, 0.0, at_rate(2e8))
    assert link.state.ratio == pytest.approx(40 / 35)
    encoded(engine, one, CELL // 2, cells=1)
    tick(link, engine, 0.5, at_rate(2e8))
    assert link.state.ratio == pytest.approx(40 / 35), "gauges are read once a second"
    tick(link, engine, 1.1, at_rate(2e8))
    assert link.state.ratio == pytest.approx(2.0)


def test_rates_follow_what_comes_and_need_some_cells() -> None:
    rate = CodecRate()
    assert rate.Bps == 0.0
    rate.add(CELL, CELL)
    assert rate.Bps == pytest.approx(1e9)
    rate.add(2 * CELL, 5 * CELL)
    assert rate.Bps == pytest.approx(1e9), "one cell more may have met anything"
    for number in range(1, 40):
        rate.add(16 * CELL * number, 4 * 16 * CELL * number)
    assert rate.Bps == pytest.approx(0.25e9, rel=0.01)


def test_codecs_by_name_do_not_spoil_what_is_known_of_automatic_ones(link: Compression, engine: Engine) -> None:
    """A slow one of the application's, and many of its cells."""
    encoded(engine, link.gauge(MODEL, SPEC, 0), CELL // 2, cells=8)
    engine.stats |= {"encoded_bytes": 10**9, "encode_ns": 10**12, "decoded_bytes": 10**9, "decode_ns": 10**12}
    for number in range(20):
        tick(link, engine, number / 10, at_rate(2e8))
    assert engine.told == [True]
    assert link.state.encode_Bps == pytest.approx(1e9)
    assert link.state.decode_Bps == link.decode_Bps == 0.0


def test_what_this_node_decodes_is_told_with_grants(
    link: Compression, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert link.decode_Bps == 0, "nothing has come yet"
    engine.stats |= {"auto_decoded_bytes": 10**9, "auto_decode_ns": 10**9 // 2}
    assert link.decode_Bps == int(2 / (1 / 2e9 + 1 / 2.5e9)), "two workers, two idle cores"
    monkeypatch.setattr(Spare, "idle", lambda *_: 0.0)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 2.0)
    engine.stats |= {"auto_decoded_bytes": 3 * 10**9, "auto_decode_ns": 3 * 10**9 // 2}
    assert 1 < link.decode_Bps < int(1 / (1 / 2e9 + 1 / 2.5e9)), "no core is idle but those that decode"
    monkeypatch.setattr(time, "monotonic", lambda: now + 4.0)
    assert link.decode_Bps == 1, "none at all, which is not the same as not known"
