"""kvwire-bench serve and run with --metrics, and kvwire-top looking at both."""

import signal
import socket
import time
from collections.abc import Callable

import pytest

from kvwire.cli.top import scrape
from tests.net.bench import fails, measuring, run, serving
from tests.net.test_metrics_top import PATIENCE_S, free_port


def link_at(port: int, seen: Callable[[scrape.LinkView], bool]) -> scrape.LinkView:
    """The only one there is, once it has reported that."""
    until = time.monotonic() + PATIENCE_S
    while True:
        (node,) = scrape.look([scrape.Endpoint(f"http://127.0.0.1:{port}/metrics")])
        if node.links and seen(node.links[0]):
            (link,) = node.links
            return link
        assert time.monotonic() < until, node
        time.sleep(0.05)


def moves(link: scrape.LinkView) -> bool:
    under_way = link.get("transfers", direction="out", **{"class": "demand"})
    return under_way > 0 and link.get("goodput_bits_per_second") > 0


def test_both_ends_of_a_measurement_can_be_looked_at() -> None:
    ours, theirs = free_port(), free_port()
    with serving("--plain", "-B", "127.0.0.1", "-p", "0", "--metrics", str(theirs)) as server:
        client = measuring("127.0.0.1", "-p", server.port, "--plain", "-t", "300", "--metrics", f"127.0.0.1:{ours}")
        try:
            sending = link_at(ours, moves)
            receiving = link_at(theirs, lambda link: link.get("transfers", direction="in", **{"class": "demand"}) > 0)
            assert sending.link == receiving.link
            assert len(sending.lanes) == sending.get("lanes_up") > 0
        finally:
            client.send_signal(signal.SIGINT)
            client.communicate(timeout=PATIENCE_S)
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", ours))


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        taken = str(sock.getsockname()[1])
        fails(
            run("127.0.0.1", "--plain", "--metrics", taken),
            f"no metrics at 127.0.0.1 port {taken}: Address already in use",
        )


@pytest.mark.parametrize("where", ["", "0", "65536", "http", "host:", "127.0.0.1:x"])
def test_what_is_no_port(where: str) -> None:
    fails(run("127.0.0.1", "--metrics", where), "expected a port of 1 to 65535")
