"""Random and mutated bytes: a parser answers with a value or with an error of kvwire's, never with anything else."""

from __future__ import annotations

import contextlib
from typing import Any

import msgpack
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvwire import KvwireError, Manifest, NotKvwire, ProtocolError, VersionMismatch
from kvwire.wire import JOIN_BYTES, classify, control_preamble, events, parse_join, schema, states
from kvwire.wire.manifest import pack_manifest, pack_runs, unpack_manifest, unpack_runs
from kvwire.wire.preamble import verify_join
from tests.unit.wire_pair import Pair, drain, frame, make_manifest, whole

PACKED = pack_manifest(make_manifest())
TRAFFIC = b"".join(
    map(
        schema.encode,
        (
            schema.Offer(1, PACKED, 60.0, 1),
            schema.Ping(3),
            schema.Lanes(2),
            schema.Abort(1, "aborted", "no use"),
            schema.Goodbye("closed", ""),
        ),
    )
)

RETURN = b"".join(  # of a dialler that resumes its link, sends transfers 1 and 3 and receives transfer 2
    map(
        schema.encode,
        (
            schema.Hello(1, ["crc32c"], b"", b"d" * 16, b"D" * 32, b"L" * 16, "peer", 4, 4, 65536),
            schema.Resume((1).to_bytes(8, "little") + (3).to_bytes(8, "little")),
            schema.Ledger(2, "active", pack_runs(whole(make_manifest())), 65536, b"\x07"),
            schema.Offer(3, PACKED, 60.0, 1),
            schema.Abort(2, "aborted", "no use"),
        ),
    )
)

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=40)
    | st.sampled_from(["full", "window", "recurrent", "bf16", "\0", 0, 1, 16, 1 << 32, 1 << 40])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@st.composite
def mutated(draw: st.DrawFn, whole: bytes = TRAFFIC) -> bytes:
    """Real bytes with some bits, bytes or stretches changed, left out or said twice."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        size = draw(st.integers(0, 12))
        data[at : at + size] = draw(st.binary(max_size=12) | st.just(bytes(data[at : at + 2 * size])))
    return bytes(data)


def replace(draw: st.DrawFn, value: Any) -> Any:
    """The same nested lists with something else in one place."""
    if not isinstance(value, list) or not value or draw(st.integers(0, 4)) == 0:
        return draw(values)
    at = draw(st.integers(0, len(value) - 1))
    return [*value[:at], replace(draw, value[at]), *value[at + 1 :]]


@st.composite
def misfit_manifests(draw: st.DrawFn) -> list[Any]:
    value: Any = PACKED
    for _ in range(draw(st.integers(1, 3))):
        value = replace(draw, value)
    return value if isinstance(value, list) else [value]


@settings(max_examples=300)
@given(st.binary(max_size=200) | mutated(), st.integers(1, 300))
def test_reader(data: bytes, step: int) -> None:
    reader = schema.MessageReader(4096)
    with contextlib.suppress(ProtocolError):
        for at in range(0, len(data), step):
            reader.feed(data[at : at + step])
            while reader.next() is not None:
                pass


@settings(max_examples=200)
@given(mutated(), st.integers(1, 300))
def test_reader_does_not_care_how_bytes_are_cut(data: bytes, step: int) -> None:
    def read(step: int) -> tuple[list[schema.Message], str]:
        reader = schema.MessageReader(4096)
        found: list[schema.Message] = []
        try:
            for at in range(0, len(data), step):
                reader.feed(data[at : at + step])
                while (message := reader.next()) is not None:
                    found.append(message)
        except ProtocolError as error:
            return found, str(error)
        return found, ""

    assert read(step) == read(len(data) + 1)


@settings(max_examples=300)
@given(st.binary(max_size=200) | values.map(lambda value: frame(value)[4:]))
@example(b"\x91" * 5000)
def test_decode(body: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        schema.decode(body)


@settings(max_examples=300)
@given(st.sampled_from(sorted(schema.MESSAGES)), st.data())
def test_decode_a_message_of_any_values(kind: str, data: st.DataObject) -> None:
    shape = schema.MESSAGES[kind]
    content = {name: data.draw(values, name) for name in shape.CHECKS} | {"t": kind}
    with contextlib.suppress(ProtocolError):
        message = schema.decode(msgpack.packb(content))
        assert schema.decode(schema.encode(message)[4:]) == message


@settings(max_examples=400)
@given(st.lists(values, max_size=8) | misfit_manifests())
def test_manifest(value: list[Any]) -> None:
    with contextlib.suppress(ProtocolError):
        manifest = unpack_manifest(value)
        assert isinstance(manifest, Manifest)
        assert unpack_manifest(pack_manifest(manifest)) == manifest


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=40) | values, max_size=5))
def test_runs(value: list[Any]) -> None:
    with contextlib.suppress(ProtocolError):
        unpack_runs(value)


@settings(max_examples=200)
@given(st.binary(max_size=12) | mutated(control_preamble(plain=True)))
def test_classify(first: bytes) -> None:
    with contextlib.suppress(NotKvwire, VersionMismatch, ProtocolError):
        classify(first, plain=True)


@given(st.binary(max_size=JOIN_BYTES + 8) | st.binary(min_size=JOIN_BYTES, max_size=JOIN_BYTES), st.binary(max_size=40))
def test_join(body: bytes, secret: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        verify_join(parse_join(body), secret)
        raise AssertionError("a random MAC fitted")


@settings(max_examples=300)
@given(st.binary(max_size=200) | mutated(), st.booleans(), st.integers(1, 400))
def test_session(data: bytes, greet: bool, step: int) -> None:
    pair = Pair(greet=greet)
    for at in range(0, len(data), step):
        pair.acceptor.receive_data(pair.now, data[at : at + step])
    for event in drain(pair.acceptor):
        if isinstance(event, events.Closed):
            assert isinstance(event.error, KvwireError)
    pair.tick(1e6)
    pair.exchange()


@settings(max_examples=400)
@given(mutated(RETURN), st.integers(0, 600), st.integers(1, 400), st.booleans())
@example(RETURN, 0, 1, True)
@example(
    RETURN[: RETURN.index(b"ledger")] + b"?" * 20, 0, 1 << 20, False
)  # a question, and nonsense in the same breath
def test_resumed_session(data: bytes, kept: int, step: int, again: bool) -> None:
    """A peer that is back and says nearly what it should, or all of it up to some byte; and then is lost once more."""
    pair = Pair()
    session = pair.acceptor
    pair.offer(by=pair.dialler)
    pair.offer(by=session)
    pair.exchange()
    for each, transfer in ((session, 1), (pair.dialler, 2)):
        each.grant(pair.now, transfer, whole(make_manifest()))
    pair.exchange()
    pair.lose()
    for data_now in [RETURN[:kept] + data[kept:], data][: 1 + again]:
        if session.state is states.Session.CLOSED:
            break
        session.resume(pair.now, b"R" * 32)
        for at in range(0, len(data_now), step):
            session.receive_data(pair.now, data_now[at : at + step])
        for event in drain(session):
            if isinstance(event, events.LedgerWanted):
                session.ledger(pair.now, event.transfer, b"\x01")
            elif isinstance(event, events.Closed):
                assert isinstance(event.error, KvwireError)
        pair.lose()
    pair.tick(1e6)
    assert session.state is states.Session.CLOSED
    assert not len(session._incoming)
    assert not len(session._outgoing)
