"""Which codec each group of a transfer goes through. Pure: what was asked for, what the peer takes, what there is."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

from kvwire.codecs.description import Codec
from kvwire.codecs.registry import codecs, find_codec
from kvwire.config import check_compression
from kvwire.errors import CodecMismatch, ConfigError, ProtocolError
from kvwire.types import DType, GroupKind, GroupSpec

AUTO, OFF = "auto", "off"
LOSSLESS = "zstd"
"""What "auto" goes through."""

Tag = tuple[str, int, bool]
"""Name, id and lossless: both sides have the same codec where all three agree."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a group goes through."""

    codec: Codec
    automatic: bool
    """Whether cells are coded only while that makes the link carry more."""


def tag(codec: Codec) -> Tag:
    """A codec as both sides know it."""
    return codec.name, codec.wire_id, codec.lossless


def taken(lossy: bool) -> list[Codec]:
    """What this side decodes, and takes. ConfigError where KVWIRE_LIBZSTD names what cannot be used."""
    return [codec for codec in codecs() if codec.available and (lossy or codec.lossless)]


def by_ids(ids: Sequence[int], specs: Iterable[GroupSpec]) -> list[Choice | None]:
    """What each group goes through by a peer's offer: always a codec that this side had said it takes, or 0; no ids: no
    group goes through any. ProtocolError for a codec that does not take its group.
    """
    known = {codec.wire_id: codec for codec in codecs()}
    found: list[Choice | None] = []
    for spec, number in zip(specs, ids or repeat(0), strict=False):
        if number and not known[number].takes(spec):
            what = f"which is {spec.kind.value} of {spec.dtype.value}"
            raise ProtocolError(f"an offer names codec {known[number].name!r} for group {spec.name!r:.80}, {what}")
        found.append(Choice(known[number], automatic=False) if number else None)
    return found


def check_names(compression: str | Mapping[str, str]) -> None:
    """ConfigError where one of the codecs is unknown, or this machine lacks what it needs."""
    for name in [compression] if isinstance(compression, str) else compression.values():
        if name not in (AUTO, OFF):
            find_codec(name)


def choose(
    compression: str | Mapping[str, str], specs: Iterable[GroupSpec], peer: Collection[Tag]
) -> list[Choice | None]:
    """What each group goes through; None: nothing. `peer`: what that takes.

    ConfigError for an unknown codec, one that cannot be had here, or one that does not take a group; CodecMismatch
    for one that the peer does not take. "auto" is never an error: what cannot be is left out.
    """
    compression = check_compression(compression)
    check_names(compression)
    return [_choose(compression, spec, peer) for spec in specs]


def _choose(compression: str | Mapping[str, str], spec: GroupSpec, peer: Collection[Tag]) -> Choice | None:
    name = compression if isinstance(compression, str) else compression.get(spec.kind.value, AUTO)
    if name == OFF:
        return None
    if name == AUTO:
        codec = next(codec for codec in codecs() if codec.name == LOSSLESS)
        return Choice(codec, automatic=True) if codec.available and tag(codec) in peer else None
    codec = find_codec(name)
    if not codec.takes(spec):
        raise ConfigError(
            f"codec {name!r} does not take group {spec.name!r:.80}, which is {spec.kind.value} of {spec.dtype.value}",
            hint=f"it takes {_values(codec.kinds)} of {_values(codec.dtypes)}; a mapping says what the others go "
            f'through: compression={{"{min(kind.value for kind in codec.kinds)}": "{name}"}}',
        )
    if tag(codec) not in peer:
        raise CodecMismatch(
            f"the peer does not take codec {name!r}, of group {spec.name!r:.80}: {_why(codec, peer)}",
            hint=f"it takes {', '.join(sorted(name for name, _, _ in peer)) or 'none'}",
        )
    return Choice(codec, automatic=False)


def _values(members: Iterable[GroupKind] | Iterable[DType]) -> str:
    return ", ".join(sorted(member.value for member in members))


def _why(codec: Codec, peer: Collection[Tag]) -> str:
    if not codec.lossless and not any(not lossless for _, _, lossless in peer):
        return "it takes nothing lossy"
    if any(name == codec.name or number == codec.wire_id for name, number, _ in peer):
        return "it has another one by that name or id"
    return "it does not know it, or cannot have it"
