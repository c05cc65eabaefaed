"""Which codec a group goes through: what was asked for, what the peer takes, what there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from kvwire import CodecMismatch, Config, ConfigError, DType, GroupKind, GroupSpec, find_codec, register_codec
from kvwire._ext import zstdlib
from kvwire.codecs import codecs
from kvwire.codecs.choice import Choice, by_ids, check_names, choose, tag, taken
from kvwire.codecs.registry import MOST
from kvwire.errors import ProtocolError

pytestmark = pytest.mark.usefixtures("codecs_forgotten")

FULL = GroupSpec.attention("full", (0, 1), DType.BF16, block_tokens=16, heads=2, head_dim=8)
WINDOW = GroupSpec.attention("window", (2,), DType.FP32, block_tokens=16, heads=2, head_dim=8, window=64)
BYTES = GroupSpec.attention("fp8", (3,), DType.FP8_E4M3, block_tokens=16, heads=2, head_dim=8)
STATE = GroupSpec.state("state", GroupKind.RECURRENT, (4,), DType.FP32, (4, 8))
ALL = (FULL, WINDOW, BYTES, STATE)
EVERYTHING = {tag(codec) for codec in codecs()}
LOSSLESS_ONLY = {tag(codec) for codec in codecs() if codec.lossless}


def names(choices: list[Choice | None]) -> list[str | None]:
    """An automatic one in brackets."""
    return [
        None if choice is None else f"({choice.codec.name})" if choice.automatic else choice.codec.name
        for choice in choices
    ]


@pytest.mark.parametrize(
    ("compression", "chosen"),
    [
        ("auto", ["(zstd)"] * 4),
        ("off", [None] * 4),
        ("zstd", ["zstd"] * 4),
        ({}, ["(zstd)"] * 4),
        ({"recurrent": "zstd"}, ["(zstd)", "(zstd)", "(zstd)", "zstd"]),
        ({"full": "off", "window": "int8"}, [None, "int8", None, "(zstd)"]),  # BYTES are of kind "full", too
        ({"window": "bf16", "mla": "int4", "conv": "zstd"}, ["(zstd)", "bf16", "(zstd)", "(zstd)"]),
        ({"full": "auto", "window": "off", "recurrent": "off"}, ["(zstd)", None, "(zstd)", None]),
    ],
)
def test_by_name_and_by_kind(compression: str | Mapping[str, str], chosen: list[str | None]) -> None:
    assert names(choose(compression, ALL, EVERYTHING)) == chosen


def test_one_for_all_that_leaves() -> None:
    assert names(choose("int8", (FULL, WINDOW), EVERYTHING)) == ["int8", "int8"]


@pytest.mark.parametrize("peer", [set(), {("zstd", 2, True)}, {("zstd", 1, False)}, {("zlib", 1, True)}])
def test_what_is_automatic_is_left_out_where_the_peer_does_not_take_it(peer: set[Any]) -> None:
    assert choose("auto", ALL, peer) == [None] * 4


UNFIT: dict[str, tuple[Any, GroupSpec, str, str]] = {
    "a state": (
        "int8",
        STATE,
        "codec 'int8' does not take group 'state', which is recurrent of fp32",
        '"full": "int8"',
    ),
    "a dtype": ("int8", BYTES, "codec 'int8' does not take group 'fp8', which is full of fp8_e4m3", "bf16, fp16, fp32"),
    "by kind": ({"recurrent": "int4"}, STATE, "does not take group 'state'", "it takes full, mla, window of"),
    "only fp32": ("bf16", FULL, "codec 'bf16' does not take group 'full', which is full of bf16", "of fp32"),
}


@pytest.mark.parametrize("what", UNFIT)
def test_a_codec_that_does_not_take_a_group(what: str) -> None:
    compression, spec, words, hint = UNFIT[what]
    with pytest.raises(ConfigError, match=words) as caught:
        choose(compression, (spec,), EVERYTHING)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize("compression", ["lz4", "", "Zstd", "AUTO", {"full": "lz4"}, {"mla": "none"}])
def test_a_codec_that_there_is_not(compression: Any) -> None:
    for ask in (lambda: choose(compression, (FULL,), EVERYTHING), lambda: check_names(compression)):
        with pytest.raises(ConfigError, match="there is no codec") as caught:
            ask()
        assert caught.value.hint == "known: zstd, bf16, fp8, int8, int4, int2, delta"


@pytest.mark.parametrize("compression", [None, 7, True, b"zstd", ["zstd"], {"zstd"}, {"full": None}, {"full": 1}])
def test_what_is_no_choice(compression: Any) -> None:
    for ask in (lambda: choose(compression, (FULL,), EVERYTHING), lambda: Config(compression=compression)):
        with pytest.raises(ConfigError, match="compression is"):
            ask()


@pytest.mark.parametrize("kind", ["Full", "attention", "", 1, None, DType.FP32])
def test_what_is_no_kind(kind: Any) -> None:
    for ask in (lambda: choose({kind: "zstd"}, (FULL,), EVERYTHING), lambda: Config(compression={kind: "zstd"})):
        with pytest.raises(ConfigError, match="is no kind of group") as caught:
            ask()
        assert caught.value.hint == "there are full, window, mla, recurrent, conv"


def test_kinds_are_named_or_members() -> None:
    members: dict[str, str] = {GroupKind.FULL: "int8", "recurrent": "off"}
    assert Config(compression=members).compression == {"full": "int8", "recurrent": "off"}
    assert names(choose(members, (FULL, WINDOW, STATE), EVERYTHING)) == ["int8", "(zstd)", None]


def test_a_configuration_does_not_change_with_what_it_was_made_of() -> None:
    mine = {"full": "int8"}
    config = Config(compression=mine)
    mine["full"] = "int2"
    assert config.compression == {"full": "int8"}
    assert Config().compression == "auto"
    assert config == Config(compression={"full": "int8"})


@pytest.mark.parametrize(
    ("name", "peer", "why"),
    [
        ("int8", set(), "it takes nothing lossy"),
        ("int8", LOSSLESS_ONLY, "it takes nothing lossy"),
        ("int8", EVERYTHING - {("int8", 4, False)}, "it does not know it, or cannot have it"),
        ("int8", EVERYTHING - {("int8", 4, False)} | {("int8", 9, False)}, "it has another one by that name or id"),
        ("int8", EVERYTHING - {("int8", 4, False)} | {("int9", 4, False)}, "it has another one by that name or id"),
        ("zstd", set(), "it does not know it, or cannot have it"),
        ("zstd", {("zstd", 1, False)}, "it has another one by that name or id"),
    ],
)
def test_a_codec_that_the_peer_does_not_take(name: str, peer: set[Any], why: str) -> None:
    for compression in (name, {"full": name}):
        with pytest.raises(CodecMismatch) as caught:
            choose(compression, (FULL,), peer)
        assert f"the peer does not take codec '{name}', of group 'full': {why}" in str(caught.value)
        assert caught.value.hint == f"it takes {', '.join(sorted(known for known, _, _ in peer)) or 'none'}"
        assert not caught.value.retriable


def test_without_a_libzstd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zstdlib, "find", lambda: None)
    assert choose("auto", ALL, EVERYTHING) == [None] * 4
    assert names(choose({"full": "int8"}, (FULL, STATE), EVERYTHING)) == ["int8", None]
    for name in ("zstd", "delta"):
        with pytest.raises(ConfigError, match=f"codec '{name}' needs a libzstd"):
            choose(name, (FULL,), EVERYTHING)
    assert [codec.name for codec in taken(lossy=True)] == ["bf16", "fp8", "int8", "int4", "int2"]
    assert taken(lossy=False) == []


def test_what_a_side_takes() -> None:
    assert taken(lossy=True) == list(codecs())
    assert [codec.name for codec in taken(lossy=False)] == ["zstd"]
    register_codec("mine", 200, lambda *_: None, lambda *_: b"", lossless=True)
    assert [codec.name for codec in taken(lossy=False)] == ["zstd", "mine"]


def test_what_a_peer_named() -> None:
    groups = FULL, WINDOW, STATE
    assert by_ids([], groups) == [None] * 3
    assert by_ids([0, 4, 1], groups) == [None, Choice(find_codec("int8"), False), Choice(find_codec("zstd"), False)]
    with pytest.raises(ProtocolError, match=r"names codec 'int8' for group 'state', which is recurrent of fp32"):
        by_ids([0, 0, 4], groups)


def test_no_more_than_a_hello_holds() -> None:
    for wire_id in range(128, 128 + MOST - len(codecs())):
        register_codec(f"c{wire_id}", wire_id, lambda *_: None, lambda *_: b"", lossless=True)
    assert len(codecs()) == MOST
    with pytest.raises(ConfigError, match="there are 32 codecs already"):
        register_codec("one-too-many", 255, lambda *_: None, lambda *_: b"", lossless=True)
