"""The audit log: JSON lines, each with the hash of the one before, so that what was changed later can be seen.

A line is `{"n": its number, "time": RFC 3339, UTC, "event": ..., fields ..., "prev": SHA-256 of the line before}`, in
this order, in ASCII. The hash is of the line's bytes without its newline; the first line has 64 zeros for it. Whoever
may write to the file can make it anew as a whole, and cut its end: keep the head, the hash of its last line, elsewhere.

One write(2) a line, no fsync but at the end: a process that dies loses nothing, a host that loses its power the last
seconds. What can be seen of that is a last line that was cut in its middle. It is put aside, into a file beside the log
whose name ends with `.torn`, when the log is opened again, and "open" says how many bytes that were.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from hashlib import sha256

from kvwire.errors import AuditError
from kvwire.security.chain import MAX_LINE, NO_LINE, Line
from kvwire.security.files import PRIVATE, Name, path_of
from kvwire.version import __version__

EVENTS = {
    "open": "a process has opened the log; `software`, and `torn` bytes were put aside",
    "link_up": "a peer is on a link: who it is, from where, and `mode` (sealed or plain)",
    "link_resumed": "the connection was lost, and the peer is back: from where, and with which certificate",
    "link_refused": "a connection was turned away, `reason` says exactly why",
    "link_down": "a link is gone for good",
    "offer": "a transfer was offered, `direction` out or in",
    "grant": "its receiver wants `bytes` of it",
    "commit": "it is complete, on this side",
    "abort": "it is over and not complete",
    "policy_refused": "the policy, or a quota, did not allow what `reason` says",
    "tag_failure": "a frame's tag was wrong, and its lane was ended",
    "lane_fault": "a frame was wrong in another way that `reason` says, and its lane was ended",
    "rekey": "a lane's `direction` goes on with the key of `epoch`",
    "lost": "`count` events could not be written before this one",
    "closed": "the process has closed the log",
}

FIELDS = {
    "address": "where the peer dialled from, or was dialled at",
    "bytes": "of KV, as offered or granted",
    "codecs": "that cells may go through, or, once it is complete, have gone through",
    "coded_bytes": "of cells that went coded",
    "count": "events",
    "direction": "out: from this node; in: to it",
    "epoch": "number of a key in its chain, never the key",
    "error": "type of the error",
    "fingerprint": "SHA-256 of the peer's certificate",
    "incarnation": "of a lane",
    "lane": "number of a lane",
    "layout": "of the model tag",
    "link": "id of the link, hex",
    "mode": "sealed or plain",
    "model": "name of the model tag",
    "name": "of the peer",
    "reason": "a sentence",
    "region": "of the peer",
    "request": "the request id that the sender's engine chose",
    "residency": "region that the KV may not leave",
    "revision": "of the model tag",
    "role": "of the peer",
    "software": "what wrote the log",
    "tenant": "of the peer",
    "tokens": "length of the prompt",
    "torn": "bytes of a last line that was cut",
    "transfer": "id of the transfer on its link",
    "wire_bytes": "that went in the place of `coded_bytes`",
}
"""What may be told of an event, and nothing else: no key, no prompt, no block hash."""

FIRST = b'{"n": 1, "time": "'
"""What the first line of every log begins with."""

MAX_TEXT = 512
"""Characters of a string; a peer may have chosen it."""

Scalar = str | int | float | bool | None

log = logging.getLogger("kvwire")


class AuditLog:
    """An audit log that this process writes, from any thread; one process at a time. `write` never fails for want of a
    disk.

    After a fork the log is the parent's: in the child `write` writes nothing, and `close` closes its descriptor only.
    """

    def __init__(self, path: Name, *, clock: Callable[[], float] = time.time) -> None:
        """Opens or makes the file, 0600 also where it was more, and writes "open". `clock`: seconds since 1970.

        AuditError where that cannot be, where another process has it, or where it ends with what is no event.
        """
        self._path = path_of(path, AuditError)
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._clock = clock
        self._lost = 0
        self._half_written = False
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, PRIVATE)
        except (OSError, ValueError) as error:
            raise AuditError(f"{self._path}: {getattr(error, 'strerror', None) or error}") from None
        try:
            torn = self._take_up()
            self._append("open", {"software": f"kvwire/{__version__}"} | ({"torn": torn} if torn else {}))
        except BaseException as error:
            os.close(self._fd)
            if isinstance(error, OSError):
                raise AuditError(f"{self._path}: {error.strerror or error}") from None
            raise

    def write(self, event: str, **fields: Scalar) -> None:
        """Append an event. What cannot be written is counted, logged once, and told by "lost" as soon as it can be.

        ValueError for an event or field that is not in EVENTS or FIELDS, or no scalar: a mistake of the caller.
        """
        if event not in EVENTS or not fields.keys() <= FIELDS.keys():
            raise ValueError(f"no audit event {event!r} with fields {sorted(fields)}")
        if not all(isinstance(value, Scalar) for value in fields.values()):
            raise ValueError(f"no JSON scalar among {sorted(fields)} of {event!r}")
        if os.getpid() == self._process:  # looked at first: after a fork the lock may be a thread's that is no more
            with self._lock:
                self._write(event, fields)

    def close(self) -> None:
        """Write "closed", and let go of the file. What is written later is lost. Idempotent."""
        if os.getpid() != self._process:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
            return
        with self._lock:
            if self._fd < 0:
                return
            self._write("closed", {})
            with contextlib.suppress(OSError):
                os.fsync(self._fd)
            fcntl.flock(self._fd, fcntl.LOCK_UN)  # or a child's descriptor would keep it
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> AuditLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, event: str, fields: Mapping[str, Scalar]) -> None:
        try:
            if self._lost:
                self._append("lost", {"count": self._lost})
                log.warning("%s can be written again; %d events were lost", self._path, self._lost)
                self._lost = 0
            self._append(event, fields)
        except OSError as error:
            if not self._lost:
                log.error("%s: %s; audit events are being lost", self._path, error.strerror or error)
            self._lost += 1

    def _take_up(self) -> int:
        """Lock the file, and go on where it ends; number of bytes of a cut last line that were put aside."""
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            raise AuditError(f"{self._path} is no regular file")
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AuditError(f"{self._path} is being written by another process") from None
        size = os.fstat(self._fd).st_size
        start = max(0, size - 2 * MAX_LINE)
        tail = os.pread(self._fd, size - start, start)
        whole, _, rest = tail.rpartition(b"\n") if b"\n" in tail else (b"", b"", tail)
        last = whole.rpartition(b"\n")[2]
        if len(rest) > MAX_LINE or len(last) > MAX_LINE:
            raise AuditError(f"{self._path} is no audit log: a line is longer than {MAX_LINE} bytes")
        self._size = size - len(rest)
        self._number, self._head = 0, NO_LINE
        if self._size:
            line = Line.parse(last)
            if line is None:
                raise AuditError(f"the last line of {self._path} is no audit event", hint="put the file aside")
            self._number, self._head = line.number, line.digest
        elif not (rest.startswith(FIRST) or FIRST.startswith(rest)):
            raise AuditError(f"{self._path} is no audit log", hint="put the file aside")
        if stat.S_IMODE(os.fstat(self._fd).st_mode) & ~PRIVATE:
            os.fchmod(self._fd, PRIVATE)
        if rest:
            with open(f"{self._path}.torn", "ab", opener=lambda name, flags: os.open(name, flags, PRIVATE)) as aside:
                aside.write(rest + b"\n")
                aside.flush()
                os.fsync(aside.fileno())
            os.ftruncate(self._fd, self._size)
        return len(rest)

    def _append(self, event: str, fields: Mapping[str, Scalar]) -> None:
        self._cut()
        line = _line(self._number + 1, self._clock(), event, fields, self._head)
        written = os.write(self._fd, line + b"\n")
        if written <= len(line):
            self._half_written = True
            self._cut()  # at once: for as long as the disk is full, that is what the log ends with
            raise OSError(f"only {written} of {len(line) + 1} bytes were taken")
        self._size += written
        self._number, self._head = self._number + 1, sha256(line).hexdigest()

    def _cut(self) -> None:
        """Take away what there is of a line that was not taken as a whole."""
        if self._half_written:
            os.ftruncate(self._fd, self._size)
            self._half_written = False


def _line(number: int, now_s: float, event: str, fields: Mapping[str, Scalar], prev: str) -> bytes:
    told = {name: value[:MAX_TEXT] if isinstance(value, str) else value for name, value in fields.items()}
    moment = datetime.fromtimestamp(now_s, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    record = {"n": number, "time": moment, "event": event, **told, "prev": prev}
    return json.dumps(record, allow_nan=False).encode()
