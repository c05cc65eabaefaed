"""The flags --compression and --content, and what codecs did to what was moved."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import kvwire
from kvwire._ext.codec import Scratch
from kvwire.cli.arguments import parsed
from kvwire.cli.content import CONTENTS, NOISE
from kvwire.codecs import Codec, cell, codecs
from kvwire.codecs.adaptive import HOLD_S
from kvwire.codecs.choice import AUTO, OFF, check_names, choose, tag

Words = NDArray[np.uint64]

HELP = f'"{AUTO}", "{OFF}", the name of a codec, or such a name by kind of group: full=int8,recurrent=zstd'


SETTLED_S = HOLD_S + 1.0
"""How long a link with automatic codecs is used before it is compared with another setting: it may have to change its
mind once."""


def choice(text: str) -> str | Mapping[str, str]:
    """What `Config.compression` takes, of "auto", "off", "zstd" or "full=int8,recurrent=zstd". ConfigError for what is
    none, for a codec that is unknown, or that this machine cannot have."""
    found: str | dict[str, str] = text
    if "=" in text:
        pairs = [part.partition("=")[::2] for part in text.split(",")]
        found = {kind.strip(): name.strip() for kind, name in pairs}
        if len(found) < len(pairs):
            raise kvwire.ConfigError(f"compression {text!r:.80}: a kind of group is named twice")
    check_names(kvwire.Config(compression=found).compression)
    return found


def spoken(value: str | Mapping[str, str]) -> str:
    """The text of what `Config.compression` has."""
    return value if isinstance(value, str) else ",".join(f"{kind}={name}" for kind, name in value.items())


def is_automatic(text: str) -> bool:
    """Whether a link decides itself about some of what it codes: kinds that a mapping leaves out are automatic."""
    found = choice(text)
    return found == AUTO if isinstance(found, str) else AUTO in found.values() or len(found) < len(kvwire.GroupKind)


def _checked(text: str) -> str:
    try:
        choice(text)
    except kvwire.ConfigError as error:
        raise ValueError(str(error)) from None
    return text


argument = parsed(_checked)
"""An argparse type: the text itself, once it is known to say something."""


def settings(text: str) -> list[str]:
    """Those of "off,zstd", each once. ValueError for what is none."""
    return list(dict.fromkeys(setting(name.strip()) for name in text.split(",")))


def setting(text: str) -> str:
    """One that can stand beside others: a single word. ValueError for what is none."""
    if "=" in text:
        raise ValueError(f"{text!r} is more than one setting; expected {AUTO}, {OFF} or the name of a codec")
    return _checked(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--compression and --content."""
    add = parser.add_argument
    add("--compression", metavar="NAME", type=argument, default=AUTO, help=f"{HELP} ({AUTO})")
    add(
        "--content",
        choices=CONTENTS,
        default=NOISE,
        help=f"what is moved: what nothing shrinks, or numbers as keys and values have them ({NOISE})",
    )


def check(compression: str, specs: Sequence[kvwire.GroupSpec]) -> None:
    """ConfigError where a codec does not take a group, as a link would have it later."""
    _chosen(compression, specs)


def _chosen(compression: str, specs: Sequence[kvwire.GroupSpec]) -> list[Codec | None]:
    """By group, as if the other end took every codec."""
    found = choose(choice(compression), specs, [tag(codec) for codec in codecs()])
    return [None if one is None else one.codec for one in found]


# --- what a lossy codec makes of bytes that are known -----------------------------------------------------------------


def recoders(compression: str, specs: Sequence[kvwire.GroupSpec]) -> list[Codec | None]:
    """By group, the lossy codec that all of its cells went through."""
    return [None if codec is None or codec.lossless else codec for codec in _chosen(compression, specs)]


def recoded(codec: Codec, spec: kvwire.GroupSpec, layer: int, segment: Words) -> Words:
    """What arrives of a segment, whole blocks in order, that leaves through `codec`: it works on cells, and the same
    cell always gives the same payload. Overwrites it."""
    data, scratch, step = segment.reshape(-1).view(np.uint8), Scratch(), kvwire.Config().cell_bytes
    for at in range(0, len(data), step):
        part = data[at : at + step]
        shape = cell(spec, spec.layers.index(layer), at)
        payload = codec.native.encode(shape, part, scratch)
        if payload is not None:
            part[:] = np.frombuffer(codec.native.decode(shape, payload, len(part), scratch), np.uint8)
    return segment


# --- what went coded --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Coding:
    """Of some transfers: their bytes, those of cells that went coded, and what went in the place of these."""

    nbytes: int = 0
    plain_bytes: int = 0
    wire_bytes: int = 0

    @classmethod
    def of(cls, receipt: kvwire.Receipt) -> Coding:
        groups = receipt.coded.values()
        return cls(receipt.bytes, sum(one.plain_bytes for one in groups), sum(one.wire_bytes for one in groups))

    def __add__(self, other: Coding) -> Coding:
        return Coding(
            self.nbytes + other.nbytes, self.plain_bytes + other.plain_bytes, self.wire_bytes + other.wire_bytes
        )

    def facts(self) -> dict[str, Any]:
        """For a record: `coded_share`, of all bytes; `coded_ratio`, of the cells that went coded, None where none did.
        Cells that were sent twice count twice."""
        return {
            "coded_share": min(1.0, self.plain_bytes / self.nbytes) if self.nbytes else 0.0,
            "coded_ratio": self.plain_bytes / self.wire_bytes if self.wire_bytes else None,
        }


def automatic(link: kvwire.Link) -> dict[str, Any]:
    """For a record, what the link's automatic codecs had decided in its latest report of a second; None: no report."""
    report = link.report
    return {
        "automatic": report and report.compression,
        "automatic_reason": report and report.compression_reason,
    }
