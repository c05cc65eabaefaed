"""What a report says of samples whose truth is known."""

import json
import tracemalloc
from dataclasses import fields, replace
from typing import Any

import pytest

from kvwire.congestion import Budget, Decision
from kvwire.telemetry import EgressReport, LaneReport, ListenerCounts, ReportBuilder, Totals
from kvwire.telemetry.round_trips import RoundTrips
from tests.unit.telemetry_kit import HEADERS, MSS, at_rate, busy_lane, lane, made, path, report, state

GIB = 1 << 30


def ticks(builder: ReportBuilder, start: float, seconds: float, wire_bps: float, **more: Any) -> float:
    """That long at this rate, sampled ten times a second; returns when it ends."""
    for tick in range(round(10 * seconds)):
        builder.sample(start + 0.1 * (tick + 1), at_rate(wire_bps, **more))
    return start + seconds


# --- rates and shares -------------------------------------------------------------------------------------------------


def test_rates_are_over_the_time_that_samples_cover() -> None:
    builder = ReportBuilder()
    for now in (0.1, 0.3, 0.6):  # 0.6 s in all, whatever the clock of the caller says
        builder.sample(now, path(busy_lane(0, 100 * MSS, landed_bytes=1000, sent_bytes=2000), interval_s=0.2))
    found = made(builder, 5.0)
    assert found.interval_s == pytest.approx(0.6)
    assert found.goodput_bps == pytest.approx(8 * 3000 / 0.6)
    assert found.sent_bps == pytest.approx(8 * 6000 / 0.6)
    assert found.wire_bps == pytest.approx(8 * 300 * (MSS + HEADERS) / 0.6)
    assert found.delivered_bps == pytest.approx(found.wire_bps)


def test_an_interval_begins_where_the_one_before_ended() -> None:
    builder = ReportBuilder()
    ticks(builder, 0.0, 1.0, 1e8, hedged_bytes=7)
    first = made(builder, 1.0, lanes_lost=2, resumes=1, controller_faults=4)
    ticks(builder, 1.0, 1.0, 5e7, resent_bytes=3)
    second = made(builder, 2.0, lanes_lost=3, resumes=1, controller_faults=4)
    assert first.wire_bps == pytest.approx(1e8, rel=1e-3)
    assert second.wire_bps == pytest.approx(5e7, rel=1e-3)
    assert (first.hedged_bytes, first.resent_bytes, second.hedged_bytes, second.resent_bytes) == (70, 0, 0, 30)
    assert (first.lanes_lost, first.resumes, first.controller_faults) == (2, 1, 4)
    assert (second.lanes_lost, second.resumes, second.controller_faults) == (1, 0, 0)
    assert (second.totals.lanes_lost, second.totals.resumes, second.totals.controller_faults) == (3, 1, 4)
    assert second.totals.hedged_bytes == 70
    assert second.totals.sampled_s == pytest.approx(2.0)
    assert second.totals.landed_bytes == pytest.approx(first.totals.landed_bytes * 1.5, rel=1e-3)


def test_ipv6_has_larger_headers() -> None:
    builder = ReportBuilder(header_bytes=72)
    builder.sample(1.0, path(busy_lane(0, 1000 * MSS), interval_s=1.0))
    assert made(builder, 1.0).wire_bps == 8 * 1000 * (MSS + 72)


def test_what_was_sent_again_and_what_of_it_was_lost() -> None:
    sample = path(
        busy_lane(0, 1000 * MSS, retransmitted_bytes=20 * MSS, retransmitted_segments=20, spurious_segments=15),
        busy_lane(1, 1000 * MSS, marked_segments=10, timeouts=2),
    )
    builder = ReportBuilder()
    builder.sample(0.1, sample)
    found = made(builder, 0.1)
    assert (found.retransmitted_bytes, found.retransmitted_share) == (20 * MSS, 0.01)
    assert (found.lost_segments, found.lost_share) == (5, 5 / 2000)
    assert (found.marked_segments, found.marked_share, found.timeouts) == (10, 10 / 2000, 2)
    builder.sample(0.2, path(busy_lane(0, MSS, spurious_segments=3)))  # the answer to what was sent an interval ago
    found = made(builder, 0.2)
    assert (found.lost_segments, found.lost_share) == (0, 0.0)


def test_shares_of_time() -> None:
    builder = ReportBuilder()
    limited = busy_lane(0, MSS, receiver_limited_s=0.1, buffer_limited_s=0.04)
    builder.sample(0.2, path(limited, busy_lane(1, MSS), interval_s=0.2, idle_s=0.05, paced_s=0.1))
    found = made(builder, 0.2)
    assert found.application_limited_share == pytest.approx(0.25)
    assert found.pacing_limited_share == pytest.approx(0.5)
    assert found.receiver_limited_share == pytest.approx(0.25)  # half of the time of one lane of two
    assert found.buffer_limited_share == pytest.approx(0.1)
    assert [it.receiver_limited_share for it in found.lanes] == pytest.approx([0.5, 0.0])
    assert [it.buffer_limited_share for it in found.lanes] == pytest.approx([0.2, 0.0])


# --- round trips ------------------------------------------------------------------------------------------------------


def test_percentiles_are_of_lanes_that_were_sending() -> None:
    builder = ReportBuilder()
    for rtt_ms in range(1, 101):
        idle = lane(1, rtt_s=9.0, min_rtt_s=0.0005)
        builder.sample(rtt_ms, path(busy_lane(0, MSS, rtt_s=rtt_ms / 1e3, min_rtt_s=0.001), idle))
    found = made(builder, 100)
    assert (found.rtt_p50_s, found.rtt_p99_s, found.rtt_min_s) == (0.050, 0.099, 0.0005)
    assert found.queue_delay_s == pytest.approx(0.0495)


def test_round_trips_of_a_long_interval_take_bounded_memory() -> None:
    """Of an hour at ten samples a second, and the percentiles are still the hour's."""
    trips = RoundTrips()
    tracemalloc.start()
    for tick in range(36_000):
        trips.add(tuple(tick * 1e-6 + lane * 1e-9 for lane in range(64)))
    kept_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept_bytes < 3e6
    found = trips.ordered()
    assert found == sorted(found)
    assert len(found) >= 64 * 256
    assert found[len(found) // 2] == pytest.approx(0.018, rel=0.01)
    assert found[int(0.99 * len(found))] == pytest.approx(0.03564, rel=0.01)
    assert found[0] == pytest.approx(0, abs=3e-4)
    assert found[-1] == pytest.approx(0.036, rel=0.01)


def test_round_trips_of_an_idle_link_are_the_latest() -> None:
    builder = ReportBuilder()
    builder.sample(0.1, path(lane(0, rtt_s=0.03, min_rtt_s=0.02), lane(1, rtt_s=0.04, min_rtt_s=0.02)))
    found = made(builder, 0.1)
    assert (found.rtt_p50_s, found.rtt_p99_s, found.rtt_min_s) == (0.03, 0.04, 0.02)


# --- capacity ---------------------------------------------------------------------------------------------------------


def test_a_path_that_is_full_tells_its_capacity() -> None:
    builder = ReportBuilder()
    found = made(builder, ticks(builder, 0.0, 2.0, 1e9))
    assert found.capacity_bps == pytest.approx(1e9, rel=1e-3)
    assert not found.capacity_is_lower_bound
    assert found.utilisation == pytest.approx(1.0, abs=1e-3)
    assert found.headroom_bps < 1e6
    assert (found.path_bps, found.path_age_s) == (found.capacity_bps, 0.0)


@pytest.mark.parametrize("limit", ["idle_s", "paced_s"])
def test_what_this_host_limits_is_a_lower_bound(limit: str) -> None:
    builder = ReportBuilder()
    found = made(builder, ticks(builder, 0.0, 5.0, 1e8, **{limit: 0.006}))  # 6 % of every tick
    assert found.capacity_bps == pytest.approx(1e8, rel=1e-3)
    assert found.capacity_is_lower_bound
    assert (found.path_bps, found.path_age_s) == (0.0, None)


def test_an_idle_moment_is_forgiven() -> None:
    builder = ReportBuilder()
    assert not made(builder, ticks(builder, 0.0, 5.0, 1e8, idle_s=0.004)).capacity_is_lower_bound


def test_what_still_grows_is_a_lower_bound() -> None:
    builder = ReportBuilder()
    now = 0.0
    for rate in (1e6, 1e7, 1e8):
        now = ticks(builder, now, 0.5, rate)
        assert made(builder, now).capacity_is_lower_bound
    assert not made(builder, ticks(builder, now, 0.5, 1.2e8)).capacity_is_lower_bound


def test_growth_that_has_ended_was_ended_by_the_path() -> None:
    """A host that stood still catches up within its last half second of growth: more than the path carries later."""
    builder = ReportBuilder()
    now = 0.0
    for rate in (2e7, 6e7, 1.08e8):
        now = ticks(builder, now, 0.5, rate)
    found = made(builder, ticks(builder, now, 0.5, 1e8))
    assert found.capacity_bps == pytest.approx(1.08e8, rel=1e-3)
    assert not found.capacity_is_lower_bound
    assert found.path_bps == found.capacity_bps


def test_growth_that_the_application_ended_says_nothing_of_the_path() -> None:
    builder = ReportBuilder()
    now = ticks(builder, 0.0, 0.5, 1e9)
    now = ticks(builder, now, 0.5, 5e8, idle_s=0.05)
    found = made(builder, ticks(builder, now, 0.5, 5e8))
    assert found.capacity_bps == pytest.approx(1e9, rel=1e-3)
    assert found.capacity_is_lower_bound


@pytest.mark.parametrize("then", [0.0, 4e7], ids=["an outage", "a receiver that stands still"])
def test_growth_that_ends_in_less_than_it_came_from_says_nothing_of_the_path(then: float) -> None:
    builder = ReportBuilder()
    now = 0.0
    for rate in (1e7, 3e7, 9e7):
        now = ticks(builder, now, 0.5, rate)
    found = made(builder, ticks(builder, now, 0.5, then))
    assert found.capacity_bps == pytest.approx(9e7, rel=1e-3)
    assert found.capacity_is_lower_bound


def test_what_was_limited_while_it_grew_is_a_lower_bound() -> None:
    builder = ReportBuilder()
    now = ticks(builder, 0.0, 0.5, 1.1e8, idle_s=0.006)
    assert made(builder, ticks(builder, now, 0.5, 1e8)).capacity_is_lower_bound


def test_only_what_comes_next_tells_of_growth() -> None:
    builder = ReportBuilder()
    now = ticks(builder, 0.0, 0.5, 1e8)
    now = ticks(builder, now, 0.5, 1.2e8, idle_s=0.006)
    assert made(builder, ticks(builder, now, 0.5, 1.1e8)).capacity_is_lower_bound


def test_growth_that_was_long_ago_is_forgotten() -> None:
    builder = ReportBuilder()
    now = ticks(builder, 0.0, 0.5, 1e8)
    assert made(builder, ticks(builder, now + 11.0, 0.5, 0.0)).capacity_bps == 0.0


def test_used_less_than_it_could_be() -> None:
    builder = ReportBuilder()
    now = ticks(builder, 0.0, 2.0, 1e9)
    made(builder, now)
    found = made(builder, ticks(builder, now, 1.0, 2e8, idle_s=0.08))
    assert found.capacity_bps == pytest.approx(1e9, rel=1e-3)
    assert not found.capacity_is_lower_bound
    assert found.utilisation == pytest.approx(0.2, rel=1e-3)
    assert found.headroom_bps == pytest.approx(8e8, rel=1e-3)
    assert found.path_age_s == pytest.approx(1.0)


def test_an_estimate_grows_old_and_says_so() -> None:
    builder = ReportBuilder()
    now = ticks(builder, 0.0, 2.0, 1e9)
    made(builder, now)
    now = ticks(builder, now, 10.5, 1e8, idle_s=0.09)
    found = made(builder, now)
    assert found.capacity_bps == pytest.approx(1e8, rel=1e-3)
    assert found.capacity_is_lower_bound
    assert found.path_bps == pytest.approx(1e9, rel=1e-3)
    assert found.path_age_s == pytest.approx(10.5)
    assert found.eta_gib_s == pytest.approx(8 * GIB / (0.96 * 1e9) + 0.04, rel=1e-3)


def test_a_path_that_became_slower() -> None:
    builder = ReportBuilder()
    now = ticks(builder, 0.0, 2.0, 1e9)
    found = made(builder, ticks(builder, now, 10.5, 2e8))
    assert found.capacity_bps == pytest.approx(2e8, rel=1e-3)
    assert not found.capacity_is_lower_bound


def test_neither_a_filling_queue_nor_late_acknowledgements_are_capacity() -> None:
    builder = ReportBuilder()
    now = ticks(builder, 0.0, 1.0, 1e8)
    much, usual = 30_000_000, 6_000_000
    for sent, arrived in ((much, usual), (usual, much)):
        moved = busy_lane(0, sent, delivered_segments=arrived // MSS)
        now += 0.5
        builder.sample(now, path(moved, interval_s=0.5))
    assert made(builder, now).capacity_bps == pytest.approx(1e8, rel=0.05)


def test_nothing_is_known_at_first() -> None:
    found = made(ReportBuilder(), 0.0)
    assert (found.capacity_bps, found.capacity_is_lower_bound, found.utilisation) == (0.0, True, 0.0)
    assert (found.eta_gib_s, found.rtt_p50_s, found.lanes, found.interval_s) == (None, 0.0, (), 0.0)


# --- what waits, and for how long -------------------------------------------------------------------------------------


def test_a_further_gib_waits_for_what_goes_before_it() -> None:
    builder = ReportBuilder()
    now = ticks(builder, 0.0, 2.0, 1e9)
    queued = path(busy_lane(0, MSS, unacked_bytes=GIB // 4), queued_bytes=(GIB // 4, GIB // 2, GIB), oldest_s=(1, 2, 3))
    builder.sample(now, queued)
    found = made(builder, now)
    assert found.eta_gib_s == pytest.approx(8 * 2 * GIB / (0.96 * 1e9) + 0.04, rel=1e-3)
    assert (found.queued_bytes, found.oldest_s) == ((GIB // 4, GIB // 2, GIB), (1, 2, 3))
    builder.sample(now, queued)
    assert made(builder, now, decision=Decision(pace_bps=1e6)).eta_gib_s == pytest.approx(8 * 2 * GIB / 1e6, rel=1e-3)
    builder.sample(now, path())
    assert made(builder, now).eta_gib_s is None  # no lane


def test_what_the_link_says_is_passed_on() -> None:
    budget, decision = Budget(max_bps=5e8, min_bps=1e7, lease_s=60.0), Decision(pace_bps=4e8, peak_bps=8e8)
    said = state(
        budget=budget, lease_left_s=12.5, decision=replace(decision, inflight_cap=9), controller="aimd", tenant="acme",
        lanes_wanted=8, outgoing=(1, 2, 3), incoming=(4, 5, 6), memory_bytes=77, pacing_refused=True,
    )  # fmt: skip
    found = ReportBuilder().report(0.0, said, ListenerCounts(faults=3))
    assert (found.budget_max_bps, found.budget_min_bps, found.lease_left_s) == (5e8, 1e7, 12.5)
    assert (found.pace_bps, found.peak_bps, found.inflight_cap, found.controller) == (4e8, 8e8, 9, "aimd")
    assert (found.lanes_wanted, found.outgoing, found.incoming, found.memory_bytes) == (8, (1, 2, 3), (4, 5, 6), 77)
    assert found.pacing_refused
    assert not made(ReportBuilder(), 0.0).pacing_refused
    assert (found.link, found.peer, found.tenant, found.listeners.faults) == ("a", said.peer, "acme", 3)
    without = made(ReportBuilder(), 0.0)
    assert (without.budget_max_bps, without.budget_min_bps, without.lease_left_s) == (None, None, None)


# --- lanes ------------------------------------------------------------------------------------------------------------


def test_lanes_come_and_go() -> None:
    builder = ReportBuilder()
    builder.sample(0.5, path(busy_lane(0, 3000), busy_lane(1, 1000, congestion="bbr"), interval_s=0.5))
    first = made(builder, 0.5)
    assert first.congestion == {"cubic": 1, "bbr": 1}
    assert first.lane_skew == pytest.approx(0.5)
    builder.sample(1.0, path(busy_lane(0, 500), busy_lane(1, 500, incarnation=2), interval_s=0.5))
    second = made(builder, 1.0)
    assert second.lane_skew == pytest.approx(0.0)
    assert [(it.incarnation, it.landed_bytes, it.goodput_bps) for it in second.lanes] == [
        (1, 3500, 8000),
        (2, 500, 8000),
    ]
    assert second.totals.landed_bytes == 5000  # the lane that is gone, too
    assert second.totals.lane_s == pytest.approx(2.0)


def test_skew_of_one_lane_that_carries_all() -> None:
    builder = ReportBuilder()
    builder.sample(0.1, path(busy_lane(0, 1000), lane(1), lane(2), lane(3)))
    assert made(builder, 0.1).lane_skew == pytest.approx(3.0)
    builder.sample(0.2, path(lane(0), lane(1)))
    assert made(builder, 0.2).lane_skew == 0.0


# --- more than one interval -------------------------------------------------------------------------------------------


def test_a_fork_knows_what_was_and_reports_what_comes() -> None:
    builder = ReportBuilder()
    ticks(builder, 0.0, 2.0, 1e9)
    made(builder, 2.0, lanes_lost=1)
    ticks(builder, 2.0, 0.5, 1e9)
    fork = builder.fork()
    for it in (builder, fork):
        ticks(it, 2.5, 0.5, 5e8)
    whole, half = made(builder, 3.0, lanes_lost=1), made(fork, 3.0, lanes_lost=1)
    assert [whole.interval_s, half.interval_s] == pytest.approx([1.0, 0.5])
    assert half.wire_bps == pytest.approx(5e8, rel=1e-3)
    assert half.lanes[0].goodput_bps == half.goodput_bps
    assert half.totals == whole.totals
    assert (half.capacity_bps, half.capacity_is_lower_bound) == (whole.capacity_bps, whole.capacity_is_lower_bound)
    assert half.lanes_lost == 0


# --- the record -------------------------------------------------------------------------------------------------------


def test_json_has_all_of_it() -> None:
    found = report(outgoing=(0, 2, 0))
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert told.keys() == {it.name for it in fields(EgressReport)}
    assert told["totals"].keys() == {it.name for it in fields(Totals)}
    assert [it.keys() for it in told["lanes"]] == [{it.name for it in fields(LaneReport)}] * 2
    assert told["outgoing"] == [0, 2, 0]
    assert told["totals"]["landed_bytes"] == found.totals.landed_bytes > 0
