"""The audit log as it is written: its lines, reopened, torn, full disks, and two processes that want the same file."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from kvwire import AuditError, AuditLog, __version__, verify_audit
from kvwire.security.audit import EVENTS, FIELDS, MAX_TEXT
from kvwire.security.chain import MAX_LINE, NO_LINE

DOCUMENT = Path(__file__).parents[2] / "docs" / "security.md"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.log"


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_a_line_for_each_event(path: Path) -> None:
    clock = iter([0.0, 1893456000.25, 1893456001.000001])
    with AuditLog(path, clock=lambda: next(clock)) as log:
        log.write("offer", link="ab", transfer=3, tenant="acme", tokens=128, reason=None)
    lines = path.read_bytes().splitlines()
    assert [line.decode().partition(', "prev"')[0] for line in lines] == [
        '{"n": 1, "time": "1970-01-01T00:00:00.000000Z", "event": "open", "software": "kvwire/' + f'{__version__}"',
        '{"n": 2, "time": "2030-01-01T00:00:00.250000Z", "event": "offer", "link": "ab", "transfer": 3, '
        '"tenant": "acme", "tokens": 128, "reason": null',
        '{"n": 3, "time": "2030-01-01T00:00:01.000001Z", "event": "closed"',
    ]
    assert [event["prev"] for event in events(path)] == [NO_LINE, *(sha256(line).hexdigest() for line in lines[:-1])]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_every_event_and_field_can_be_written_and_is_in_the_document(path: Path) -> None:
    with AuditLog(path) as log:
        for event in EVENTS:
            log.write(event, **dict.fromkeys(FIELDS, "x"))
    assert {event["event"] for event in events(path)} == set(EVENTS)
    assert verify_audit(path).lines == len(EVENTS) + 2
    page = DOCUMENT.read_text()
    assert [name for name in {**EVENTS, **FIELDS} if f"`{name}`" not in page] == []


@pytest.mark.parametrize(
    ("event", "fields"),
    [
        ("login", {}),
        ("rekey", {"key": "00"}),
        ("offer", {"prompt": "hello"}),
        ("offer", {"n": 1}),
        ("offer", {"prev": NO_LINE}),
        ("offer", {"tokens": float("nan")}),
    ],
)
def test_nothing_else_is_told(path: Path, event: str, fields: dict[str, Any]) -> None:
    with AuditLog(path) as log:
        with pytest.raises(ValueError, match=r"no audit event|not JSON compliant"):
            log.write(event, **fields)
        log.write("rekey", epoch=1)
    assert [event["event"] for event in events(path)] == ["open", "rekey", "closed"]


@pytest.mark.parametrize("value", [b"key", ["a"], {"a": 1}, object()])
def test_only_scalars_are_told(path: Path, value: Any) -> None:
    with AuditLog(path) as log, pytest.raises(ValueError, match="no JSON scalar"):
        log.write("offer", reason=value)


def test_what_a_peer_has_chosen_stays_on_its_line(path: Path) -> None:
    chosen = ['"}\n{"n": 9}', "\r\n\x00\x1b[2J", "\u2028\ud800", "\N{GRINNING FACE}" * 5000]
    with AuditLog(path) as log:
        for text in chosen:
            log.write("abort", **dict.fromkeys(FIELDS, text))
    lines = path.read_bytes().split(b"\n")
    assert len(lines) == len(chosen) + 3
    assert max(map(len, lines)) < MAX_LINE
    assert all(re.fullmatch(rb"[ -~]*", line) for line in lines)
    assert [event["reason"] for event in events(path)[1:-1]] == [text[:MAX_TEXT] for text in chosen]


# --- opened again -----------------------------------------------------------------------------------------------------


def test_the_chain_goes_on(path: Path) -> None:
    for _ in range(3):
        with AuditLog(path) as log:
            log.write("link_up", link="ab")
    assert [event["n"] for event in events(path)] == list(range(1, 10))
    report = verify_audit(path)
    assert (report.lines, report.closed) == (9, True)
    assert report.head == sha256(path.read_bytes().splitlines()[-1]).hexdigest()


def test_a_last_line_that_was_cut_is_put_aside(path: Path) -> None:
    """As after a loss of power: at whatever byte, the whole lines before it stay as they are."""
    with AuditLog(path, clock=lambda: 0.0) as log:
        log.write("link_up", link="ab")
    whole = path.read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    for cut in range(start + 1, len(whole)):
        path.write_bytes(whole[:cut])
        aside = path.with_name("audit.log.torn")
        aside.unlink(missing_ok=True)
        with AuditLog(path, clock=lambda: 0.0):
            pass
        assert path.read_bytes()[:start] == whole[:start]
        assert events(path)[2] | {"prev": ""} == {
            "n": 3, "time": "1970-01-01T00:00:00.000000Z", "event": "open", "software": f"kvwire/{__version__}",
            "torn": cut - start, "prev": "",
        }  # fmt: skip
        assert verify_audit(path).closed
        assert aside.read_bytes() == whole[start:cut] + b"\n"
        assert stat.S_IMODE(aside.stat().st_mode) == 0o600


def test_a_first_line_that_was_cut(path: Path) -> None:
    path.write_bytes(b'{"n": 1')
    with AuditLog(path):
        pass
    assert [(event["n"], event.get("torn")) for event in events(path)] == [(1, 7), (2, None)]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"hello\n", "the last line of .* is no audit event"),
        (b"hello, in one line", "is no audit log"),
        (b"{}", "is no audit log"),
        (b'{"n": 2, "time": "2030', "is no audit log"),
        (b"\0" * 64, "is no audit log"),
        (b"\0" * 64 + b"\n", "is no audit event"),
        (b"\n", "is no audit event"),
        (b'{"n": 1}\n', "is no audit event"),
        (b'{"n": true, "event": "open", "prev": ""}\n', "is no audit event"),
        (b"[" * 100_000 + b"\n", "is no audit event"),
        (b"x" * (MAX_LINE + 1), "a line is longer"),
        (b"x" * (3 * MAX_LINE) + b"\n", "a line is longer"),
    ],
)
def test_what_is_no_audit_log_is_left_alone(path: Path, content: bytes, sentence: str) -> None:
    path.write_bytes(content)
    path.chmod(0o664)
    with pytest.raises(AuditError, match=sentence):
        AuditLog(path)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (content, 0o664)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("mode", [0o666, 0o640, 0o604])
def test_a_log_that_others_could_read(path: Path, mode: int) -> None:
    with AuditLog(path):
        pass
    path.chmod(mode)
    with AuditLog(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert verify_audit(path).lines == 4


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [(Path.mkdir, "Is a directory"), (make_fifo, "is no regular file"), (lambda p: p.symlink_to(p), "symbolic links")],
)
def test_what_no_log_can_be_made_of(path: Path, make: Callable[[Path], None], sentence: str) -> None:
    make(path)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(AuditError, match=sentence):
        AuditLog(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="No such file or directory"):
        AuditLog(tmp_path / "missing" / "audit.log")


# --- two processes ----------------------------------------------------------------------------------------------------


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)


TRY = """
import sys, kvwire
try:
    kvwire.AuditLog(sys.argv[1]).close()
except kvwire.AuditError as error:
    print(error)
"""


def test_one_process_at_a_time(path: Path) -> None:
    with AuditLog(path) as log:
        assert "is being written by another process" in python(TRY, path).stdout
        log.write("rekey", epoch=1)
    done = python(TRY, path)
    assert (done.stdout, done.stderr) == ("", "")
    assert [event["event"] for event in events(path)] == ["open", "rekey", "closed", "open", "closed"]
    assert verify_audit(path).closed


KILLED = """
import os, signal, sys, kvwire
log = kvwire.AuditLog(sys.argv[1])
log.write("commit", transfer=1)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_that_is_killed_has_written_all(path: Path) -> None:
    assert python(KILLED, path).returncode == -signal.SIGKILL
    report = verify_audit(path)
    assert (report.lines, report.closed) == (2, False)
    with AuditLog(path):
        pass
    assert verify_audit(path).closed


FORKED = """
import os, sys, kvwire
log = kvwire.AuditLog(sys.argv[1])
(may_end, end), (done, tell) = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    log.write("abort", transfer=1)
    if sys.argv[2] == "closes":
        log.close()
        log.close()
    log.write("abort", transfer=2)
    os.write(tell, b"x")
    os.read(may_end, 1)
    os._exit(0)
os.read(done, 1)
log.write("commit", transfer=3)
try:
    kvwire.AuditLog(sys.argv[1])
except kvwire.AuditError as error:
    print(error)
log.close()
kvwire.AuditLog(sys.argv[1]).close()
os.write(end, b"x")
sys.exit(os.waitpid(child, 0)[1])
"""


@pytest.mark.parametrize("what", ["closes", "keeps its descriptor"])
def test_after_a_fork_the_log_is_the_parents(path: Path, what: str) -> None:
    """What the child does neither stands in it nor unlocks it; and once the parent has closed it, anybody may go on."""
    done = python(FORKED, path, what)
    assert (done.returncode, done.stderr) == (0, "")
    assert "is being written by another process" in done.stdout
    assert [event["event"] for event in events(path)] == ["open", "commit", "closed", "open", "closed"]
    assert verify_audit(path).closed


@contextlib.contextmanager
def little_at_a_time() -> Iterator[None]:
    """Threads take turns as often as the interpreter lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def test_threads(path: Path) -> None:
    def commit() -> None:
        for transfer in range(500):
            log.write("commit", transfer=transfer)

    with AuditLog(path) as log, little_at_a_time():
        threads = [threading.Thread(target=commit) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert verify_audit(path).lines == 2002


# --- a disk that is full ----------------------------------------------------------------------------------------------


class Disk:
    """A limit on the size of files of this process, which the kernel enforces as a full disk would."""

    def __init__(self) -> None:
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)
        self._handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def holds(self, nbytes: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, self._before[1]))

    def is_mended(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)

    def close(self) -> None:
        self.is_mended()
        signal.signal(signal.SIGXFSZ, self._handler)


@pytest.mark.parametrize("room", [0, 1, 50, 100])
def test_a_full_disk_fails_nobody_and_is_told(path: Path, room: int, caplog: pytest.LogCaptureFixture) -> None:
    log, disk = AuditLog(path), Disk()
    try:
        log.write("commit", transfer=1)
        disk.holds(path.stat().st_size + room)
        for transfer in range(2, 7):
            log.write("commit", transfer=transfer)
        assert [record.levelno for record in caplog.records] == [logging.ERROR]
        assert verify_audit(path).lines == 2  # whole, also now
        disk.is_mended()
        log.write("commit", transfer=7)
        log.write("commit", transfer=8)
    finally:
        disk.close()
    log.close()
    told = [(event["event"], event.get("transfer", event.get("count"))) for event in events(path)]
    assert told == [("open", None), ("commit", 1), ("lost", 5), ("commit", 7), ("commit", 8), ("closed", None)]
    assert verify_audit(path).closed
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.WARNING]


def test_room_for_the_news_of_a_loss_and_no_more(path: Path) -> None:
    log, disk = AuditLog(path, clock=lambda: 0.0), Disk()
    try:
        disk.holds(path.stat().st_size)
        log.write("commit", transfer=1)
        disk.holds(path.stat().st_size + 200)  # "lost" fits, what comes after it does not
        log.write("commit", transfer=2)
        disk.is_mended()
    finally:
        disk.close()
    log.close()
    assert [(event["event"], event.get("count")) for event in events(path)] == [
        ("open", None), ("lost", 1), ("lost", 1), ("closed", None)
    ]  # fmt: skip
    assert verify_audit(path).closed


def test_a_disk_that_stays_full(path: Path) -> None:
    log, disk = AuditLog(path), Disk()
    try:
        disk.holds(path.stat().st_size + 20)
        log.write("commit", transfer=1)
        log.close()
        with pytest.raises(AuditError, match=r"File too large|bytes were taken"):
            AuditLog(path)
    finally:
        disk.close()
    with AuditLog(path):
        pass
    assert [event["event"] for event in events(path)] == ["open", "open", "closed"]


def test_after_the_end(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = AuditLog(path)
    log.close()
    before = path.read_bytes()
    log.write("commit", transfer=1)
    log.write("commit", transfer=2)
    log.close()
    assert path.read_bytes() == before
    assert len(caplog.records) == 1
