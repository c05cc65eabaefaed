"""Standard streams: closed, full or no longer read; and what may be written to them."""

from __future__ import annotations

import os
import sys


def mend() -> None:
    """Puts /dev/null where a standard stream is closed: its number would go to the next file or socket."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


def drop_output() -> None:
    """Whatever waits to be written goes nowhere: who read it has gone, or the disk is full."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def printable(text: str) -> str:
    """What a peer may have chosen must not steer the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)
