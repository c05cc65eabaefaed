"""kvwire-top: links, lanes, transfers, rates and queues of running nodes, live. It reads their Prometheus endpoints."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence

from kvwire.cli.arguments import parsed, within
from kvwire.cli.failure import Failure
from kvwire.cli.streams import drop_output, mend

PIPE_COLUMNS = 200
"""Width of what no terminal shows."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0; 2 where it could not run, or --once and an endpoint said nothing."""
    mend()
    try:
        return _run(arguments)
    except Failure as error:
        print(f"kvwire-top: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        drop_output()
        if not isinstance(error, BrokenPipeError):
            print(f"kvwire-top: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0


def _run(arguments: Sequence[str] | None) -> int:
    try:
        from rich.console import Console
        from rich.live import Live

        from kvwire.cli.top import scrape, screen
    except ImportError as error:
        raise Failure(f"{error.name} is not installed; pip install 'kvwire[top]'") from None
    parser = argparse.ArgumentParser(prog="kvwire-top", description=__doc__, epilog="q or Ctrl-C ends it.")
    parser.add_argument(
        "urls", metavar="URL", nargs="*", type=parsed(scrape.parse_url),
        help=f"where a node exports its metrics, or host, or host:port; {scrape.DEFAULT_URL} if none is named",
    )  # fmt: skip
    parser.add_argument("--once", action="store_true", help="print what there is, and end")
    parser.add_argument("--interval", metavar="SECONDS", type=within(0.1, 3600, float), default=1.0, help="default: 1")
    options = parser.parse_args(arguments)
    endpoints = [scrape.Endpoint(url) for url in options.urls or [scrape.DEFAULT_URL]]
    if options.once:
        console = Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS)
        nodes = scrape.look(endpoints)
        console.print(screen.show([node for node in nodes if not node.error]), end="")
        for node in nodes:
            if node.error:
                print(f"kvwire-top: {node.url}: {node.error}", file=sys.stderr)
        sys.stdout.flush()
        return 2 if any(node.error for node in nodes) else 0
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise Failure("a live view needs a terminal; --once prints what there is")
    with _keys(), Live(screen=True, auto_refresh=False) as live:
        while True:
            began = time.monotonic()
            live.update(screen.show(scrape.look(endpoints)), refresh=True)
            if _asked_to_end(began + options.interval):
                return 0


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """The terminal gives every key at once, and shows none."""
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _asked_to_end(until: float) -> bool:
    """Whether q was pressed, or the terminal went away, until then."""
    while True:
        if select.select([sys.stdin], [], [], max(0.0, until - time.monotonic()))[0]:
            keys = os.read(sys.stdin.fileno(), 64)
            if not keys or b"q" in keys.lower():
                return True
        elif time.monotonic() >= until:
            return False


if __name__ == "__main__":
    sys.exit(main())
