"""Reports of a link beside what the emulator has counted of it."""

import asyncio

import pytest

from kvwire import Config, EgressReport
from kvwire.emulate import Wan
from tests.wan.kit import needs_wan
from tests.wan.nodes import RATE_BPS, Transfer, across, way

pytestmark = [needs_wan, pytest.mark.timeout(120), pytest.mark.usefixtures("nothing_left")]

PLAIN = Config(plain=True)


async def test_retransmissions_are_those_of_the_links_drops() -> None:
    with Wan(way(loss=0.01), way()) as wan:
        async with across(wan, PLAIN) as pair:
            reports: list[EgressReport] = []
            pair.link.on_report(reports.append, 0.1)
            await asyncio.sleep(0.3)
            drops = wan.counters()["there"]
            before = reports[-1].totals
            await Transfer(3.0).move(pair)
            await asyncio.sleep(0.5)
            after, counted = reports[-1].totals, wan.counters()["there"].since(drops)
    repaired = after.retransmitted_segments - before.retransmitted_segments
    spurious = after.spurious_segments - before.spurious_segments
    lost = counted.lost + counted.overflowed
    assert counted.lost > 0
    assert abs(repaired - spurious - lost) <= max(10, 0.05 * lost)
    segments = after.segments - before.segments
    assert abs(segments - counted.segments_in) <= max(10, 0.05 * counted.segments_in)


async def test_capacity_is_the_links() -> None:
    """As soon as the path has set the limit for half a second: on a busy machine it is not always the path."""
    with Wan(way()) as wan:
        async with across(wan, PLAIN) as pair:
            reports: list[EgressReport] = []
            pair.link.on_report(reports.append, 0.25)
            for number in range(8):
                await Transfer(2.0, f"r{number}").move(pair)
                full = [report for report in reports if not report.capacity_is_lower_bound]
                if full:
                    break
    assert full, "a link that was full for seconds was never seen to be"
    assert 0.5 * RATE_BPS < max(report.capacity_bps for report in full) < 1.3 * RATE_BPS
    assert full[-1].rtt_min_s > 0.038
    assert full[-1].lanes_up > 1


async def test_a_link_that_is_held_back_says_no_more_than_it_knows() -> None:
    with Wan(way()) as wan:
        async with across(wan, PLAIN) as pair:
            reports: list[EgressReport] = []
            pair.link.set_budget(RATE_BPS / 5, expires_in_s=60.0)
            pair.link.on_report(reports.append, 0.25)
            await Transfer(0.4).move(pair)
    sending = [report for report in reports if report.capacity_bps]
    assert sending
    assert all(report.capacity_is_lower_bound for report in sending)
    assert max(report.pacing_limited_share for report in sending) > 0.5
