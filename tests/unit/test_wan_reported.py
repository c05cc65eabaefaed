"""What reports say of runs, beside what an emulator counted of the same ones."""

import dataclasses

import pytest

from kvwire.cli.wan.emulated import Span, queue
from kvwire.cli.wan.reported import Reported, beside, difference, summary
from kvwire.emulate import Counters, Histogram

NOTHING = Reported(0.1, 0.0, 0.0, True, 0, 0, 0, 0, 0, 0, 4)


def run(*, lower_bound: bool = False) -> list[Reported]:
    """A report from before it, and two seconds at 800 of 1000 bit/s."""
    before = dataclasses.replace(NOTHING, wire_bytes=5000, retransmitted_bytes=400, retransmitted_segments=4)
    middle = Reported(1.0, 900.0, 1000.0, lower_bound, 5100, 410, 9, 1, 0, 0, 8)
    return [before, middle, Reported(1.0, 700.0, 1000.0, False, 5200, 420, 15, 1, 2, 1, 6)]


def counters(late_s: float = 0.0) -> Counters:
    """200 bytes came through, 8 packets did not; packets waited 1, 2, 3 and 80 us."""
    queueing = Histogram((0, 1, 1, 1, *[0] * 28, *[0] * 20, 1))
    return Counters(
        segments_in=20,
        bytes_in=300,
        segments_out=12,
        bytes_out=200,
        lost=5,
        overflowed=2,
        black_holed=1,
        failed=0,
        held=0,
        marked=0,
        reordered=0,
        queue_bytes=0,
        queue_max_bytes=0,
        queueing=queueing,
        lateness=Histogram((12,)),
        late_s=late_s,
        late_max_s=late_s,
    )


def test_totals_are_of_the_runs_and_not_of_what_was_before() -> None:
    found = summary([run(), run()])
    assert found == {"retransmitted_share": 40 / 400, "timeouts": 4, "lanes_lost": 2, "lanes_most": 8}


def test_nothing_was_sent() -> None:
    assert summary([[NOTHING, NOTHING]])["retransmitted_share"] == 0.0


def test_the_two_beside_each_other() -> None:
    found = beside([run(lower_bound=True)], [{"there": counters(), "back": counters()}], 1000.0)
    assert (found["delivered_bps"], found["emulator_delivered_bps"]) == (800.0, 800.0)
    assert (found["utilisation"], found["utilisation_difference"]) == (0.8, 0.0)
    assert (found["lost_packets"], found["emulator_dropped_packets"]) == (10, 8)
    assert found["lost_difference"] == pytest.approx(0.25)
    assert (found["capacity_difference"], found["lower_bound_share"]) == (0.0, 0.5)


def test_of_nothing_there_is_no_difference() -> None:
    assert difference(3.0, 0.0) is None


def test_the_worse_direction_says_how_late_an_emulator_was() -> None:
    span = Span({"there": counters(0.012), "back": counters(0.024)})
    assert span.late_s == pytest.approx(0.002)
    assert span.late_max_s == 0.024


def test_a_link_that_tells_nothing_is_never_late_and_has_no_queue() -> None:
    assert Span({}).late_s == 0.0
    assert queue("", [Span({})]) == {}


def test_times_in_the_queue_are_medians_over_runs() -> None:
    spans = [Span({"there": counters(), "back": counters()})] * 3
    found = queue("iperf3_", spans)
    assert found["iperf3_queue_p50_s"] == pytest.approx(3e-6)  # the upper edge of the bucket from 2 us
    assert found["iperf3_queue_p95_s"] == Histogram.edge_s(53)
