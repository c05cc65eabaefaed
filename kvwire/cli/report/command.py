"""kvwire-bench report: what --json printed, as one HTML page that needs nothing else."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kvwire.cli.arguments import Subparsers
from kvwire.cli.failure import Failure
from kvwire.cli.report import webpage
from kvwire.cli.report.charts import bars
from kvwire.cli.report.described import CODECS, DOCTOR, MODELS
from kvwire.cli.report.fields import Fields, read
from kvwire.cli.report.markup import Markup, element, join
from kvwire.cli.report.measured import LOOPBACK, RUN
from kvwire.cli.report.section import NOTHING, Section, show_number
from kvwire.cli.report.wan import GRID, WAN
from kvwire.cli.units import show_size

KINDS = {
    "loopback": LOOPBACK,
    "run": RUN,
    "wan": WAN,
    "wan-grid": GRID,
    "doctor": DOCTOR,
    "models": MODELS,
    "codecs": CODECS,
}
DEFAULT_OUT = "kvwire-report.html"


def add_command(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("report", help="a page with charts from what --json printed", description=__doc__)
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE.json", help='what kvwire-bench --json printed, once or often; "-" is stdin')
    add("-o", dest="out", metavar="FILE.html", default=DEFAULT_OUT, help=f'({DEFAULT_OUT}); "-" is stdout')
    parser.set_defaults(command=command)


def command(options: argparse.Namespace) -> int:
    """Writes the page and says where it is."""
    records = [record for name in options.files for record in read(name)]
    made = page(records).encode()
    if options.out == "-":
        sys.stdout.buffer.write(made)
        return 0
    out = Path(options.out)
    write(out, made)
    shown = str(out).encode(errors="replace").decode()  # a name that is no text must not end in a traceback
    print(f"{shown}: {len(records)} record{'s' * (len(records) != 1)}, {show_size(len(made))}")
    return 0


def check_free(out: Path) -> None:
    """`Failure` where something else than a report would be lost, or there is no place for one."""
    try:
        os.stat(f"{out.parent}/")
        if out.is_file() and not _may_be_replaced(out):
            raise Failure(f"{out} is there and is no report; move it away, or name another file")
    except OSError as error:
        raise Failure(f"{out} cannot be written: {error.strerror}") from None


def write(out: Path, made: bytes) -> None:
    """A page. `Failure` where it cannot be written, or something else is there."""
    check_free(out)
    try:
        out.write_bytes(made)
    except OSError as error:
        raise Failure(f"{out} cannot be written: {error.strerror}") from None


def _may_be_replaced(out: Path) -> bool:
    """An earlier report, or nothing; not the records themselves, named after -o by mistake."""
    with out.open("rb") as file:
        return file.read(len(webpage.START)) in (b"", webpage.START.encode())


@dataclass(frozen=True, slots=True)
class Entry:
    """A record and what became of it."""

    number: int
    kind: str
    record: Fields
    section: Section

    @property
    def time(self) -> str:
        return self.record.text("time").replace("T", " ").replace("Z", " UTC")

    @property
    def file(self) -> str:
        """Without the folders that it is in: a report is passed on."""
        return self.record.where.rpartition("/")[2]

    def machines(self) -> list[tuple[str, Fields]]:
        """Each machine, by its part in the measurement."""
        machines = self.record.object("machines")
        return [(part, machines.object(part)) for part in machines.names()]


def page(records: Sequence[Fields]) -> str:
    """The page of these records. `Failure` where one lacks what its kind has."""
    entries = []
    for number, record in enumerate(records, 1):
        kind = record.choice("kind", KINDS)
        entries.append(Entry(number, kind, record, KINDS[kind].section(record)))
    counts = Counter(entry.kind for entry in entries)
    title = ", ".join(f"{count} {KINDS[kind].called[count > 1]}" for kind, count in counts.items())
    compared = [chart for kind in counts for chart in _comparison(kind, entries)]
    top = element("header", element("p", "kvwire-bench report", class_="faint"), element("h1", title))
    body = [
        top,
        *([_summary(entries)] if len(entries) > 1 else []),
        *([webpage.beside(compared)] if compared else []),
        *map(_section, entries),
        *_machines(entries),
    ]
    return webpage.page(f"kvwire-bench: {title}", body)


def _summary(entries: Sequence[Entry]) -> Markup:
    """Of each record the first figures."""
    items = []
    for entry in entries:
        link = element("a", f"#{entry.number} {entry.section.title}", href=f"#record-{entry.number}")
        said = ", ".join(f"{figure.value} {figure.meaning}" for figure in entry.section.figures[:2])
        items.append(element("div", _heading(link, entry), element("p", said)))
    return element("div", *items, class_="beside summary")


def _heading(title: Markup, entry: Entry) -> Markup:
    verdict = [webpage.badge(entry.section.verdict)] if entry.section.verdict else []
    return element("div", title, *verdict, class_="heading")


def _comparison(kind: str, entries: Sequence[Entry]) -> list[Markup]:
    """The chart of what the records of a kind have in common, where there are several."""
    alike = [entry for entry in entries if entry.kind == kind and entry.section.compared]
    if len(alike) < 2:
        return []
    rows = [
        replace(bar, label=f"#{entry.number} {label}")
        for entry, label in zip(alike, differences([entry.record.text("command") for entry in alike]), strict=True)
        for bar in entry.section.compared
    ]
    return [bars(KINDS[kind].compared, rows, KINDS[kind].axis, KINDS[kind].names)]


def differences(commands: Sequence[str]) -> list[str]:
    """Of each command what not all of them have: its options with their values, and its other words."""
    split = [_options(command) for command in commands]
    common = set.intersection(*map(set, split))
    return [" ".join(option for option in options if option not in common) for options in split]


def _options(command: str) -> list[str]:
    """The words of a command, an option together with what follows it."""
    try:
        words = shlex.split(command)
    except ValueError:  # a quote that is never closed: no command that a shell would run
        words = command.split()
    options: list[str] = []
    for word in words:
        if options and options[-1].startswith("-") and " " not in options[-1] and not word.startswith("-"):
            options[-1] += f" {word}"
        else:
            options.append(word)
    return options


def _section(entry: Entry) -> Markup:
    section = entry.section
    on = ", ".join(f"{part}: {facts.text('host')}" for part, facts in entry.machines())
    return element(
        "section",
        _heading(element("h2", f"#{entry.number} {section.title}"), entry),
        element("p", " · ".join(filter(None, (entry.time, on, entry.file))), class_="faint"),
        webpage.figures(section.figures),
        webpage.beside(section.beside),
        webpage.below(section.below),
        element("h3", "To repeat it"),
        *(
            join([*([element("p", where, class_="faint")] if where else []), element("pre", element("code", command))])
            for where, command in section.repeat
        ),
        id=f"record-{entry.number}",
    )


def _machines(entries: Sequence[Entry]) -> list[Markup]:
    """Every machine once, with the records that it had a part in."""
    parts: dict[tuple[str, ...], list[str]] = {}
    for entry in entries:
        for part, facts in entry.machines():
            described = (
                facts.text("host"),
                f"{show_number(facts.number('cores'))} cores of {facts.text('cpu')}",
                show_size(facts.number("memory_bytes")),
                *(facts.text(name) for name in ("kernel", "congestion", "crc32c")),
                facts.maybe_text("cipher") or NOTHING,
                *(facts.text(name) for name in ("python", "kvwire")),
            )
            parts.setdefault(described, []).append(f"#{entry.number} {part}")
    if not parts:
        return []
    head = ("Host", "CPU", "Memory", "Linux", "Congestion control", "CRC32C", "AES-256-GCM", "Python", "kvwire", "In")
    rows = [[*described, ", ".join(used)] for described, used in parts.items()]
    machines = webpage.below([webpage.table("", head, rows)])
    return [element("section", element("h2", "Machines"), machines)]
