"""docs/telemetry.md: its tables are what the code says."""

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from kvwire.telemetry import EgressReport, LaneReport, ListenerCounts, Totals, reports
from kvwire.telemetry.metrics import TABLE

PAGE = (Path(__file__).parents[2] / "docs/telemetry.md").read_text()


def docstrings(name: str) -> Iterator[tuple[str, str]]:
    """Fields of a class of reports.py, in order, each with what stands below it, on one line."""
    (found,) = (it for it in ast.parse(Path(reports.__file__).read_text()).body if getattr(it, "name", "") == name)
    assert isinstance(found, ast.ClassDef)
    for here, after in zip(found.body, found.body[1:], strict=False):
        if isinstance(here, ast.AnnAssign) and isinstance(here.target, ast.Name):
            assert isinstance(after, ast.Expr), f"{name}.{here.target.id} has no docstring"
            assert isinstance(after.value, ast.Constant)
            yield here.target.id, " ".join(str(after.value.value).split())


def table(heading: str) -> list[str]:
    """The rows of the first table under a heading, its head left out."""
    section = PAGE.partition(f"\n{heading}\n")[2].partition("\n## ")[0].partition("\n### ")[0]
    return [line for line in section.splitlines() if line.startswith("| `")]


@pytest.mark.parametrize("record", [EgressReport, Totals, LaneReport, ListenerCounts])
def test_every_field_is_in_its_table(record: type) -> None:
    expected = [f"| `{name}` | {text} |" for name, text in docstrings(record.__name__)]
    assert len(expected) == len(fields(record))
    assert table(f"### {record.__name__}") == expected


def test_every_metric_is_in_the_table() -> None:
    expected = [
        f"| `{it.prometheus}` | `kvwire.{it.name}` | {it.unit} | {', '.join(it.labels)} | {it.help} |" for it in TABLE
    ]
    assert table("## Metrics") == expected


def test_fields_say_their_unit() -> None:
    units = (
        "Bits|Bytes|Seconds|Share|Segments|Lanes|Times|Transfers|Number|Retransmission timeouts|Reports|Calls|Callbacks"
        "|Ratio|Whether|Name|Address|Tenant|How often|Sums|What became|Each|The kernel's"
    )
    for record in (EgressReport, Totals, LaneReport, ListenerCounts):
        for name, text in docstrings(record.__name__):
            assert re.match(f"({units})\\b", text), (record.__name__, name, text)
