"""Whether automatic codecs encode on a link, and why. Pure: `now` is an argument, in seconds, and never goes back.

The problem: a codec is worth its while where the link is slower than the codecs at its two ends, and what the link
carries is known only from what it has carried. A link that carries little because it has little to send looks slow. One
that waits for its codec looks slow, too, and would be the slower the more it waits. And estimates of what this host can
do are made while it does something else.

So three things are kept apart. `LinkRate` is what the link carries when nothing but the link holds it up. `verdict`
holds that beside what the codecs do:

    on only if  min(encode, decode, ratio x link) > 1.1 x link,  in plain bytes per second

And `Rule` changes its mind at most every 5 s, looks again where the link has not set the limit for a minute, and gives
up for a while where what was worth it by all these numbers was not in fact.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

MARGIN = 1.1
"""What compression has to bring, of the link's own rate."""
HOLD_S = 5.0
"""Between two changes."""

SPAN_S, SPAN_RTTS = 0.2, 2.0
"""What the link is measured over, the longer of the two: time in which it had something to send, pauses left out."""
SPANS = 8
"""So many of them are remembered, and the largest counts: one in which lanes recovered from a loss does not."""
LIMITED_SHARE = 0.05
"""A sample with more of it idle or paced says more about this host than about the link."""
GROWTH, SAME = 1.25, 0.95
"""As in telemetry/capacity.py: more than that above any before is still starting up; as near as that confirms."""
CODING_SHARE = 0.5
"""With more of the workers' time spent on encoding it may be the codec that holds the link up."""
RECEIVER_SHARE = 0.5
"""With more of the lanes' time held back by the receiver's window it may be the peer's decoding."""

WORKER_Bps = 2.5e9
"""Of a worker that sends or receives and does nothing else, bytes on the wire (bench/README.md, loopback: 4.1 to
5.9 GB/s with two). It does not code meanwhile."""
TRIED_S = 1.0
"""Of sending with codecs, until it may be said that they were no help."""
RETRY_S, MOST_RETRY_S = 60.0, 960.0
"""How long that holds, and how long nothing but the link's own rate may be missing; doubles each time."""


class Reason(StrEnum):
    """Why automatic codecs encode or do not. Fixed texts, which docs/telemetry.md explains."""

    UNUSED = "no transfer asks for it"
    NOT_SAMPLED = "nothing has been sampled yet"
    LINK_UNKNOWN = "the link's rate is not known yet"
    NO_SMALLER = "what is sent does not shrink"
    LINK_FASTER = "the link is faster than the codec here"
    PEER_SLOWER = "the peer decodes too slowly"
    NO_CORES = "no cores to spare"
    NO_FASTER = "it was tried and was no faster"
    LOOKING = "the link's rate is measured again"
    RECENT = "changed less than 5 s ago"
    WORTH_IT = "worth it"


@dataclass(frozen=True, slots=True)
class Codecs:
    """What the codecs at the two ends make of what is sent, in plain bytes."""

    encode_Bps: float
    """Of one core; 0.0: not known."""
    decode_Bps: float
    """Of the peer, all that it has; 0.0: not known."""
    ratio: float
    """Plain bytes over those on the wire, of what was sampled; 0.0: nothing was."""
    workers: int
    """Threads that can encode: the node's workers, or as many as there are lanes."""
    spare_cores: float
    """Cores that nobody uses, and those that encoding uses now."""

    @property
    def core_Bps(self) -> float:
        """What a worker encodes and sends, one after the other."""
        return 1 / (1 / self.encode_Bps + 1 / (self.ratio * WORKER_Bps))


def verdict(link_Bps: float, codecs: Codecs) -> Reason:
    """WORTH_IT, or what is in the way. `link_Bps` is above 0.0."""
    least_Bps = MARGIN * link_Bps
    if codecs.ratio <= 0.0 or codecs.encode_Bps <= 0.0:
        return Reason.NOT_SAMPLED
    if codecs.ratio <= MARGIN:
        return Reason.NO_SMALLER
    if codecs.core_Bps * codecs.workers <= least_Bps:
        return Reason.LINK_FASTER
    if 0.0 < codecs.decode_Bps <= least_Bps:
        return Reason.PEER_SLOWER
    if codecs.core_Bps * min(codecs.workers, codecs.spare_cores) <= least_Bps:
        return Reason.NO_CORES
    return Reason.WORTH_IT


class Did(NamedTuple):
    """What a link did between two looks at it."""

    seconds: float
    wire_bytes: int
    """First transmissions that arrived, as TCP counts them."""
    plain_bytes: int
    """That landed at the peer."""
    limited_s: float
    """With nothing to send, or held back by the pacer."""
    rtt_s: float
    coding_share: float
    """Of the time of the workers that can encode."""
    receiver_share: float
    """Of the lanes' time, held back by the receiver's window."""


class _Span(NamedTuple):
    rate_Bps: float
    by_link: bool


class LinkRate:
    """What one link carries, in bytes on the wire per second.

    It is measured in samples throughout which something was ready to be sent and no pacer held it back. These are put
    together, whatever lies between them, until they make a span; so short transfers with pauses tell as much as a long
    one. The largest of the last 8 spans is the rate. It is known if one of them as large as that came when the rate no
    longer grew: before, in the kernel's slow start, it is a lower bound.

    Bytes are counted on the wire, so cells that are sent coded say as much about the link as plain ones. But where the
    codec may be what holds the link up (`held`: the workers spend half of their time on it, or the peer's window is
    closed half of the time) a span is only a lower bound, too: it may raise the rate and never lowers it. While nothing
    is coded, what the peer takes is what the link carries, whoever closes its window.
    """

    def __init__(self) -> None:
        self._spans: deque[_Span] = deque(maxlen=SPANS)
        self._seconds = self._bytes = 0.0
        self._held = False

    @property
    def Bps(self) -> float:
        """0.0: nothing is known."""
        return max((span.rate_Bps for span in self._spans), default=0.0)

    @property
    def known(self) -> bool:
        """Whether that is more than a lower bound."""
        return max((span.rate_Bps for span in self._spans if span.by_link), default=-1.0) >= SAME * self.Bps

    def add(self, did: Did, held: bool) -> bool:
        """What was sent; returns whether that made a span in which the link set the limit."""
        self._seconds += did.seconds
        self._bytes += did.wire_bytes
        self._held |= held
        if self._seconds < max(SPAN_S, SPAN_RTTS * did.rtt_s):
            return False
        rate, most, by_link = self._bytes / self._seconds, self.Bps, not self._held
        self.begin()
        if not by_link and rate <= most:
            return False
        by_link = by_link and rate <= GROWTH * most
        self._spans.append(_Span(rate, by_link))
        return by_link

    def begin(self) -> None:
        """What comes is sent in another way than what came before."""
        self._seconds = self._bytes = 0.0
        self._held = False


class Rule:
    """Of one link."""

    def __init__(self) -> None:
        self.link = LinkRate()
        self.on = False
        self.reason = Reason.UNUSED
        self._changed_at: float | None = None
        self._held_s = self._held_bytes = 0.0  # held up, since the link last set the limit, and what landed meanwhile
        self._retry_s = RETRY_S
        self._refused_until = 0.0

    def add(self, did: Did) -> None:
        """What the link did."""
        if did.limited_s > LIMITED_SHARE * did.seconds:
            return
        held = did.coding_share > CODING_SHARE or (self.on and did.receiver_share > RECEIVER_SHARE)
        by_link = self.link.add(did, held)
        if not self.on:
            return
        if by_link:
            self._held_s = self._held_bytes = 0.0
            self._retry_s = RETRY_S
        elif held:
            self._held_s += did.seconds
            self._held_bytes += did.plain_bytes

    def decide(self, now: float, codecs: Codecs) -> bool:
        """Whether automatic codecs encode from now on; `reason` says why."""
        reason = self._judge(now, codecs)
        wanted = reason is Reason.WORTH_IT
        if wanted != self.on and self._changed_at is not None and now - self._changed_at < HOLD_S:
            self.reason = Reason.RECENT
            return self.on
        if wanted != self.on:
            self._change(now, reason)
        self.reason = reason
        return self.on

    def _judge(self, now: float, codecs: Codecs) -> Reason:
        if self.link.Bps <= 0.0 or not (self.link.known or self.on):
            return Reason.LINK_UNKNOWN
        found = verdict(self.link.Bps, codecs)
        if found is not Reason.WORTH_IT:
            return found
        if now < self._refused_until:
            return Reason.NO_FASTER
        if self.on and self._held_s >= TRIED_S and self._held_bytes / self._held_s < self.link.Bps:
            return Reason.NO_FASTER
        if self.on and self._held_s >= self._retry_s:
            return Reason.LOOKING
        return found

    def _change(self, now: float, reason: Reason) -> None:
        self.on = not self.on
        self._changed_at = now
        self._held_s = self._held_bytes = 0.0
        self.link.begin()
        if reason is Reason.NO_FASTER:
            self._refused_until = now + self._retry_s
        if reason is Reason.LOOKING:
            self.link = LinkRate()
        if reason in (Reason.NO_FASTER, Reason.LOOKING):
            self._retry_s = min(2 * self._retry_s, MOST_RETRY_S)
