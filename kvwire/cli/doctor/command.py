"""kvwire-bench doctor: what on this host, and on the path to another, keeps kvwire from the rate that is wanted."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TextIO

from kvwire.cli import machine, record, sealing
from kvwire.cli.arguments import DEFAULT_PORT, Subparsers, parsed, within
from kvwire.cli.doctor import findings, host_facts, path_findings, path_probe, tcp_findings
from kvwire.cli.doctor.findings import LEVELS, Case, Finding, Level
from kvwire.cli.failure import Failure
from kvwire.cli.progress import Progress
from kvwire.cli.units import parse_rate, show_rate
from kvwire.congestion import LanePlanner

RULES = (
    findings.cpu,
    findings.crypto,
    findings.libcrypto,
    findings.clock,
    findings.descriptors,
    tcp_findings.congestion,
    tcp_findings.windows,
    tcp_findings.autotuning,
    tcp_findings.switches,
    tcp_findings.kernel,
    tcp_findings.backlog,
    path_findings.peer,
    path_findings.interface,
    path_findings.options,
)
DEFAULT_RATE_BPS = 10e9
COLOURS: Mapping[Level, str] = {"fault": "\x1b[1;31m", "warning": "\x1b[33m", "note": "\x1b[36m", "ok": "\x1b[32m"}
"""Red, yellow, cyan and green (ECMA-48, SGR)."""
MOST_COLUMNS = 120
INDENT = " " * 23


def diagnose(case: Case) -> list[Finding]:
    """All findings, worst first; of one level in the order of RULES."""
    found = [finding for rule in RULES for finding in rule(case)]
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def add_command(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("doctor", help="what slows kvwire down here", description=__doc__)
    add = parser.add_argument
    add("host", nargs="?", metavar="HOST", help="measure the path to this host too")
    add("-p", "--port", type=within(1, 65535, int), default=DEFAULT_PORT, help=f"its port ({DEFAULT_PORT})")
    sealing.add_arguments(parser)
    add("--rate", metavar="RATE", type=parsed(parse_rate), help="wanted, as 25G (the link's speed if known, else 10G)")
    add("--json", action="store_true", help=record.HELP)
    parser.set_defaults(command=command)


def command(options: argparse.Namespace) -> int:
    """Prints the findings. Their levels do not change the exit status: they are for a person to weigh."""
    problem: Failure | None = None
    route = None
    identity = sealing.identity_of(options) if options.host is not None and sealing.given(options) else None
    with Progress() as progress:
        progress.say("reading /proc and /sys")
        host = host_facts.read()
        if options.host is not None:
            progress.say(f"dialling {options.host} port {options.port}")
            try:
                route = path_probe.probe(options.host, options.port, identity=identity, plain=options.plain)
            except Failure as failure:  # what was found of this host is worth showing before that is said
                problem = failure
    link_bps = route.interface.link_bps if route and route.interface else 0.0
    lanes = LanePlanner(None).start(route.rtt_s if route else tcp_findings.FAR_RTT_S)
    case = Case(host, route, options.rate or link_bps or DEFAULT_RATE_BPS, lanes)
    found = diagnose(case)
    if options.json:
        result = {
            "rate_bps": case.rate_bps,
            "lanes": case.lanes,
            "facts": asdict(host),
            "path": asdict(route) if route else None,
            "findings": [asdict(finding) for finding in found],
        }
        record.show(record.record("doctor", {"here": machine.describe()}, result))
    else:
        show(case, found, machine.show(machine.describe()))
    if problem is not None:
        raise problem
    return 0


def show(case: Case, found: Sequence[Finding], here: str, stream: TextIO | None = None) -> None:
    """Writes the findings for people, worst first, in colours on a terminal unless NO_COLOR is set."""
    stream = stream or sys.stdout
    colours = stream.isatty() and not os.environ.get("NO_COLOR")
    columns = min(MOST_COLUMNS, shutil.get_terminal_size((MOST_COLUMNS, 0)).columns)
    to = f"to {case.route.host} ({case.route.address})" if case.route else "to anywhere (name a HOST to measure a path)"
    print(f"{here}\nWanted: {show_rate(case.rate_bps)} over {case.lanes} lanes {to}\n", file=stream)
    for finding in found:
        level = f"{finding.level:<9}"
        if colours:
            level = f"{COLOURS[finding.level]}{level}\x1b[0m"
        print(f"{level}{finding.area:<14}{_wrapped(finding.found, columns)}", file=stream)
        if finding.change:
            # Not wrapped: it is there to be copied.
            print(f"{INDENT}change  {finding.change}", file=stream)
            print(f"{INDENT}gain    {_wrapped(finding.gain, columns, 8)}", file=stream)
    if any("sysctl -w" in finding.change for finding in found):
        print("\nsysctl -w lasts until the next boot; the same lines in /etc/sysctl.d/kvwire.conf last.", file=stream)
    counts = [(sum(finding.level == level for finding in found), level) for level in LEVELS]
    print(", ".join(f"{count} {level}{_plural(count, level)}" for count, level in counts if count), file=stream)


def _plural(count: int, level: Level) -> str:
    return "" if count == 1 or level == "ok" else "s"


def _wrapped(text: str, columns: int, further: int = 0) -> str:
    """`text` in lines that end at `columns`, all but the first indented to where the first begins."""
    indent = INDENT + " " * further
    width = max(40, columns - len(indent))
    return f"\n{indent}".join(textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False))
