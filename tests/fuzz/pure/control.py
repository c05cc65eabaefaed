"""The control decoder: a stream of length-prefixed messages, whole and cut, alone and after a preamble."""

from __future__ import annotations

import msgpack

from kvwire.errors import ProtocolError, RemoteError, SpecError
from kvwire.wire import greeting, preamble, schema
from tests.fuzz.pure.reading import Cursor, measured

UNDER_TEST = (
    "kvwire.wire.schema",
    "kvwire.wire.codecs",
    "kvwire.wire.content",
    "kvwire.wire.preamble",
    "kvwire.wire.greeting",
)

LIMIT = 512
"""Of a message here, so that inputs stay small."""
MOST_DEEP = 500
"""Lists in lists that msgpack encodes; it decodes some more."""
MOST_BYTES = 32 << 20
"""What one message may take while it is decoded. msgpack sizes a list by its header: MAX_LAYERS pointers for each of
the 1024 that may be open at once are 8 MiB, and twice that while the content is checked."""


def fuzz(data: bytes) -> None:
    measured(_read, data, MOST_BYTES)


def _read(what: int, cursor: Cursor) -> None:
    match what % 5:
        case 0:
            _stream(cursor)
        case 1:
            _connection(cursor)
        case 2:
            _body(cursor.rest())
        case 3:
            _greeting(cursor.rest())
        case _:
            _fields(cursor)


def _stream(cursor: Cursor) -> None:
    """Cut anywhere a stream says the same as whole."""
    steps = [1 + cursor.byte() for _ in range(3)]
    data = cursor.rest()
    whole = _messages(data, [len(data) or 1])
    assert _messages(data, steps) == whole


def _messages(data: bytes, steps: list[int]) -> tuple[list[bytes], str]:
    """What a reader makes of it: each message, encoded again, and what is wrong with the next one."""
    reader = schema.MessageReader(LIMIT)
    found: list[bytes] = []
    at = number = 0
    try:
        while at < len(data):
            step = steps[number % len(steps)]
            reader.feed(data[at : at + step])
            at, number = at + step, number + 1
            while (message := reader.next()) is not None:
                assert len(reader.body) <= LIMIT, f"a message of {len(reader.body)} bytes"
                found.append(_again(message))
            assert len(reader._buffer) < schema.LENGTH_BYTES + LIMIT, "more waits than a message has"
    except ProtocolError as error:
        return found, str(error)
    return found, ""


def _again(message: schema.Message) -> bytes:
    """A message that was decoded, encoded: it decodes to the same."""
    try:
        encoded = schema.encode(message)
    except ValueError as error:
        assert not isinstance(error, SpecError), error
        assert repr(message).count("[") > MOST_DEEP, error
        return repr(message).encode()
    again = schema.decode(encoded[schema.LENGTH_BYTES :])
    assert type(again) is type(message)
    assert schema.encode(again) == encoded  # bytes: a NaN in a list is not equal to itself
    return encoded


def _connection(cursor: Cursor) -> None:
    """First bytes of either kind, and what follows them."""
    plain = cursor.flag()
    try:
        kind = preamble.classify(cursor.take(cursor.byte() % 10), plain=plain)
    except RemoteError:
        return
    if kind is preamble.ConnectionKind.CONTROL:
        _stream(cursor)
        return
    secret, ticket = cursor.take(8), cursor.take(8)
    try:
        join = preamble.parse_join(cursor.rest())
    except RemoteError:
        return
    said = preamble.join_bytes(join.link_id, join.lane, join.incarnation, join.random, ticket, secret)
    own = preamble.parse_join(said[preamble.PREAMBLE_BYTES :])
    preamble.verify_join(own, ticket, secret)
    assert (own.link_id, own.lane, own.incarnation) == (join.link_id, join.lane, join.incarnation)
    try:
        preamble.verify_join(join, ticket, secret)
    except ProtocolError:
        return
    assert own == join, "a MAC that nobody made fitted"


def _body(body: bytes) -> None:
    try:
        message = schema.decode(body)
    except ProtocolError:
        return
    _again(message)


def _greeting(data: bytes) -> None:
    try:
        count = greeting.greeting_bytes(data[: schema.LENGTH_BYTES])
        hello = greeting.parse_hello(data)
    except RemoteError:
        return
    assert count <= greeting.GREETING_BYTES
    assert isinstance(hello, schema.Hello)
    _again(hello)


def _fields(cursor: Cursor) -> None:
    """A message of a known type with any values; and good-byes of any text, which are always said."""
    kind = cursor.choose(sorted(schema.MESSAGES))
    content = {name: cursor.value() for name in schema.MESSAGES[kind].CHECKS} | {"t": kind}
    try:
        body = msgpack.packb(content)
    except (OverflowError, ValueError):  # an integer, or a depth, that msgpack does not have
        return
    _body(body)
    said = greeting.goodbye("closed", cursor.rest().decode("utf-8", "surrogatepass" if cursor else "replace"))
    assert isinstance(schema.decode(said[schema.LENGTH_BYTES :]), schema.Goodbye)


def plant() -> None:
    """A decoder that takes anything for the token of a pong, which its encoder does not."""
    decode, checks = schema.decode, schema.Pong.CHECKS

    def lenient(body: bytes) -> schema.Message:
        schema.Pong.CHECKS = dict.fromkeys(checks, lambda value: True)
        try:
            return decode(body)
        finally:
            schema.Pong.CHECKS = checks

    schema.decode = lenient
