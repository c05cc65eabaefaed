"""Argument types that every command shares: what is wrong with a value is said in a sentence."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Callable
from typing import Any, Protocol

from kvwire.cli.failure import Failure

DEFAULT_PORT = 7878
"""Where `kvwire-bench serve` listens and `run` and `doctor` look for it."""


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


def add_address_arguments(parser: argparse.ArgumentParser, bind: str) -> None:
    """-4, -6 and --bind, as iperf3 has them. `bind`: what an address given with --bind is for."""
    family = parser.add_mutually_exclusive_group()
    family.add_argument("-4", dest="family", action="store_const", const=socket.AF_INET, help="IPv4 only")
    family.add_argument("-6", dest="family", action="store_const", const=socket.AF_INET6, help="IPv6 only")
    parser.add_argument("-B", "--bind", metavar="ADDRESS", default="", help=bind)


def resolve(host: str, family: socket.AddressFamily | None) -> str:
    """The first address of `host` in this family (None: any), as numbers. `Failure` where it has none."""
    try:
        found = socket.getaddrinfo(host, None, family or 0, socket.SOCK_STREAM)
        return str(socket.getnameinfo(found[0][4], socket.NI_NUMERICHOST)[0])
    except (OSError, UnicodeError) as error:
        kind = {None: "", socket.AF_INET: " to an IPv4 address", socket.AF_INET6: " to an IPv6 address"}[family]
        raise Failure(f"{host!r} does not resolve{kind}: {getattr(error, 'strerror', None) or error}") from None


def local_address(options: argparse.Namespace) -> str:
    """The address of --bind, or the one that stands for every address of -4 or -6; empty: every address there is."""
    if options.bind:
        return resolve(options.bind, options.family)
    return {None: "", socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}[options.family]
