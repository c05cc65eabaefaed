"""Between the codecs that an offer names and the engine: what each segment goes through, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from kvwire._ext.codec import Cell
from kvwire._ext.coding import Coding, Gauge
from kvwire.codecs import cell
from kvwire.codecs.choice import Choice, tag
from kvwire.types import GroupSpec, Manifest
from kvwire.wire import CodecTag

Gauges = Callable[[GroupSpec, int], Gauge]
"""The gauge of a group's layer."""


@dataclass(frozen=True, slots=True)
class Coded:
    """What a codec did for a group. Cells that did not shrink went as they are, and do not count; at the sender those
    that were sent twice count twice."""

    codec: str
    plain_bytes: int
    """Of the cells that went coded."""
    wire_bytes: int
    """Of what went in their place."""
    lossless: bool
    """Whether every bit came back."""


@lru_cache(maxsize=16)
def _cells(spec: GroupSpec) -> tuple[Cell, ...]:
    """Of each layer's begin. A node has few specs, and asks with every transfer."""
    return tuple(cell(spec, number) for number in range(len(spec.layers)))


def tags(choices: Iterable[Choice | None]) -> list[CodecTag | None]:
    """What an offer is to name."""
    return [None if choice is None else CodecTag(*tag(choice.codec)) for choice in choices]


def named(choices: Sequence[Choice | None], ids: Sequence[int]) -> tuple[Choice | None, ...]:
    """Of those chosen what the latest offer has named: the peer may be another one since."""
    kept = ids or [0] * len(choices)
    return tuple(choice if number else None for choice, number in zip(choices, kept, strict=True))


def codings(manifest: Manifest, choices: Sequence[Choice | None], gauges: Gauges | None = None) -> list[Coding | None]:
    """What each segment goes through; `gauges`, of what is chosen automatically, at the sender."""
    found: list[Coding | None] = []
    for offer, choice in zip(manifest.groups, choices, strict=True):
        spec = offer.spec
        if choice is None:
            found += [None] * len(spec.layers)
            continue
        for layer, begin in zip(spec.layers, _cells(spec), strict=True):
            gauge = gauges(spec, layer) if gauges is not None and choice.automatic else None
            found.append(Coding(choice.codec.native, begin, gauge))
    return found


def coded(manifest: Manifest, choices: Sequence[Choice | None], counts: Sequence[tuple[int, int]]) -> dict[str, Coded]:
    """By group, from what the engine counted by segment; groups of which nothing went coded are not in it."""
    found, first = {}, 0
    for offer, choice in zip(manifest.groups, choices, strict=True):
        segments = counts[first : first + len(offer.spec.layers)]
        first += len(offer.spec.layers)
        plain, wire = (sum(each) for each in zip(*segments, strict=True))
        if choice is not None and plain:
            found[offer.spec.name] = Coded(choice.codec.name, plain, wire, choice.codec.lossless)
    return found


def spoken(codecs: Iterable[tuple[str, bool]]) -> str:
    """Names of codecs, and whether they are lossless, for a log: each once."""
    return ", ".join(dict.fromkeys(name if lossless else f"{name} (lossy)" for name, lossless in codecs))
