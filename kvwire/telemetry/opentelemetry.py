"""OpenTelemetry: what a node's links report, whenever the application's reader collects. Needs `opentelemetry-api`
(pip install 'kvwire[metrics]'), and the application's own SDK, reader and exporter.

    from kvwire.telemetry import opentelemetry

    exporter = opentelemetry.export(node)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from kvwire.telemetry.metrics import TABLE, Metric, Source, keep_looking, missing, snapshot

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation


class Exporter:
    """Observable instruments, `kvwire.` and the name in the table; attributes are the labels with `kvwire.` before."""

    def __init__(self, source: Source, provider: MeterProvider) -> None:
        self._source = source
        self._stop_looking = keep_looking(source)
        self._closed = False
        meter = provider.get_meter("kvwire")
        for metric in TABLE:
            create = meter.create_observable_counter if metric.kind == "counter" else meter.create_observable_gauge
            create(f"kvwire.{metric.name}", [self._observe(metric)], unit=metric.unit, description=metric.help)

    def close(self) -> None:
        """Nothing more is observed; OpenTelemetry knows no way to take an instrument back. Idempotent."""
        self._closed = True
        self._stop_looking()

    def _observe(self, metric: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
        from opentelemetry.metrics import Observation

        names = tuple(f"kvwire.{label}" for label in metric.all_labels)

        def observe(_: CallbackOptions) -> Iterable[Observation]:
            if self._closed:
                return
            for labels, value in metric.values(snapshot(self._source)):
                yield Observation(value, dict(zip(names, labels, strict=True)))

        return observe


def export(source: Source, provider: MeterProvider | None = None) -> Exporter:
    """Export what a node's links report, through `provider` (None: the global one), until the exporter is closed. To
    be called, and closed, on the node's event loop.

    ConfigError where opentelemetry-api is not installed.
    """
    try:
        from opentelemetry.metrics import get_meter_provider
    except ImportError:
        raise missing("opentelemetry-api") from None
    return Exporter(source, get_meter_provider() if provider is None else provider)
