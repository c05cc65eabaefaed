"""What moves: everything that specs, offers and manifests refuse, and what they derive."""

import hashlib
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvwire.digests import block_hashes, layout_digest
from kvwire.errors import SpecError
from kvwire.types import (
    MAX_BLOCKS,
    MAX_GROUPS,
    MAX_LAYERS,
    MAX_PARTS,
    BlockRange,
    DType,
    Grant,
    GroupKind,
    GroupOffer,
    GroupSpec,
    Manifest,
    ModelTag,
    Part,
)

MODEL = ModelTag("model", "r1", "d1")


def attention(**changes: Any) -> GroupSpec:
    arguments: dict[str, Any] = {"block_tokens": 16, "heads": 8, "head_dim": 128} | changes
    return GroupSpec.attention(arguments.pop("name", "full"), [0, 3], DType.BF16, **arguments)


STATE = GroupSpec.state("ssm", GroupKind.RECURRENT, [1, 2], DType.FP32, (4, 5))


def group(**changes: Any) -> GroupSpec:
    arguments: dict[str, Any] = {
        "name": "g",
        "kind": GroupKind.FULL,
        "layers": (0, 1),
        "dtype": DType.FP16,
        "parts": (Part("k", (4, 2), 0),),
        "block_tokens": 4,
    }
    return GroupSpec(**(arguments | changes))


def manifest(**changes: Any) -> Manifest:
    arguments: dict[str, Any] = {
        "request_id": "r",
        "model": MODEL,
        "tokens": 40,
        "groups": (GroupOffer(attention(), BlockRange(0, 3)), GroupOffer(STATE, BlockRange(0, 1))),
    }
    return Manifest(**(arguments | changes))


def of(specs: Any, **changes: Any) -> Manifest:
    arguments: dict[str, Any] = {"request_id": "r", "model": MODEL, "tokens": 40}
    return Manifest.of(specs=specs, **(arguments | changes))


def test_specs_of_each_kind() -> None:
    full = attention()
    assert (full.kind, full.block_bytes, full.part_bytes(0)) == (GroupKind.FULL, 65536, 32768)
    assert attention(order="HND").parts[1] == Part("v", (8, 16, 128), 1)
    assert attention(window=100).kind is GroupKind.WINDOW
    mla = GroupSpec.mla("mla", range(2), DType.FP8_E4M3, block_tokens=64, latent=576)
    assert (mla.kind, mla.block_bytes, mla.layers) == (GroupKind.MLA, 64 * 576, (0, 1))
    assert (STATE.block_tokens, STATE.block_bytes) == (0, 80)


@pytest.mark.parametrize("dtype", list(DType))
def test_block_bytes_follow_the_dtype(dtype: DType) -> None:
    assert group(dtype=dtype).block_bytes == 8 * dtype.itemsize


@pytest.mark.parametrize(
    ("kind", "state", "subset"),
    [
        (GroupKind.FULL, False, True),
        (GroupKind.WINDOW, False, False),
        (GroupKind.MLA, False, True),
        (GroupKind.RECURRENT, True, False),
        (GroupKind.CONV, True, False),
    ],
)
def test_what_a_kind_allows(kind: GroupKind, state: bool, subset: bool) -> None:
    assert (kind.is_state, kind.takes_any_subset) == (state, subset)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelTag(""), "model name is ''"),
        (lambda: ModelTag("x" * 257), "model name"),
        (lambda: ModelTag("x", revision="é" * 129), "model revision"),
        (lambda: ModelTag("x", layout=b"d"), "model layout"),  # type: ignore[arg-type]
        (lambda: Part("", (1,)), "part name"),
        (lambda: Part("k", ()), "extents of shape are"),
        (lambda: Part("k", [4, 2]), "expected a tuple"),  # type: ignore[arg-type]
        (lambda: Part("k", (1,) * 9), "extents of shape are"),
        (lambda: Part("k", (4, 0)), r"an extent of shape \(4, 0\) is 0"),
        (lambda: Part("k", (4, True)), "an extent"),
        (lambda: Part("k", (4, 2), 2), "token_axis is 2; expected an integer in 0 to 1"),
        (lambda: BlockRange(-1, 2), "start is -1"),
        (lambda: BlockRange(3, 2), r"stop \(start 3\) is 2"),
        (lambda: BlockRange(0, MAX_BLOCKS + 1), "stop"),
        (lambda: group(name=""), "group name"),
        (lambda: group(kind="full"), "must be enum members"),
        (lambda: group(dtype="fp16"), "must be enum members"),
        (lambda: group(layers=()), "layers are"),
        (lambda: group(layers=[0]), "layers are"),
        (lambda: group(layers=tuple(range(MAX_LAYERS + 1))), "layers are"),
        (lambda: group(layers=(-1,)), "layer is -1"),
        (lambda: group(layers=(2, 2)), "named twice"),
        (lambda: GroupSpec.mla("mla", 3, DType.BF16, block_tokens=4, latent=1), "layers are 3"),  # type: ignore[arg-type]
        (lambda: group(parts=()), "parts are"),
        (lambda: group(parts=("k",)), "each of type Part"),
        (lambda: group(parts=tuple(Part(str(n), (4,)) for n in range(MAX_PARTS + 1))), "parts are"),
        (lambda: group(parts=(Part("k", (4,)), Part("k", (4,)))), "two parts have the same name"),
        (lambda: group(block_tokens=0), "block_tokens is 0"),
        (lambda: group(block_tokens=8), "part k has 4 tokens along its token axis; expected block_tokens = 8"),
        (lambda: group(window=5), "only a sliding-window group"),
        (lambda: group(window=False), "only a sliding-window group"),
        (lambda: group(window=None), "only a sliding-window group"),
        (lambda: group(kind=GroupKind.WINDOW), "window is 0"),
        (lambda: group(kind=GroupKind.CONV), "a state has no block_tokens"),
        (lambda: group(kind=GroupKind.CONV, block_tokens=False), "a state has no block_tokens"),
        (lambda: group(kind=GroupKind.CONV, block_tokens=0, window=0.0), "a state has no block_tokens"),
        (lambda: group(parts=(Part("k", (1 << 20, 1 << 20)),)), "bytes per block"),
        (lambda: attention(order="DHN"), "order is 'DHN'"),
        (lambda: attention(heads="2"), "extents of shape are"),
        (lambda: layout_digest([3]), "expected a list of GroupSpec"),  # type: ignore[list-item]
        (lambda: group().part_bytes(1), "number of a part is 1; expected an integer in 0 to 0"),
        (lambda: group().part_bytes(-1), "number of a part is -1"),
        (lambda: group().part_bytes(0.0), "number of a part is 0.0"),  # type: ignore[arg-type]
        (lambda: group().part_bytes("k"), "number of a part is 'k'"),  # type: ignore[arg-type]
    ],
)
def test_specs_that_cannot_be(make: Callable[[], object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make()


def test_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        attention().name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(("tokens", "stop"), [(1, 1), (16, 1), (17, 2), (160, 10)])
def test_blocks_that_tokens_make(tokens: int, stop: int) -> None:
    assert attention().blocks_for(tokens) == BlockRange(0, stop)
    assert STATE.blocks_for(tokens) == BlockRange(0, 1)


@given(tokens=st.integers(1, 500), window=st.integers(1, 300), block_tokens=st.integers(1, 40))
def test_a_window_has_the_blocks_it_touches(tokens: int, window: int, block_tokens: int) -> None:
    blocks = attention(window=window, block_tokens=block_tokens).blocks_for(tokens)
    touched = {token // block_tokens for token in range(max(0, tokens - window), tokens)}
    assert set(range(blocks.start, blocks.stop)) == touched


def test_layout_digest_tells_layouts_apart() -> None:
    specs = [
        [attention()],
        [attention(), STATE],
        [STATE, attention()],
        [attention(order="HND")],
        [attention(block_tokens=32)],
        [attention(window=64)],
        [attention(name="other")],
        [group(), group(name="h")],
        [group(dtype=DType.BF16)],
    ]
    assert len({layout_digest(s) for s in specs}) == len(specs)
    assert layout_digest([attention()]) == layout_digest([attention()])
    assert len(layout_digest([])) == 64


def test_block_hashes_by_their_definition() -> None:
    tokens, seed = list(range(1000, 1010)), b"salt"
    engines_own: Any = np.array(tokens)
    previous, expected = hashlib.sha256(b"kvwire prefix 1" + seed).digest()[:16], []
    for block in (tokens[:4], tokens[4:8], tokens[8:]):
        previous = hashlib.sha256(previous + b"".join(t.to_bytes(8, "little") for t in block)).digest()[:16]
        expected.append(previous)
    assert block_hashes(tokens, 4, seed=seed) == tuple(expected)
    assert block_hashes([], 4) == ()
    assert block_hashes(engines_own, 4, seed=seed) == tuple(expected)


@pytest.mark.parametrize(
    ("tokens", "more", "message"),
    [
        ([1, 2], {"block_tokens": 0}, "block_tokens is 0"),
        ([1, 2], {"block_tokens": 4.0}, "block_tokens is 4.0"),
        ([1, 2], {"seed": "salt"}, "seed is 'salt'; expected bytes"),
        ([1.0, 2.5], {}, "tokens are a sequence of integers .*'float'"),
        (["1", "2"], {}, "tokens are a sequence of integers .*'str'"),
        ("12", {}, "tokens are a sequence of integers .*'str'"),
        ([None], {}, "tokens are a sequence of integers .*'NoneType'"),
        ([-1], {}, "tokens are a sequence of integers in 0 to"),
        ([1 << 64], {}, "tokens are a sequence of integers in 0 to"),
        (np.array([1.0]), {}, "tokens are a sequence of integers"),
        (np.array([[1, 2], [3, 4]]), {}, "tokens are a sequence of integers"),
        (5, {}, "tokens are a sequence of integers .*no len"),
        (None, {}, "tokens are a sequence of integers .*no len"),
        (iter([1]), {}, "tokens are a sequence of integers .*no len"),
        ({1, 2}, {}, "tokens are a sequence of integers"),
        ({1: 2}, {}, "tokens are a sequence of integers"),
    ],
)
def test_tokens_that_have_no_hash(tokens: Any, more: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        block_hashes(tokens, **{"block_tokens": 4} | more)


@given(
    tokens=st.lists(st.integers(0, 3), min_size=1, max_size=20),
    other=st.lists(st.integers(0, 3), min_size=1, max_size=20),
    block_tokens=st.integers(1, 5),
)
def test_equal_hashes_mean_equal_prefixes(tokens: list[int], other: list[int], block_tokens: int) -> None:
    pairs = zip(block_hashes(tokens, block_tokens), block_hashes(other, block_tokens), strict=False)
    for number, (mine, theirs) in enumerate(pairs):
        end = (number + 1) * block_tokens
        assert (mine == theirs) == (tokens[:end] == other[:end])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GroupOffer(STATE, BlockRange(0, 0)), "a state is one block"),
        (lambda: GroupOffer(STATE, BlockRange(1, 2)), "a state is one block"),
        (lambda: GroupOffer(attention(), BlockRange(0, 2), (b"x" * 16,)), "1 hashes for 2 blocks"),
        (lambda: GroupOffer(attention(), BlockRange(0, 1), (b"x" * 15,)), "not 16 bytes"),
        (lambda: GroupOffer(attention(), BlockRange(0, 1), ("x" * 16,)), "not 16 bytes"),  # type: ignore[arg-type]
        (lambda: GroupOffer(attention(), range(0, 2, 2)), "expected a GroupSpec and a BlockRange"),  # type: ignore[arg-type]
        (lambda: manifest(request_id=""), "request id"),
        (lambda: manifest(attachment=1), "attachment is 1; expected True or False"),
        (lambda: manifest(residency="EU"), "residency"),
        (lambda: manifest(model="model"), "expected a ModelTag"),
        (lambda: manifest(tokens=0), "tokens is 0"),
        (lambda: manifest(groups=()), "1 to 64, each of type GroupOffer"),
        (lambda: manifest(groups=[GroupOffer(STATE, BlockRange(0, 1))]), "expected a tuple"),
        (
            lambda: manifest(groups=tuple(GroupOffer(group(name=str(n)), BlockRange(0, 1)) for n in range(65))),
            f"1 to {MAX_GROUPS}, each of type GroupOffer",
        ),
        (lambda: manifest(groups=(GroupOffer(STATE, BlockRange(0, 1)),) * 2), "the same name"),
        (lambda: manifest(tokens=32), r"blocks 0\.\.3 on offer, but 32 tokens make blocks 0\.\.2"),
        (
            lambda: manifest(groups=(GroupOffer(attention(window=16), BlockRange(0, 3)),)),
            r"40 tokens make blocks 1\.\.3",
        ),
        (lambda: of(STATE), "specs are GroupSpec.*expected a list of GroupSpec"),
        (lambda: of(None), "specs are None"),
        (lambda: of([STATE, "full"]), "expected a list of GroupSpec"),
        (lambda: of([STATE], tokens="40"), "tokens is '40'"),
        (lambda: of([attention()], tokens=40.0), "tokens is 40.0"),
        (lambda: of([STATE], model="model"), "expected a ModelTag"),
        (lambda: of([STATE], hashes=[b"x" * 16]), "expected a dict from group name to a tuple of bytes"),
        (lambda: of([STATE], hashes={STATE.name: [b"x" * 16]}), "expected a tuple of bytes"),
        (lambda: of([STATE], hashes={STATE.name: (1,)}), "not 16 bytes"),
    ],
)
def test_offers_that_cannot_be(make: Callable[[], object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make()


def test_a_manifest_of_all_blocks() -> None:
    hashes = block_hashes(range(40), 16)
    made = Manifest.of("r", MODEL, 40, [attention(), STATE], hashes={"full": hashes}, attachment=True)
    assert made.groups == (
        GroupOffer(attention(), BlockRange(0, 3), hashes),
        GroupOffer(STATE, BlockRange(0, 1)),
    )
    assert (made.residency, made.attachment) == ("", True)


def test_segments_are_numbered_in_manifest_order() -> None:
    made = manifest()
    assert made.segments() == (("full", 0), ("full", 3), ("ssm", 1), ("ssm", 2))
    assert [made.segment(name, layer) for name, layer in made.segments()] == [0, 1, 2, 3]
    assert made.group_index("ssm") == 1
    with pytest.raises(SpecError, match=r"group ssm has no layer 3; it has \(1, 2\)"):
        made.segment("ssm", 3)
    with pytest.raises(SpecError, match="no group is called 'other'; this manifest has full, ssm"):
        made.segment("other", 0)
    with pytest.raises(SpecError, match="no group is called 'other'"):
        made.group_index("other")


def test_a_grant_counts_its_blocks() -> None:
    grant = Grant(((BlockRange(0, 2), BlockRange(5, 6)), ()), 65536)
    assert (grant.blocks(0), grant.blocks(1)) == (3, 0)
