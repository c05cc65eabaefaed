"""Transfers over emulated links: they arrive as they were, whatever the path does, and the link outlives it."""

import asyncio
import time

import pytest

from kvwire import Config
from kvwire.emulate import Path, Wan
from tests.wan.kit import needs_wan
from tests.wan.nodes import RATE_BPS, Transfer, across, busiest_port, way

pytestmark = [needs_wan, pytest.mark.timeout(120), pytest.mark.usefixtures("nothing_left")]

PLAIN = Config(plain=True)


@pytest.mark.parametrize("congestion", [None, "cubic"])
async def test_losses(congestion: str | None) -> None:
    with Wan(way(loss=0.005)) as wan:
        async with across(wan, Config(congestion=congestion)) as pair:
            took = await Transfer(1.5).move(pair)
            assert took > 1.3
            assert not pair.link.suspended
            drops = wan.counters()["there"]
            assert drops.lost > 0


@pytest.mark.parametrize(
    "trouble",
    [{"burst": (0.001, 0.2)}, {"jitter_s": 0.005}, {"reorder": 0.01}],
    ids=["bursts of loss", "jitter", "reordering"],
)
async def test_other_troubles(trouble: dict[str, float]) -> None:
    with Wan(way(**trouble)) as wan:
        async with across(wan) as pair:
            await Transfer(1.5).move(pair)
            assert not pair.link.suspended


async def test_a_long_path() -> None:
    with Wan(way(0.2)) as wan:
        async with across(wan, PLAIN) as pair:
            await Transfer(0.5, "first").move(pair)
            took = await Transfer(2.0, "second").move(pair)
            assert took < 4 * (0.2 + 2.0)


async def test_a_black_hole_of_one_lane() -> None:
    """The others carry on, and nobody waits for it to come back, nor for the kernel to give it up."""
    with Wan(way()) as wan:
        async with across(wan, Config(plain=True, tcp_user_timeout_s=60.0)) as pair:
            await Transfer(0.5, "first").move(pair)
            transfer = Transfer(4.0)
            await transfer.start(pair)
            await asyncio.sleep(0.5)
            port = busiest_port(wan, pair.server.port)
            wan.black_hole(True, port=port)
            took = await transfer.finish()  # and it never comes back
            assert wan.counters()["there"].black_holed > 0
            assert took < 5 * 4.0
            assert not pair.link.suspended
            wan.black_hole(False, port=port)


async def test_a_black_hole_of_everything() -> None:
    with Wan(way()) as wan:
        async with across(wan, PLAIN) as pair:
            await Transfer(0.5, "first").move(pair)
            transfer = Transfer(2.0)
            await transfer.start(pair)
            await asyncio.sleep(0.5)
            wan.black_hole(True)
            await asyncio.sleep(2.0)
            wan.black_hole(False)
            took = await transfer.finish()
            assert 4.0 - 0.1 < took < 2.0 + 2 * 2.0 + 10.0  # a kernel without TCP_RTO_MAX_MS takes its time
            assert not pair.link.closed


async def test_a_step_of_the_rate() -> None:
    with Wan(way()) as wan:
        async with across(wan, PLAIN) as pair:
            await Transfer(1.0, "first").move(pair)
            before = await Transfer(1.0, "before").move(pair)
            slow = Path(delay_s=0.02, rate_bps=RATE_BPS / 5, queue_bytes=int(RATE_BPS * 0.04 / 8))
            wan.change(slow, way())
            during = await Transfer(0.5, "during").move(pair)
            assert during > 2.0  # 2.5 s at a fifth of the rate, less what the queue still took
            wan.change(way())
            await Transfer(1.0, "recovers").move(pair)
            after = await Transfer(1.0, "after").move(pair)
            assert after < 2 * before


async def test_urgent_overtakes_background() -> None:
    with Wan(way()) as wan:
        async with across(wan, PLAIN) as pair:
            await Transfer(0.5, "first").move(pair)
            background, urgent = Transfer(5.0, "background"), Transfer(0.1, "urgent")
            await background.start(pair, klass=2)
            await asyncio.sleep(1.0)
            took = await urgent.move(pair, klass=0)
            assert background.out.state != "committed"
            assert took < 3.5  # behind the background it would be 4 s
            await background.finish()


async def test_a_budget_is_kept() -> None:
    with Wan(way()) as wan:
        async with across(wan, PLAIN) as pair:
            await Transfer(0.5, "first").move(pair)
            pair.link.set_budget(RATE_BPS / 4, expires_in_s=60.0)
            before, start = wan.counters()["there"], time.monotonic()
            took = await Transfer(0.75).move(pair)
            counted = wan.counters()["there"].since(before)
            seconds = time.monotonic() - start
            assert took > 2.0
            assert counted.bytes_out * 8 / seconds < 1.2 * RATE_BPS / 4
