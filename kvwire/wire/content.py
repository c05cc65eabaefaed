"""Messages and attachments taken apart: msgpack, of which a peer has chosen every byte."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgpack

from kvwire.errors import ProtocolError
from kvwire.types import MAX_LAYERS

MAX_CONTAINERS = 4096
"""Most lists in a message. A manifest with every limit exhausted has about 2,300."""
MAX_KEYS = 64
MAP_HEADERS = frozenset((*range(0x80, 0x90), 0xDE, 0xDF))
"""fixmap, map 16 and map 32 of msgpack's specification."""
LIST_HEADERS = frozenset((*range(0x90, 0xA0), 0xDC, 0xDD))
"""fixarray, array 16 and array 32."""


def fields_of(body: bytes, declared: Collection[str]) -> dict[str, Any]:
    """The fields of a message that have a declared name. ProtocolError where it is no map; ValueError, RecursionError
    or msgpack's UnpackException where it is no msgpack value, or one of more than a message has.

    A peer chooses how much memory its bytes take here: msgpack sizes a list by its header, before the content is
    there. So lists are short (whatever is long travels as bytes), and their number is bounded too. And it interns the
    keys of maps, which in CPython 3.12 are kept for as long as the process lives. So the one map that a message has is
    taken apart here; in its values there is none.
    """
    count = 0

    def counted(value: object) -> object:
        nonlocal count
        count += 1
        if count > MAX_CONTAINERS:
            raise ValueError(f"more than {MAX_CONTAINERS} lists")
        return value

    def value(part: memoryview) -> Any:
        return msgpack.unpackb(
            part, max_array_len=MAX_LAYERS, max_map_len=0, max_ext_len=0, list_hook=counted, object_hook=counted
        )

    whole = memoryview(body)
    if body and body[0] not in MAP_HEADERS:
        raise ProtocolError(f"a control message is a {type(value(whole)).__name__}; expected a map")
    unpacker = msgpack.Unpacker(max_buffer_size=len(body) or 1)
    unpacker.feed(body)
    keys = unpacker.read_map_header()
    if keys > MAX_KEYS:
        raise ValueError(f"{keys} fields; at most {MAX_KEYS} are allowed")
    content = {}
    for _ in range(keys):
        begin = unpacker.tell()
        unpacker.skip()
        middle = unpacker.tell()
        unpacker.skip()
        name = value(whole[begin:middle])
        if isinstance(name, str) and name in declared:
            content[name] = value(whole[middle : unpacker.tell()])
    if unpacker.tell() != len(body):
        raise ValueError(f"{len(body) - unpacker.tell()} bytes after its end")
    return content


def value_of(data: bytes) -> Any:
    """Any one value. ValueError, TypeError (what cannot be a key), RecursionError or UnpackException where it is none.

    Bounded by its bytes, as `fields_of`: it is read through before a list is made, so that lists are as long as they
    say, and maps are made here, where keys are not interned.
    """
    unpacker = msgpack.Unpacker(max_buffer_size=len(data) or 1)
    unpacker.feed(data)
    unpacker.skip()
    if unpacker.tell() != len(data):
        raise ValueError(f"{len(data) - unpacker.tell()} bytes after its end")
    if MAP_HEADERS.isdisjoint(data):
        return msgpack.unpackb(data)  # there is no map in it: all at once
    unpacker = msgpack.Unpacker(max_buffer_size=len(data))
    unpacker.feed(data)

    def take() -> Any:
        head = data[unpacker.tell()]
        if head in MAP_HEADERS:
            entries = {}
            for _ in range(unpacker.read_map_header()):
                key = take()
                entries[key] = take()
            return entries
        if head in LIST_HEADERS:
            items = []
            for _ in range(unpacker.read_array_header()):
                items.append(take())
            return items
        return unpacker.unpack()

    return take()
