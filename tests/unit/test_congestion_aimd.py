"""aimd: by single samples, and at a bottleneck."""

from itertools import pairwise
from typing import Any

import pytest

from kvwire.congestion import Aimd, PathSample
from kvwire.errors import ConfigError
from tests.unit.bottleneck import Bottleneck, Sender
from tests.unit.path_samples import lane_sample, path_sample
from tests.unit.tcp_flows import Bbr, Cubic, Flow

RTT_S, TICK_S = 0.04, 0.02
GBIT = 1e9
MBIT = 1e6


def tick(rate_bps: float, *, lost: int = 0, segments: int | None = None, **known: Any) -> PathSample:
    """20 ms of a path of 40 ms at a rate; of its segments some were lost."""
    nbytes = int(rate_bps * TICK_S / 8)
    counts = {"segments": nbytes // 1448 if segments is None else segments, "retransmitted_segments": lost}
    lanes = (lane_sample(0, delivered_bytes=nbytes, rtt_s=RTT_S, min_rtt_s=RTT_S),) * 4
    return path_sample(TICK_S, lanes, delivered_bytes=nbytes, **counts, **known)


def fed(controller: Aimd, *samples: PathSample, start: float = 0.0) -> list[float | None]:
    """Rates after each sample, in Mbit/s."""
    rates = []
    for number, sample in enumerate(samples, 1):
        now = start + number * TICK_S
        controller.on_sample(now, sample)
        pace = controller.decide(now).pace_bps
        rates.append(None if pace is None else round(pace / MBIT, 3))
    return rates


def test_there_is_no_cap_before_the_first_loss_and_then_seven_tenths_of_the_goodput() -> None:
    rates = fed(Aimd(), *[tick(800 * MBIT)] * 20, tick(800 * MBIT, lost=50))
    assert rates[:20] == [None] * 20
    assert rates[20] == pytest.approx(560, rel=0.01)


def test_it_decreases_once_in_two_rtts_and_grows_by_two_segments_per_lane_and_rtt() -> None:
    controller = Aimd()
    losing = tick(560 * MBIT, lost=50)
    rates = fed(controller, *[tick(800 * MBIT)] * 20, *[losing] * 8)
    assert rates[-8:] == pytest.approx([560] * 4 + [392] * 4, rel=0.01)
    before, *later = fed(controller, *[tick(390 * MBIT)] * 101, start=28 * TICK_S)
    assert before is not None
    assert later[-1] == pytest.approx(before + 50 * 4 * 2 * 8 * 1448 / RTT_S / MBIT, rel=0.01)


def test_the_kernel_alone_or_an_idle_application_lets_no_cap_grow() -> None:
    idle, slow = tick(500 * MBIT, idle_s=0.1 * TICK_S), tick(200 * MBIT)  # less than half of the cap
    for sample in (idle, slow):
        controller = Aimd()
        capped = fed(controller, *[tick(800 * MBIT)] * 20, tick(800 * MBIT, lost=50), *[slow] * 16)[-1]
        rates = fed(controller, *[sample] * 100, start=37 * TICK_S)
        assert rates[-1] == capped


@pytest.mark.parametrize(("segments", "lost"), [(10, 1), (10, 10), (100, 10), (2000, 10), (5000, 25)])
def test_what_is_within_half_a_percent_or_too_few_to_say_changes_nothing(segments: int, lost: int) -> None:
    rates = fed(Aimd(), *[tick(800 * MBIT, segments=0)] * 20, tick(800 * MBIT, segments=segments, lost=lost))
    assert rates[-1] is None


@pytest.mark.parametrize(("segments", "lost"), [(20, 11), (100, 11), (2000, 11), (5000, 26)])
def test_what_is_beyond_is_answered_at_once(segments: int, lost: int) -> None:
    samples = [tick(800 * MBIT, segments=0)] * 21 + [tick(800 * MBIT, segments=segments, lost=lost)]
    assert fed(Aimd(), *samples)[-1] == pytest.approx(560, rel=0.01)


def test_a_retransmission_that_the_peer_had_already_is_no_loss() -> None:
    known = {"spurious_segments": 50}
    assert fed(Aimd(), *[tick(800 * MBIT)] * 20, tick(800 * MBIT, lost=50, **known))[-1] is None


def test_a_decrease_is_undone_when_the_peer_says_afterwards_that_it_had_all_of_them() -> None:
    start = [tick(800 * MBIT)] * 20
    for said, undone in ((50, True), (5, False)):
        late = tick(560 * MBIT, spurious_segments=said)
        rates = fed(Aimd(), *start, tick(800 * MBIT, lost=50), tick(560 * MBIT), late)
        assert rates[-2] == pytest.approx(560, rel=0.01)
        assert (rates[-1] is None) == undone


def test_it_stops_falling_at_the_floor() -> None:
    controller = Aimd(floor_bps=50 * MBIT)
    assert fed(controller, *[tick(800 * MBIT)] * 9, *[tick(100 * MBIT, lost=50)] * 100)[-1] == 50


@pytest.mark.parametrize("bad", [{"loss": 0.0}, {"decrease": 1.0}, {"segments": -1.0}, {"floor_bps": float("nan")}])
def test_a_parameter_out_of_its_range_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Aimd(**bad)


# --- at a bottleneck ------------------------------------------------------------------------------------------


def link(flows: list[Flow], rates: list[tuple[float, float]], seconds: float, **known: Any) -> Bottleneck:
    sender = Sender(flows, Aimd())
    return Bottleneck([sender], rates, rtt_s=RTT_S, queue_bytes=GBIT * RTT_S / 8, **known).run(seconds)


def decreases(path: Bottleneck) -> list[float]:
    found, before = [], float("inf")
    for now, decision in path.senders[0].decided:
        pace = decision.pace_bps if decision.pace_bps is not None else float("inf")
        if pace < before:
            found.append(now)
        before = pace
    return found


@pytest.mark.parametrize("flow", [Cubic, Bbr])
def test_it_backs_off_within_two_rtts_of_an_overflow(flow: type[Flow]) -> None:
    """The RTT of a full queue: what is dropped is missed when what waited before it has arrived."""
    path = link([flow() for _ in range(8)], [(0.0, GBIT)], 15.0)
    found = decreases(path)
    full_rtt_s = 2 * RTT_S
    overflows = [path.dropped_at[0], *(later for at, later in pairwise(path.dropped_at) if later - at > 1.0)]
    for began in overflows:
        assert any(began < at <= began + 2 * full_rtt_s for at in found)
    assert all(later - before >= RTT_S for before, later in pairwise(found))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("loss", [0.0001, 0.001])
def test_random_loss_of_a_long_path_is_no_congestion(loss: float, seed: int) -> None:
    path = link([Cubic() for _ in range(16)], [(0.0, GBIT)], 30.0, loss=loss, seed=seed)
    assert decreases(path) == []


@pytest.mark.parametrize(("flow", "least"), [(Cubic, 0.85), (Bbr, 0.8)])
def test_it_keeps_most_of_a_link(flow: type[Flow], least: float) -> None:
    path = link([flow() for _ in range(8)], [(0.0, GBIT)], 15.0)
    assert path.share(5.0, 15.0) >= least


def test_it_comes_back_within_five_seconds_of_a_step_up() -> None:
    path = link([Cubic() for _ in range(16)], [(0.0, GBIT), (10.0, 0.2 * GBIT), (20.0, GBIT)], 26.0)
    assert path.share(12.0, 20.0) >= 0.95
    assert path.share(24.0, 25.0) >= 0.85
