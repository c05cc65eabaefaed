"""A budget's lease, and the guard around a controller that raises or decides nonsense."""

import asyncio
import math
from collections.abc import Callable
from typing import Any

import pytest

from kvwire.congestion import Budget, Budgeted, Controller, Decision, Fixed, Guarded, PathSample, Uncapped, check_budget
from kvwire.errors import ConfigError, ControllerFault
from tests.unit.path_samples import lane_sample, path_sample

NOTHING = path_sample(0.1)


class Scripted(Controller):
    """Decides what it is told to, in turn; an exception is raised."""

    def __init__(self, *script: object) -> None:
        self.script = list(script)
        self.asked = 0

    def decide(self, now: float) -> Any:
        self.asked += 1
        step = self.script.pop(0)
        if isinstance(step, BaseException):
            raise step
        return step


GOOD = Decision(pace_bps=1e8)


# --- budget ---------------------------------------------------------------------------------------------------


def budget(max_bps: float = 3e8, min_bps: float = 2e7, lease_s: float = 5.0) -> Budget:
    return Budget(max_bps=max_bps, min_bps=min_bps, lease_s=lease_s)


def test_without_a_budget_the_inner_one_decides() -> None:
    assert Budgeted(Fixed(pace_bps=1e9)).decide(0.0) == Decision(pace_bps=1e9)
    assert Budgeted(Uncapped()).lease_s(0.0) is None


def test_the_lower_of_both_holds_while_the_lease_lasts() -> None:
    for inner, pace in ((Uncapped(), 3e8), (Fixed(pace_bps=1e9), 3e8), (Fixed(pace_bps=1e8), 1e8)):
        controller = Budgeted(inner)
        controller.on_budget(10.0, budget())
        assert controller.decide(10.0).pace_bps == pace
        assert controller.decide(14.9).pace_bps == pace
        assert controller.lease_s(14.0) == 1.0


def test_the_floor_holds_from_the_end_of_the_lease_until_a_new_budget() -> None:
    controller = Budgeted(Uncapped())
    controller.on_budget(10.0, budget())
    assert controller.decide(15.0).pace_bps == 2e7
    assert controller.decide(1e6).pace_bps == 2e7
    assert controller.lease_s(1e6) == 0.0
    controller.on_budget(1e6, budget(max_bps=7e8))
    assert controller.decide(1e6).pace_bps == 7e8


def test_the_tick_after_the_lease_comes_when_it_ends() -> None:
    controller = Budgeted(Uncapped())
    controller.on_budget(0.0, budget(lease_s=1.0))
    assert controller.decide(0.5).next_tick_s == 0.1
    assert controller.decide(0.97).next_tick_s == pytest.approx(0.03)
    assert controller.decide(0.9999).next_tick_s == 0.005


def test_a_budget_lowers_the_peak_too_but_never_below_the_pace() -> None:
    for peak, capped in ((1e9, 6e8), (5e8, 5e8)):
        controller = Budgeted(Fixed(pace_bps=5e8, peak_bps=peak))
        controller.on_budget(0.0, budget())
        assert controller.decide(0.0) == Decision(pace_bps=3e8, peak_bps=capped)
    controller = Budgeted(Fixed(pace_bps=1e8, peak_bps=1e8))
    controller.on_budget(0.0, budget())
    assert controller.decide(0.0).peak_bps == 1e8


@pytest.mark.parametrize(
    ("max_bps", "min_bps", "expires_in_s", "said"),
    [
        (math.nan, 1e6, 1.0, "max_bps is nan"),
        (math.inf, 1e6, 1.0, "max_bps is inf"),
        (0.0, 0.0, 1.0, "max_bps is 0.0"),
        (-1e9, 1e6, 1.0, "max_bps"),
        (True, 1e6, 1.0, "max_bps is True"),
        ("1gbit", 1e6, 1.0, "max_bps is '1gbit'"),
        (1e9, math.nan, 1.0, "min_bps is nan"),
        (1e9, 0.0, 1.0, "min_bps is 0.0"),
        (1e6, 1e9, 1.0, "above max_bps"),
        (1e9, 1e6, -0.1, "expires_in_s is -0.1"),
        (1e9, 1e6, 0.0, "expires_in_s is 0.0"),
        (1e9, 1e6, math.inf, "expires_in_s is inf"),
    ],
)
def test_a_budget_that_is_none_is_refused(max_bps: Any, min_bps: float, expires_in_s: float, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_budget(max_bps, min_bps, expires_in_s)


def test_a_budget_that_is_one_is_taken() -> None:
    assert check_budget(1e9, 1e9, 0.5) == Budget(max_bps=1e9, min_bps=1e9, lease_s=0.5)


def test_a_floor_that_is_not_given_is_below_the_rate() -> None:
    assert check_budget(1e9, None, 60) == Budget(max_bps=1e9, min_bps=1e6, lease_s=60.0)
    assert check_budget(5e5, None, 60) == Budget(max_bps=5e5, min_bps=5e5, lease_s=60.0)


@pytest.mark.parametrize("huge", [10**400, -(10**400)], ids=["positive", "negative"])
def test_an_integer_beyond_any_float_is_out_of_range(huge: int) -> None:
    with pytest.raises(ConfigError, match="max_bps is"):
        check_budget(huge, None, 60)
    with pytest.raises(ConfigError, match="expires_in_s is"):
        check_budget(1e9, None, huge)
    with pytest.raises(ConfigError, match="pace_bps is"):
        Fixed(pace_bps=huge)


# --- guard ----------------------------------------------------------------------------------------------------


def tick(controller: Controller, now: float = 0.0) -> Decision:
    """As a link does: a sample, then a decision."""
    controller.on_sample(now, NOTHING)
    return controller.decide(now)


BAD: list[Any] = [
    None,
    1e9,
    ValueError("mine"),
    asyncio.CancelledError(),
    Decision(pace_bps=math.nan),
    Decision(pace_bps=math.inf),
    Decision(pace_bps=-1e6),
    Decision(pace_bps=0.0),
    Decision(pace_bps=999.0),
    Decision(pace_bps=1.1e13),
    Decision(pace_bps=True),
    Decision(pace_bps="1gbit"),  # type: ignore[arg-type]
    Decision(peak_bps=1e9),
    Decision(pace_bps=1e9, peak_bps=9e8),
    Decision(pace_bps=1e9, peak_bps=math.nan),
    Decision(inflight_cap=65535),
    Decision(inflight_cap=1e6),  # type: ignore[arg-type]
    Decision(lanes=0),
    Decision(lanes=65),
    Decision(lanes=4.0),  # type: ignore[arg-type]
    Decision(next_tick_s=0.004),
    Decision(next_tick_s=1.1),
    Decision(next_tick_s=math.nan),
]


@pytest.mark.parametrize("bad", BAD, ids=repr)
def test_the_last_good_decision_holds_and_the_fault_is_told(bad: object) -> None:
    guard = Guarded(Scripted(GOOD, bad, Decision(pace_bps=2e8)))
    assert [tick(guard, now).pace_bps for now in (0.0, 0.1, 0.2)] == [1e8, 1e8, 2e8]
    assert guard.faults == 1
    assert isinstance(guard.fault, ControllerFault)
    assert "controller Scripted" in str(guard.fault)
    assert not guard.replaced


def test_what_is_extreme_and_possible_is_no_fault() -> None:
    for decision in (
        Decision(pace_bps=1e3, peak_bps=1e3, inflight_cap=65536, lanes=1, next_tick_s=0.005),
        Decision(pace_bps=1e13, lanes=64, next_tick_s=1.0),
        Decision(pace_bps=10**9),
    ):
        guard = Guarded(Scripted(decision))
        assert guard.decide(0.0) is decision
        assert guard.fault is None


def test_many_lanes_are_looked_at_less_often() -> None:
    for lanes, wanted_s, comes_s in ((64, 0.02, 0.128), (64, 0.5, 0.5), (4, 0.02, 0.02), (4, 0.005, 0.008)):
        guard = Guarded(Scripted(Decision(pace_bps=1e8, next_tick_s=wanted_s)))
        guard.on_sample(0.0, path_sample(0.1, tuple(lane_sample(number) for number in range(lanes))))
        assert guard.decide(0.0) == Decision(pace_bps=1e8, next_tick_s=comes_s)


def test_three_faults_in_a_row_replace_it_by_none() -> None:
    inner = Scripted(GOOD, *[ZeroDivisionError()] * 3, GOOD)
    guard = Guarded(inner)
    assert [tick(guard).pace_bps for _ in range(5)] == [1e8, 1e8, 1e8, None, None]
    assert guard.replaced
    assert guard.faults == 3
    assert inner.asked == 4


def test_faults_that_are_not_in_a_row_do_not() -> None:
    guard = Guarded(Scripted(*[GOOD, ValueError(), ValueError()] * 4))
    for _ in range(12):
        tick(guard)
    assert guard.faults == 8
    assert not guard.replaced


def test_a_budget_between_two_ticks_is_no_tick() -> None:
    """Neither does a scheduler that sets one all the time keep a broken controller in place."""

    class Deaf(Uncapped):
        def on_sample(self, now: float, sample: PathSample) -> None:
            raise KeyError("mine")

    guard = Guarded(Deaf())
    for _ in range(3):
        assert not guard.replaced
        tick(guard)
        guard.on_budget(0.0, budget())
        guard.decide(0.0)
    assert guard.replaced
    guard = Guarded(Scripted(ValueError(), *[GOOD] * 9))
    for _ in range(3):  # one fault, however often it is asked before the next tick
        guard.on_budget(0.0, budget())
        guard.decide(0.0)
    tick(guard)
    assert tick(guard) == GOOD
    assert not guard.replaced


@pytest.mark.parametrize("ends", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_is_nobody_s_fault(ends: type[BaseException]) -> None:
    guard = Guarded(Scripted(ends()))
    with pytest.raises(ends):
        guard.decide(0.0)
    assert guard.faults == 0


CALLS: dict[str, Callable[[Controller], None]] = {
    "on_sample": lambda it: it.on_sample(0.0, NOTHING),
    "on_landed": lambda it: it.on_landed(0.0, 5, 0.1, 0.1),
    "on_lane": lambda it: it.on_lane(0.0, 1, False, "lost"),
    "on_budget": lambda it: it.on_budget(0.0, budget()),
}


@pytest.mark.parametrize("method", CALLS)
def test_a_method_that_raises_counts_once_a_tick(method: str) -> None:
    works = True

    def wrong(self: Controller, *_: object) -> None:
        if not works:
            raise KeyError("mine")

    controller = type("Wrong", (Fixed,), {method: wrong})(pace_bps=1e9)
    guard = Guarded(controller)
    assert tick(guard).pace_bps == 1e9
    works = False
    for _ in range(2):
        for _ in range(5):
            CALLS[method](guard)
        assert tick(guard).pace_bps == 1e9
    assert not guard.replaced
    CALLS[method](guard)
    assert tick(guard) == Decision()
    assert guard.replaced
    faults = 14 if method == "on_sample" else 11  # a tick brings a sample of its own
    assert guard.faults == faults
    assert isinstance(guard.fault, ControllerFault)
    assert isinstance(guard.fault.__cause__, KeyError)
    CALLS[method](guard)
    assert guard.faults == faults


def test_a_budget_outlives_the_controller_that_was_replaced() -> None:
    controller = Budgeted(Guarded(Scripted(*[ValueError()] * 3)))
    controller.on_budget(0.0, budget())
    assert [tick(controller).pace_bps for _ in range(5)] == [3e8] * 5


def test_what_it_is_told_reaches_the_controller() -> None:
    heard: list[object] = []

    class Listens(Uncapped):
        def on_sample(self, now: float, sample: PathSample) -> None:
            heard.append(sample)

        def on_landed(self, now: float, nbytes: int, queue_s: float, net_s: float) -> None:
            heard.append(nbytes)

        def on_lane(self, now: float, lane: int, up: bool, reason: str) -> None:
            heard.append(reason)

        def on_budget(self, now: float, budget: Budget) -> None:
            heard.append(budget)

    controller = Budgeted(Guarded(Listens()))
    for call in CALLS.values():
        call(controller)
    assert heard == [NOTHING, 5, "lost", budget()]
