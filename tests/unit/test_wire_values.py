"""Attachments: any value of msgpack's, of which a peer has chosen every byte."""

import math
import sys
import tracemalloc
from typing import Any

import msgpack
import pytest

from kvwire.types import MAX_ATTACHMENT_BYTES
from kvwire.wire import value_of

MIB = 1 << 20


@pytest.mark.parametrize(
    "value",
    [
        None,
        -math.inf,
        "préfixe \U0001f600",
        bytes(range(256)),
        [],
        {},
        [1, [2.5, [None, "x", b"\x80"]]],
        {"token": 17, "lengths": [4096, {"of": {}}], b"key": "bytes", -1: [True], None: 0.5},
        [msgpack.ExtType(5, b"own"), msgpack.Timestamp(1, 2)],
        {"a": [{"b": [{"c": list(range(200))}]}] * 3},
    ],
)
def test_as_msgpack_has_it(value: Any) -> None:
    data = msgpack.packb(value)
    assert value_of(data) == value == msgpack.unpackb(data, strict_map_key=False)
    for bad in (data[:-1], data + b"\xc0"):
        with pytest.raises((ValueError, msgpack.UnpackException)):
            value_of(bad)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x81\x90\xc0",  # a list as a key
        b"\xa1\xff",  # no UTF-8
        b"\x81\xa1\xff\xc0",
        b"\x81" * 60_000,
        b"\x81\xc0" * 30_000 + b"\xc0",
        b"\x91" * 60_000 + b"\xc0",
        b"\x80" + b"\x91" * 900 + b"\xc0",
        b"\x92\x80" * 5_000 + b"\xc0",
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
    ],
    ids=lambda data: f"{data[:4].hex()} {len(data)}",
)
def test_what_is_no_value(data: bytes) -> None:
    with pytest.raises((ValueError, TypeError, RecursionError, msgpack.UnpackException)):
        value_of(data)


@pytest.mark.parametrize("length", [1_000, 16_000, 65_000])
def test_lists_that_are_not_there_take_no_memory(length: int) -> None:
    """msgpack makes a list as long as its header says; nested, 64 KiB were worth 70 MiB and more."""
    data = (b"\xdc" + length.to_bytes(2, "big")) * 1000
    data += b"\xc0" * (MAX_ATTACHMENT_BYTES - len(data))
    tracemalloc.start()
    try:
        with pytest.raises((ValueError, msgpack.UnpackException)):
            value_of(data)
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


def test_keys_that_a_peer_has_chosen_do_not_stay() -> None:
    """msgpack interns the keys of maps, and CPython 3.12 keeps for ever what is interned."""

    def hear(number: int) -> None:
        names = {f"{number}.{key}": key for key in range(60)}
        assert value_of(msgpack.packb([names, {"in": {"it": names}}])) == [names, {"in": {"it": names}}]

    hear(0)
    before = sys.getallocatedblocks()
    for number in range(1, 100):
        hear(number)
    assert sys.getallocatedblocks() < before + 1000
