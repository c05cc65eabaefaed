"""Who hears reports: callbacks and async iterators. None of them can hold up, or break, the link or one another.

A callback runs on the event loop, so one that takes long holds up everything else on it: that is counted and said, and
cannot be prevented. Who has more to do than a few milliseconds iterates instead, or hands the report to a thread.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable

from kvwire.errors import ConfigError
from kvwire.telemetry.reports import EgressReport, ListenerCounts

log = logging.getLogger("kvwire")

Callback = Callable[[EgressReport], object]
Remove = Callable[[], None]

QUEUE = 16
"""Reports that wait for an iterator: as many seconds as a consumer may be busy with something else."""
SLOW_S = 0.05
"""Of the event loop's time: what kvwire allows itself between noticing and acting."""
MOST_FAULTS = 10
"""In a row; then the callback is not coming back."""
LOG_EVERY_S = 60.0


class Reports(AsyncIterator[EgressReport]):
    """Reports as they come, from now on. Ends with the link, or with `close`.

    At most 16 wait; the oldest goes when another comes, and is counted. It need not be closed: one that nobody refers
    to any longer gets nothing more.
    """

    def __init__(self) -> None:
        self._waiting: deque[EgressReport] = deque()
        self._came = asyncio.Event()
        self._ended = False
        self.dropped = 0
        """Reports that were lost because nobody took them in time."""

    def __aiter__(self) -> Reports:
        return self

    async def __anext__(self) -> EgressReport:
        while not self._waiting:
            if self._ended:
                raise StopAsyncIteration
            self._came.clear()
            await self._came.wait()
        return self._waiting.popleft()

    def close(self) -> None:
        """No more reports; those that wait can still be taken."""
        self._ended = True
        self._came.set()

    @property
    def ended(self) -> bool:
        return self._ended

    def _give(self, report: EgressReport) -> bool:
        """False where another one was lost for it."""
        full = len(self._waiting) == QUEUE
        if full:
            self._waiting.popleft()
            self.dropped += 1
        self._waiting.append(report)
        self._came.set()
        return not full


class _Listener:
    """One callback, and how it has behaved."""

    def __init__(self, callback: Callback) -> None:
        self.callback = callback
        self.faults_in_a_row = 0
        self.logged_at = -LOG_EVERY_S


class Listeners:
    """Of one stream of reports. `clock`: seconds, for how long a callback takes and how often is logged."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._callbacks: list[_Listener] = []
        self._iterators: weakref.WeakSet[Reports] = weakref.WeakSet()
        self._closed = False
        self._delivered = self._faults = self._slow = self._dropped = self._removed = 0

    def __bool__(self) -> bool:
        """Whether anybody listens."""
        return bool(self._callbacks or self._iterators)

    @property
    def counts(self) -> ListenerCounts:
        """What became of reports so far."""
        return ListenerCounts(
            listening=len(self._callbacks) + len(self._iterators),
            delivered=self._delivered,
            faults=self._faults,
            slow=self._slow,
            dropped=self._dropped,
            removed=self._removed,
        )

    def add(self, callback: Callback) -> Remove:
        """Call it with every report, on the event loop; returns what ends that. ConfigError for what cannot be called,
        and for a coroutine function, whose coroutine nobody would await."""
        if not callable(callback):
            raise ConfigError(f"a listener is {callback!r:.80}; expected a function that takes a report")
        if inspect.iscoroutinefunction(callback) or inspect.iscoroutinefunction(type(callback).__call__):
            raise ConfigError("a listener is a coroutine function; expected a plain one", hint="iterate with async for")
        listener = _Listener(callback)
        if not self._closed:
            self._callbacks.append(listener)
        return lambda: self._remove(listener)

    def reports(self) -> Reports:
        """An async iterator over every report from now on."""
        reports = Reports()
        if self._closed:
            reports.close()
        self._iterators.add(reports)
        return reports

    def deliver(self, report: EgressReport) -> None:
        """Give it to everybody. Never raises what a listener does, save what ends the program."""
        for listener in list(self._callbacks):
            self._call(listener, report)
        for reports in list(self._iterators):
            if reports.ended:
                self._iterators.discard(reports)
                continue
            self._delivered += 1
            self._dropped += not reports._give(report)

    def close(self) -> None:
        """The link is over: iterators end once they are empty, callbacks are forgotten."""
        self._closed = True
        self._callbacks.clear()
        for reports in list(self._iterators):
            reports.close()

    def _call(self, listener: _Listener, report: EgressReport) -> None:
        began = self._clock()
        self._delivered += 1
        try:
            listener.callback(report)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # whatever it is, CancelledError too, it is the listener's own
            self._faults += 1
            listener.faults_in_a_row += 1
            if listener.faults_in_a_row == MOST_FAULTS:
                self._removed += 1
                self._remove(listener)
                log.error(
                    "%r raised %d times in a row and gets no more reports",
                    listener.callback,
                    MOST_FAULTS,
                    exc_info=error,
                )
            else:
                self._say(listener, "%r raised %r", listener.callback, error)
        else:
            listener.faults_in_a_row = 0
        took_s = self._clock() - began
        if took_s > SLOW_S:
            self._slow += 1
            self._say(listener, "%r held the event loop for %.0f ms", listener.callback, took_s * 1e3)

    def _say(self, listener: _Listener, message: str, *values: object) -> None:
        """Once a minute."""
        now = self._clock()
        if now - listener.logged_at >= LOG_EVERY_S:
            listener.logged_at = now
            log.warning(message, *values)

    def _remove(self, listener: _Listener) -> None:
        if listener in self._callbacks:
            self._callbacks.remove(listener)
