"""kvwire-bench as a user runs it: figures, exit statuses, and sentences for what it cannot do."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvwire
from kvwire.cli import bench, demo, machine, sealing
from kvwire.cli.failure import Failure
from kvwire.cli.jobs import synthetic
from kvwire.cli.loopback import command as loopback
from kvwire.cli.loopback import iperf3
from kvwire.cli.loopback.pair import Pair
from kvwire.cli.loopback.peer import Peer, Process, Receiver
from kvwire.cli.memory import KvMemory
from kvwire.cli.models.presets import preset
from kvwire.cli.units import parse_size, show_size

MIB = 1 << 20


def run_bench(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "kvwire.cli.bench", "loopback", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=55, check=False)


def result_of(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stderr == ""
    last: dict[str, Any] = json.loads(done.stdout)
    return last


def test_small_run() -> None:
    result = result_of(run_bench("-n", "8MiB", "--page", "64KiB", "-P", "2", "--runs", "1", "--plain", "--json"))
    assert result["verified"] is True
    assert (result["sealed"], result["cipher"]) == (False, None)
    assert (result["runs"], result["bytes"], result["lanes"], result["page_bytes"]) == (1, 8 * MIB, 2, 65536)
    assert result["goodput_GBps"] > 0
    assert result["cpu_s_per_GB"] > 0
    assert result["tail_s"] > 0
    assert result["segments"] == 8
    assert (result["kvwire_bench"], result["kind"]) == (1, "loopback")
    assert result["machines"]["here"]["kvwire"] == kvwire.__version__
    assert result["congestion"]


def test_sealed_beside_plain() -> None:
    arguments = ("-n", "8MiB", "--page", "64KiB", "--vs", "plain", "--vs", "page=1MiB", "--runs", "2")
    result = result_of(run_bench(*arguments, "--json"))
    assert (result["verified"], result["sealed"]) == (True, True)
    assert result["cipher"] == result["machines"]["here"]["cipher"] == sealing.cipher_name()
    assert result["ratio_vs_plain"] == pytest.approx(result["goodput_GBps"] / result["plain_GBps"])
    assert (result["page_bytes"], result["other_page_bytes"]) == (65536, MIB)


def test_automatic_beside_off_and_a_codec() -> None:
    arguments = ("-n", "8MiB", "--page", "64KiB", "--content", "kv", "--vs", "off", "--vs", "zstd", "--runs", "2")
    result = result_of(run_bench(*arguments, "--json"))
    assert result["verified"] is True
    assert (result["compression"], result["content"]) == ("auto", "kv")
    for name in ("off", "zstd"):
        assert result[f"ratio_vs_{name}"] == pytest.approx(result["goodput_GBps"] / result[f"{name}_GBps"])
        assert len(result[f"ratio_vs_{name}_runs"]) == 2
    assert 0 <= result["coded_share"] <= 1
    assert result["automatic"] in ("on", "off", None)


@pytest.mark.parametrize(
    ("flags", "share", "ratio"),
    [
        (["zstd", "--content", "kv"], 1.0, pytest.approx(1.47, abs=0.05)),
        (["full=int8", "--content", "kv", "--scatter"], 1.0, pytest.approx(1.88, abs=0.05)),  # lossy, and checked
        (["zstd"], 0.0, None),
        (["off", "--content", "kv"], 0.0, None),
    ],
)
def test_what_went_coded(flags: list[str], share: float, ratio: Any) -> None:
    result = result_of(run_bench("-n", "8MiB", "--page", "64KiB", "--runs", "1", "--json", "--compression", *flags))
    assert result["verified"] is True
    assert (result["coded_share"], result["coded_ratio"]) == (share, ratio)


def test_a_lossy_codec_for_a_models_attention() -> None:
    arguments = ("--model", "kimi-linear-48b", "--tokens", "100", "--runs", "1", "--content", "kv", "--json")
    result = result_of(run_bench(*arguments, "--compression", "mla=int4,recurrent=zstd,conv=off"))
    assert result["verified"] is True
    assert 0 < result["coded_share"] < 1
    assert result["coded_ratio"] > 1.1


def test_scattered_beside_another_page_size() -> None:
    result = result_of(
        run_bench("-n", "8MiB", "--page", "16KiB", "--scatter", "--vs", "page=1MiB", "--runs", "1", "--json")
    )
    assert result["verified"] is True
    assert (result["page_bytes"], result["other_page_bytes"]) == (16384, MIB)
    assert result["ratio_vs_page"] > 0


def test_model_streamed_layer_by_layer() -> None:
    result = result_of(
        run_bench("--model", "kimi-linear-48b", "--tokens", "100", "--prefill", "0.2", "--runs", "1", "--json")
    )
    assert result["verified"] is True
    assert result["bytes"] == preset("kimi-linear-48b").kv_bytes(100)
    assert (result["model"], result["tokens"], result["segments"]) == ("kimi-linear-48b", 100, 47)
    assert result["last_layer_bytes"] == 7 * 16 * 576 * 2
    assert 0 < result["tail_s"] < 5


def test_busy_host() -> None:
    result = result_of(run_bench("-n", "8MiB", "--busy-host", "--runs", "1", "--json"))
    assert (result["verified"], result["sealed"]) == (True, True)
    assert "busy_loop_ratio" in result  # of so short a run it says nothing
    for name in ("ratio_busy", "tail_idle_s", "tail_busy_s", "gil_entries_busy"):
        assert result[name] > 0, name


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-P", "0"], "expected an integer in 1 to 64"),
        (["-P", "two"], "expected an integer in 1 to 64"),
        (["-n", "lots"], "'lots' is no size"),
        (["-n", "-1"], "argument"),
        (["-n", "0.3"], "is no size"),
        (["-n", "4KiB", "--page", "1MiB"], "less than one page"),
        (["--page", "1001"], "multiple of 8"),
        (["--page", "4G"], "multiple of 8 in 512 to"),
        (["--runs", "0"], "expected an integer in 1 to 1000"),
        (["--prefill", "nan"], "expected a number in 0 to 600"),
        (["--model", "kimi-liner-48b", "--tokens", "8"], "did you mean kimi-linear-48b"),
        (["--model", "llama-3-70b"], "--model needs --tokens"),
        (["--tokens", "8"], "--tokens needs --model"),
        (["--model", "llama-3-70b", "--tokens", "16777216"], "of memory"),
        (["--model", "llama-3-70b", "--tokens", "8", "--vs", "page=1MiB"], "has its own"),
        (["--vs", "page=1K", "--vs", "page=2K"], "once"),
        (["--vs", "rsync"], "expected iperf3, plain or page=SIZE, or another of off, auto, zstd"),
        (["--vs", "auto"], "--vs auto compares another compression with what is that already"),
        (["--vs", "int8"], "codec 'int8' does not take group 'pages', which is full of uint8"),
        (["--compression", "zip"], "there is no codec 'zip' (known: zstd"),
        (["--compression", "half=zstd"], "'half' is no kind of group (there are full"),
        (["--compression", "full=zstd,full=off"], "named twice"),
        (["--compression", "int8"], "codec 'int8' does not take group 'pages', which is full of uint8"),
        (["--compression", "int8", "--model", "kimi-linear-48b", "--tokens", "8"], "does not take group"),
        (["--content", "text"], "invalid choice: 'text'"),
        (["--plain", "--vs", "plain"], "leave --plain out"),
        (["--cc", "quic"], "this host does not let us use it"),
        (["--no-such-flag"], "unrecognized"),
        ([], ""),
    ],
)
def test_bad_input_is_answered_with_a_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # argparse leaves in its own way.
    with pytest.raises(SystemExit) as end:
        sys.exit(bench.main(["loopback", *arguments] if arguments else []))
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert sentence in said
    assert "Traceback" not in said


def test_without_iperf3(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    iperf3.version.cache_clear()
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert bench.main(["loopback", "--vs", "iperf3"]) == 2
    assert "iperf3 is not installed" in capsys.readouterr().err


def test_a_damaged_byte_is_not_verified(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["group pages, layer 3: 1 of 8 blocks are wrong, first 5"]
    monkeypatch.setattr(loopback.Rounds, "measure", lambda *_: None)
    monkeypatch.setattr(loopback.Rounds, "summary", lambda _: {"verified": False, "damage": wrong, "goodput_GBps": 1.0})
    assert bench.main(["loopback", "-n", "8MiB"]) == 1
    said = capsys.readouterr().out
    assert "NOT VERIFIED" in said
    assert wrong[0] in said
    assert bench.main(["loopback", "-n", "8MiB", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["verified"], found["damage"]) == (False, wrong)


class TestChecker:
    """What the check of the bytes must see."""

    def memory(self, transfer: int = 7, scatter_seed: int | None = None) -> KvMemory:
        memory = KvMemory(preset("case-study-1t").specs(), 64, scatter_seed)
        memory.fill(transfer)
        return memory

    @pytest.mark.parametrize("scatter_seed", [None, 3])
    def test_right_bytes(self, scatter_seed: int | None) -> None:
        assert self.memory(scatter_seed=scatter_seed).damage(7) == []

    def test_one_bit(self) -> None:
        memory = self.memory()
        memory.pages[0].array(7)[2, 555] ^= 1
        assert memory.damage(7) == ["group mla, layer 7: 1 of 4 blocks are wrong, first 2"]

    def test_last_byte_of_a_state(self) -> None:
        memory = self.memory()
        memory.pages[2].array(0)[0, -1] ^= 0x80
        assert memory.damage(7) == ["group recurrent, layer 0: 1 of 1 blocks are wrong, first 0"]

    def test_two_pages_exchanged(self) -> None:
        memory = self.memory()
        pages = memory.pages[0].array(3)
        pages[[0, 1]] = pages[[1, 0]]
        assert memory.damage(7) == ["group mla, layer 3: 2 of 4 blocks are wrong, first 0"]

    def test_a_shifted_cell(self) -> None:
        memory = self.memory()
        page = memory.pages[0].array(3)[0]
        page[:4096] = page[4096:8192]
        assert len(memory.damage(7)) == 1

    def test_layers_exchanged(self) -> None:
        memory = self.memory()
        one, other = memory.pages[0].array(3), memory.pages[0].array(7)
        kept = np.array(one)
        one[:] = other
        other[:] = kept
        assert len(memory.damage(7)) == 2

    def test_bytes_of_the_transfer_before_and_no_bytes(self) -> None:
        memory = self.memory(transfer=6)
        assert len(memory.damage(7)) == 14 + 42 + 42
        memory.poison()
        assert len(memory.damage(7)) == 14 + 42 + 42

    def test_odd_pages_are_refused(self) -> None:
        spec = kvwire.GroupSpec(
            "odd", kvwire.GroupKind.FULL, (0,), kvwire.DType.UINT8, (kvwire.Part("p", (9,)),), block_tokens=1
        )
        with pytest.raises(ValueError, match="a page of 9 bytes; expected a multiple of 8"):
            KvMemory([spec], 4)


class TestProcesses:
    """Children end, whatever happens."""

    def test_a_failing_call_is_a_sentence_and_the_process_goes_on(self) -> None:
        peer = Peer(Receiver)
        try:
            specs = preset("case-study-1t").specs()
            with pytest.raises(Failure, match="the receiver failed: SpecError"):
                peer.call("allocate", specs * 2, 1 << 40, None)
            assert peer.call("mark").rounds == 0
        finally:
            peer.close()

    def test_a_killed_process_is_a_sentence(self) -> None:
        with Pair(kvwire.Config()) as pair:
            pair.receiver.kill()
            with pytest.raises(Failure, match="the receiver ended with status -9"):
                pair.receiver.call("mark")

    def test_a_busy_process_answers_and_stops(self) -> None:
        peer = Peer(Process)
        try:
            peer.call("spin", True)
            first = peer.call("mark").rounds
            while peer.call("mark").rounds == first:
                pass
            peer.call("spin", False)
            assert peer.call("mark").rounds == peer.call("mark").rounds
        finally:
            peer.close()


class TestFreshKeys:
    """Keys for one run: who may look at them, and when they are gone."""

    def test_nobody_else_may_look_at_them_and_then_they_are_gone(self) -> None:
        with sealing.fresh_keys() as where:
            assert where.stat().st_mode & 0o777 == 0o700
            who = {role: kvwire.Identity.load(where / role).subject.role for role in ("prefill", "decode")}
            assert who == {"prefill": "prefill", "decode": "decode"}
        assert not where.exists()

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
    def test_a_run_that_is_ended_leaves_none(self, tmp_path: Path, number: int) -> None:
        command = [sys.executable, "-m", "kvwire.cli.bench", "loopback", "-n", "8MiB", "--runs", "1000"]
        with subprocess.Popen(
            command, env={**os.environ, "TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            until = time.monotonic() + 40
            while self._working(process.pid) < 2:  # before that, multiprocessing has its own words for an end
                assert time.monotonic() < until
                assert process.poll() is None
                time.sleep(0.01)
            assert list(tmp_path.glob("kvwire-keys-*/prefill/identity.pem"))
            process.send_signal(number)
            _, said = process.communicate(timeout=40)
        assert process.returncode == (130 if number == signal.SIGINT else 128 + number)
        assert b"Traceback" not in said
        assert not list(tmp_path.iterdir())

    def _working(self, pid: int) -> int:
        """How many of a process's children have an engine."""
        found = set()
        with contextlib.suppress(OSError):  # one that ends just now
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                names = [name.read_text() for name in Path(f"/proc/{child}/task").glob("*/comm")]
                found |= {child} if "kvwire\n" in names else set()
        return len(found)

    def test_a_signal_that_is_ignored_stays_so(self) -> None:
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
        try:
            with sealing.fresh_keys():
                assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
                assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        finally:
            signal.signal(signal.SIGHUP, before)


def test_the_demo_is_sealed_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "MODELS", (("kimi-linear-48b", 100),))
    monkeypatch.setattr(demo, "PREFILL_S", 0.1)
    for arguments, mode in (([], "sealed, AES-256-GCM by"), (["--plain"], "CRC32C, not encrypted")):
        assert demo.main(arguments) == 0
        said = capsys.readouterr().out
        assert mode in said.splitlines()[0]
        assert "every byte right" in said


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("64K", 65536), ("64KiB", 65536), ("1.5m", 3 * MIB // 2), ("2G", 2 << 30), ("16 kb", 16384)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-5", "1e9", "0", "5T", "0.1"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        parse_size(text)


def test_sizes_for_people() -> None:
    assert [show_size(s) for s in (5, 1024, 199_753_728, 3 << 30)] == ["5 B", "1 KiB", "190.5 MiB", "3 GiB"]


def test_a_run_larger_than_the_buffer_cycles_it() -> None:
    job = synthetic(2 << 30, MIB, loopback.BUFFER_BYTES)
    assert (job.transfer_bytes, job.transfers) == (512 * MIB, 4)
    assert machine.congestion(None)


KILLED = """
import kvwire
from kvwire.cli.jobs import synthetic
from kvwire.cli.loopback.peer import Peer, Receiver

if __name__ == "__main__":
    receiver, job = Peer(Receiver), synthetic(1 << 20, 65536, 1 << 20)
    receiver.call("allocate", job.specs, job.tokens, None)
    receiver.call("listen", kvwire.Config(plain=True), None)
    receiver.start("accept")  # nobody offers anything
    print("waits", flush=True)
    receiver.result()
"""


def test_a_bench_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    """A child may be minutes deep in a call when the pipe ends, and holds the memory of a model."""
    program = tmp_path / "killed.py"
    program.write_text(KILLED)
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE) as bench_process:
        assert bench_process.stdout is not None
        assert bench_process.stdout.readline() == b"waits\n"
        bench_process.kill()
        assert bench_process.communicate(timeout=30)[0] == b""  # the end comes when the last of them has gone
