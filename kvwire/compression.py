"""Whether cells are coded by themselves: not yet."""

from __future__ import annotations

from kvwire._ext.coding import Gauge
from kvwire._ext.lanes import EngineLink
from kvwire.types import GroupSpec, ModelTag

MOST_GAUGES = 4096


class Compression:
    """Of one link."""

    def __init__(self, engine_link: EngineLink, workers: int) -> None:
        del engine_link, workers
        self._gauges: dict[tuple[ModelTag, GroupSpec, int], Gauge] = {}
        self.decode_Bps = 0

    def gauge(self, model: ModelTag, spec: GroupSpec, layer: int) -> Gauge | None:
        """The same one for the same key; None beyond 4096 keys."""
        key = model, spec, layer
        if key not in self._gauges and len(self._gauges) < MOST_GAUGES:
            self._gauges[key] = Gauge()
        return self._gauges.get(key)

    def peer_decodes(self, bytes_per_s: int) -> None:
        """What the peer said in a GRANT; 0: it does not know."""
