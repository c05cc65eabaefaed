"""What the sections of a report have in common: their form, and how numbers are shown in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvwire.cli.report.charts import Axis, Bar
from kvwire.cli.report.fields import MOST, Fields
from kvwire.cli.report.markup import Markup, element
from kvwire.cli.report.webpage import Figure, Verdict
from kvwire.cli.units import show_rate, show_share, show_size, show_time

RIGHT = Verdict("ok", "every byte was right")
WRONG = Verdict("fault", "bytes were wrong")
NOTHING, TIMES = "\u2013", "\u00d7"


@dataclass(frozen=True, slots=True)
class Section:
    """One record, ready to be shown: charts go `beside` each other, tables `below`. `repeat`: where, and the command.
    `compared`: its bars beside those of other records of its kind; the report labels them."""

    title: str
    verdict: Verdict | None
    figures: Sequence[Figure]
    beside: Sequence[Markup]
    below: Sequence[Markup]
    repeat: Sequence[tuple[str, str]]
    compared: Sequence[Bar] = ()


@dataclass(frozen=True, slots=True)
class Kind:
    """`called`: one such record and several. `section`: how it is read. `compared`, `axis`, `names`: the chart of
    several records' bars; `names` of their series, where they differ."""

    called: tuple[str, str]
    section: Callable[[Fields], Section]
    compared: str = ""
    axis: Axis = field(default_factory=Axis)
    names: Sequence[str] = ()


def show_number(value: float) -> str:
    """Three digits, and all those before the point."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def show_maybe(value: float | None, show: Callable[[float], str] = show_number) -> str:
    return NOTHING if value is None else show(value)


def show_tokens(value: float) -> str:
    """ "512", "32 K"."""
    return f"{value / 1024:g} K" if value >= 1024 else f"{value:g}"


UNITS = {"_s": show_time, "_bytes": show_size, "_bps": show_rate}


def show_fact(name: str, value: Any) -> str:
    """A fact that is shown as it stands, but for its unit, which its name ends with."""
    if isinstance(value, list):
        return ", ".join(show_fact(name, item) for item in value) or NOTHING
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: NOTHING}[value]
    if isinstance(value, int | float):
        for ending, show in UNITS.items():
            if name.endswith(ending) and 0 <= value <= MOST:
                return show(value)
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    return str(value) or NOTHING


def damage_list(sentences: Sequence[str]) -> list[Markup]:
    """What was wrong with the bytes; nothing where nothing was."""
    return [element("ul", *(element("li", each) for each in sentences), class_="fault")] if sentences else []


NOT_COMPRESSION = ("iperf3", "plain", "page", "ideal", "fair_share")


def compressed(record: Fields) -> list[str]:
    """The other settings of compression that it was compared with."""
    names = [name.removeprefix("ratio_vs_") for name in record.names() if name.startswith("ratio_vs_")]
    return [name for name in names if name not in NOT_COMPRESSION and not name.endswith("_runs")]


def compression(record: Fields) -> list[tuple[str, str]]:
    """What was sent and what it went through, of records that say so."""
    if not record.has("compression"):
        return []
    found = [("Compression", record.text("compression")), ("Content", record.text("content"))]
    if record.has("automatic"):
        found.append(("Automatic codecs", f"{record.text('automatic')}: {record.text('automatic_reason')}"))
    if record.has("coded_share"):
        found.append(("Went coded", coded(record)))
    return found


def coded(record: Fields) -> str:
    """Which share, and how many times shorter."""
    if not record.has("coded_ratio"):
        return "nothing"
    return f"{show_share(record.number('coded_share'))}, {record.number('coded_ratio'):.2f} {TIMES} shorter"


def mode(record: Fields) -> str:
    if not record.flag("sealed"):
        return "plain, CRC32C"
    return f"sealed, AES-256-GCM by {record.text('cipher')}"
