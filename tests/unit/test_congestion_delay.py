"""delay: at a bottleneck, alone, beside plain TCP and beside its own kind; and what single samples must not do."""

from typing import Any

import pytest

from kvwire.congestion import Delay, LaneSample, PathSample
from kvwire.congestion.delay import Mode
from kvwire.errors import ConfigError
from tests.unit.bottleneck import Bottleneck, Sender, constant
from tests.unit.path_samples import lane_sample, path_sample
from tests.unit.tcp_flows import Bbr, Cubic, Flow

GBIT = 1e9
BAND_S = 0.025

either = pytest.mark.parametrize("flow", [Cubic, Bbr])


def alone(flow: type[Flow], rates: list[tuple[float, float]], seconds: float, rtt_s: float, **known: Any) -> Bottleneck:
    """Eight lanes, and a queue of one bandwidth-delay product of the first rate."""
    sender = Sender([flow() for _ in range(8)], Delay())
    return Bottleneck([sender], rates, rtt_s=rtt_s, queue_bytes=rates[0][1] * rtt_s / 8, **known).run(seconds)


@either
@pytest.mark.parametrize("rtt_s", [0.04, 0.08])
def test_it_fills_the_link_and_not_the_queue(flow: type[Flow], rtt_s: float) -> None:
    path = alone(flow, [(0.0, GBIT)], 25.0, rtt_s)
    assert path.share(2.0, 25.0) >= 0.9
    assert path.queue_p95_s(2.0, 25.0) <= BAND_S
    plain = Bottleneck([Sender([flow() for _ in range(8)])], [(0.0, GBIT)], rtt_s=rtt_s, queue_bytes=GBIT * rtt_s / 8)
    assert plain.run(25.0).queue_p95_s(2.0, 25.0) >= 0.9 * rtt_s


@pytest.mark.parametrize("rate_bps", [1e7, 1e8, 1e10])
def test_it_does_so_at_any_rate(rate_bps: float) -> None:
    path = alone(Cubic, [(0.0, rate_bps)], 20.0, 0.04)
    assert path.share(3.0, 20.0) >= 0.9
    assert path.queue_p95_s(3.0, 20.0) <= BAND_S


@pytest.mark.parametrize("seed", range(3))
def test_random_loss_and_jitter_do_not_make_it_yield(seed: int) -> None:
    path = alone(Bbr, [(0.0, GBIT)], 20.0, 0.04, loss=0.001, jitter_s=0.005, seed=seed)
    assert path.share(2.0, 20.0) >= 0.85
    assert path.queue_p95_s(2.0, 20.0) <= BAND_S


def test_it_finds_the_rate_as_fast_as_slow_start() -> None:
    path = alone(Cubic, [(0.0, GBIT)], 2.0, 0.04)
    assert path.share(1.0, 2.0) >= 0.95


@either
@pytest.mark.parametrize("rtt_s", [0.04, 0.08])
def test_it_follows_a_step_down_and_back_up(flow: type[Flow], rtt_s: float) -> None:
    path = alone(flow, [(0.0, GBIT), (8.0, 0.2 * GBIT), (16.0, GBIT)], 22.0, rtt_s)
    assert path.queue_p95_s(12.0, 16.0) <= BAND_S
    assert path.share(12.0, 16.0) >= 0.85
    assert path.share(19.0, 20.0) >= 0.95, "four seconds later"


# --- beside others --------------------------------------------------------------------------------------------


@either
@pytest.mark.parametrize("queue_s", [0.02, 0.06])
def test_beside_two_cubic_flows_it_gets_half_a_fair_share_or_more(flow: type[Flow], queue_s: float) -> None:
    ours = Sender([flow() for _ in range(4)], Delay())
    others = [Sender([Cubic()], starts=5.0), Sender([Cubic()], starts=6.0)]
    path = Bottleneck([ours, *others], [(0.0, GBIT)], rtt_s=0.04, queue_bytes=GBIT * queue_s / 8).run(45.0)
    assert path.share(15.0, 45.0) >= 1 / 6
    assert path.share(15.0, 45.0, 1) + path.share(15.0, 45.0, 2) >= 0.1, "and leaves them something"


def test_it_lifts_the_cap_beside_a_queue_of_others_and_takes_it_back_when_they_are_gone() -> None:
    controller = Delay()
    others = [Sender([Cubic() for _ in range(8)], starts=5.0, ends=30.0)]
    ours = Sender([Cubic() for _ in range(4)], controller)
    path = Bottleneck([ours, *others], [(0.0, GBIT)], rtt_s=0.04, queue_bytes=GBIT * 0.06 / 8).run(45.0)
    assert Mode.COMPETE in modes(path, 10.0, 30.0)
    assert set(modes(path, 43.0, 45.0)) <= {Mode.STEER, Mode.DRAIN}
    assert path.queue_p95_s(43.0, 45.0) <= BAND_S


def modes(path: Bottleneck, start: float, end: float) -> list[Mode]:
    """Told by the caps: none while it competes."""
    decided = path.senders[0].decided
    return [Mode.COMPETE if d.pace_bps is None else Mode.STEER for now, d in decided if start < now <= end]


def test_constant_cross_traffic_takes_its_part_and_no_queue_grows() -> None:
    ours = Sender([Cubic() for _ in range(8)], Delay())
    cross = constant(0.4 * GBIT, starts=5.0, ends=20.0)
    path = Bottleneck([ours, cross], [(0.0, GBIT)], rtt_s=0.04, queue_bytes=5e6).run(28.0)
    assert path.share(8.0, 20.0) >= 0.9 * 0.6
    assert path.queue_p95_s(8.0, 20.0) <= BAND_S
    assert path.share(24.0, 28.0) >= 0.9


@either
def test_who_comes_late_does_not_inherit_the_queue(flow: type[Flow]) -> None:
    early, late = Sender([flow() for _ in range(4)], Delay()), Sender([flow() for _ in range(4)], Delay(), starts=5.0)
    path = Bottleneck([early, late], [(0.0, GBIT)], rtt_s=0.04, queue_bytes=5e6).run(45.0)
    assert path.queue_p95_s(20.0, 45.0) <= BAND_S
    assert path.share(20.0, 45.0) + path.share(20.0, 45.0, 1) >= 0.9
    shares = [path.share(start, start + 15.0, 1) for start in (5.0, 30.0)]
    assert shares[1] > shares[0], "and its share grows"


# --- single samples -------------------------------------------------------------------------------------------


def lanes(rate_bps: float, rtts_s: list[float], tick_s: float = 0.02) -> tuple[LaneSample, ...]:
    nbytes = int(rate_bps * tick_s / 8) // len(rtts_s)
    inflight = int(rate_bps * 0.055 / 8) // len(rtts_s)
    return tuple(
        lane_sample(number, rtt_s=rtt_s, min_rtt_s=0.04, delivered_bytes=nbytes, inflight_bytes=inflight)
        for number, rtt_s in enumerate(rtts_s)
    )


def steered(samples: list[PathSample]) -> list[float]:
    """Paces in Mbit/s, after a second of 500 Mbit/s with a queue of 15 ms."""
    controller = Delay()
    paces = []
    steady = [path_sample(0.02, lanes(5e8, [0.055] * 8))] * 50
    for number, sample in enumerate([path_sample(0.02, lanes(5e8, [0.04] * 8)), *steady, *samples]):
        controller.on_sample(0.02 * number, sample)
        paces.append((controller.decide(0.02 * number).pace_bps or 0.0) / 1e6)
    return paces[50:]


def test_one_lane_in_trouble_does_not_move_it() -> None:
    before, *after = steered([path_sample(0.02, lanes(5e8, [0.055] * 7 + [0.4]))] * 5)
    assert before == pytest.approx(500, rel=0.02)
    assert after == pytest.approx([before] * 5, rel=0.01)


def test_without_acknowledgements_or_with_an_idle_application_it_holds() -> None:
    nothing = path_sample(0.02, lanes(0.0, [0.055] * 8))
    idle = path_sample(0.02, lanes(5e7, [0.055] * 8), idle_s=0.01)
    for sample in (nothing, idle):
        before, *after = steered([sample] * 100)
        assert after == [before] * 100


def test_a_pipe_that_tcp_lets_run_empty_is_no_smaller_path() -> None:
    """BBR's ProbeRTT: four segments a lane for 200 ms."""
    probing = tuple(
        lane_sample(number, rtt_s=0.05, min_rtt_s=0.04, delivered_bytes=5000, inflight_bytes=4 * 1448)
        for number in range(8)
    )
    before, *after = steered([path_sample(0.02, probing)] * 10)
    assert after == [before] * 10


@pytest.mark.parametrize("bad", [{"target_s": 0.0}, {"period_s": 0.1}, {"floor_bps": 0.0}])
def test_a_parameter_out_of_its_range_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Delay(**bad)
