"""What moves: model tags, group specs, manifests and block ranges.

All frozen and checked when they are made, so that whatever holds one need not check it again. Sizes are bytes
unless a name says otherwise. Words as in docs/design.md.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from kvwire.errors import SpecError

MAX_NAME_BYTES = 256
"""Longest UTF-8 name (request id, model, group, part)."""
MAX_GROUPS = 64
MAX_LAYERS = 1024
"""Most layers in one group."""
MAX_SEGMENTS = 4096
"""Most layers of all groups of a manifest together."""
MAX_PARTS = 16
MAX_AXES = 8
"""Most axes of a part's shape."""
MAX_BLOCKS = 1 << 20
"""Most blocks in one group: 16 Mi tokens at 16 tokens a block."""
MAX_BLOCK_BYTES = 1 << 32
HASH_BYTES = 16
MAX_ATTACHMENT_BYTES = 64 * 1024
"""Largest attachment: one frame, whatever the cell size."""


class GroupKind(enum.StrEnum):
    """What a group's bytes are. It decides what a receiver may leave out (see `wire.check_grant`)."""

    FULL = "full"
    """Full attention: every token has its own bytes; a receiver may take any subset of the blocks."""
    WINDOW = "window"
    """Sliding-window attention: only the blocks inside the window are on offer, and all of them are needed."""
    MLA = "mla"
    """Multi-head latent attention: as FULL, one latent per token."""
    RECURRENT = "recurrent"
    """Recurrent or linear-attention state: one block per layer, exact length, all or nothing."""
    CONV = "conv"
    """Convolution state: as RECURRENT."""

    @property
    def is_state(self) -> bool:
        """True where a layer has one block that stands for the whole prefix."""
        return self in (GroupKind.RECURRENT, GroupKind.CONV)

    @property
    def takes_any_subset(self) -> bool:
        """True where a receiver may take any subset of the blocks."""
        return self in (GroupKind.FULL, GroupKind.MLA)


class DType(enum.Enum):
    """Element type. kvwire moves bytes and never converts; the type is checked and travels as a label."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"
    FP64 = "fp64"
    FP8_E4M3 = "fp8_e4m3"
    FP8_E5M2 = "fp8_e5m2"
    UINT8 = "uint8"
    INT8 = "int8"
    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"
    BOOL = "bool"

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return _ITEMSIZE[self]


_ITEMSIZE = {
    DType.BF16: 2, DType.FP16: 2, DType.FP32: 4, DType.FP64: 8, DType.FP8_E4M3: 1, DType.FP8_E5M2: 1,
    DType.UINT8: 1, DType.INT8: 1, DType.INT16: 2, DType.INT32: 4, DType.INT64: 8, DType.BOOL: 1,
}  # fmt: skip


LABEL = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
LABEL_RULE = "1 to 63 of a-z, 0-9, dot and dash, a letter or digit at both ends"
"""Names that stand in certificates: tenants, roles, regions, hosts."""


def is_label(text: object) -> bool:
    """Whether this may name a tenant, role, region or host."""
    return isinstance(text, str) and LABEL.fullmatch(text) is not None


def _utf8_bytes(text: object) -> int:
    """Length of a string in UTF-8; -1 for what is no string, or has lone surrogates."""
    try:
        return len(text.encode()) if isinstance(text, str) else -1
    except UnicodeEncodeError:
        return -1


def _check_name(what: str, name: object) -> None:
    if not 0 < _utf8_bytes(name) <= MAX_NAME_BYTES:
        raise SpecError(f"{what} is {name!r:.80}; expected a string of 1 to {MAX_NAME_BYTES} UTF-8 bytes")


def check_int(what: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise SpecError(f"{what} is {value!r:.80}; expected an integer in {low} to {high}")


def _check_tuple(what: str, value: object, kind: type, most: int) -> None:
    if not isinstance(value, tuple) or not 1 <= len(value) <= most or not all(isinstance(it, kind) for it in value):
        raise SpecError(f"{what} are {value!r:.80}; expected a tuple of 1 to {most}, each of type {kind.__name__}")


def _numbers(layers: Iterable[int]) -> tuple[int, ...]:
    """What cannot be iterated over is left as it is, for GroupSpec to refuse."""
    return tuple(layers) if isinstance(layers, Iterable) else layers


def check_specs(specs: object) -> None:
    """SpecError for what is no sequence of GroupSpec."""
    if not isinstance(specs, Sequence) or not all(isinstance(spec, GroupSpec) for spec in specs):
        raise SpecError(f"specs are {specs!r:.80}; expected a list of GroupSpec")


@dataclass(frozen=True, slots=True)
class ModelTag:
    """Which model's KV this is. Two sides exchange KV only if all three fields agree."""

    name: str
    revision: str = ""
    """Checkpoint revision, for example a commit id. Empty: not stated, and then it must be empty on both sides."""
    layout: str = ""
    """Digest of the KV layout, as `layout_digest` gives it."""

    def __post_init__(self) -> None:
        _check_name("model name", self.name)
        for what in ("revision", "layout"):
            value = getattr(self, what)
            if not 0 <= _utf8_bytes(value) <= MAX_NAME_BYTES:
                raise SpecError(f"model {what} is {value!r:.80}; expected at most {MAX_NAME_BYTES} UTF-8 bytes")


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor inside a block, for example K, with the shape it has for one block, C order.

    `token_axis` is the axis of `shape` along which tokens run. It lets the receiver's pages hold another number
    of tokens than the sender's. None for states, or where the two sides page alike.
    """

    name: str
    shape: tuple[int, ...]
    token_axis: int | None = None

    def __post_init__(self) -> None:
        _check_name("part name", self.name)
        _check_tuple(f"part {self.name}: extents of shape", self.shape, int, MAX_AXES)
        for extent in self.shape:
            check_int(f"part {self.name}: an extent of shape {self.shape}", extent, 1, MAX_BLOCK_BYTES)
        if self.token_axis is not None:
            check_int(f"part {self.name}: token_axis", self.token_axis, 0, len(self.shape) - 1)


@dataclass(frozen=True, slots=True)
class BlockRange:
    """Blocks `start` (included) to `stop` (excluded), numbered from the first token of the sequence."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        check_int("block range start", self.start, 0, MAX_BLOCKS)
        check_int(f"block range stop (start {self.start})", self.stop, self.start, MAX_BLOCKS)

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """KV of one kind: which layers, which dtype, what one block holds.

    The bytes of one block are its parts in order, each in C order. `block_tokens` is the number of tokens in a
    block, 0 for states. `window` is the window in tokens, for `GroupKind.WINDOW` only.
    """

    name: str
    kind: GroupKind
    layers: tuple[int, ...]
    dtype: DType
    parts: tuple[Part, ...]
    block_tokens: int = 0
    window: int = 0
    block_bytes: int = field(init=False)
    """Bytes of one block of one layer, all parts."""

    def __post_init__(self) -> None:
        _check_name("group name", self.name)
        if not isinstance(self.kind, GroupKind) or not isinstance(self.dtype, DType):
            raise SpecError(f"group {self.name}: kind {self.kind!r} and dtype {self.dtype!r} must be enum members")
        _check_tuple(f"group {self.name}: layers", self.layers, int, MAX_LAYERS)
        for layer in self.layers:
            check_int(f"group {self.name}: layer", layer, 0, 1 << 20)
        if len(set(self.layers)) != len(self.layers):
            raise SpecError(f"group {self.name}: a layer is named twice in {self.layers}")
        _check_tuple(f"group {self.name}: parts", self.parts, Part, MAX_PARTS)
        if len({part.name for part in self.parts}) != len(self.parts):
            raise SpecError(f"group {self.name}: two parts have the same name")
        if self.kind.is_state:
            if self.block_tokens or self.window or not type(self.block_tokens) is type(self.window) is int:
                raise SpecError(f"group {self.name}: a state has no block_tokens and no window")
        else:
            check_int(f"group {self.name}: block_tokens", self.block_tokens, 1, 1 << 30)
            for part in self.parts:
                if part.token_axis is not None and part.shape[part.token_axis] != self.block_tokens:
                    raise SpecError(
                        f"group {self.name}: part {part.name} has {part.shape[part.token_axis]} tokens along its "
                        f"token axis; expected block_tokens = {self.block_tokens}"
                    )
        if self.kind is GroupKind.WINDOW:
            check_int(f"group {self.name}: window", self.window, 1, 1 << 40)
        elif self.window or type(self.window) is not int:  # False is another layout, and no number to a peer
            raise SpecError(f"group {self.name}: only a sliding-window group has a window")
        total = sum(self.part_bytes(index) for index in range(len(self.parts)))
        check_int(f"group {self.name}: bytes per block", total, 1, MAX_BLOCK_BYTES)
        object.__setattr__(self, "block_bytes", total)

    def part_bytes(self, index: int) -> int:
        """Bytes of part `index` in one block."""
        check_int(f"group {self.name}: number of a part", index, 0, len(self.parts) - 1)
        return math.prod(self.parts[index].shape) * self.dtype.itemsize

    def blocks_for(self, tokens: int) -> BlockRange:
        """The blocks that exist after `tokens` tokens: all, those that touch the window, or the one state."""
        check_int("tokens", tokens, 1, 1 << 40)
        if self.kind.is_state:
            return BlockRange(0, 1)
        stop = -(-tokens // self.block_tokens)
        start = max(0, tokens - self.window) // self.block_tokens if self.kind is GroupKind.WINDOW else 0
        return BlockRange(start, stop)

    @classmethod
    def attention(
        cls,
        name: str,
        layers: Iterable[int],
        dtype: DType,
        *,
        block_tokens: int,
        heads: int,
        head_dim: int,
        window: int = 0,
        order: str = "NHD",
    ) -> GroupSpec:
        """K and V of (sliding-window) attention, `[tokens, heads, dim]` ("NHD") or `[heads, tokens, dim]` ("HND")."""
        if order not in ("NHD", "HND"):
            raise SpecError(f"group {name}: order is {order!r}; expected 'NHD' or 'HND'")
        axis = order.index("N")
        shape = (block_tokens, heads, head_dim) if axis == 0 else (heads, block_tokens, head_dim)
        parts = (Part("k", shape, axis), Part("v", shape, axis))
        kind = GroupKind.WINDOW if window else GroupKind.FULL
        return cls(name, kind, _numbers(layers), dtype, parts, block_tokens, window)

    @classmethod
    def mla(cls, name: str, layers: Iterable[int], dtype: DType, *, block_tokens: int, latent: int) -> GroupSpec:
        """MLA: one latent of `latent` elements per token (compressed KV and decoupled rotary key together)."""
        part = Part("latent", (block_tokens, latent), 0)
        return cls(name, GroupKind.MLA, _numbers(layers), dtype, (part,), block_tokens)

    @classmethod
    def state(
        cls, name: str, kind: GroupKind, layers: Iterable[int], dtype: DType, shape: tuple[int, ...]
    ) -> GroupSpec:
        """A recurrent or convolution state of `shape` per layer."""
        return cls(name, kind, _numbers(layers), dtype, (Part("state", shape),))


@dataclass(frozen=True, slots=True)
class GroupOffer:
    """One group of a manifest: its spec, the blocks on offer, and what names their content.

    `hashes`: for token-addressed groups one 16-byte chained hash per block on offer (`block_hashes`), for states
    one key of the exact prefix; empty where the sender does not take part in prefix caching.
    """

    spec: GroupSpec
    blocks: BlockRange
    hashes: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.spec, GroupSpec) or not isinstance(self.blocks, BlockRange):
            raise SpecError(f"an offer of {self.blocks!r:.80}; expected a GroupSpec and a BlockRange")
        if self.spec.kind.is_state and (self.blocks.start, self.blocks.stop) != (0, 1):
            raise SpecError(f"group {self.spec.name}: a state is one block, numbered 0; got {self.blocks}")
        if not isinstance(self.hashes, tuple):
            raise SpecError(f"group {self.spec.name}: hashes are {self.hashes!r:.80}; expected a tuple of bytes")
        if self.hashes and len(self.hashes) != len(self.blocks):
            raise SpecError(f"group {self.spec.name}: {len(self.hashes)} hashes for {len(self.blocks)} blocks")
        if any(not isinstance(h, bytes) or len(h) != HASH_BYTES for h in self.hashes):
            raise SpecError(f"group {self.spec.name}: a block hash is not {HASH_BYTES} bytes")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What one transfer offers: the KV cache of one request.

    `attachment`: whether a small msgpack value (`Outgoing.attach`) is part of the transfer. `residency`: the region
    that this KV may not leave, "eu" for "eu" itself and all "eu-..."; empty: anywhere. Both ends hold it against the
    regions in their certificates.
    """

    request_id: str
    model: ModelTag
    tokens: int
    groups: tuple[GroupOffer, ...]
    attachment: bool = False
    residency: str = ""

    def __post_init__(self) -> None:
        _check_name("request id", self.request_id)
        if self.residency != "" and not is_label(self.residency):
            raise SpecError(f"residency is {self.residency!r:.80}; expected a region: {LABEL_RULE}")
        if not isinstance(self.model, ModelTag):
            raise SpecError(f"model is {self.model!r:.80}; expected a ModelTag")
        check_int("tokens", self.tokens, 1, 1 << 40)
        if not isinstance(self.attachment, bool):  # a peer that is sent anything else ends the link
            raise SpecError(f"attachment is {self.attachment!r:.80}; expected True or False")
        _check_tuple("groups of a manifest", self.groups, GroupOffer, MAX_GROUPS)
        if sum(len(group.spec.layers) for group in self.groups) > MAX_SEGMENTS:
            raise SpecError(f"the groups of a manifest have more than {MAX_SEGMENTS} layers together")
        if len({group.spec.name for group in self.groups}) != len(self.groups):
            raise SpecError("two groups of a manifest have the same name")
        for group in self.groups:
            exist = group.spec.blocks_for(self.tokens)
            if group.blocks.start < exist.start or group.blocks.stop > exist.stop:
                raise SpecError(
                    f"group {group.spec.name}: blocks {group.blocks.start}..{group.blocks.stop} on offer, but "
                    f"{self.tokens} tokens make blocks {exist.start}..{exist.stop}"
                )

    @classmethod
    def of(
        cls,
        request_id: str,
        model: ModelTag,
        tokens: int,
        specs: Sequence[GroupSpec],
        *,
        hashes: dict[str, tuple[bytes, ...]] | None = None,
        attachment: bool = False,
        residency: str = "",
    ) -> Manifest:
        """A manifest that offers every block that `tokens` tokens make; `hashes` by group name."""
        check_specs(specs)
        if not isinstance(hashes, Mapping | None):
            raise SpecError(f"hashes are {hashes!r:.80}; expected a dict from group name to a tuple of bytes")
        groups = tuple(GroupOffer(s, s.blocks_for(tokens), (hashes or {}).get(s.name, ())) for s in specs)
        return cls(request_id, model, tokens, groups, attachment, residency)

    @property
    def nbytes(self) -> int:
        """Bytes of every block on offer, in all layers."""
        return sum(len(g.blocks) * g.spec.block_bytes * len(g.spec.layers) for g in self.groups)

    def group_index(self, name: str) -> int:
        """Position of the group called `name`."""
        names = [group.spec.name for group in self.groups]
        if name not in names:
            raise SpecError(f"no group is called {name!r}; this manifest has {', '.join(names)}")
        return names.index(name)

    def segment(self, name: str, layer: int) -> int:
        """Segment number of a layer of a group: (group, layer) in manifest order, the attachment last."""
        index = self.group_index(name)
        layers = self.groups[index].spec.layers
        if layer not in layers:
            raise SpecError(f"group {name} has no layer {layer}; it has {layers}")
        return sum(len(group.spec.layers) for group in self.groups[:index]) + layers.index(layer)

    def segments(self) -> tuple[tuple[str, int], ...]:
        """(group name, layer) of every segment in order, the attachment not among them."""
        return tuple((group.spec.name, layer) for group in self.groups for layer in group.spec.layers)


@dataclass(frozen=True, slots=True)
class Grant:
    """The receiver's answer to an offer: per group, ascending runs of wanted blocks; and the cell size."""

    runs: tuple[tuple[BlockRange, ...], ...]
    cell_bytes: int

    def blocks(self, group: int) -> int:
        """Number of blocks granted of group `group` (position in the manifest)."""
        return sum(len(run) for run in self.runs[group])
