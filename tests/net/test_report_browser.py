"""A report in a real browser: it is drawn, says nothing on the console, and asks nobody for anything.

Chromium says by itself what a page did: the DOM, a picture, its console, and every request that it made.
"""

import functools
import http.server
import json
import re
import shutil
import subprocess
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kvwire.cli import bench
from kvwire.cli.report.charts import DARK, LIGHT

SAMPLES = Path(__file__).parents[1] / "unit" / "reports"
CHROMIUM = shutil.which("chromium") or ""
SITE = "http://127.0.0.1"
WIDTH, HEIGHT = 1200, 900
FLAGS = (
    # The page is our own, and containers do not let a browser make a sandbox of its own.
    *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={WIDTH},{HEIGHT}"),
    # What the browser itself would ask the network for.
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")


@dataclass(frozen=True)
class Visit:
    """What the browser made of a page, and `paths`: what the server was asked for."""

    url: str
    dom: str
    console: list[str]
    requests: set[str]
    paths: list[str]
    picture: NDArray[np.uint8]

    def pixels(self, color: str) -> int:
        """How many are of the color "#rrggbb"."""
        wanted = [int(color[at : at + 2], 16) for at in (1, 3, 5)]
        return int((self.picture == wanted).all(axis=2).sum())


def visit(page: Path, *flags: str) -> Visit:
    """Serve the folder of `page` and open it."""
    paths: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, *_: Any) -> None:
            paths.append(self.path)

    folder = page.parent
    picture, log = folder / "picture.png", folder / "net.json"
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"{SITE}:{server.server_port}/{page.name}"
        told = ("--enable-logging=stderr", "--dump-dom", f"--screenshot={picture}", f"--log-net-log={log}")
        command = [CHROMIUM, *FLAGS, *flags, *told, f"--user-data-dir={folder / 'profile'}", url]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)
        finally:
            server.shutdown()
    return Visit(
        url=url,
        dom=done.stdout,
        console=re.findall(r"CONSOLE.*", done.stderr),
        requests=requests_of(json.loads(log.read_text())),
        paths=paths,
        picture=read_png(picture.read_bytes()),
    )


def requests_of(log: dict[str, Any]) -> set[str]:
    """What was asked for on behalf of a page. A browser also asks for things of its own, such as updates; those are of
    another site, or of none."""
    begun = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    events = [event["params"] for event in log["events"] if event["type"] == begun and "params" in event]
    return {asked["url"] for asked in events if SITE in asked.get("network_isolation_key", "")}


def read_png(png: bytes) -> NDArray[np.uint8]:
    """[height, width, red green blue] of a PNG of 8 bits a channel, not interlaced (RFC 2083)."""
    at, packed = 8, b""
    width, height, _, kind = (int.from_bytes(png[s:e], "big") for s, e in ((16, 20), (20, 24), (24, 25), (25, 26)))
    while at < len(png):
        length, name = int.from_bytes(png[at : at + 4], "big"), png[at + 4 : at + 8]
        packed += png[at + 8 : at + 8 + length] if name == b"IDAT" else b""
        at += 12 + length
    depth = {2: 3, 6: 4}[kind]
    rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + width * depth)
    image = np.zeros((height, width * depth), np.uint8)
    above = bytes(width * depth)
    for y, row in enumerate(rows):
        above = unfilter(int(row[0]), row[1:], above, depth)
        image[y] = np.frombuffer(above, np.uint8)
    return image.reshape(height, width, depth)[:, :, :3]


def unfilter(method: int, row: NDArray[np.uint8], above: bytes, depth: int) -> bytes:
    """Bytes of a row, from what it adds to its neighbours on the left and above."""
    if method == 0:
        return row.tobytes()
    if method == 1:
        return np.cumsum(row.reshape(-1, depth), axis=0, dtype=np.uint8).tobytes()
    if method == 2:
        return (row + np.frombuffer(above, np.uint8)).tobytes()
    line = bytearray(row.tobytes())
    for x in range(len(line)):
        left, up, corner = (line[x - depth], above[x], above[x - depth]) if x >= depth else (0, above[x], 0)
        if method == 3:
            guess = (left + up) // 2
        else:
            distances = {left: abs(up - corner), up: abs(left - corner), corner: abs(left + up - 2 * corner)}
            guess = min((left, up, corner), key=distances.__getitem__)
        line[x] = (line[x] + guess) & 255
    return bytes(line)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a record of each kind."""
    page = tmp_path_factory.mktemp("report") / "report.html"
    files = [str(SAMPLES / f"{kind}.json") for kind in ("loopback", "run", "doctor", "models")]
    assert bench.main(["report", *files, "-o", str(page)]) == 0
    return page


@pytest.fixture(scope="module")
def visited(report: Path) -> Visit:
    return visit(report)


def test_charts_are_drawn(visited: Visit) -> None:
    assert visited.dom.count("<svg") == 13
    assert visited.picture.shape == (HEIGHT, WIDTH, 3)
    assert visited.pixels(LIGHT[0]) > 5000  # the bars of the comparison
    assert visited.pixels("#ffffff") > WIDTH * HEIGHT / 2


def test_it_is_dark_where_that_is_preferred(report: Path) -> None:
    dark = visit(report, "--blink-settings=preferredColorScheme=0")
    assert dark.pixels(DARK[0]) > 5000
    assert dark.pixels("#ffffff") < WIDTH * HEIGHT / 100


def test_the_console_is_empty(visited: Visit) -> None:
    assert visited.console == []


def test_nothing_but_the_page_is_asked_for(visited: Visit) -> None:
    assert visited.paths == ["/report.html"]
    assert visited.requests == {visited.url}


def test_a_page_that_misbehaves_would_be_caught(tmp_path: Path) -> None:
    """What the tests above rely on: the browser tells of an error, of a request, and of nothing drawn."""
    page = tmp_path / "bad.html"
    page.write_text("<!doctype html><img src=/pixel.png><script>fetch('http://example.invalid/'); wrong()</script>")
    found = visit(page)
    assert any("wrong is not defined" in line for line in found.console)
    assert {"/pixel.png", "/favicon.ico"} <= set(found.paths)
    assert {found.url.replace("bad.html", "pixel.png"), "http://example.invalid/"} <= found.requests
    assert found.pixels(LIGHT[0]) == 0
