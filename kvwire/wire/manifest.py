"""Manifests and grants as plain msgpack values, and whether a grant fits an offer."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from kvwire.digests import layout_digest
from kvwire.errors import KvwireError, PlacementError, ProtocolError
from kvwire.types import (
    HASH_BYTES,
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

MAX_RUNS = 1 << 16
"""Most runs of blocks in one group of a grant."""
RUN_BYTES = 8
"""A run on the wire: start and stop, each u32 little-endian."""


def pack_manifest(manifest: Manifest) -> list[Any]:
    """A manifest as nested lists; the hashes of a group are one byte string."""
    groups = [
        [
            spec.name,
            spec.kind.value,
            list(spec.layers),
            spec.dtype.value,
            [[part.name, list(part.shape), part.token_axis] for part in spec.parts],
            spec.block_tokens,
            spec.window,
            offer.blocks.start,
            offer.blocks.stop,
            b"".join(offer.hashes),
        ]
        for offer in manifest.groups
        for spec in (offer.spec,)
    ]
    model = manifest.model
    return [
        manifest.request_id,
        manifest.residency,
        [model.name, model.revision, model.layout],
        manifest.tokens,
        manifest.attachment,
        groups,
    ]


def unpack_manifest(value: list[Any]) -> Manifest:
    """The manifest that a peer packed. ProtocolError, whatever it is, if it is none."""
    try:
        request_id, residency, model, tokens, attachment, groups = value
        _scalars([request_id, residency, tokens])
        if not isinstance(attachment, bool):
            raise TypeError("attachment is neither true nor false")
        offers = tuple(_group(group) for group in _list(groups))
        return Manifest(request_id, ModelTag(*_scalars(model)), tokens, offers, attachment, residency)
    except (KvwireError, ValueError, TypeError) as error:
        raise ProtocolError(f"a manifest that cannot be: {error}") from None


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{type(value).__name__} where a list belongs")
    return value


def _scalars(value: object) -> list[Any]:
    """A list that holds no lists and maps: nothing below it is deep, which an error message might print."""
    if any(not isinstance(item, str | int | None) for item in _list(value)):
        raise TypeError("something else where a list of numbers or names belongs")
    return _list(value)


def _group(value: object) -> GroupOffer:
    *head, hashes = _list(value)
    name, kind, layers, dtype, parts, block_tokens, window, start, stop = head
    _scalars([name, kind, dtype, start, stop])
    if type(block_tokens) is not int or type(window) is not int:
        raise TypeError("block_tokens or window is no number")
    shapes = []
    for part_name, shape, axis in map(_list, _list(parts)):
        _scalars([part_name, axis])
        shapes.append(Part(part_name, tuple(_scalars(shape)), axis))
    spec = GroupSpec(name, GroupKind(kind), tuple(_scalars(layers)), DType(dtype), tuple(shapes), block_tokens, window)
    if not isinstance(hashes, bytes) or len(hashes) % HASH_BYTES:
        raise ValueError(f"hashes of {HASH_BYTES} bytes each")
    digests = tuple(hashes[at : at + HASH_BYTES] for at in range(0, len(hashes), HASH_BYTES))
    return GroupOffer(spec, BlockRange(start, stop), digests)


def _say(tag: ModelTag) -> str:
    return f"{tag.name} revision {tag.revision or '-'} layout {tag.layout or '-'}"


def model_misfit(manifest: Manifest, models: Sequence[ModelTag]) -> str | None:
    """Why a manifest is not for a side that runs these models (none given: any); None where it is."""
    model = manifest.model
    if models and model not in models:
        return f"this side runs {'; '.join(map(_say, models)):.900}, the offer is for {_say(model):.900}"
    if model.layout and model.layout != layout_digest([group.spec for group in manifest.groups]):
        return f"the manifest's groups do not have the layout {model.layout:.100} that its model tag names"
    return None


def pack_runs(grant: Grant) -> list[bytes]:
    """Per group one byte string of runs."""
    return [b"".join(struct.pack("<II", run.start, run.stop) for run in runs) for runs in grant.runs]


def unpack_runs(value: list[Any]) -> tuple[tuple[BlockRange, ...], ...]:
    """ProtocolError if the peer's runs are none."""
    try:
        out = []
        for packed in value:
            if not isinstance(packed, bytes) or len(packed) % RUN_BYTES or len(packed) > MAX_RUNS * RUN_BYTES:
                raise ValueError(f"a group's runs are at most {MAX_RUNS} times {RUN_BYTES} bytes")
            out.append(tuple(BlockRange(start, stop) for start, stop in struct.iter_unpack("<II", packed)))
        return tuple(out)
    except (KvwireError, ValueError) as error:
        raise ProtocolError(f"a grant that cannot be: {error}") from None


def check_grant(manifest: Manifest, grant: Grant) -> None:
    """PlacementError where a grant does not fit the offer: other blocks, a part of a kind that goes whole, or nothing.

    Full attention and MLA: any subset. Sliding window: all blocks on offer, or none. States: the one, or none.
    """
    if len(grant.runs) != len(manifest.groups):
        raise PlacementError(f"a grant for {len(grant.runs)} groups; the offer has {len(manifest.groups)}")
    if not isinstance(grant.cell_bytes, int) or not 4096 <= grant.cell_bytes <= 256 * 1024 or grant.cell_bytes % 4096:
        raise PlacementError(f"cells of {grant.cell_bytes!r} bytes; expected a multiple of 4096 up to 262144")
    for index, (offer, runs) in enumerate(zip(manifest.groups, grant.runs, strict=True)):
        name = offer.spec.name
        if len(runs) > MAX_RUNS:
            raise PlacementError(f"group {name}: {len(runs)} runs of blocks; at most {MAX_RUNS} go into a grant")
        at = offer.blocks.start
        for run in runs:
            if len(run) == 0 or run.start < at or run.stop > offer.blocks.stop:
                raise PlacementError(
                    f"group {name}: blocks {run.start}..{run.stop} granted; "
                    f"{offer.blocks.start}..{offer.blocks.stop} are on offer, ascending and once each"
                )
            at = run.stop
        wanted = grant.blocks(index)
        if wanted and wanted != len(offer.blocks) and not offer.spec.kind.takes_any_subset:
            raise PlacementError(
                f"group {name} is {offer.spec.kind.value}: all of its {len(offer.blocks)} blocks or none, not {wanted}"
            )
    if not any(grant.runs) and not manifest.attachment:
        raise PlacementError("a grant of nothing", hint="refuse the offer, or take at least one block")
