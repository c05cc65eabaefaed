"""Prometheus: what a node's links report, when it is scraped. Needs prometheus_client (pip install 'kvwire[metrics]').

from prometheus_client import start_http_server
from kvwire.telemetry import prometheus

exporter = prometheus.export(node)
start_http_server(9464)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from kvwire.errors import ConfigError
from kvwire.telemetry.metrics import PROMETHEUS_UNITS, TABLE, Metric, Source, keep_looking, missing, snapshot

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector


class Exporter:
    """A collector of `prometheus_client`. Scrapes come on any thread."""

    def __init__(self, source: Source, registry: CollectorRegistry) -> None:
        self._source = source
        self._stop_looking = keep_looking(source)
        self._registry = registry
        self._closed = False
        try:
            registry.register(cast("Collector", self))
        except BaseException:
            self._stop_looking()
            raise

    def describe(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """The names, so that a registry can tell two exporters apart."""
        return map(_family, TABLE)

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """The latest report of each link that is up."""
        found = snapshot(self._source)
        for metric in TABLE:
            family = _family(metric)
            for labels, value in metric.values(found):
                family.add_metric(labels, value)
            yield family

    def close(self) -> None:
        """Out of the registry; idempotent."""
        if not self._closed:
            self._closed = True
            self._stop_looking()
            self._registry.unregister(cast("Collector", self))


def export(source: Source, registry: CollectorRegistry | None = None) -> Exporter:
    """Export what a node's links report, to `registry` (None: the default one), until the exporter is closed. To be
    called, and closed, on the node's event loop.

    ConfigError where prometheus_client is not installed, or the registry has another node's metrics already.
    """
    try:
        import prometheus_client
    except ImportError:
        raise missing("prometheus_client") from None
    try:
        return Exporter(source, prometheus_client.REGISTRY if registry is None else registry)
    except ValueError as error:
        hint = "give each node a CollectorRegistry of its own"
        raise ConfigError(f"this registry has metrics of these names already: {error}", hint=hint) from None


def _family(metric: Metric) -> CounterMetricFamily | GaugeMetricFamily:
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    unit = PROMETHEUS_UNITS.get(metric.unit, "")
    return kind(metric.prometheus, metric.help, labels=metric.all_labels, unit=unit)
