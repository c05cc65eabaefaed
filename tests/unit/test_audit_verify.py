"""What can be seen of an audit log that somebody has changed, and what kvwire-audit says of it."""

from __future__ import annotations

import contextlib
import json
import os
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvwire import AuditError, AuditLog, AuditReport, LocalError, verify_audit
from kvwire.cli.audit import main
from kvwire.security.chain import MAX_LINE, NO_LINE

LINES = 7


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A log of LINES lines, from "open" to "closed"."""
    path = tmp_path / "audit.log"
    with AuditLog(path, clock=lambda: 1e9) as log:
        for transfer in range(LINES - 2):
            log.write("commit", transfer=transfer)
    return path


def rows(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def found(path: Path, lines: list[bytes]) -> str:
    """What is said of a log of these lines."""
    path.write_bytes(b"".join(lines))
    with pytest.raises(AuditError) as error:
        verify_audit(path)
    return str(error.value).removeprefix(f"{path}: ")


def edited(line: bytes, **fields: object) -> bytes:
    return json.dumps(json.loads(line) | fields).encode() + b"\n"


def test_a_whole_log(path: Path) -> None:
    hashes = [sha256(line[:-1]).hexdigest() for line in rows(path)]
    assert verify_audit(path) == AuditReport(LINES, hashes[-1], True)
    for number, digest in enumerate(hashes, 1):
        assert verify_audit(path, digest) == AuditReport(LINES, hashes[-1], True, LINES - number)


# Every line in turn. The last one is chained to nothing: only a head that was kept elsewhere speaks for it.


@pytest.mark.parametrize("at", range(LINES - 1))
@pytest.mark.parametrize("what", ["event", "time", "space", "not JSON", "split", "CRLF"])
def test_a_line_that_was_changed(path: Path, at: int, what: str) -> None:
    lines = rows(path)
    match what:
        case "event":
            lines[at] = edited(lines[at], event="abort")
        case "time":
            lines[at] = lines[at].replace(b"2001", b"2002")
        case "space":
            lines[at] = lines[at].replace(b": ", b":  ", 1)
        case "not JSON":
            lines[at] = lines[at][1:]
        case "split":
            lines[at] = lines[at].replace(b", ", b",\n ", 1)
        case "CRLF":
            lines[at] = lines[at].replace(b"\n", b"\r\n")
    sentence = found(path, lines)
    # What follows the last but one is the last, and nothing says which of these two is as it was.
    guess = at == LINES - 2 and what not in ("not JSON", "split")
    assert sentence == (f"line {at + 1} or line {at + 2} was changed" if guess else f"line {at + 1} was changed")


@pytest.mark.parametrize("at", range(LINES))
def test_a_number_that_was_changed(path: Path, at: int) -> None:
    whole = rows(path)
    for number in (0, at + 2, 99, -1):
        lines = [*whole[:at], edited(whole[at], n=number), *whole[at + 1 :]]
        assert found(path, lines) == f"line {at + 1} was changed"


@pytest.mark.parametrize("at", range(LINES))
def test_a_hash_that_was_changed(path: Path, at: int) -> None:
    lines = rows(path)
    lines[at] = edited(lines[at], prev="ab" * 32)
    said = found(path, lines)
    assert said == (f"line {at + 1} was changed" if at < LINES - 1 else f"line {at} or line {at + 1} was changed")


@pytest.mark.parametrize("at", range(LINES - 1))
def test_a_line_that_was_removed(path: Path, at: int) -> None:
    lines = rows(path)
    del lines[at]
    assert found(path, lines) == f"line {at + 1} was removed"


@pytest.mark.parametrize("at", range(LINES - 2))
def test_lines_that_were_removed(path: Path, at: int) -> None:
    lines = rows(path)
    del lines[at : at + 2]
    assert found(path, lines) == f"lines {at + 1} to {at + 2} were removed"


@pytest.mark.parametrize("at", range(LINES - 1))
def test_two_lines_that_were_swapped(path: Path, at: int) -> None:
    lines = rows(path)
    lines[at : at + 2] = lines[at + 1], lines[at]
    assert found(path, lines) == f"line {at + 1} was moved: line {at + 2} stands in its place"


@pytest.mark.parametrize("at", range(LINES))
def test_a_line_that_is_there_twice(path: Path, at: int) -> None:
    whole = rows(path)
    for to in range(at + 1, LINES + 1):
        lines = [*whole[:to], whole[at], *whole[to:]]
        assert found(path, lines) == f"line {to if to == at + 1 else to + 1} was inserted"


@pytest.mark.parametrize("at", range(1, LINES))
def test_a_line_that_was_made_up(path: Path, at: int) -> None:
    """With the number and the hash that belong there, and the rest left as it was."""
    lines = rows(path)
    lines.insert(at, edited(lines[at], event="abort"))
    assert found(path, lines) == f"line {at + 1} was inserted"


@pytest.mark.parametrize("at", range(LINES))
def test_a_line_that_was_cut(path: Path, at: int) -> None:
    lines = rows(path)
    for cut in range(1, len(lines[at])):
        assert found(path, [*lines[:at], lines[at][:-cut]]) == f"line {at + 1} was cut in its middle"


@given(st.data())
def test_every_bit_before_the_last_line_counts(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("audit") / "audit.log"
    with AuditLog(path, clock=lambda: 1e9) as log:
        log.write("commit", transfer=1)
    content = bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, 8 * content.rindex(b"\n", 0, -1) - 1))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    with pytest.raises(AuditError, match=r"lines? \d"):
        verify_audit(path)


# --- what only a head can tell ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", range(LINES))
def test_an_end_that_was_cut_off(path: Path, left: int) -> None:
    head = verify_audit(path).head
    lines = rows(path)[:left]
    path.write_bytes(b"".join(lines))
    report = verify_audit(path)
    assert (report.lines, report.closed) == (left, False)
    assert report.head == (sha256(lines[-1][:-1]).hexdigest() if lines else NO_LINE)
    with pytest.raises(AuditError, match=f"no line has the hash {head}: the end was cut off, or lines were rewritten"):
        verify_audit(path, head)


def test_a_last_line_that_was_changed(path: Path) -> None:
    head = verify_audit(path).head
    lines = rows(path)
    path.write_bytes(b"".join([*lines[:-1], lines[-1].replace(b"2001", b"2002")]))
    assert verify_audit(path).closed
    with pytest.raises(AuditError, match="no line has the hash"):
        verify_audit(path, head)


def test_a_log_that_was_made_anew(path: Path) -> None:
    head = verify_audit(path).head
    path.unlink()
    with AuditLog(path, clock=lambda: 2e9):
        pass
    assert verify_audit(path).closed
    with pytest.raises(AuditError, match="no line has the hash"):
        verify_audit(path, head)


# --- kvwire-audit -----------------------------------------------------------------------------------------------------


def test_verify_and_head(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["head", str(path)]) == 0
    head = capsys.readouterr().out.strip()
    assert head == verify_audit(path).head
    with AuditLog(path):
        pass
    assert main(["verify", str(path), "--head", head]) == 0
    now = verify_audit(path).head
    assert capsys.readouterr().out.splitlines() == [
        f"{path}: {LINES + 2} lines, unbroken",
        f"head {now}",
        "2 lines after the one with the hash that was given",
    ]
    assert main(["verify", str(path), "--head", head, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "kvwire_audit": 1, "lines": LINES + 2, "head": now, "closed": True, "after_head": 2
    }  # fmt: skip


def test_a_log_without_its_end(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_bytes(b"".join(rows(path)[:-1]))
    assert main(["verify", str(path)]) == 0
    assert 'it does not end with "closed"' in capsys.readouterr().out


@pytest.mark.parametrize("command", ["verify", "head"])
def test_a_log_that_was_changed_ends_with_1(path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_bytes(b"".join(rows(path)[1:]))
    assert main([command, str(path)]) == 1
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"kvwire-audit: {path}: line 1 was removed\n")


def test_a_head_that_is_not_in_it_ends_with_1(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(path), "--head", "ab" * 32]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "no line has the hash abab" in said.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["verify", "/no/such/file"], "/no/such/file: No such file or directory"),
        (["head", "/"], "/: Is a directory"),
        (["verify", "x", "--head", "abc"], "expected 64 hex digits"),
        (["verify", "nul\0"], "null byte"),
        (["verify"], "required"),
        ([], "required"),
    ],
)
def test_what_cannot_be_read_ends_with_2(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status: object = main(arguments)
    except SystemExit as end:  # argparse leaves with it
        status = end.code
    assert status == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.out == ""


@pytest.mark.parametrize("writers", [0, 1])
def test_a_fifo_in_the_place_of_a_log(tmp_path: Path, writers: int) -> None:
    """Nobody waits for somebody to write to it."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with contextlib.ExitStack() as stack:
        if writers:
            stack.callback(os.close, os.open(path, os.O_RDWR))
        with pytest.raises(LocalError, match="fifo is no regular file"):
            verify_audit(path)


def test_what_is_no_log_is_read_in_bounds(tmp_path: Path) -> None:
    path = tmp_path / "noise"
    path.write_bytes(b"x" * (3 * MAX_LINE))
    with pytest.raises(AuditError, match="line 1 was changed"):
        verify_audit(path)
    with pytest.raises(LocalError, match="No such file"):
        verify_audit(tmp_path / "missing")
