"""kvwire-top against endpoints that are there, that are not, and that say something else."""

from __future__ import annotations

import math
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from prometheus_client import CollectorRegistry, start_http_server

from kvwire.cli.top import command, scrape, screen
from kvwire.telemetry import ReportBuilder, prometheus
from kvwire.telemetry.metrics import TABLE
from tests.net.metrics_kit import scraped
from tests.unit.telemetry_kit import ALink, ANode, full_report, made

TOP = [sys.executable, "-m", "kvwire.cli.top.command"]
PATIENCE_S = 30.0


def a_node() -> ANode:
    return ANode([ALink(full_report("a")), ALink(made(ReportBuilder(), 0.0, link="b"))])


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """Something that speaks HTTP."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/metrics"
        finally:
            server.shutdown()
            thread.join()


# --- once -------------------------------------------------------------------------------------------------------------


def test_once_shows_links_queues_and_lanes(capsys: pytest.CaptureFixture[str]) -> None:
    with scraped(a_node()) as url:
        assert command.main([url, "--once"]) == 0
    said = capsys.readouterr().out
    assert f"{url}: 2 links, 2 lanes" in said
    rows = [line.split() for line in said.splitlines()]
    links, queues = [row for row in rows if row[:1] == ["a"]][:2]
    assert links[1:7] == ["10.0.0.2", "port", "7878", "(acme)", "96.5", "Mbit/s"]
    assert "0/3/1" in queues
    assert [row[:3] for row in rows if row[:1] == ["a"]][2:] == [["a", "0", "cubic"], ["a", "1", "cubic"]]
    assert "500 Mbit/s for 12.5 s" in said
    assert "≥" not in said


def test_a_lower_bound_is_marked_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    found = replace(full_report(), capacity_is_lower_bound=True)
    with scraped(ANode([ALink(found)])) as url:
        assert command.main([url, "--once"]) == 0
    assert "≥ 100 Mbit/s" in capsys.readouterr().out


def test_a_host_whose_name_cannot_be_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["http://prefill..local/metrics", "--once"]) == 2
    assert capsys.readouterr().err.startswith("kvwire-top: http://prefill..local/metrics: ")


def test_an_endpoint_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    gone = f"http://127.0.0.1:{free_port()}/metrics"
    with scraped(a_node()) as url:
        assert command.main([gone, url, "--once"]) == 2
    said = capsys.readouterr()
    assert said.err == f"kvwire-top: {gone}: nothing listens there\n"
    assert "96.5 Mbit/s" in said.out


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (404, b"no", "answers 404 Not Found"),
        (200, b"up 1\n", "has no metrics of kvwire's"),
        (200, b"kvwire_links one\n", "says something that is not Prometheus's text format"),
        (200, b"\xff\xfe", "says something that is not Prometheus's text format"),
    ],
)
def test_something_else_answers(status: int, body: bytes, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(status, body) as url:
        assert command.main([url, "--once"]) == 2
    assert capsys.readouterr().err == f"kvwire-top: {url}: {why}\n"


def test_one_that_takes_the_connection_and_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scrape, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}/metrics"
        assert command.main([url, "--once"]) == 2
    assert capsys.readouterr().err == f"kvwire-top: {url}: does not answer within 0.2 s\n"


@contextmanager
def dripping(head: bytes) -> Iterator[str]:
    """Something that begins like this, and then says a character at a time, for as long as anybody listens."""
    over = threading.Event()

    def drip(server: socket.socket) -> None:
        with suppress(OSError), server.accept()[0] as caller:
            caller.sendall(head)
            while not over.wait(0.05):
                caller.sendall(b"#")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=drip, args=(server,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}/metrics"
        finally:
            over.set()
            thread.join()


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n"])
def test_one_that_drips(head: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(scrape, "TIMEOUT_S", 0.5)
    with dripping(head) as url, scraped(a_node()) as other:
        assert command.main([url, other, "--once"]) == 2
    said = capsys.readouterr()
    assert said.err == f"kvwire-top: {url}: does not answer within 0.5 s\n"
    assert "96.5 Mbit/s" in said.out


def test_what_a_peer_is_called_does_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with scraped(ANode([ALink(replace(full_report(), peer="\x1b[2J[red]evil\n\x9b1m"))])) as url:
        assert command.main([url, "--once"]) == 0
    said = capsys.readouterr().out
    assert "?[2J[red]evil??1m" in said
    assert not any(character in said for character in "\x1b\x9b")


# --- live -------------------------------------------------------------------------------------------------------------


class Terminal:
    """kvwire-top on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self.fd, theirs = pty.openpty()
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "200", "LINES": "60"}
        command_line = [*TOP, "--interval", "0.1", *arguments]
        self.process = subprocess.Popen(command_line, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
        os.close(theirs)
        self.said = ""

    def expect(self, text: str) -> None:
        until = time.monotonic() + PATIENCE_S
        while text not in self.said:
            assert time.monotonic() < until, self.said
            if select.select([self.fd], [], [], 0.1)[0]:
                self.said += os.read(self.fd, 65536).decode(errors="replace")
        self.said = self.said.partition(text)[2]

    def ends(self) -> int:
        """Its exit status; what it still says is read, as it would not end otherwise."""
        until = time.monotonic() + PATIENCE_S
        while self.process.poll() is None:
            assert time.monotonic() < until
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    os.read(self.fd, 65536)
                except OSError:  # its end of the terminal is closed
                    break
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def run(*arguments: str) -> Terminal:
        opened.append(Terminal(*arguments))
        return opened[-1]

    yield run
    for it in opened:
        it.process.kill()
        it.process.wait()
        os.close(it.fd)


def test_q_ends_the_live_view(terminal: Callable[..., Terminal]) -> None:
    with scraped(a_node()) as url:
        top = terminal(url)
        top.expect("96.5 Mbit/s")
        top.expect("96.5 Mbit/s")
        os.write(top.fd, b"xq")
        assert top.ends() == 0


def test_it_keeps_trying_until_it_is_interrupted(terminal: Callable[..., Terminal]) -> None:
    port = free_port()
    top = terminal(f"127.0.0.1:{port}")
    top.expect("nothing listens there")
    registry = CollectorRegistry()
    prometheus.export(a_node(), registry)
    server, thread = start_http_server(port, "127.0.0.1", registry)
    top.expect("96.5 Mbit/s")
    server.shutdown()
    server.server_close()
    thread.join()
    top.expect("nothing listens there")
    top.process.send_signal(signal.SIGINT)
    assert top.ends() == 0


def test_one_that_drips_does_not_hold_up_the_end(terminal: Callable[..., Terminal]) -> None:
    with dripping(b"HTTP/1.1 200 OK\r\n") as url:
        top = terminal(url)
        top.expect("does not answer")
        top.process.send_signal(signal.SIGINT)
        assert top.ends() == 0


def test_without_a_terminal_there_is_no_live_view() -> None:
    done = subprocess.run(TOP, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "kvwire-top: a live view needs a terminal; --once prints what there is\n"


# --- what it asks for -------------------------------------------------------------------------------------------------


def test_it_asks_for_what_nodes_export(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: set[tuple[str, frozenset[str]]] = set()

    class Asked(scrape.LinkView):
        def get(self, name: str, **labels: str) -> float:
            asked.add((name, frozenset(labels)))
            return math.nan

        def label(self, name: str, label: str, **labels: str) -> str:
            asked.add((name, frozenset({label, *labels})))
            return ""

    view = Asked("a", "b", {("lane_info", frozenset({("lane", "0")})): 1.0})
    screen.show([scrape.NodeView("http://host/metrics", [view])])
    assert len(asked) > 20
    assert asked <= {(it.prometheus.removeprefix("kvwire_"), frozenset(it.labels)) for it in TABLE}


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("host", "http://host:9464/metrics"),
        ("host:80", "http://host:80/metrics"),
        ("[::1]:80", "http://[::1]:80/metrics"),
        ("[::1]", "http://[::1]:9464/metrics"),
        ("https://host", "https://host/metrics"),
        ("http://host:1/", "http://host:1/metrics"),
        ("http://host/elsewhere?a=b", "http://host/elsewhere?a=b"),
    ],
)
def test_endpoints_in_short(text: str, url: str) -> None:
    assert scrape.parse_url(text) == url


@pytest.mark.parametrize("text", ["", "ftp://host", "http://", "host:port", "host:99999", "file:///etc/passwd", "[::1"])
def test_what_is_no_endpoint(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command.main([text, "--once"])
    assert end.value.code == 2
    assert "argument URL" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["rich", "prometheus_client"])
def test_a_package_that_is_missing_is_named_with_its_extra(package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from kvwire.cli.top import command; sys.exit(command.main())"
    done = subprocess.run([sys.executable, "-c", code, "--once"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"kvwire-top: {package}\S* is not installed; pip install 'kvwire\[top\]'\n", done.stderr)
