"""What seals a command's links, and with whose keys: those that the user names, or some that are made for one run."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

import kvwire
from kvwire._ext import cipher
from kvwire.cli.failure import Failure

ENVIRONMENT = "KVWIRE_KEYS"
"""Environment variable that stands for --keys."""
MAKE_KEYS = (
    "make keys with `kvwire-keys self` on each host and `kvwire-keys pin` for the other's certificate.pem, or with "
    f"`kvwire-keys ca` and `issue`, and name their directory with --keys or {ENVIRONMENT}; or give --plain on both ends"
)
ENDING = (signal.SIGTERM, signal.SIGHUP)


# --- the cipher -------------------------------------------------------------------------------------------------------


def cipher_name() -> str:
    """Who seals frames here, as "OpenSSL 3.0.19 (python)". ConfigError where KVWIRE_LIBCRYPTO names none that can."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of the package, which is shown by what it costs
        found = cipher.find()
    return found.name if found.native else f"{found.name}, which takes the GIL"


def mode(plain: bool) -> str:
    """What every frame is checked with, in words."""
    return "CRC32C, not encrypted" if plain else "AES-256-GCM"


def facts(plain: bool) -> dict[str, bool | str | None]:
    """The same for a record: `sealed`, and the `cipher` of this side, None where there is none."""
    return {"sealed": not plain, "cipher": None if plain else cipher_name()}


# --- keys that the user names -----------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--keys or --plain, for `identity_of`."""
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--keys", metavar="DIR", help=f"what kvwire-keys made for this host ({ENVIRONMENT} without)")
    either.add_argument("--plain", action="store_true", help="CRC32C, no encryption, no keys; both ends must say so")


def given(options: argparse.Namespace) -> bool:
    """Whether the user has said how links are to be protected."""
    return bool(options.plain or options.keys or os.environ.get(ENVIRONMENT))


def identity_of(options: argparse.Namespace) -> kvwire.Identity | None:
    """None for a plain node. `Failure` where there are no keys; IdentityError where they cannot be used."""
    if options.plain:
        return None
    directory = options.keys or os.environ.get(ENVIRONMENT)
    if not directory:
        raise Failure(f"no keys: {MAKE_KEYS}")
    return kvwire.Identity.load(directory)


def two_way_identity_of(options: argparse.Namespace) -> kvwire.Identity | None:
    """The same, for a command whose two ends make each other offers, if only to talk."""
    identity = identity_of(options)
    if identity is not None and identity.subject.role != "both":
        raise Failure(f"{identity.subject} has the role {identity.subject.role}: serve and run need --role both")
    return identity


# --- keys for one run -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def fresh_keys() -> Iterator[Path]:
    """A directory with an identity in "prefill" and one in "decode" that trust each other and nobody else.

    Nobody but this user may look into it, and it is gone afterwards, also when the process is asked to end.
    """
    with unwinding(), tempfile.TemporaryDirectory(prefix="kvwire-keys-") as directory:
        where = Path(directory)
        authority = kvwire.Authority.create(where / "ca", days=1)
        for role in ("prefill", "decode"):
            authority.issue(where / role, kvwire.Subject("this-run", role, "here", role), days=1)
        yield where


@contextlib.contextmanager
def unwinding() -> Iterator[None]:
    """Within it a signal that would end the process at once lets it clean up first."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    taken = [number for number in ENDING if signal.getsignal(number) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
