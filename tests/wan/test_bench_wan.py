"""kvwire-bench wan as a user runs it, over links slow enough for any host: figures, what is kept, and a clean end."""

import json
import os
import shutil
import signal
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from kvwire.cli import bench
from kvwire.cli.failure import Failure
from kvwire.cli.report import webpage
from kvwire.cli.wan import command, transfer
from kvwire.cli.wan.setting import Setting
from tests.net.bench import BENCH
from tests.wan.kit import needs_speed, needs_wan

pytestmark = [needs_wan, needs_speed, pytest.mark.timeout(240)]

MIB = 1 << 20
LINK = ["--rate", "20mbit", "--rtt", "80ms"]
SMALL = ["--size", "1MiB", "--page", "64KiB", "--json"]


def run(*arguments: str) -> dict[str, Any]:
    done = subprocess.run([*BENCH, "wan", *LINK, *arguments], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["verified"] is True
    assert found["kind"] == "wan"
    return found


def test_a_cell(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    found = run(*SMALL, "--loss", "0.1%", "--runs", "2", "--vs", "none", "--html", str(page))
    assert (found["rtt_s"], found["rate_bps"], found["loss"], found["sealed"]) == (0.08, 2e7, 0.001, True)
    assert found["link_payload_bps"] == pytest.approx(2e7 * 1448 / 1500)
    assert found["utilisation"] == pytest.approx(found["goodput_bps"] / found["link_payload_bps"])
    assert 0.1 < found["utilisation"] < 1
    assert len(found["goodput_bps_runs"]) == 2
    assert found["lanes"] >= 1
    assert 0 <= found["retransmitted_share"] < 1
    assert found["emulator"] in ("netem", "tun")
    assert found["checked"] >= 4  # with what was not measured
    emulated, beside = found["emulated"], found["report_vs_emulator"]
    assert emulated["bytes_out"] > 2 * MIB
    dropped = emulated["lost"] + emulated["overflowed"]
    assert beside["emulator_dropped_packets"] == dropped
    assert abs(beside["lost_packets"] - dropped) <= max(10, dropped / 5)
    assert beside["delivered_difference"] == pytest.approx(0, abs=0.2)
    assert page.read_text().startswith(webpage.START)


def test_beside_other_settings_of_compression() -> None:
    arguments = ["--content", "kv", "--compression", "zstd", "--vs-compression", "off,int8", "--vs", "none"]
    found = run(*SMALL, "--runs", "2", *arguments)
    assert (found["coded_share"], found["coded_ratio"]) == (1.0, pytest.approx(1.47, abs=0.05))
    assert found["ratio_vs_off"] == pytest.approx(found["goodput_bps"] / found["off_bps"])
    assert [len(found[f"{name}_bps_runs"]) for name in ("off", "int8")] == [2, 2]
    assert found["checked"] == 2 * 2 * 3  # what went through a lossy codec, too


def test_automatic_codecs_beside_off() -> None:
    """Whether they are on depends on what else this host does; here it is only that they are compared."""
    found = run(*SMALL, "--runs", "1", "--content", "kv", "--vs-compression", "off", "--vs", "none")
    assert (found["compression"], found["content"]) == ("auto", "kv")
    assert found["automatic"] in ("on", "off")
    assert found["automatic_reason"]
    assert found["ratio_vs_off"] > 0


@pytest.mark.skipif(not shutil.which("iperf3"), reason="iperf3 is not installed")
def test_beside_iperf3(tmp_path: Path) -> None:
    found = run(*SMALL, "--cold", "--runs", "1", "--iperf3-seconds", "1", "--keep", str(tmp_path / "raw"))
    assert [flows["flows"] for flows in found["iperf3_flows"]] == [1, 4, 8, 16]
    assert found["iperf3_bps"] == max(flows["bps"] for flows in found["iperf3_flows"])
    assert found["ratio_vs_iperf3"] == pytest.approx(found["goodput_bps"] / found["iperf3_bps"])
    raw = [json.loads(file.read_text()) for file in (tmp_path / "raw").iterdir()]
    received = {end["sum_received"]["bits_per_second"] for end in (one["end"] for one in raw)}
    assert received == {flows["bps"] for flows in found["iperf3_flows"]}
    assert found["ratio_vs_ideal"] == pytest.approx(found["elapsed_s"] / found["ideal_s"])
    assert found["elapsed_s"] > found["ideal_s"] > 0.08


def test_a_black_hole() -> None:
    found = run(*SMALL, "--black-hole", "all", "--seconds", "6", "--runs", "1")
    assert found["emulated"]["black_holed"] > 0
    assert found["during_hole_bps"] < found["goodput_bps"]
    assert found["intervals"][-1]["end_s"] == pytest.approx(6, abs=0.5)


def test_urgent_transfers() -> None:
    found = run(*SMALL, "--urgent", "200ms", "--count", "3")
    assert found["urgent_count"] == len(found["urgent_s_runs"]) == 3
    assert found["urgent_p50_s"] <= found["urgent_p99_s"] == found["urgent_max_s"]
    assert found["ratio_urgent_p99"] == pytest.approx(found["urgent_p99_s"] / found["urgent_idle_s"])
    assert found["goodput_bps"] > 0


def test_layers_during_prefill() -> None:
    arguments = ["--model", "case-study-1t", "--tokens", "1024", "--scale", "400", "--prefill", "1", "--runs", "1"]
    found = run(*arguments, "--json")
    assert found["ideal_s"] == 1
    assert found["total_s"] == pytest.approx(1 + found["tail_s"], abs=0.1)


def test_a_cell_of_a_grid_that_fails_does_not_cost_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(setting: Setting) -> dict[str, Any]:
        if setting.link.loss:
            raise Failure("too busy")
        return transfer.measure(setting)

    cell = {"rtt": 0.08, "rate": 2e7, "loss": 0.0, "cc": "cubic"}
    monkeypatch.setattr(command, "GRID", (cell | {"loss": 0.01}, cell))
    monkeypatch.setitem(command.MEASURES, "transfer", measure)
    assert bench.main(["wan", "--grid", *SMALL, "--runs", "1", "--vs", "none"]) == 2
    said = capsys.readouterr()
    one, grid = map(json.loads, said.out.splitlines())
    assert (one["kind"], grid["kind"]) == ("wan", "wan-grid")
    assert one["command"].endswith("--rtt 80ms --loss 0% --cc cubic")
    assert grid["cells"][0]["goodput_bps"] == one["goodput_bps"]
    assert grid["missing"] == [{"rtt_s": 0.08, "loss": 0.01, "congestion": "cubic", "why": "too busy"}]
    assert "cell 1 of 2, 20 Mbit/s, 80 ms RTT, 1 % loss, cubic: too busy" in said.err


def marked(mark: str) -> list[int]:
    """Processes that have this in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_is_interrupted_leaves_nothing(tmp_path: Path, number: int) -> None:
    mark = f"KVWIRE_TEST_MARK={uuid.uuid4()}"
    environment = os.environ | {"TMPDIR": str(tmp_path)} | dict([mark.split("=")])
    words = [*BENCH, "wan", *LINK, *SMALL, "--vs", "none", "--runs", "1000"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        until = time.monotonic() + 60
        while len(marked(mark)) < 4:  # itself, both ends, and what multiprocessing or the emulator has
            assert time.monotonic() < until
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        time.sleep(1)
        assert list(tmp_path.glob("kvwire-keys-*"))
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else 128 + number)
    assert b"Traceback" not in said
    until = time.monotonic() + 20
    while marked(mark):  # what multiprocessing leaves ends by itself
        assert time.monotonic() < until, marked(mark)
        time.sleep(0.1)
    assert not list(tmp_path.iterdir())
