"""Nodes that have links with reports, and their endpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server

from kvwire.telemetry import prometheus
from kvwire.telemetry.metrics import Source


@contextmanager
def scraped(source: Source) -> Iterator[str]:
    """The URL of its Prometheus endpoint."""
    registry = CollectorRegistry()
    exporter = prometheus.export(source, registry)
    server, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        yield f"http://127.0.0.1:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        exporter.close()
