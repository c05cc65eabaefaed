"""The table of a session's states: every row does what it says, and what has no row is refused."""

from __future__ import annotations

from itertools import product

import pytest

from kvwire import AuthenticationFailed, LinkLost, LocalError, ProtocolError
from kvwire.wire import Session, events, schema, states
from kvwire.wire.states import SESSION
from tests.unit.wire_pair import CONFIG, act, agreement, drain, messages, only

PLAIN = "recv hello"
SEALED = ("recv sealed hello", "recv finished")
STARTS: dict[str, tuple[str, ...]] = {
    "greeting": (),
    "open": (PLAIN,),
    "suspended": (PLAIN, "lose"),
    "greeting again": (PLAIN, "lose", "resume"),
    "open again": (PLAIN, "lose", "resume", PLAIN),
    "closed": ("close",),
    "sealed greeting": (),
    "sealed confirming": SEALED[:1],
    "sealed open": SEALED,
    "sealed suspended": (*SEALED, "lose"),
    "sealed greeting again": (*SEALED, "lose", "resume"),
    "sealed confirming again": (*SEALED, "lose", "resume", SEALED[0]),
    "sealed open again": (*SEALED, "lose", "resume", *SEALED),
}
WHATS = sorted({what for _, what in SESSION})


def state_of(start: str) -> states.Session:
    return states.Session(start.removeprefix("sealed ").removesuffix(" again"))


def session_that(start: str) -> Session:
    """A dialler that all this has happened to."""
    keys = agreement("dialler") if start.startswith("sealed") else None
    session = Session("dialler", CONFIG, b"d" * 16, b"D" * 32, b"", 0.0, keys)
    for what in STARTS[start]:
        act(session, 0.0, what)
    assert session.state is state_of(start)
    drain(session)
    session.data_to_send()
    return session


def has_row(start: str, what: str) -> bool:
    """Whether the table says what happens; a plain session takes no sealed hello, nor the other way round."""
    wrong = "recv hello" if start.startswith("sealed") else "recv sealed hello"
    return what != wrong and (state_of(start), what) in SESSION


def expected(start: str, what: str) -> list[type[events.Event]]:
    """The events that a row tells."""
    again = start.endswith(" again")
    if again and state_of(start) is not states.Session.OPEN and what == "time out":
        return [events.Suspended, events.Closed]  # it is tried again until the time for that is over too
    after = SESSION[state_of(start), what]
    told: dict[states.Session, list[type[events.Event]]] = {
        states.Session.OPEN: [events.Resumed if again else events.HelloDone],
        states.Session.SUSPENDED: [events.Suspended],
        states.Session.CLOSED: [events.Closed],
    }
    return told.get(after, [])


@pytest.mark.parametrize(("start", "what"), list(product(STARTS, WHATS)))
def test_session(start: str, what: str) -> None:
    session = session_that(start)
    state = session.state
    if what == "resume" and state is not states.Session.SUSPENDED:
        with pytest.raises(LocalError, match=state.value):
            act(session, 0.0, what)
        assert session.state is state
        return
    act(session, 0.0, what)
    before_open = state_of(start) in (states.Session.GREETING, states.Session.CONFIRMING)
    if before_open and not start.endswith("again") and what == "lose":  # nothing was there yet that could be resumed
        assert session.state is states.Session.CLOSED
        refused = start == "sealed greeting"  # which a dialler is not told in another way
        assert type(only(session, events.Closed).error) is (AuthenticationFailed if refused else LinkLost)
    elif has_row(start, what):
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
