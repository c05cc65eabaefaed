"""Records read again: files become JSON objects, and their fields become typed values, or a sentence says why not."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from kvwire.cli import record
from kvwire.cli.failure import Failure
from kvwire.cli.jsontext import check_depth
from kvwire.cli.units import MIB, show_size

MOST_BYTES = 64 * MIB
"""Of one file. The record of a day at one interval a second has about 10 MiB."""
MOST = 1e18
"""Largest number; a larger one is a mistake, and charts need not be ready for it."""

_SPACE = re.compile(r"\s*")


class Fields:
    """One JSON object. `where` names it in sentences: file, record and path within it. `Failure` for a field that is
    not there or not what it should be; a `maybe_` field may also be null or missing."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values = values
        self.where = where

    def _fail(self, name: str, expected: str) -> NoReturn:
        if name not in self._values:
            raise Failure(f"{self.where} has no {name!r}; expected {expected}")
        value = self._values[name]
        found = "an object" if isinstance(value, dict) else "a list" if isinstance(value, list) else json.dumps(value)
        found = found if len(found) <= 40 else found[:39] + "…"
        raise Failure(f"{self.where}: {name!r} is {found}; expected {expected}")

    def _is(self, name: str, expected: str, *kinds: type) -> Any:
        value = self._values.get(name)
        if type(value) not in kinds:
            self._fail(name, expected)
        return value

    def names(self) -> list[str]:
        return list(self._values)

    def has(self, name: str) -> bool:
        """Neither null nor missing."""
        return self._values.get(name) is not None

    def text(self, name: str) -> str:
        return str(self._is(name, "a text", str))

    def maybe_text(self, name: str) -> str:
        """Empty where there is none."""
        return self.text(name) if self.has(name) else ""

    def choice(self, name: str, choices: Iterable[str]) -> str:
        value = self.text(name)
        if value not in choices:
            self._fail(name, " or ".join(choices))
        return value

    def flag(self, name: str) -> bool:
        return bool(self._is(name, "true or false", bool))

    def number(self, name: str, low: float = 0.0) -> float:
        expected = f"a number in {low:g} to {MOST:g}"
        value: float = self._is(name, expected, int, float)
        if not low <= value <= MOST:  # false for NaN, too
            self._fail(name, expected)
        return value

    def maybe_number(self, name: str) -> float | None:
        return self.number(name) if self.has(name) else None

    def _items(self, name: str, expected: str) -> Fields:
        """A list as fields of their own, so that a sentence can name the one that is wrong."""
        items = self._is(name, expected, list)
        return Fields({f"item {number}": item for number, item in enumerate(items, 1)}, f"{self.where}, {name!r}")

    def numbers(self, name: str) -> list[float]:
        items = self._items(name, "a list of numbers")
        return [items.number(item) for item in items.names()]

    def texts(self, name: str) -> list[str]:
        items = self._items(name, "a list of texts")
        return [items.text(item) for item in items.names()]

    def objects(self, name: str) -> list[Fields]:
        items = self._items(name, "a list of objects")
        return [items.object(item) for item in items.names()]

    def object(self, name: str) -> Fields:
        return Fields(self._is(name, "an object", dict), f"{self.where}, {name!r}")

    def by_number(self) -> list[tuple[int, str]]:
        """The names where they are integers, in the order of these."""
        for name in self._values:
            if not (name.isascii() and name.isdecimal() and len(name) <= 15):
                raise Failure(f"{self.where} has {json.dumps(name)[:40]}; expected integers as names")
        return sorted((int(name), name) for name in self._values)

    def leaves(self, prefix: str = "") -> Iterator[tuple[str, Any]]:
        """Every value that is no object, with the names that lead to it: for facts that are shown as they are."""
        for name, value in self._values.items():
            if isinstance(value, dict):
                yield from Fields(value, self.where).leaves(f"{prefix}{name} ")
            else:
                yield f"{prefix}{name}", value


def read(name: str) -> list[Fields]:
    """The records of the file `name`, or of standard input where it is "-": one JSON object after another, on a line
    each or printed over several."""
    shown = "standard input" if name == "-" else name
    try:
        if name == "-":
            raw = sys.stdin.buffer.read(MOST_BYTES + 1)
        else:
            with Path(name).open("rb") as file:
                raw = file.read(MOST_BYTES + 1)
        found = raw.decode("utf-8-sig")
    except OSError as error:
        raise Failure(f"{shown} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Failure(f"{shown} is no text; expected what kvwire-bench printed with --json") from None
    if len(raw) > MOST_BYTES:
        raise Failure(f"{shown} is larger than {show_size(MOST_BYTES)}; expected what kvwire-bench printed with --json")
    try:
        check_depth(found)
        values = list(_values(found, shown))
    except ValueError as error:  # nested too deeply; a number of too many digits
        raise Failure(f"{shown} is no record ({error}); expected what kvwire-bench printed with --json") from None
    if not values:
        raise Failure(f"{shown} is empty; expected what kvwire-bench printed with --json")
    return [_checked(value, f"{shown}, line {line}" if len(values) > 1 else shown) for line, value in values]


def _values(found: str, shown: str) -> Iterator[tuple[int, Any]]:
    """JSON values and the lines that they begin on."""
    decoder = json.JSONDecoder()
    at = _end_of_space(found, 0)
    while at < len(found):
        line = found.count("\n", 0, at) + 1
        try:
            value, end = decoder.raw_decode(found, at)
        except json.JSONDecodeError as error:
            raise Failure(
                f"{shown}, line {error.lineno}: no JSON ({error.msg}); expected what kvwire-bench printed with --json"
            ) from None
        yield line, value
        at = _end_of_space(found, end)


def _end_of_space(found: str, at: int) -> int:
    match = _SPACE.match(found, at)
    return match.end() if match else at


def _checked(value: Any, where: str) -> Fields:
    """What every record has: that it is one, and of the format that this version reads."""
    if not isinstance(value, dict) or "kvwire_bench" not in value:
        raise Failure(f"{where} is no record; expected what kvwire-bench printed with --json")
    fields = Fields(value, where)
    if fields.number("kvwire_bench") != record.FORMAT:
        raise Failure(
            f"{where} has format {fields.number('kvwire_bench'):g} and this kvwire-bench reads {record.FORMAT}; "
            "make the report with the version that measured"
        )
    return fields
