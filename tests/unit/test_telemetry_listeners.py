"""Who hears reports: in order, isolated from each other, counted."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from kvwire.errors import ConfigError
from kvwire.telemetry import EgressReport, Listeners, Telemetry
from tests.unit.telemetry_kit import at_rate, report, state


class Clock:
    """Stands still unless a test moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def broken(_: EgressReport) -> None:
    raise ValueError("broken")


# --- callbacks --------------------------------------------------------------------------------------------------------


def test_callbacks_hear_every_report_until_they_are_removed() -> None:
    listeners, heard = Listeners(), list[EgressReport]()
    remove = listeners.add(heard.append)
    reports = [report(), report(), report()]
    listeners.deliver(reports[0])
    listeners.deliver(reports[1])
    remove()
    remove()  # again: nothing
    listeners.deliver(reports[2])
    assert heard == reports[:2]
    assert (listeners.counts.delivered, listeners.counts.listening, bool(listeners)) == (2, 0, False)


def test_one_that_raises_harms_nobody_and_is_dropped_in_the_end(caplog: pytest.LogCaptureFixture) -> None:
    listeners, heard = Listeners(Clock()), list[EgressReport]()
    listeners.add(broken)
    listeners.add(heard.append)
    for _ in range(9):
        listeners.deliver(report())
    assert (listeners.counts.faults, listeners.counts.removed, listeners.counts.listening) == (9, 0, 2)
    assert len(caplog.records) == 1  # once a minute
    assert "ValueError('broken')" in caplog.text
    for _ in range(3):
        listeners.deliver(report())
    assert (listeners.counts.faults, listeners.counts.removed, listeners.counts.listening) == (10, 1, 1)
    assert [it.levelno for it in caplog.records] == [logging.WARNING, logging.ERROR]
    assert "raised 10 times in a row and gets no more reports" in caplog.text
    assert len(heard) == 12


def test_a_cancellation_is_the_listener_s_own() -> None:
    """As of a future that it asked for its result."""
    listeners, heard = Listeners(), list[EgressReport]()

    def cancelled(_: EgressReport) -> None:
        raise asyncio.CancelledError

    listeners.add(cancelled)
    listeners.add(heard.append)
    listeners.deliver(report())
    assert (listeners.counts.faults, len(heard)) == (1, 1)


@pytest.mark.parametrize("ends", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_does(ends: type[BaseException]) -> None:
    listeners = Listeners()

    def end(_: EgressReport) -> None:
        raise ends

    listeners.add(end)
    with pytest.raises(ends):
        listeners.deliver(report())


def test_one_that_fails_now_and_then_stays(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    listeners, calls = Listeners(clock), list[int]()

    def moody(_: EgressReport) -> None:
        calls.append(1)
        if len(calls) % 9:
            raise ValueError("not today")

    listeners.add(moody)
    for _ in range(90):
        clock.now += 1.0
        listeners.deliver(report())
    assert (listeners.counts.faults, listeners.counts.removed) == (80, 0)
    assert len(caplog.records) == 2  # in a minute and a half


def test_one_that_is_slow_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    listeners = Listeners(clock)

    def slow(_: EgressReport) -> None:
        clock.now += 0.2

    listeners.add(slow)
    listeners.add(lambda _: None)
    for _ in range(5):
        listeners.deliver(report())
    assert (listeners.counts.slow, listeners.counts.faults, listeners.counts.listening) == (5, 0, 2)
    assert len(caplog.records) == 1
    assert "held the event loop for 200 ms" in caplog.text


def test_callbacks_may_remove_each_other_while_they_are_called() -> None:
    listeners, heard, removes = Listeners(), list[EgressReport](), list[Callable[[], None]]()
    listeners.add(lambda _: [remove() for remove in removes] and None)
    removes.append(listeners.add(heard.append))
    listeners.deliver(report())
    listeners.deliver(report())
    assert len(heard) <= 1
    assert listeners.counts.listening == 1


async def _coroutine(_: EgressReport) -> None: ...


class _Coroutine:
    async def __call__(self, _: EgressReport) -> None: ...


@pytest.mark.parametrize("callback", [None, "print", _coroutine, partial(_coroutine), _Coroutine()])
def test_what_cannot_be_called_is_refused_at_once(callback: Any) -> None:
    with pytest.raises(ConfigError):
        Listeners().add(callback)


# --- iterators --------------------------------------------------------------------------------------------------------


async def test_iterators_get_what_comes_and_end_with_the_link() -> None:
    listeners = Listeners()
    listeners.deliver(report())  # before anybody listens
    first, second = listeners.reports(), listeners.reports()
    sent = [report(), report()]

    async def collect() -> list[EgressReport]:
        return [it async for it in first]

    collecting = asyncio.create_task(collect())
    for it in sent:
        listeners.deliver(it)
        await asyncio.sleep(0)
    listeners.close()
    assert await collecting == sent
    assert [it async for it in second] == sent  # what waits can still be taken
    assert [it async for it in listeners.reports()] == []


async def test_a_slow_iterator_loses_the_oldest_and_nobody_waits_for_it() -> None:
    listeners = Listeners()
    slow, sent = listeners.reports(), [report(time_s=float(number)) for number in range(20)]
    for it in sent:
        listeners.deliver(it)
    listeners.close()
    assert [it async for it in slow] == sent[4:]
    assert slow.dropped == listeners.counts.dropped == 4


async def test_an_iterator_that_nobody_holds_is_gone() -> None:
    listeners = Listeners()

    async def one() -> EgressReport:
        async for it in listeners.reports():
            return it
        raise AssertionError

    waiting = asyncio.create_task(one())
    await asyncio.sleep(0)
    assert listeners
    expected = report()
    listeners.deliver(expected)
    assert await waiting is expected
    del waiting
    assert not listeners


async def test_an_iterator_that_was_closed_gets_nothing_more() -> None:
    listeners = Listeners()
    reports = listeners.reports()
    reports.close()
    listeners.deliver(report())
    assert [it async for it in reports] == []
    assert not listeners


async def test_a_cancelled_wait_loses_nothing() -> None:
    listeners = Listeners()
    reports = listeners.reports()
    waiting = asyncio.ensure_future(anext(reports))
    await asyncio.sleep(0)
    expected = report()
    waiting.cancel()
    listeners.deliver(expected)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await anext(reports) is expected


# --- the streams of a link --------------------------------------------------------------------------------------------


def run(telemetry: Telemetry, start: float, seconds: float) -> float:
    """Ten ticks a second."""
    for tick in range(round(10 * seconds)):
        telemetry.tick(start + 0.1 * (tick + 1), at_rate(1e8), state)
    return start + seconds


def test_a_report_a_second_whoever_listens() -> None:
    up = Listeners()
    heard: list[EgressReport] = []
    up.add(heard.append)
    telemetry = Telemetry(upwards=up)
    run(telemetry, 0.0, 3.05)
    assert [it.interval_s for it in heard] == pytest.approx([1.0, 1.0, 1.0])
    assert telemetry.latest is heard[-1]


async def test_every_listener_has_its_interval() -> None:
    telemetry = Telemetry()
    now = run(telemetry, 0.0, 5.0)
    often, seldom, both = list[EgressReport](), list[EgressReport](), list[EgressReport]()
    removes = [telemetry.on_report(often.append, 0.5), telemetry.on_report(both.append, 0.5)]
    telemetry.on_report(seldom.append, 2.0)
    now = run(telemetry, now, 4.0)
    assert [it.interval_s for it in often] == pytest.approx([0.5] * 8)
    assert [it.interval_s for it in seldom] == pytest.approx([2.0] * 2)
    assert both == often
    assert seldom[-1].totals.sampled_s == pytest.approx(9.0)  # since the link was made
    for remove in removes:
        remove()
    now = run(telemetry, now, 1.0)
    telemetry.on_report(often.append, 0.5)
    run(telemetry, now, 1.0)
    assert [it.interval_s for it in often] == pytest.approx([0.5] * 10)


def test_a_sample_of_many_intervals_is_one_report() -> None:
    telemetry, heard = Telemetry(), list[EgressReport]()
    telemetry.on_report(heard.append)
    telemetry.tick(7.3, at_rate(1e8, interval_s=7.3), state)
    run(telemetry, 7.3, 2.5)
    assert [it.interval_s for it in heard] == pytest.approx([7.3, 0.5, 1.0, 1.0])


def test_a_pause_of_the_link_is_in_no_interval() -> None:
    """Nobody looks at a link that is suspended, or that carries nothing and has no listener."""
    telemetry, heard = Telemetry(), list[EgressReport]()
    telemetry.on_report(heard.append)
    run(telemetry, 0.0, 1.4)
    run(telemetry, 60.0, 0.6)
    assert [it.interval_s for it in heard] == pytest.approx([1.0, 1.0])
    assert heard[1].wire_bps == pytest.approx(1e8, rel=1e-3)


async def test_the_end_of_the_link_is_the_end_of_its_streams() -> None:
    telemetry = Telemetry()
    streams = [telemetry.reports(), telemetry.reports(0.2)]
    telemetry.close()
    assert [[it async for it in stream] for stream in (*streams, telemetry.reports(), telemetry.reports(9.0))] == [
        []
    ] * 4


@pytest.mark.parametrize("interval_s", [0.0, 0.09, 3601.0, -1.0, float("nan"), float("inf"), True, "1", None])
def test_an_interval_that_makes_no_sense(interval_s: Any) -> None:
    with pytest.raises(ConfigError, match="interval_s"):
        Telemetry().reports(interval_s)
