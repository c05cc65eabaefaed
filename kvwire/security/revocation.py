"""The revocation list: fingerprints of certificates that count no more, one a line, `#` before what is for people."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

from kvwire.errors import IdentityError
from kvwire.security import files
from kvwire.security.certificates import NO_LIST, REVOKED

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


def parse_fingerprint(text: str) -> str:
    """A SHA-256 as kvwire writes it, from 64 hex digits of either case, with colons or without."""
    digits = text.strip().replace(":", "").lower() if isinstance(text, str) else ""
    if not _FINGERPRINT.fullmatch(digits):
        raise IdentityError(f"{text!r:.100} is no fingerprint; expected SHA-256 as 64 hex digits")
    return digits


def read_revoked(path: Path) -> frozenset[str]:
    """The fingerprints of a revocation list. IdentityError where there is no list, or a line is none: nobody knows whom
    it meant."""
    if not files.is_there(path):
        raise IdentityError(f"{path} is not there: who is revoked?", hint="an empty file says that nobody is")
    try:
        lines = files.read(path).decode().splitlines()
    except UnicodeDecodeError:
        raise IdentityError(f"{path} is not text") from None
    found = set()
    for number, line in enumerate(lines, 1):
        entry = line.partition("#")[0].strip()
        if entry:
            try:
                found.add(parse_fingerprint(entry))
            except IdentityError as error:
                raise IdentityError(f"{path}, line {number}: {error}") from None
    return frozenset(found)


def revoke(directory: files.Name, fingerprint: str, note: str = "", *, now: datetime | None = None) -> bool:
    """Put a certificate on the list of the node whose identity is in `directory`; False where it was there.

    `note`: for people, for example its subject. Running nodes look at their list every second.
    """
    digits = parse_fingerprint(fingerprint)
    remark = ", ".join(filter(None, (" ".join(note.split()), f"{now or datetime.now(UTC):%Y-%m-%d}")))
    path = files.path_of(directory) / REVOKED
    with files.key_directory(path.parent):
        if files.is_there(path):
            if digits in read_revoked(path):
                return False
            before = files.read(path)
        else:
            before = NO_LIST
        joint = b"" if before.endswith(b"\n") or not before else b"\n"
        files.write(path, before + joint + f"{digits}  # {remark}\n".encode(), files.PUBLIC)
    return True
