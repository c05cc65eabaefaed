"""The table of a session's states: every row does what it says, and what has no row is refused."""

from __future__ import annotations

from itertools import product

import pytest

from kvwire import LinkLost, LocalError, ProtocolError
from kvwire.wire import Session, events, schema, states
from kvwire.wire.states import SESSION
from tests.unit.wire_pair import CONFIG, act, drain, messages, only

STARTS: dict[str, tuple[str, ...]] = {
    "greeting": (),
    "open": ("recv hello",),
    "suspended": ("recv hello", "lose"),
    "greeting again": ("recv hello", "lose", "resume"),
    "open again": ("recv hello", "lose", "resume", "recv hello"),
    "closed": ("close",),
}
WHATS = sorted({what for _, what in SESSION})


def session_that(start: str) -> Session:
    """A dialler that all this has happened to."""
    session = Session("dialler", CONFIG, b"d" * 16, b"D" * 32, b"", 0.0)
    for what in STARTS[start]:
        act(session, 0.0, what)
    assert session.state is states.Session(start.removesuffix(" again"))
    drain(session)
    session.data_to_send()
    return session


def expected(start: str, what: str) -> list[type[events.Event]]:
    """The events that a row tells."""
    if start == "greeting again" and what == "time out":
        return [events.Suspended, events.Closed]  # it is tried again until the time for that is over too
    if what == "recv hello":
        return [events.HelloDone if start == "greeting" else events.Resumed]
    after = SESSION[states.Session(start.removesuffix(" again")), what]
    told: dict[states.Session, list[type[events.Event]]] = {
        states.Session.SUSPENDED: [events.Suspended],
        states.Session.CLOSED: [events.Closed],
    }
    return told.get(after, [])


@pytest.mark.parametrize(("start", "what"), list(product(STARTS, WHATS)))
def test_session(start: str, what: str) -> None:
    session = session_that(start)
    state = session.state
    if what == "resume" and start != "suspended":
        with pytest.raises(LocalError, match=state.value):
            act(session, 0.0, what)
        assert session.state is state
        return
    act(session, 0.0, what)
    if start == "greeting" and what == "lose":  # nothing was there yet that could be resumed
        assert session.state is states.Session.CLOSED
        assert type(only(session, events.Closed).error) is LinkLost
    elif (state, what) in SESSION:
        assert session.state is SESSION[state, what]
        assert [type(event) for event in drain(session)] == expected(start, what)
    elif what == "time out" and state is states.Session.OPEN:  # silence is pinged
        assert session.state is state
        assert not drain(session)
    elif state in (states.Session.SUSPENDED, states.Session.CLOSED):  # whatever comes is too late
        assert session.state is state
        assert not drain(session)
        assert not session.data_to_send()
    else:
        assert type(only(session, events.Closed).error) is ProtocolError


def test_hello_and_resume_are_said_again() -> None:
    session = session_that("suspended")
    act(session, 0.0, "resume")
    (hello,) = messages(session.data_to_send())
    assert isinstance(hello, schema.Hello)
    assert (hello.boot_id, hello.random, hello.link_id) == (b"d" * 16, b"R" * 32, b"L" * 16)
    act(session, 0.0, "recv hello")
    assert messages(session.data_to_send()) == [schema.Resume(b"")]
