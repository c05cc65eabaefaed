"""What a link knows of compressing: a gauge for each kind of cell, and whether automatic codecs encode.

The decision is that of `kvwire/codecs/adaptive.py`; here is what it is told. The workers measure what codecs make of
cells (`kvwire/_ext/coding.pyx`), the host says what cores are idle (`kvwire/cores.py`), the peer says with each grant
what it can decode, and what the link carries is seen at every tick of its egress.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from kvwire._ext.coding import Gauge
from kvwire._ext.lanes import EngineLink
from kvwire.codecs.adaptive import Codecs, Did, Rule, WORKER_Bps
from kvwire.congestion import PathSample
from kvwire.cores import Cores
from kvwire.telemetry import CompressionState
from kvwire.types import DType, GroupSpec, ModelTag

if TYPE_CHECKING:
    from kvwire._ext.lanes import LinkStats

MOST_GAUGES = 4096
"""Of a link: a model of 80 layers and two groups has 160."""
RATIO_S = 1.0
"""How often gauges are read: all of them take a few milliseconds."""
FADING = 0.8
"""What is left of earlier measurements with each that comes."""
LEAST_BYTES = 256 * 1024
"""Coded bytes that make a measurement: four cells."""

Kind = tuple[ModelTag, str, int, DType]


class CodecRate:
    """Plain bytes per second and core, from totals of bytes and of nanoseconds; the latest count most."""

    def __init__(self) -> None:
        self._seen = (0, 0)
        self._bytes = self._ns = 0.0

    def add(self, nbytes: int, ns: int) -> None:
        """Totals, now."""
        did_bytes, did_ns = nbytes - self._seen[0], ns - self._seen[1]
        if did_bytes < LEAST_BYTES and self._ns:
            return
        self._seen = nbytes, ns
        self._bytes, self._ns = FADING * self._bytes + did_bytes, FADING * self._ns + did_ns

    @property
    def Bps(self) -> float:
        """0.0: not known."""
        return 1e9 * self._bytes / self._ns if self._ns else 0.0


class Compression:
    """Of one link."""

    def __init__(self, engine: EngineLink, workers: int, cores: Cores) -> None:
        self._engine = engine
        self._workers = workers
        self._cores = cores
        self._gauges: dict[Kind, Gauge] = {}
        self._rule = Rule()
        self._encoding, self._decoding = CodecRate(), CodecRate()
        self._peer_Bps = 0
        self._ratio, self._ratio_at = 0.0, 0.0
        self._sampled: dict[Kind, int] = {}
        self._encode_ns = 0
        self._decoded = time.monotonic(), 0, 0.0  # when, nanoseconds of decoding by then, and cores of it before

    # --- what transfers ask ---------------------------------------------------------------------------------------

    def gauge(self, model: ModelTag, spec: GroupSpec, layer: int) -> Gauge:
        """That of one kind of cell. Of more than 4096 kinds those that were asked for last keep theirs."""
        kind = model, spec.name, layer, spec.dtype
        found = self._gauges.pop(kind, None) or Gauge()
        self._gauges[kind] = found  # the last one now
        if len(self._gauges) > MOST_GAUGES:
            oldest = next(iter(self._gauges))
            del self._gauges[oldest]
            self._sampled.pop(oldest, None)
        return found

    def peer_decodes(self, Bps: int) -> None:
        """The peer's own word; 0: it does not know."""
        self._peer_Bps = Bps or self._peer_Bps

    @property
    def decode_Bps(self) -> int:
        """Plain bytes per second that this node can decode of automatic codecs, with cores that are idle or do so now.
        0: none was decoded yet. A worker that decodes does not receive meanwhile."""
        now, stats = time.monotonic(), self._engine.link_stats()
        self._decoding.add(stats["auto_decoded_bytes"], stats["auto_decode_ns"])
        if not self._decoding.Bps:
            return 0
        since, ns, cores = self._decoded
        if now - since >= RATIO_S:
            cores = (stats["auto_decode_ns"] - ns) / 1e9 / (now - since)
            self._decoded = now, stats["auto_decode_ns"], cores
        workers = min(self._workers, self._cores.idle(now) + cores)
        # Without a core to spare it is next to nothing, which is not the same as not known.
        return max(1, int(workers / (1 / self._decoding.Bps + 1 / WORKER_Bps)))

    # --- the rule -------------------------------------------------------------------------------------------------

    def look(self, now: float, sample: PathSample, stats: LinkStats) -> None:
        """What the link did since the last look; tells the engine where the rule changes its mind."""
        self._encoding.add(stats["auto_encoded_bytes"], stats["auto_encode_ns"])
        self._decoding.add(stats["auto_decoded_bytes"], stats["auto_decode_ns"])
        coding = (stats["auto_encode_ns"] - self._encode_ns) / 1e9 / sample.interval_s
        self._encode_ns = stats["auto_encode_ns"]
        if not self._gauges:
            return
        self._weigh(now)
        workers = max(1, min(self._workers, len(sample.lanes)))
        lane_s = sample.interval_s * max(1, len(sample.lanes))
        arrived = min(sample.wire_bytes - sample.retransmitted_bytes, sample.delivered_bytes)
        self._rule.add(
            Did(
                seconds=sample.interval_s,
                wire_bytes=arrived if sample.wire_bytes else sample.sent_bytes,  # where the kernel tells nothing
                plain_bytes=sample.landed_bytes,
                limited_s=sample.idle_s + sample.paced_s,
                rtt_s=sample.rtt_s,
                coding_share=sample.encode_s / sample.interval_s / workers,
                receiver_share=sum(lane.receiver_limited_s for lane in sample.lanes) / lane_s,
            )
        )
        codecs = Codecs(
            encode_Bps=self._encoding.Bps,
            decode_Bps=self._peer_Bps,
            ratio=self._ratio,
            workers=workers,
            spare_cores=self._cores.idle(now) + coding,
        )
        was = self._rule.on
        if self._rule.decide(now, codecs) != was:
            self._engine.set_affordable(self._rule.on)

    def _weigh(self, now: float) -> None:
        """The ratio of what has been sampled since the last time: of each kind as much as there were cells of it."""
        if self._ratio and now - self._ratio_at < RATIO_S:
            return
        cells = payloads = 0.0
        for kind, gauge in self._gauges.items():
            samples = gauge.samples
            did = samples - self._sampled.get(kind, 0)
            if did and gauge.ratio:
                self._sampled[kind] = samples
                cells += did
                payloads += did / gauge.ratio
        if cells:
            self._ratio, self._ratio_at = cells / payloads, now

    @property
    def state(self) -> CompressionState:
        """For reports."""
        return CompressionState(
            on=self._rule.on,
            reason=self._rule.reason.value,
            ratio=self._ratio,
            encode_Bps=self._encoding.Bps,
            decode_Bps=self._decoding.Bps,
            peer_decode_Bps=self._peer_Bps,
            link_Bps=self._rule.link.Bps,
        )
