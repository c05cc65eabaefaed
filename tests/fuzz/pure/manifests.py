"""Manifests, group specs and grants: any nested lists, and real ones with something else in some places."""

from __future__ import annotations

from typing import Any

import msgpack

from kvwire import types
from kvwire.errors import PlacementError, ProtocolError, SpecError
from kvwire.types import BlockRange, DType, Grant, GroupKind, GroupSpec, Manifest, Part
from kvwire.wire.manifest import check_grant, model_misfit, pack_manifest, pack_runs, unpack_manifest, unpack_runs
from tests.fuzz.pure.reading import Cursor, measured
from tests.unit.wire_pair import SPECS, make_manifest

UNDER_TEST = ("kvwire.wire.manifest", "kvwire.types")

REAL = [pack_manifest(make_manifest("r1", tokens=tokens)) for tokens in (1, 40, 100)]
SHARED = [spec.name for spec in SPECS]
MOST_BYTES = 1 << 20
"""What checking the manifest of an input may take; inputs are smaller by far."""


def fuzz(data: bytes) -> None:
    measured(_read, data, MOST_BYTES)


def _read(what: int, cursor: Cursor) -> None:
    match what % 4:
        case 0:
            _manifest([cursor.value() for _ in range(cursor.byte() % 8)])
        case 1:
            _packed(cursor)
        case 2:
            value: Any = cursor.choose(REAL)
            for _ in range(1 + cursor.byte() % 4):
                value = _changed(value, cursor)
            _manifest(value if isinstance(value, list) else [value])
        case _:
            _spec(cursor)


def _packed(cursor: Cursor) -> None:
    """As it comes over the wire."""
    try:
        value = msgpack.unpackb(cursor.rest(), max_array_len=types.MAX_LAYERS, max_map_len=64, max_ext_len=0)
    except (ValueError, msgpack.UnpackException):
        return
    if isinstance(value, list):
        _manifest(value)


def _changed(value: Any, cursor: Cursor) -> Any:
    """The same nested lists with something else in one place: another value, an item less, one twice."""
    if not isinstance(value, list) or not value or cursor.byte() % 8 == 0:
        return cursor.value()
    at = cursor.byte() % len(value)
    match cursor.byte() % 8:
        case 0:
            return value[:at] + value[at + 1 :]
        case 1:
            return [*value[:at], value[at], *value[at:]]
        case _:
            return [*value[:at], _changed(value[at], cursor), *value[at + 1 :]]


def _manifest(value: list[Any]) -> None:
    try:
        manifest = unpack_manifest(value)
    except ProtocolError as error:
        assert len(str(error)) < 16384, "an error as long as what a peer says"
        return
    _check(manifest)
    again = pack_manifest(manifest)
    assert unpack_manifest(again) == manifest
    assert pack_manifest(unpack_manifest(again)) == again
    model_misfit(manifest, [make_manifest().model])
    model_misfit(manifest, ())
    _grants(manifest, value)


def _check(manifest: Manifest) -> None:
    """What everybody relies on who holds a manifest, said once more, and not with the code that checks it."""
    assert 1 <= manifest.tokens <= 1 << 40
    assert 0 < len(manifest.request_id.encode()) <= 256
    assert 1 <= len(manifest.groups) <= 64
    names = [offer.spec.name for offer in manifest.groups]
    assert len(set(names)) == len(names)
    segments = 0
    for offer in manifest.groups:
        spec, blocks = offer.spec, offer.blocks
        assert 0 <= blocks.start <= blocks.stop
        assert len(blocks) <= 1 << 20
        assert len(offer.hashes) in (0, len(blocks))
        assert len(set(spec.layers)) == len(spec.layers) <= 1024
        assert all(type(layer) is int and layer >= 0 for layer in spec.layers)
        assert 1 <= spec.block_bytes <= 1 << 32
        for index, part in enumerate(spec.parts):
            assert all(type(extent) is int and extent > 0 for extent in part.shape)
            assert 1 <= spec.part_bytes(index) <= spec.block_bytes
        exist = spec.blocks_for(manifest.tokens)
        assert exist.start <= blocks.start
        assert blocks.stop <= exist.stop
        if spec.kind.is_state:
            assert (blocks.start, blocks.stop) == (0, 1)
        else:
            assert spec.block_tokens >= 1
            assert blocks.stop * spec.block_tokens < manifest.tokens + spec.block_tokens
        segments += len(spec.layers)
    assert 0 <= manifest.nbytes <= segments << 52
    assert len(manifest.segments()) == segments <= 4096
    for number, (name, layer) in enumerate(manifest.segments()[:8]):
        assert manifest.segment(name, layer) == number


def _grants(manifest: Manifest, value: list[Any]) -> None:
    """Of what is on offer every whole grant fits, and what fits is no more than that."""
    whole = Grant(tuple((offer.blocks,) if len(offer.blocks) else () for offer in manifest.groups), 65536)
    check_grant(manifest, whole)
    assert unpack_runs(pack_runs(whole)) == whole.runs
    try:
        grant = Grant(unpack_runs(value[:1]) * len(manifest.groups), 4096)
        check_grant(manifest, grant)
    except (ProtocolError, PlacementError):
        return
    assert all(grant.blocks(index) <= len(offer.blocks) for index, offer in enumerate(manifest.groups))


def _spec(cursor: Cursor) -> None:
    """What a caller may say: a group, a range and runs of any numbers."""
    try:
        parts = tuple(
            Part(
                "kv"[number % 2] * (1 + number // 2),
                tuple(cursor.integer() for _ in range(cursor.byte() % 4)),
                cursor.choose((None, 0, 1, cursor.integer())),
            )
            for number in range(cursor.byte() % 4)
        )
        layers = tuple(cursor.integer() for _ in range(cursor.byte() % 4))
        kind, dtype = cursor.choose(tuple(GroupKind)), cursor.choose(tuple(DType))
        spec = GroupSpec(cursor.choose(SHARED), kind, layers, dtype, parts, cursor.integer(), cursor.integer())
        tokens = cursor.integer()
        manifest = Manifest.of("r", make_manifest().model, tokens, [spec])
    except SpecError:
        return
    _check(manifest)
    _manifest(pack_manifest(manifest))
    runs = []
    try:
        for _ in range(cursor.byte() % 4):
            runs.append(BlockRange(cursor.integer(), cursor.integer()))
        grant = Grant((tuple(runs),), 4096)
        check_grant(manifest, grant)
    except (SpecError, PlacementError):
        return
    seen = [block for run in runs for block in (run.start, run.stop)]
    assert seen == sorted(seen)
    assert unpack_runs(pack_runs(grant)) == grant.runs


def plant() -> None:
    """Numbers that are held against their largest value only."""
    check = types.check_int

    def lenient(what: str, value: object, low: int, high: int) -> None:
        check(what, value, -(1 << 63) if what.endswith("start") or what == "tokens" else low, high)

    types.check_int = lenient
