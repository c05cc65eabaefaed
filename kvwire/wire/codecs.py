"""Codecs as they are spoken of: which a side takes, and which an offer names. What they do is not known here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from kvwire.errors import ProtocolError
from kvwire.types import MAX_GROUPS

if TYPE_CHECKING:
    from kvwire.wire.schema import Hello

MAX_CODECS = 32
"""In a HELLO, which has 4 KiB for all."""
MAX_NAME = 64


class CodecTag(NamedTuple):
    """A codec as both sides know it, or they know two."""

    name: str
    id: int
    """1 to 255; 0 stands for none."""
    lossless: bool


Codecs = Sequence[CodecTag | None]
"""By group; empty: none for any."""


def are_tags(value: object) -> bool:
    """A list of name, id and lossless, none of them twice."""
    if not isinstance(value, list) or len(value) > MAX_CODECS or not all(map(_is_tag, value)):
        return False
    return all(len({tag[at] for tag in value}) == len(value) for at in (0, 1))


def _is_tag(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 3:
        return False
    name, number, lossless = value
    is_name = isinstance(name, str) and 0 < len(name) <= MAX_NAME and name.isascii() and name.isprintable()
    is_id = isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= 255
    return is_name and is_id and isinstance(lossless, bool)


def are_ids(value: object) -> bool:
    """A list of ids, 0 for none."""
    return (
        isinstance(value, list)
        and len(value) <= MAX_GROUPS
        and all(isinstance(each, int) and not isinstance(each, bool) and 0 <= each <= 255 for each in value)
    )


def taken_by(hello: Hello) -> frozenset[CodecTag]:
    """What that side takes."""
    return frozenset(CodecTag(*tag) for tag in hello.codecs)


def ids_for(peer: Hello, codecs: Codecs) -> list[int]:
    """What an offer to this peer names; what it does not take is not named."""
    taken = taken_by(peer)
    ids = [tag.id if tag is not None and tag in taken else 0 for tag in codecs]
    return ids if any(ids) else []


def check_ids(ids: Sequence[int], groups: int, taken: Sequence[CodecTag]) -> None:
    """ProtocolError where an offer of so many groups names what this side did not say that it takes."""
    if len(ids) not in (0, groups):
        raise ProtocolError(f"an offer of {groups} groups names codecs for {len(ids)}")
    odd = set(ids) - {0} - {tag.id for tag in taken}
    if odd:
        raise ProtocolError(f"an offer names codec {min(odd)}, which this side's hello does not")
