"""--metrics: what a command's links do, for Prometheus and kvwire-top to read while it runs."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import AsyncIterator

import kvwire
from kvwire.cli.arguments import parsed
from kvwire.cli.failure import Failure
from kvwire.telemetry import prometheus

HERE = "127.0.0.1"


def add_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--metrics", metavar="[ADDRESS:]PORT", type=parsed(_where),
        help=f"export metrics over HTTP, at {HERE} where no ADDRESS is named; kvwire-top reads them",
    )  # fmt: skip


def _where(text: str) -> tuple[str, int]:
    address, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise ValueError(f"{text!r:.80}; expected a port of 1 to 65535, or an address, a colon and a port")
    return address.strip("[]") or HERE, int(port)


@contextlib.asynccontextmanager
async def exported(node: kvwire.Node, where: tuple[str, int] | None) -> AsyncIterator[None]:
    """Export a node's metrics there, if anywhere. `Failure` where nothing can listen there; ConfigError where
    prometheus_client is not installed."""
    if where is None:
        yield
        return
    with contextlib.closing(prometheus.export(node)):
        from prometheus_client import start_http_server

        try:
            server, thread = start_http_server(where[1], where[0])
        except OSError as error:
            raise Failure(f"no metrics at {where[0]} port {where[1]}: {error.strerror or error}") from None
        try:
            yield
        finally:
            await asyncio.to_thread(server.shutdown)  # it may take half a second
            server.server_close()
            thread.join()
