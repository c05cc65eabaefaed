"""kvwire-bench wan where it cannot run: a sentence, exit status 2, and nothing left behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvwire.cli import bench, machine
from kvwire.emulate import namespaces
from tests.net.bench import BENCH, fails


def run(*arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
    command = [*BENCH, "wan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False, env=os.environ | more)


def test_without_the_tools_it_says_which_are_missing(tmp_path: Path) -> None:
    path = {"PATH": str(tmp_path), "TMPDIR": str(tmp_path)}
    fails(run(**path), "iperf3 is not installed")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody who is not")
def test_who_may_make_no_namespaces_is_told_so(tmp_path: Path) -> None:
    """As nobody, who is not let into a user namespace either: the variable says that this has been tried."""
    os.chmod(tmp_path, 0o777)
    command = (
        "import os, sys; from kvwire.cli import bench; os.setuid(65534); "
        "sys.exit(bench.main(['wan', '--vs', 'none', '--size', '1M']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", command],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env=os.environ | {namespaces.ENTERED: "1", "TMPDIR": str(tmp_path)},
    )
    fails(done, "need root, or a user namespace")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--cc", "quic"], "--cc quic: this host does not let us use it"),
        (["--controller", "fastest"], "--controller fastest: there is no controller 'fastest'"),
        (["--controller", "fixed"], "--controller fixed: controller 'fixed': missing a required argument"),
        (["--controller", "delay:target=1"], "--controller delay:target=1: controller 'delay': got an unexpected"),
        (["--controller", "fixed:pace_bps=5e8", "--beside", "quic=2"], "--cc quic: this host does not let us use it"),
        (["--beside", "quic=2"], "--cc quic: this host does not let us use it"),
        (["--vs", "none", "--size", "1K"], "less than one page"),
        (["--vs", "none", "--keep", "/dev/null/x"], "/dev/null/x cannot be made"),
        (["--vs", "none", "--html", "/dev/null/x.html"], "cannot be written"),
        (["--vs", "none", "--size", "1000G", "--page", "256M"], "give a smaller --size"),
        (["--model", "case-study-1t", "--tokens", "16000000"], "ask for fewer tokens, or scale them"),
        (["--jitter", "30ms"], "a link that cannot be"),
        (["--vs", "none", "--compression", "int8"], "codec 'int8' does not take group 'pages'"),
        (["--vs", "none", "--vs-compression", "off,int8"], "codec 'int8' does not take group 'pages'"),
    ],
)
def test_what_this_host_cannot_do_is_said_before_anything_is_made(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(["wan", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_a_page_is_not_written_over_a_file_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notes = tmp_path / "notes.html"
    notes.write_text("notes")
    assert bench.main(["wan", "--vs", "none", "--html", str(notes)]) == 2
    assert "is there and is no report" in capsys.readouterr().err
    assert notes.read_text() == "notes"


def test_the_congestion_control_without_a_word_is_one_of_this_host() -> None:
    from kvwire.cli.wan.command import _preferred

    assert _preferred() in machine._text(machine.CONTROLS).split()
