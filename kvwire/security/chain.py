"""The chain of an audit log: what a line says of its place in it, and whether all of it holds."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain, pairwise
from typing import BinaryIO

from kvwire.errors import AuditError, LocalError
from kvwire.security.files import Name, open_at_once, path_of

MAX_LINE = 256 * 1024
"""Bytes of a line: more than every field, each as long as it may be and each character escaped."""
NO_LINE = "0" * 64
"""What the first line has for the hash of the one before."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line's number, event and hash of the line before, as it says itself; its own hash; and whether it was cut."""

    number: int
    event: str
    prev: str
    digest: str
    cut: bool = False

    @classmethod
    def parse(cls, content: bytes) -> Line | None:
        """Of a line without its newline; None for what is no event."""
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            return None
        if not isinstance(found, dict):
            return None
        number, event, prev = (found.get(name) for name in ("n", "event", "prev"))
        if type(number) is not int or not isinstance(event, str) or not isinstance(prev, str):
            return None
        return cls(number, event, prev, sha256(content).hexdigest())


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What `verify_audit` found in a log that is whole.

    `head` is the hash of its last line, to be kept elsewhere. `closed`: whether that is "closed"; else the log is being
    written, its process was killed, or its end was cut off. `after_head`: lines after the one that was asked for.
    """

    lines: int
    head: str
    closed: bool
    after_head: int | None = None


def verify_audit(path: Name, head: str | None = None) -> AuditReport:
    """Follow the chain of an audit log from its first line to its last.

    AuditError names the line that was changed, removed, inserted, moved or cut in its middle. What was done to the last
    line, and whether lines after it were cut off, only a `head` can tell that was kept elsewhere: AuditError where no
    line has that hash. LocalError where the file cannot be read.
    """
    name = path_of(path, AuditError)
    before = last = Line(0, "", "", NO_LINE)
    found = None
    try:
        with open(name, "rb", opener=open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise LocalError(f"{name} is no regular file")
            for line, following in pairwise(chain(_lines(file), (None,))):
                assert line is not None
                fault = _fault(before, last, line, following)
                if fault:
                    raise AuditError(f"{name}: {fault}")
                before, last = last, line
                if line.digest == head:
                    found = line.number
    except (OSError, ValueError) as error:
        raise LocalError(f"{name}: {getattr(error, 'strerror', None) or error}") from None
    if head is not None and found is None:
        raise AuditError(f"{name}: no line has the hash {head}: the end was cut off, or lines were rewritten")
    return AuditReport(last.number, last.digest, last.event == "closed", None if found is None else last.number - found)


def _lines(file: BinaryIO) -> Iterator[Line]:
    """Every line; what is no event has the number -1."""
    while content := file.readline(MAX_LINE + 1):
        yield (
            Line(-1, "", "", "", cut=True)
            if not content.endswith(b"\n") and len(content) <= MAX_LINE
            else Line.parse(content[:-1]) or Line(-1, "", "", "")
        )


def _fault(before: Line, last: Line, line: Line, following: Line | None) -> str:
    """What is wrong at `line`, which stands after `before` and `last`; empty where nothing is."""
    number = last.number + 1
    follows = line.prev == last.digest
    if follows and line.number == number:
        return ""
    if line.cut:
        return f"line {number} was cut in its middle"
    if follows or line.number < 0:
        return f"line {number} was changed"
    if line.number == number:  # it, or the one before, is not what was written; the next one knows what it was
        if number == 1 or (following is not None and following.prev != line.digest):
            return f"line {number} was changed"
        return f"line {last.number} was changed" if following else f"line {last.number} or line {number} was changed"
    if line.number > number:
        if following is not None and following.number <= line.number:
            return f"line {number} was moved: line {line.number} stands in its place"
        gone = f"line {number} was" if line.number == number + 1 else f"lines {number} to {line.number - 1} were"
        return f"{gone} removed"
    if line.number == last.number and line.prev == before.digest:
        return f"line {last.number} was inserted"
    if following is None or following.number == number:
        return f"line {number} was inserted"
    return f"line {number} was moved: line {line.number} stands in its place"
