"""No controller raises, or decides on what cannot be, whatever the samples say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvwire.congestion import Budget, PathSample, controllers, make_controller
from kvwire.congestion.guarded import check_decision
from tests.unit.path_samples import lane_sample, path_sample

NAMES = [name if name != "fixed" else "fixed:pace_bps=1e9" for name in controllers()]

counts = st.one_of(st.just(0), st.integers(0, 10**4), st.integers(0, 2**63))
seconds = st.one_of(st.just(0.0), st.floats(0, 1), st.floats(0, 1e9))


@st.composite
def samples(draw: st.DrawFn) -> PathSample:
    lanes = tuple(
        lane_sample(
            number,
            delivered_bytes=draw(counts),
            segments=draw(counts),
            retransmitted_segments=draw(counts),
            spurious_segments=draw(counts),
            inflight_bytes=draw(counts),
            rtt_s=draw(seconds),
            min_rtt_s=draw(seconds),
        )
        for number in range(draw(st.integers(0, 4)))
    )
    return path_sample(draw(seconds), lanes, idle_s=draw(seconds), paced_s=draw(seconds))


@pytest.mark.parametrize("name", NAMES)
@given(steps=st.lists(st.tuples(seconds, st.one_of(samples(), st.booleans())), max_size=30))
def test_no_sample_makes_a_controller_raise_or_decide_nonsense(
    name: str, steps: list[tuple[float, PathSample | bool]]
) -> None:
    """True: a budget; False: a lane that ends."""
    controller = make_controller(name)
    now = 0.0
    for gap, step in steps:
        now += gap
        if isinstance(step, PathSample):
            controller.on_sample(now, step)
        elif step:
            controller.on_budget(now, Budget(max_bps=1e8, min_bps=1e6, lease_s=1.0))
        else:
            controller.on_lane(now, 1, False, "lost")
            controller.on_landed(now, 1, gap, gap)
        check_decision(controller.decide(now))
