"""What every scenario measures with, and what makes a run of it count."""

from __future__ import annotations

import contextlib
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kvwire.cli.failure import Failure
from kvwire.cli.jobs import Job
from kvwire.cli.progress import Progress
from kvwire.cli.units import show_share, show_time
from kvwire.cli.wan.emulated import EmulatedLink, Span, look
from kvwire.cli.wan.ends import Ends, Saturated
from kvwire.cli.wan.series import Series
from kvwire.emulate import Wan
from kvwire.emulate.hosts import Hosts

T = TypeVar("T")
Result = dict[str, Any]
"""A part of a record."""

LATE_SHARE = 0.05
"""A run counts when the emulator's packets were late by no more than this share of the delay, in the mean."""
MOST_REPEATS = 3
"""Of a run that does not count."""
FLOW = "flow"
AT_ONCE = 2
"""Transfers under way where a link is kept full: while one waits for its grant or its receipt, another one flows."""
WARM_S = 3.0
"""How long a link is full before it counts."""
SLOWEST = 1 / 40
"""Of the link's rate: a transfer that gets less than that is given up."""


def patience_s(link: EmulatedLink, job: Job) -> float:
    """For one transfer."""
    return max(120.0, 8 * job.transfer_bytes / (link.rate_bps * SLOWEST))


@dataclass(slots=True)
class Flow:
    """What was seen of a full link, once that is over."""

    begun_s: float
    landed: Series = field(default_factory=list)
    saturated: Saturated = field(default_factory=lambda: Saturated([], 0))


@dataclass(slots=True)
class Setting:
    """The emulated link, the processes at its ends and what was found out about the runs so far."""

    options: Namespace
    link: EmulatedLink
    hosts: Hosts
    ends: Ends
    job: Job
    patience_s: float
    """For one transfer."""
    progress: Progress
    said: str
    """Which cell it is, for the progress line."""
    refused: int = 0
    """Runs in which the emulator was late."""
    spans: list[Span] = field(default_factory=list)
    """What the emulator did in those that count."""
    damage: list[str] = field(default_factory=list)
    checked: int = 0
    """Transfers that were compared byte by byte."""
    _span: Span | None = None

    @property
    def wan(self) -> Wan:
        """The link, where it can be changed."""
        assert isinstance(self.hosts, Wan)
        return self.hosts

    def say(self, text: str) -> None:
        self.progress.say(f"{self.said}{text}")

    @contextlib.contextmanager
    def measured(self, *, reports: bool = True) -> Iterator[None]:
        """What the emulator does within it decides whether the run counts. `reports`: kvwire sends in it."""
        if reports:
            self.ends.sender.call("reports")
        before = look(self.hosts)
        yield
        after = look(self.hosts)
        self._span = Span.between(before, after, self.ends.sender.call("reports") if reports else ())

    def timely(self, run: Callable[[], T], spans: list[Span]) -> T:
        """What `run` found, when the emulator was in time while it `measured`, which is added to `spans`.

        `Failure` where it never is.
        """
        for _ in range(1 + MOST_REPEATS):
            found, span = run(), self._span
            assert span is not None
            late_s = span.late_s
            if late_s <= LATE_SHARE * self.link.delay_s:
                spans.append(span)
                return found
            self.refused += 1
        raise Failure(
            f"the emulator was late in {1 + MOST_REPEATS} runs, the last time by {show_time(late_s)} in the mean, "
            f"with a delay of {show_time(self.link.delay_s)} (at most {show_share(LATE_SHARE)} of it count): this host "
            "is too busy, or too slow for --rate"
        )

    def hold(self, name: str, job: Job, counts: tuple[int, int]) -> None:
        """Memories at the sender and at the receiver."""
        self.ends.hold(name, job.specs, job.tokens, counts, scatter=self.options.scatter, content=job.content)

    def check(self, name: str, numbers: list[int], through: str | None = None) -> None:
        """Compares what the receiver has of these transfers byte by byte. `through`: what they went through, where that
        is not --compression."""
        self.damage += self.ends.damage(name, numbers, through or self.options.compression)
        self.checked += len(numbers)

    def hold_flow(self) -> None:
        """Memories for `full`: one more at the receiver, so that they take turns."""
        self.hold(FLOW, self.job, (AT_ONCE, AT_ONCE + 1))

    @contextlib.contextmanager
    def full(self, klass: int = 1) -> Iterator[Flow]:
        """Within it the link is kept full, and has been for WARM_S."""
        self.ends.receiver.call("begin", FLOW, self.options.compression)
        self.ends.sender.call("saturate", FLOW, klass)
        flow = Flow(time.monotonic())
        time.sleep(WARM_S)
        yield flow
        flow.saturated = self.ends.sender.call("ease")
        flow.landed, checked = self.ends.receiver.call("end_flow")
        self.damage += checked["damage"]
        self.checked += checked["checked"]
