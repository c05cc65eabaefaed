"""Argument types that every command shares: what is wrong with a value is said in a sentence."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Protocol


class Subparsers(Protocol):
    """What `argparse.ArgumentParser.add_subparsers` returns."""

    def add_parser(self, name: str, **options: Any) -> argparse.ArgumentParser: ...


def parsed(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """An argparse type whose ValueError is shown as it stands."""

    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def within(low: float, high: float, number: type[int] | type[float]) -> Callable[[str], Any]:
    """An argparse type: an int or float in `low` to `high`."""

    def convert(text: str) -> Any:
        try:
            value = number(text)
        except ValueError:
            value = number(-1)
        if not low <= value <= high:
            kind = "an integer" if number is int else "a number"
            raise ValueError(f"{text!r}; expected {kind} in {low:g} to {high:g}")
        return value

    return parsed(convert)
