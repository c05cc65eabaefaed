"""kvwire-bench models: the table, the details, the JSON record, and what it says to bad input."""

import json
from pathlib import Path
from typing import Any

import pytest

from kvwire.cli.bench import main
from kvwire.cli.models.presets import PRESETS, preset
from kvwire.cli.units import show_time

KI = 1024
CONFIGS = Path(__file__).parents[2] / "examples" / "handoff" / "configs"


def result(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The record, which is one line and nothing else."""
    assert main(["models", *arguments, "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    found: dict[str, Any] = json.loads(lines[0])
    return found


def test_the_table_has_every_preset_in_120_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines[1 : 1 + len(PRESETS)]}
    assert list(rows) == list(PRESETS)
    assert max(map(len, lines)) <= 120
    # 80 layers x 2 x 8 heads x 128 x 2 bytes; 10 GiB at 100 Gbit/s.
    assert rows["llama-3-70b"].split()[1:3] == ["320", "KiB"]
    assert rows["llama-3-70b"].endswith("859 ms")


def test_details_name_the_source_and_the_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "mimo-v2-flash", "case-study-1t", "--tokens", "32K"]) == 0
    shown = capsys.readouterr().out
    assert "XiaomiMiMo/MiMo-V2-Flash" in shown
    assert "arXiv 2604.15039" in shown
    window = next(line for line in shown.splitlines() if line.split()[:1] == ["window"])
    assert window.split() == ["window", "window", "bf16", "39", "195", "KiB", "128", "24.38", "MiB"]


def test_the_record(capsys: pytest.CaptureFixture[str]) -> None:
    found = result(capsys, "kimi-linear-48b", "gemma-3-27b", "--tokens", "1000,32K")
    assert (found["kind"], found["machines"], found["dtype"]) == ("models", {}, "bf16")
    kimi, gemma = found["models"]
    assert [group["kind"] for group in kimi["groups"]] == ["mla", "conv", "recurrent"]
    assert kimi["bytes_per_token"] == 7 * 576 * 2
    assert kimi["fixed_bytes"] == sum(group["fixed_bytes"] for group in kimi["groups"])
    assert kimi["bytes"] == {str(n): preset("kimi-linear-48b").kv_bytes(n) for n in (1000, 32 * KI)}
    assert kimi["seconds"]["25"]["32768"] == pytest.approx(kimi["bytes"]["32768"] * 8 / 25e9)
    assert list(kimi["seconds"]) == ["1", "10", "25", "100"]
    window = gemma["groups"][1]
    assert (window["window"], window["full_window_bytes"]) == (KI, KI * window["bytes_per_token"])
    assert gemma["fixed_bytes"] == window["full_window_bytes"]


def test_any_configuration_beside_presets(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(CONFIGS / "llama.json")
    found = result(capsys, "llama-3-70b", "--config", path, "--dtype", "fp8", "--block-tokens", "64")
    assert [model["name"] for model in found["models"]] == ["llama-3-70b", path]
    assert found["models"][1]["bytes_per_token"] == 512
    assert found["models"][1]["source"] == path


def status(arguments: list[str]) -> object:
    """argparse leaves with SystemExit, everything else returns."""
    try:
        return main(["models", *arguments])
    except SystemExit as error:
        return error.code


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["kimi-liner"], "did you mean kimi-linear-48b?"),
        (["--tokens", "0"], "expected up to 16 numbers of tokens"),
        (["--tokens", "1,,2"], "expected up to 16 numbers of tokens"),
        (["--tokens", "-5"], "expected"),
        (["--tokens", "99M"], "expected up to 16 numbers of tokens"),
        (["--tokens", "16M", "--block-tokens", "1"], "larger blocks with --block-tokens"),
        (["--block-tokens", "0"], "expected an integer"),
        (["--dtype", "int3"], "invalid choice"),
        (["--config", "no-such-file.json"], "--config no-such-file.json: No such file"),
        (["--config", "/"], "--config /: Is a directory"),
    ],
)
def test_bad_arguments_end_with_a_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(arguments) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"model_type: llama", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"num_hidden_layers": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[]", "a list; expected an object"),
        (b"{}", "no model_type"),
        (b'{"kvwire_bench": 1, "kind": "loopback"}', "no model_type"),
        (b'{"model_type": "llama", "num_hidden_layers": 1000000000}', "num_hidden_layers is 1000000000"),
        (
            b'{"model_type": "llama", "num_hidden_layers": 1, "num_key_value_heads": 1048576, "head_dim": 1048576}',
            "bytes per block",
        ),
    ],
)
def test_bad_configurations_end_with_a_sentence(
    content: bytes, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    assert status(["--config", str(path)]) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert str(path) in captured.err
    assert len(captured.err.splitlines()) == 1


def test_times_read_well() -> None:
    assert [show_time(s) for s in (12345.6, 59.94, 1.0, 0.0246, 0.00000123)] == [
        "12346 s", "59.9 s", "1 s", "24.6 ms", "1.23 us"
    ]  # fmt: skip
