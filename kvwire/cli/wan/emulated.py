"""The link that is emulated, and what its emulator says of the time between two looks at it."""

from __future__ import annotations

import contextlib
import statistics
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kvwire import emulate
from kvwire.cli.failure import Failure
from kvwire.cli.units import show_rate, show_share, show_time
from kvwire.cli.wan import reported
from kvwire.cli.wan.reported import Reported
from kvwire.emulate import Counters, Shaped, Wan
from kvwire.emulate.hosts import Buffers, Hosts

MTU = 1500
HEADERS = 20 + 20 + 12
"""IPv4, TCP and its timestamps."""
ETHERNET = 14
"""tbf, on a veth, counts them; the emulator has IP packets."""
SHAPED_QUEUE_S = 0.01
"""Without a delay there is no bandwidth-delay product."""
BURST = (0.0005, 0.20)
"""Gilbert-Elliott: a packet in 2000 begins a burst, in which all are lost, of 5 in the mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatedLink:
    """Both directions alike."""

    rtt_s: float
    rate_bps: float
    loss: float
    burst: tuple[float, float] | None
    jitter_s: float
    reorder: float
    queue_bytes: int
    buffers: Buffers
    seed: int
    shaped: bool
    """No emulator: a veth with tbf."""

    @classmethod
    def of(cls, options: Namespace) -> EmulatedLink:
        """What the flags of one cell describe."""
        shaped = options.shaped is not None
        rtt_s, rate_bps = (0.0, options.shaped) if shaped else (options.rtt, options.rate)
        link = cls(
            rtt_s=rtt_s,
            rate_bps=rate_bps,
            loss=options.loss,
            burst=BURST if options.bursty else None,
            jitter_s=options.jitter,
            reorder=options.reorder,
            queue_bytes=options.queue or max(MTU, round(rate_bps * (SHAPED_QUEUE_S if shaped else rtt_s) / 8)),
            buffers=options.buffers,
            seed=options.seed,
            shaped=shaped,
        )
        try:
            link.path(options.step)
        except ValueError as error:
            raise Failure(f"a link that cannot be: {error}") from None
        return link

    @property
    def delay_s(self) -> float:
        """One way."""
        return self.rtt_s / 2

    def payload_of(self, rate_bps: float) -> float:
        """What TCP can carry of so much."""
        return rate_bps * (MTU - HEADERS) / (MTU + ETHERNET * self.shaped)

    @property
    def payload_bps(self) -> float:
        return self.payload_of(self.rate_bps)

    @property
    def name(self) -> str:
        """For a file."""
        loss = "bursty" if self.burst else f"{self.loss * 100:g}%"
        return f"{self.rate_bps / 1e6:g}mbit-{self.rtt_s * 1e3:g}ms-{loss}"

    def show(self) -> str:
        """For people."""
        if self.shaped:
            return f"{show_rate(self.rate_bps)} by tbf"
        words = [show_rate(self.rate_bps), f"{show_time(self.rtt_s)} RTT"]
        words.append("bursty loss" if self.burst else f"{show_share(self.loss)} loss")
        words += [f"{show_time(self.jitter_s)} jitter"] * bool(self.jitter_s)
        words += [f"{show_share(self.reorder)} reordered"] * bool(self.reorder)
        return ", ".join(words)

    def describe(self) -> dict[str, Any]:
        """For a record."""
        return asdict(self) | {"mtu": MTU}

    def path(self, rate_bps: float | None = None) -> emulate.Path:
        """One direction, perhaps at another rate."""
        return emulate.Path(
            delay_s=self.delay_s,
            jitter_s=self.jitter_s,
            rate_bps=self.rate_bps if rate_bps is None else rate_bps,
            queue_bytes=self.queue_bytes,
            loss=self.loss,
            burst=self.burst,
            reorder=self.reorder,
        )

    @contextlib.contextmanager
    def up(self) -> Iterator[Hosts]:
        """The link, while it is there. `Failure` where this host does not let it be made."""
        try:
            hosts = self._make()
        except (OSError, ValueError) as error:
            raise Failure(f"this link cannot be emulated here: {error}") from None
        with hosts:
            yield hosts

    def _make(self) -> Hosts:
        if self.shaped:
            return Shaped(self.rate_bps, queue_bytes=self.queue_bytes, mtu=MTU, buffers=self.buffers)
        return Wan(self.path(), mtu=MTU, seed=self.seed, buffers=self.buffers)

    @staticmethod
    def why_not(options: Namespace) -> str:
        """Empty, or a sentence: what this host would need."""
        return emulate.why_not() if options.shaped is None else emulate.why_not_shaped()


def kind_of(hosts: Hosts) -> str:
    return hosts.kind if isinstance(hosts, Wan) else "tbf"


def look(hosts: Hosts) -> Mapping[str, Counters]:
    """Of each direction; empty of a link that does not tell."""
    return hosts.counters() if isinstance(hosts, Wan) else {}


@dataclass(frozen=True, slots=True)
class Span:
    """What the emulator did in each direction, "there" and "back", between two looks at its counters, and what the
    sender's reports said of it, where it was the one who sent."""

    ways: Mapping[str, Counters]
    reports: Sequence[Reported] = ()

    @classmethod
    def between(
        cls, before: Mapping[str, Counters], after: Mapping[str, Counters], reports: Sequence[Reported] = ()
    ) -> Span:
        return cls({way: counters.since(before[way]) for way, counters in after.items()}, reports)

    @property
    def late_s(self) -> float:
        """Its mean lateness in the direction where it was worse; 0.0 of one that does not tell."""
        return max((way.late_mean_s or 0.0 for way in self.ways.values()), default=0.0)

    @property
    def late_max_s(self) -> float:
        """Of one packet, since the link was made."""
        return max((way.late_max_s or 0.0 for way in self.ways.values()), default=0.0)

    def queue_s(self, share: float) -> float | None:
        """The time in the queue on the way there that this share of packets did not exceed."""
        there = self.ways.get("there")
        return None if there is None or there.queueing is None else there.queueing.quantile_s(share)


COUNTED = ("segments_in", "bytes_in", "segments_out", "bytes_out", "lost", "overflowed", "black_holed", "failed")


def summary(spans: Sequence[Span], rate_bps: float, *, alone: bool) -> dict[str, Any]:
    """Of the runs that count: what the sender says, what the emulator did, and the one beside the other, where kvwire
    had the link `alone`."""
    runs = [span.reports for span in spans]
    ways = [span.ways for span in spans if span.ways]
    there = [way["there"] for way in ways]
    return {
        **reported.summary(runs),
        "late_mean_s": max(span.late_s for span in spans),
        "late_max_s": max(span.late_max_s for span in spans),
        "emulated": {name: sum(getattr(way, name) for way in there) for name in COUNTED} if ways else None,
        "report_vs_emulator": reported.beside(runs, ways, rate_bps) if ways and alone else None,
    }


def queue(prefix: str, spans: Sequence[Span]) -> dict[str, float]:
    """The time in the queue, medians over runs; nothing where the emulator does not tell."""
    found = {}
    for name, share in (("p50", 0.5), ("p95", 0.95)):
        seen = [seconds for span in spans if (seconds := span.queue_s(share)) is not None]
        if seen:
            found[f"{prefix}queue_{name}_s"] = statistics.median(seen)
    return found
