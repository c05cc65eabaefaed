"""kvwire-bench codecs: the table, the record, a user's dump, and what it says to one that is none."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvwire.cli.bench import main
from kvwire.cli.codecs import measure
from kvwire.cli.codecs.measure import Row
from kvwire.cli.codecs.samples import is_keys, load
from kvwire.types import DType, GroupKind
from tests.unit import codec_reference as reference

NORMAL = np.random.default_rng(3).standard_normal((40, 2, 16))


def recorded(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["codecs", "--json", "--rounds", "1", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("\n") == 1
    record: dict[str, Any] = json.loads(out)
    return record


def test_the_record(capsys: pytest.CaptureFixture[str]) -> None:
    record = recorded(capsys)
    assert (record["kind"], record["data"], record["dtypes"], record["cell_bytes"]) == (
        "codecs",
        "synthetic",
        "bf16",
        65536,
    )
    assert record["left_out"] == {"bf16": "not for bf16"}
    rows = {row["name"]: row for row in record["codecs"]}
    assert list(rows)[:7] == ["zstd", "fp8", "int8", "int4", "int2", "delta", "zstd alone"]
    assert rows["zstd"]["ratio"] > 1.4 > 1.3 > rows["zstd alone"]["ratio"]
    for name, ratio, error in (("fp8", 1.8, 0.03), ("int8", 1.8, 0.006), ("int4", 2.9, 0.05), ("int2", 4.5, 0.3)):
        assert rows[name]["ratio"] > ratio
        assert 0 < rows[name]["relative_error"] < error
    for row in rows.values():
        assert row["coded_cells"] == row["cells"] == record["bytes"] // 65536
        assert (row["relative_error"] is None) == row["lossless"]
        slowest = min(row["encode_bps"], row["decode_bps"], row["ratio"] * 10e9)
        assert row["speed_up"]["10000000000"] == pytest.approx(slowest / 10e9)
        assert 0 < row["wins_below_bps"] < min(row["encode_bps"], row["decode_bps"])


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["codecs", "--rounds", "1", "--cell", "16KiB"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3 MiB of bf16, cells of 16 KiB; one core, GB/s of what goes in"
    assert lines[2].split()[:6] == ["codec", "ratio", "encode", "decode", "error", "wins"]
    assert [line.split()[0] for line in lines[3:9]] == ["zstd", "fp8", "int8", "int4", "int2", "delta"]
    assert lines[-1] == "bf16 is left out: not for bf16."


def test_a_dump(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Of every dtype that numpy has a name or bits for, and states, of which only some codecs are."""
    path = tmp_path / "dump.npz"
    np.savez(path, k_0=NORMAL.astype("<f4"), v_0=NORMAL.astype("<f4"))
    record = recorded(capsys, "--npz", str(path))
    assert (record["dtypes"], record["data"], record["left_out"]) == ("fp32", str(path), {})
    rows = {row["name"]: row for row in record["codecs"]}
    assert rows["bf16"]["ratio"] == 2
    assert 0 < rows["bf16"]["relative_error"] < 0.004
    assert record["bytes"] == 2 * 32 * 32 * 4, "whole blocks of 16 tokens"

    np.savez(path, state=np.arange(5000, dtype=">i4"))
    record = recorded(capsys, "--npz", str(path))
    assert set(record["left_out"]) == {"bf16", "fp8", "int8", "int4", "int2", "delta"}
    np.savez(path, noise=np.frombuffer(np.random.default_rng(1).bytes(70_000), np.uint8))
    row = recorded(capsys, "--npz", str(path))["codecs"][0]
    assert (row["name"], row["ratio"], row["coded_cells"], row["decode_bps"]) == ("zstd", 1, 0, None)
    assert row["wins_below_bps"] == 0
    assert main(["codecs", "--npz", str(path), "--rounds", "1"]) == 0
    assert "never" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (reference.to_bf16(NORMAL.astype("<f4")), DType.BF16),
        (reference.to_bf16(NORMAL.astype("<f4")).view("V2"), DType.BF16),
        (NORMAL.astype(">f2"), DType.FP16),
        (NORMAL, DType.FP64),
        (NORMAL.astype(np.int8).view("V1"), DType.FP8_E4M3),
        (NORMAL > 0, DType.BOOL),
    ],
)
def test_dtypes_of_a_dump(tmp_path: Path, array: Any, dtype: DType) -> None:
    np.savez(tmp_path / "dump.npz", a=array)
    (sample,) = load(tmp_path / "dump.npz", "NHD")
    assert sample.spec.dtype is dtype
    plain = array[:32].astype(array.dtype.newbyteorder("<"), copy=False)
    assert sample.data.tobytes() == np.ascontiguousarray(plain).tobytes()


def test_the_order_of_a_dump(tmp_path: Path) -> None:
    """Blocks are cut along the tokens, wherever these are."""
    np.savez(tmp_path / "dump.npz", keys=NORMAL.transpose(1, 0, 2), flat=NORMAL[0, 0])
    keys, flat = load(tmp_path / "dump.npz", "HND")
    assert (keys.spec.parts[0].name, keys.spec.parts[0].shape, keys.spec.parts[0].token_axis) == ("k", (2, 16, 16), 1)
    blocks = NORMAL[:32].reshape(2, 16, 2, 16).transpose(0, 2, 1, 3)
    assert keys.data.tobytes() == np.ascontiguousarray(blocks).tobytes()
    assert (flat.spec.kind, flat.layer, len(flat.spec.layers)) == (GroupKind.RECURRENT, 1, 2)


def test_names_of_keys() -> None:
    for name in ("k", "K_3", "key_cache", "layers.3.keys", "model/layer12/k", "k12"):
        assert is_keys(name), name
    for name in ("v", "value_cache", "tokens", "block", "kv", "monkey"):
        assert not is_keys(name), name


def test_bad_dumps(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def said(save: Any) -> str:
        path = tmp_path / "dump.npz"
        save(path)
        assert main(["codecs", "--npz", str(path)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        return err

    def one(path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, NORMAL)

    assert "is no .npz of numbers" in said(lambda path: path.write_bytes(b"hello"))
    assert "is no .npz of numbers" in said(lambda path: path.write_bytes(b""))
    assert "is no .npz of numbers" in said(one)
    assert "holds no array" in said(np.savez)
    assert "array 'a' has 1 elements of <U4" in said(lambda path: np.savez(path, a=np.array("text")))
    assert "array 'a' has 0 elements of float64" in said(lambda path: np.savez(path, a=np.zeros((0, 3))))
    assert "is no .npz of numbers" in said(lambda path: np.savez(path, a=np.array([{}], dtype=object)))
    assert "complex128" in said(lambda path: np.savez(path, a=np.zeros(3, complex)))
    assert "expected a tuple of 1 to 8" in said(lambda path: np.savez(path, a=np.zeros((1,) * 12)))
    assert main(["codecs", "--npz", str(tmp_path / "missing.npz")]) == 2
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize("cell", ["1KiB", "512KiB", "65537", "x"])
def test_bad_cells(capsys: pytest.CaptureFixture[str], cell: str) -> None:
    with pytest.raises(SystemExit):
        main(["codecs", "--cell", cell])
    assert "expected" in capsys.readouterr().err


def test_where_a_codec_wins() -> None:
    row = Row("x", True, True, plain_bytes=1000, sent_bytes=500, encode_s=1e-6, decode_s=5e-7)
    assert row.wins_below_bps == pytest.approx(8e9 / measure.GAIN)
    assert row.speed_up(1e9) == 2
    assert row.speed_up(row.wins_below_bps) == pytest.approx(measure.GAIN)
    assert Row("x", True, True, plain_bytes=1000, sent_bytes=950, encode_s=1e-6, decode_s=1e-6).wins_below_bps == 0


def test_a_lossless_codec_that_is_none_is_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def compare(row: Row, *_: object) -> None:
        row.wrong_cells += 1

    monkeypatch.setattr(measure, "_compare", compare)
    assert main(["codecs", "--rounds", "1"]) == 2
    assert "cells came back as others" in capsys.readouterr().err
