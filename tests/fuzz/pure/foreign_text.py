"""Text that people and other programs write: units and flags, URLs, Prometheus's format, JSON, orders of a bench."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from kvwire.cli import units
from kvwire.cli.arguments import within
from kvwire.cli.failure import Failure
from kvwire.cli.hosts.order import Order
from kvwire.cli.jsontext import DEEPEST, check_depth
from kvwire.cli.models.transformers_config import specs_of
from kvwire.cli.report.command import page
from kvwire.cli.report.fields import Fields
from kvwire.cli.top import scrape
from kvwire.congestion import make_controller
from kvwire.errors import ConfigError
from kvwire.types import Manifest, ModelTag
from tests.fuzz.pure.reading import Cursor

UNDER_TEST = (
    "kvwire.cli.units",
    "kvwire.cli.jsontext",
    "kvwire.cli.models.transformers_config",
    "kvwire.cli.top.scrape",
    "kvwire.cli.report.fields",
    "kvwire.congestion.registry",
)
"""Of `scrape` what reads; the rest asks. The page of a report is reached, too, and mostly made of what was read."""

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "examples/handoff/configs"
REPORTS = ROOT / "tests/unit/reports"
URL = "http://node:9464/metrics"
MOST_TEXT = 4096
MOST_ITEMS = 3
ORDER = {
    "up": True, "down": False, "seconds": 2.0, "transfers": None, "at_once": 2, "prefill_s": 0.0, "scatter": False
}  # fmt: skip


def fuzz(data: bytes) -> None:
    cursor = Cursor(data)
    match cursor.byte() % 8:
        case 0:
            _units(cursor.rest().decode("utf-8", "surrogateescape"))
        case 1:
            _url(cursor.rest().decode("utf-8", "surrogateescape"))
        case 2:
            _scrape(cursor.rest())
        case 3:
            _controller(cursor.rest().decode("utf-8", "surrogateescape"))
        case 4:
            _json(cursor.rest().decode("utf-8", "replace"))
        case 5:
            _config(_changed(cursor.choose(_objects(CONFIGS)), cursor))
        case 6:
            _report(_changed(cursor.choose(_objects(REPORTS)), cursor))
        case _:
            _order(_changed(ORDER, cursor))


@cache
def _objects(where: Path) -> list[Any]:
    """The first object of each file in a directory; those of whom there is less to change come first."""
    texts = [path.read_text().splitlines() for path in sorted(where.glob("*.json"))]
    found = [json.loads(lines[0] if lines[0].endswith("}") else "".join(lines)) for lines in texts]
    return sorted(map(_short, found), key=lambda each: len(str(each)))


def _value(cursor: Cursor) -> Any:
    """What a file can hold: bytes are their text."""
    return json.loads(json.dumps(cursor.value(), default=bytes.hex))


def _short(value: Any) -> Any:
    """A report of a long measurement takes as many times as long to make."""
    if isinstance(value, dict):
        return {name: _short(each) for name, each in value.items()}
    return [_short(each) for each in value[:MOST_ITEMS]] if isinstance(value, list) else value


def _changed(value: Any, cursor: Cursor) -> Any:
    for _ in range(cursor.byte() % 4):
        value = _changed_once(value, cursor)
    return value


def _changed_once(value: Any, cursor: Cursor) -> Any:
    """The same lists and maps with one place changed: another value, one that is elsewhere in it, or none."""
    if not isinstance(value, dict | list) or not value:
        return _value(cursor)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    at = cursor.choose(keys)
    made = value.copy()
    match cursor.byte() % 8:
        case 0:
            del made[at]
        case 1:
            made[at] = _value(cursor)
        case 2:
            made[at] = value[cursor.choose(keys)]
        case 3 if isinstance(made, dict):
            made[cursor.piece().decode("utf-8", "replace")] = _value(cursor)
        case _:
            made[at] = _changed_once(value[at], cursor)
    return made


def _units(text: str) -> None:
    readers: tuple[tuple[Callable[[str], float], Callable[[float], str], float, float], ...] = (
        (units.parse_size, units.show_size, 1, 1e30),
        (units.parse_rate, units.show_rate, 0, 1e31),
        (units.parse_time, units.show_time, 0, 1e10),
        (units.parse_share, units.show_share, 0, 1),
    )
    for parse, show, low, high in readers:
        try:
            value = parse(text)
        except ValueError as error:
            assert str(error).startswith(repr(text)), "a sentence that does not say what is wrong"
            continue
        assert math.isfinite(value)
        assert low <= value <= high, f"{text!r} is {value!r}"
        assert show(value)
        if parse is units.parse_size and value < 1 << 53:
            assert parse(str(value)) == value
    for number in (int, float):
        try:
            value = within(1, 64, number)(text)
        except argparse.ArgumentTypeError:
            continue
        assert 1 <= value <= 64


def _url(text: str) -> None:
    try:
        url = scrape.parse_url(text)
    except ValueError:
        return
    assert url.startswith(("http://", "https://"))
    assert scrape.parse_url(url) == url


def _scrape(data: bytes) -> None:
    try:
        view = scrape.parse(URL, data.decode())
    except ValueError:
        return
    for link in view.links:
        said = [link.link, link.peer, *link.lanes]
        assert all(isinstance(value, float | int) for value in link.values.values())
        assert all(text.isprintable() for text in said), said
        assert link.get("lanes", state="up") is not None


def _controller(text: str) -> None:
    try:
        make_controller(text)
    except ConfigError as error:
        assert len(str(error)) < MOST_TEXT + len(text)


def _json(text: str) -> None:
    try:
        check_depth(text)
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        assert not isinstance(error, RecursionError), f"more than {DEEPEST} deep"
        return
    if isinstance(found, dict):
        _config(found)
        _report(found)
        _order(found)


def _config(found: Any) -> None:
    if not isinstance(found, dict):
        return
    try:
        specs = specs_of(found)
    except ValueError:
        return
    manifest = Manifest.of("r", ModelTag("m"), 100, specs)
    assert manifest.nbytes > 0


def _report(found: Any) -> None:
    if not isinstance(found, dict):
        return
    try:
        made = page([Fields(found, "record 1")])
    except Failure:
        return
    assert "<script>" not in made.replace(_script(), ""), "somebody else's script"


@cache
def _script() -> str:
    """Ours."""
    made = page([Fields(_objects(REPORTS)[0], "record 1")])
    begin = made.find("<script>")
    return made[begin : made.find("</script>", begin)] if begin >= 0 else "<script>"


def _order(found: Any) -> None:
    try:
        order = Order.from_wire(found)
    except Failure as error:
        assert len(str(error)) < MOST_TEXT
        return
    assert Order.from_wire(order.to_wire()) == order
    assert order.show()


def plant() -> None:
    """A time may lack its unit, and nobody knows what that would be."""
    units._TIME = re.compile(units._TIME.pattern.replace("(us|ms|s)", "(us|ms|s|)"))
