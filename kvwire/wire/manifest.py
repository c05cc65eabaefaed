"""Manifests and grants as plain msgpack values, and whether a grant fits an offer."""

from __future__ import annotations

from typing import Any

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
        manifest.tenant,
        [model.name, model.revision, model.layout],
        manifest.tokens,
        manifest.attachment,
        groups,
    ]


def unpack_manifest(value: list[Any]) -> Manifest:
    """The manifest that a peer packed. ProtocolError, whatever it is, if it is none."""
    try:
        request_id, tenant, model, tokens, attachment, groups = value
        if not isinstance(attachment, bool) or not isinstance(groups, list):
            raise TypeError("attachment or groups")
        return Manifest(
            request_id, ModelTag(*model), tokens, tuple(_group(group) for group in groups), tenant, attachment
        )
    except (KvwireError, ValueError, TypeError, OverflowError, AttributeError) as error:
        raise ProtocolError(f"a manifest that cannot be: {error}") from None


def _group(value: list[Any]) -> GroupOffer:
    name, kind, layers, dtype, parts, block_tokens, window, start, stop, hashes = value
    shapes = tuple(Part(part_name, tuple(shape), axis) for part_name, shape, axis in parts)
    spec = GroupSpec(name, GroupKind(kind), tuple(layers), DType(dtype), shapes, block_tokens, window)
    if not isinstance(hashes, bytes) or len(hashes) % HASH_BYTES:
        raise ValueError(f"hashes of {HASH_BYTES} bytes each")
    digests = tuple(hashes[at : at + HASH_BYTES] for at in range(0, len(hashes), HASH_BYTES))
    return GroupOffer(spec, BlockRange(start, stop), digests)


def pack_runs(grant: Grant) -> list[list[int]]:
    """Per group a flat list: start, stop, start, stop, ..."""
    return [[edge for run in runs for edge in (run.start, run.stop)] for runs in grant.runs]


def unpack_runs(value: list[Any]) -> tuple[tuple[BlockRange, ...], ...]:
    """ProtocolError if the peer's runs are none."""
    try:
        out = []
        for flat in value:
            if not isinstance(flat, list) or len(flat) % 2 or len(flat) > 2 * MAX_RUNS:
                raise ValueError("runs come as pairs")
            out.append(tuple(BlockRange(a, b) for a, b in zip(flat[::2], flat[1::2], strict=True)))
        return tuple(out)
    except (KvwireError, ValueError, TypeError) as error:
        raise ProtocolError(f"a grant that cannot be: {error}") from None


def check_grant(manifest: Manifest, grant: Grant) -> None:
    """PlacementError where a grant does not fit the offer: blocks that are not on offer, a kind that goes whole.

    Full attention and MLA: any subset. Sliding window: all blocks on offer, or none. States: the one, or none.
    """
    if len(grant.runs) != len(manifest.groups):
        raise PlacementError(f"a grant for {len(grant.runs)} groups; the offer has {len(manifest.groups)}")
    if not 4096 <= grant.cell_bytes <= 256 * 1024 or grant.cell_bytes % 4096:
        raise PlacementError(f"cells of {grant.cell_bytes} bytes; expected a multiple of 4096 up to 262144")
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
