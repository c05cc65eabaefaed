"""Files that say whom to believe, and the log that says what was done: any bytes, and real ones that were changed."""

from __future__ import annotations

import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path

from kvwire.errors import AuditError, IdentityError, LocalError
from kvwire.security import pins, revocation
from kvwire.security.audit import AuditLog
from kvwire.security.certificates import Certificate
from kvwire.security.chain import NO_LINE, verify_audit
from kvwire.security.files import PRIVATE
from kvwire.security.pins import Pin, read_pins
from kvwire.security.revocation import parse_fingerprint, read_revoked
from kvwire.security.subject import Subject
from tests.fuzz.pure.certificates import NAMES, SAN, certificate
from tests.fuzz.pure.reading import Cursor

UNDER_TEST = (
    "kvwire.security.pins",
    "kvwire.security.revocation",
    "kvwire.security.chain",
    "kvwire.security.audit",
)
"""All but the chain also write, which is not for bytes to reach."""

SHARED_MEMORY = Path("/dev/shm")
DIGEST = re.compile("[0-9a-f]{64}")
EVENTS = ("link_up", "offer", "grant", "commit", "abort", "rekey")


def fuzz(data: bytes) -> None:
    cursor = Cursor(data)
    match cursor.byte() % 7:
        case 0:
            _pins(cursor.rest())
        case 1:
            _pins(_changed_pins(cursor))
        case 2:
            _revoked(cursor.rest())
        case 3:
            _fingerprint(cursor.rest())
        case 4:
            _audit(cursor.rest())
        case 5:
            _changed_audit(cursor)
        case _:
            _take_up(cursor)


@contextmanager
def _file(content: bytes) -> Iterator[Path]:
    """A file of these bytes, in memory."""
    fd = os.memfd_create("fuzz")
    try:
        os.fchmod(fd, PRIVATE)
        os.write(fd, content)
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


# --- pins and revocations ---------------------------------------------------------------------------------------------


@cache
def _pin() -> Pin:
    found = Certificate.from_der(certificate([(SAN, NAMES)]))
    return Pin(found, Subject("globex", "both", "us", "b"))


def _pins(content: bytes) -> None:
    with _file(content) as path, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cryptography's, of what will be an error one day
        try:
            found = read_pins(path)
        except IdentityError:
            return
    for each in found:
        assert DIGEST.fullmatch(each.certificate.fingerprint)
        assert sha256(each.certificate.der).hexdigest() == each.certificate.fingerprint
        assert not each.certificate.may_sign
        assert Subject.from_uri(each.subject.uri) == each.subject
    assert len({each.certificate.fingerprint for each in found}) == len(found)
    with _file(pins._text(found)) as path:
        assert read_pins(path) == found


def _changed_pins(cursor: Cursor) -> bytes:
    """A pin file with other values in some places."""
    whole = json.loads(pins._text((_pin(),)))
    entry = whole["pins"][0]
    for _ in range(cursor.byte() % 4):
        name = cursor.choose(sorted(entry))
        match cursor.byte() % 4:
            case 0:
                entry.pop(name)
                break
            case 1:
                entry[name] = cursor.value()
            case 2:
                entry[name] = str(entry[name])[: cursor.byte()] + cursor.piece().decode("latin-1")
            case _:
                entry[name] = cursor.piece().decode("utf-8", "replace")
    whole["pins"] *= cursor.byte() % 3
    try:
        return json.dumps(whole, ensure_ascii=cursor.flag(), default=lambda value: value.hex()).encode(errors="replace")
    except ValueError:
        return b""


def _revoked(content: bytes) -> None:
    with _file(content) as path:
        try:
            found = read_revoked(path)
        except IdentityError:
            return
    entries = [line.partition("#")[0].strip() for line in content.decode().splitlines()]
    meant = {entry.replace(":", "").lower() for entry in entries if entry}
    assert found == meant, "somebody who was meant is not revoked"
    assert all(DIGEST.fullmatch(each) for each in found), found
    with _file("\n".join(found).encode()) as path:
        assert read_revoked(path) == found


def _fingerprint(data: bytes) -> None:
    try:
        found = parse_fingerprint(data.decode("utf-8", "surrogateescape"))
    except IdentityError:
        return
    assert DIGEST.fullmatch(found)
    assert parse_fingerprint(found.upper()) == found


# --- the audit log ----------------------------------------------------------------------------------------------------


@cache
def _log() -> tuple[bytes, ...]:
    """The lines of a log that is whole."""
    lines, prev = [], NO_LINE
    for number, event in enumerate(("open", *EVENTS, "closed"), 1):
        line = json.dumps({"n": number, "time": "2026-01-01T00:00:00.000000Z", "event": event, "prev": prev}).encode()
        prev = sha256(line).hexdigest()
        lines.append(line)
    return tuple(lines)


def _audit(content: bytes, head: str | None = None) -> bool:
    """Whether it is whole; then each line has the hash of the one before, and the last one that of the report."""
    with _file(content) as path:
        try:
            report = verify_audit(path, head)
        except LocalError as error:
            assert isinstance(error, AuditError), f"it was read: {error}"
            assert len(str(error)) < 65536
            return False
    lines = content.split(b"\n")[:-1]
    assert len(lines) == report.lines
    prev = NO_LINE
    for number, line in enumerate(lines, 1):
        said = json.loads(line)
        assert (said["n"], said["prev"]) == (number, prev)
        prev = sha256(line).hexdigest()
    assert report.head == prev
    assert head is None or report.after_head is not None
    return True


def _changed_audit(cursor: Cursor) -> None:
    """Whatever was done to a log, whoever kept its head sees it."""
    lines = list(_log())
    for _ in range(1 + cursor.byte() % 3):
        at, other = cursor.byte() % len(lines), cursor.byte() % len(lines)
        match cursor.byte() % 7:
            case 0:
                lines[at], lines[other] = lines[other], lines[at]
            case 1 if len(lines) > 1:
                del lines[at]
            case 2:
                lines.insert(at, lines[other])
            case 3:
                lines.insert(at, cursor.piece())
            case 4:
                where = cursor.byte()
                lines[at] = lines[at][:where] + cursor.take(cursor.byte() % 4) + lines[at][where + cursor.byte() % 4 :]
            case 5:
                said = {"n": at + cursor.byte() % 3, "event": "x", "prev": sha256(lines[other]).hexdigest()}
                lines[at] = json.dumps(said).encode()
            case _:
                del lines[at + 1 :]
    whole = b"".join(line + b"\n" for line in _log())
    changed = b"".join(line + b"\n" for line in lines)[: len(whole) * 2 - cursor.byte()]
    head = sha256(_log()[-1]).hexdigest()
    # A line that was written after the last one, with its hash, is what a process that opens the log again does.
    assert not _audit(changed, head) or changed.startswith(whole), "what was done to the log is not seen"


def _take_up(cursor: Cursor) -> None:
    """A log is opened again that ends with anything."""
    kept = b"".join(line + b"\n" for line in _log()[: cursor.byte() % (len(_log()) + 1)])
    before = kept + cursor.rest()
    where = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(dir=where) as directory:
        path = Path(directory) / "audit"
        path.write_bytes(before)
        was_whole = _audit(before)
        try:
            with AuditLog(path, clock=lambda: 1.8e9) as log:
                log.write("rekey", lane=1, epoch=2)
        except AuditError:
            assert path.read_bytes() == before, "it was refused, and changed"
            assert not was_whole or not before
            return
        after = path.read_bytes()
        torn = Path(f"{path}.torn")
        aside = torn.read_bytes() if torn.exists() else b""
        size = len(before) - max(0, len(aside) - 1)
        assert after[:size] == before[:size]
        assert before[size:] + b"\n" * bool(aside) == aside, "bytes are lost"
        assert _audit(after) == (was_whole or _audit(before[:size])), "a log that is whole is so when it is taken up"


def plant() -> None:
    """A revocation list in which short digests count, too: nobody has them."""
    revocation._FINGERPRINT = re.compile(r"[0-9a-f]{8,64}")
