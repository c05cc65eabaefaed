"""How many lanes a link wants, on modelled paths; and which lanes hold it up."""

import math
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from kvwire.congestion import LanePlanner, LaneSample, PathSample, Stragglers, lost, misled, stalled
from kvwire.errors import ConfigError
from tests.unit.path_samples import lane_sample, path_sample

TICK_S = 0.1
DIAL_S = 0.3
MB = 10**6


class Path:
    """n lanes deliver min(n * per lane, link) bit/s; lanes come and go a little after they are wanted."""

    def __init__(self, planner: LanePlanner, per_lane: float, link: float, *, rtt_s: float = 0.04, seed: int = 1):
        self.planner, self.per_lane, self.link, self.rtt_s = planner, per_lane, link, rtt_s
        self.noise = random.Random(seed)
        self.now = 0.0
        self.lanes = self.wanted = planner.start(rtt_s)
        self.queue_s = 0.0
        """What a full link adds to the RTT."""
        self.most = 64
        """Lanes that the peer lets up."""
        self.worth: Callable[[int], float] = lambda lanes: 1.0
        """Share of the link that so many lanes use where they fill it."""
        self.idle = self.paced = 0.0
        """Shares of the time."""
        self._changes: list[tuple[float, int]] = []

    def sample(self) -> PathSample:
        rate = min(self.lanes * self.per_lane, self.link)
        full = rate == self.link
        rtt_s = self.rtt_s + (self.queue_s if full else 0.0)
        rate *= self.worth(self.lanes) if full else 1.0
        each = int(rate * TICK_S / 8 * self.noise.uniform(0.99, 1.01) * (1 - self.idle)) // self.lanes
        lanes = (lane_sample(0, delivered_bytes=each, rtt_s=rtt_s, min_rtt_s=self.rtt_s),) * self.lanes
        return path_sample(TICK_S, lanes, idle_s=self.idle * TICK_S, paced_s=self.paced * TICK_S)

    def run(self, seconds: float) -> list[int]:
        """The lanes wanted, tick by tick."""
        seen = []
        for _ in range(round(seconds / TICK_S)):
            self.now += TICK_S
            wanted = self.planner.wanted(self.now, self.sample())
            if wanted != self.wanted:
                self.wanted = wanted
                self._changes.append((self.now + DIAL_S, wanted))
            while self._changes and self._changes[0][0] <= self.now:
                self.lanes = min(self.most, self._changes.pop(0)[1])
            seen.append(wanted)
        return seen


def usual(seen: list[int]) -> int:
    return max(set(seen), key=seen.count)


@pytest.mark.parametrize(
    ("rtt_s", "lanes"), [(0.0, 4), (0.0001, 4), (0.002, 4), (0.01, 7), (0.02, 10), (0.04, 16), (0.08, 16), (9.0, 16)]
)
def test_it_starts_with_more_lanes_on_a_longer_path(rtt_s: float, lanes: int) -> None:
    assert LanePlanner(None).start(rtt_s) == lanes
    assert LanePlanner(None, most=6).start(rtt_s) == min(6, lanes)
    assert LanePlanner(8).start(rtt_s) == 8


def test_a_fixed_number_stays() -> None:
    path = Path(LanePlanner(3), per_lane=1e7, link=1e9)
    assert set(path.run(60)) == {3}


@pytest.mark.parametrize("lanes", [0, 65, -1, True])
def test_a_number_that_cannot_be_is_refused(lanes: int) -> None:
    with pytest.raises(ConfigError):
        LanePlanner(lanes)
    with pytest.raises(ConfigError):
        LanePlanner(None, most=lanes)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("knee", [7, 20, 30, 50])
def test_it_settles_near_the_knee_and_stays(knee: int, seed: int) -> None:
    """With 10 ms it starts at 7. A step is half of what there is, so it ends within a step above the knee."""
    path = Path(LanePlanner(None), per_lane=1e9 / knee, link=1e9, rtt_s=0.01, seed=seed)
    path.run(60)
    seen = path.run(300)
    settled = usual(seen)
    assert 0.9 * knee <= settled <= 1.5 * knee
    assert sum(lanes != settled for lanes in seen) < 0.05 * len(seen)
    assert min(seen) >= settled, "fewer lanes are not tried where no queue says that the link is full"


def test_it_never_exceeds_the_most() -> None:
    assert max(Path(LanePlanner(None), per_lane=1e6, link=1e12).run(300)) == 64
    assert max(Path(LanePlanner(None, most=20), per_lane=1e6, link=1e12).run(300)) == 20


def test_a_trial_that_fails_is_made_again_later_and_later() -> None:
    path = Path(LanePlanner(None), per_lane=1e8, link=1e9)
    seen = path.run(900)
    trials = [at * TICK_S for at in range(1, len(seen)) if seen[at] > seen[at - 1]]
    gaps = [later - before for before, later in pairwise(trials)]
    for gap, hold in zip(gaps, [20, 40, 80, 160, 160], strict=False):
        assert hold <= gap <= hold + 5
    assert len(gaps) >= 5


def idle(path: Path) -> None:
    path.idle = 0.2


def paced(path: Path) -> None:
    path.paced = 0.5


def queueing(path: Path) -> None:
    path.link, path.queue_s = 16 * path.per_lane, 0.03


@pytest.mark.parametrize("why", [idle, paced, queueing])
def test_it_does_not_grow_where_more_lanes_cannot_show_their_worth(why: Callable[[Path], None]) -> None:
    path = Path(LanePlanner(None), per_lane=1e7, link=1e9)
    why(path)
    assert set(path.run(120)) == {16}


def test_it_shrinks_where_a_queue_stands_and_fewer_do_as_well() -> None:
    path = Path(LanePlanner(None), per_lane=2e7, link=1e9, rtt_s=0.01)
    path.run(120)
    assert path.lanes >= 45
    path.link, path.queue_s = 2e8, 0.02  # the knee is at ten lanes now
    path.run(300)
    assert 10 <= path.lanes <= 15
    path.run(600)
    assert 10 <= path.lanes <= 15


def test_steps_down_together_cost_no_more_than_one_may() -> None:
    """Each of them costs 2 % here, which alone would be kept."""
    path = Path(LanePlanner(None), per_lane=2e7, link=1e9, rtt_s=0.01)
    path.run(120)
    before = path.lanes
    path.link, path.queue_s = 2e8, 0.02
    path.worth = lambda lanes: 0.98 ** math.log(before / lanes, 1.5)
    path.run(900)
    assert path.lanes == int(before / 1.5)


def test_it_goes_back_to_the_start_after_half_a_minute_of_silence() -> None:
    path = Path(LanePlanner(None), per_lane=2e7, link=1e9)
    path.run(120)
    grown = path.lanes
    assert grown > 30
    path.idle = 1.0
    assert usual(path.run(29)) == grown
    assert path.run(2)[-1] == 16


def test_a_trial_whose_lanes_do_not_come_up_is_given_up() -> None:
    path = Path(LanePlanner(None), per_lane=2e7, link=1e9)
    path.most = 16
    seen = path.run(60)
    assert max(seen) == 24
    assert usual(seen) == 16


# --- lanes that hold a link up --------------------------------------------------------------------------------


def test_a_failed_trial_says_nothing_of_a_path_that_has_changed() -> None:
    path = Path(LanePlanner(None), per_lane=1e8, link=1.6e9)
    assert 24 in path.run(10)
    assert set(path.run(5)) == {16}, "it was not worth it, and waits"
    path.per_lane = 2e7
    assert 24 in path.run(5), "what it was compared with is gone"


def misled_lanes(number: int, **changed: object) -> PathSample:
    """So many of 16 BBR lanes over 40 ms that have seen one segment after 0.1 ms."""
    known = {"congestion": "bbr", "rtt_s": 0.041, "delivered_bytes": MB} | changed
    lanes = [lane_sample(lane, **(known | {"min_rtt_s": 0.0001 if lane < number else 0.038})) for lane in range(16)]
    return path_sample(TICK_S, tuple(lanes), min_rtt_s=0.04)


def test_lanes_that_take_a_path_for_far_too_short_are_misled() -> None:
    assert misled(misled_lanes(0)) == ()
    assert misled(misled_lanes(2)) == (0, 1)
    assert len(misled(misled_lanes(16))) == 4, "a quarter at a time"


def test_nobody_is_misled_who_is_not_slow_for_it() -> None:
    assert misled(misled_lanes(2, congestion="cubic")) == ()
    assert misled(misled_lanes(2, rtt_s=0.07)) == (), "the link is full"
    assert misled(replace(misled_lanes(2), idle_s=TICK_S)) == ()
    assert misled(replace(misled_lanes(2), paced_s=TICK_S)) == ()
    assert misled(replace(misled_lanes(2), min_rtt_s=0.0004)) == (), "within a site that is jitter"
    assert misled(path_sample(TICK_S)) == ()


def gone(lane: int, rtt_s: float, seconds: float) -> LaneSample:
    """A lane whose path has swallowed everything for so long."""
    return lane_sample(lane, rtt_s=rtt_s, stalled_s=seconds, silent_s=seconds, inflight_bytes=10**5)


def test_lanes_whose_path_is_gone_are_stalled() -> None:
    lanes = (gone(0, 0.04, 0.49), gone(1, 0.04, 0.51), gone(2, 0.3, 0.89), gone(3, 0.3, 0.91))
    assert stalled(path_sample(0.1, lanes)) == (3, 1), "the worst first"
    assert stalled(path_sample(0.1)) == ()


def test_a_lane_that_repairs_losses_is_not() -> None:
    repairing = lane_sample(0, rtt_s=0.04, stalled_s=0.9, silent_s=0.01, inflight_bytes=10**5)
    assert stalled(path_sample(0.1, (repairing, lane_sample(1, rtt_s=0.04)))) == ()


def test_what_a_kernel_has_and_nobody_gets() -> None:
    """A hedge costs little and shows whose fault it is: only where others land is it the lane's."""
    swallowed = lane_sample(0, rtt_s=0.04, stalled_s=0.6)
    idle, waiting = lane_sample(1, rtt_s=0.04), lane_sample(1, rtt_s=0.04, stalled_s=0.45)
    landing = lane_sample(1, rtt_s=0.04, landed_bytes=MB)
    assert stalled(path_sample(0.1, (swallowed, idle))) == stalled(path_sample(0.1, (swallowed, landing))) == (0,)
    assert stalled(path_sample(0.1, (swallowed, waiting))) == ()
    assert lost(path_sample(0.1, (swallowed, idle))) == lost(path_sample(0.1, (swallowed, waiting))) == ()
    assert lost(path_sample(0.1, (swallowed, landing))) == (0,)


def test_without_tcp_info_nothing_is_known_of_a_lane() -> None:
    repairing = lane_sample(0, stalled_s=0.9)
    assert stalled(path_sample(0.1, (repairing, lane_sample(1, landed_bytes=MB)))) == ()


def test_a_link_that_rests_goes_back_to_where_it_began() -> None:
    planner = LanePlanner(None)
    assert planner.start(0.04) == 16
    planner.wanted(100.0, path_sample(0.1, (lane_sample(0),)))
    planner._lanes = 24
    assert planner.rest(129.0) == 24
    assert planner.rest(130.1) == 16


def eight(slow_bytes: int, **changed: int) -> tuple[LaneSample, ...]:
    """Lane 5 lands `slow_bytes` a tick, the others 1 MB."""
    known = {"unacked_bytes": 10**5} | changed
    return tuple(lane_sample(lane, landed_bytes=slow_bytes if lane == 5 else MB, **known) for lane in range(8))


def watched(seconds: float, lanes: Callable[[float], tuple[LaneSample, ...]], **known: float) -> set[tuple[int, ...]]:
    watch = Stragglers()
    ticks = [tick * TICK_S for tick in range(round(seconds / TICK_S))]
    return {watch.straggling(now, path_sample(TICK_S, lanes(now), **known)) for now in ticks}


def test_a_lane_far_slower_than_its_siblings_is_a_straggler_after_two_seconds() -> None:
    assert watched(1.9, lambda now: eight(0)) == {()}
    assert watched(2.5, lambda now: eight(0)) == {(), (5,)}
    assert watched(2.5, lambda now: eight(MB // 11)) == {(), (5,)}


def test_a_lane_a_little_slower_or_slow_for_a_moment_is_none() -> None:
    assert watched(30.0, lambda now: eight(MB // 9)) == {()}
    assert watched(30.0, lambda now: eight(0 if now % 2 < 1.5 else MB)) == {()}


def test_who_had_no_work_or_is_new_is_not_compared() -> None:
    assert watched(30.0, lambda now: eight(0, unacked_bytes=0)) == {()}
    assert watched(30.0, lambda now: eight(0, incarnation=int(now / 1.5))) == {()}
    assert watched(30.0, lambda now: eight(0), idle_s=TICK_S / 5) == {()}
    assert watched(30.0, lambda now: eight(0), paced_s=TICK_S / 5) == {()}


def test_alone_or_with_hardly_anything_to_land_nobody_is_slow() -> None:
    assert watched(30.0, lambda now: eight(0)[5:6]) == {()}
    few = tuple(lane_sample(lane, landed_bytes=0 if lane == 5 else 20_000, unacked_bytes=1) for lane in range(8))
    assert watched(30.0, lambda now: few) == {()}
