"""The table of a session's states: every row does what it says, and what has no row is refused."""

from __future__ import annotations

from itertools import product

import pytest

from kvwire import ProtocolError
from kvwire.wire import Session, events, states
from kvwire.wire.states import SESSION
from tests.unit.wire_pair import CONFIG, act, drain, only


@pytest.mark.parametrize(("state", "what"), list(product(states.Session, sorted({what for _, what in SESSION}))))
def test_session(state: states.Session, what: str) -> None:
    session = Session("dialler", CONFIG, b"d" * 16, b"D" * 32, b"", 0.0)
    if state is not states.Session.GREETING:
        act(session, 0.0, "recv hello")
    if state is states.Session.CLOSED:
        act(session, 0.0, "close")
    assert session.state is state
    drain(session)
    session.data_to_send()
    act(session, 0.0, what)
    if (state, what) in SESSION:
        assert session.state is SESSION[state, what]
        only(session, events.HelloDone if what == "recv hello" else events.Closed)
    elif what == "time out" and state is states.Session.OPEN:  # silence is pinged
        assert session.state is state
        assert not drain(session)
    elif state is states.Session.CLOSED:
        assert session.state is state
        assert not drain(session)
        assert not session.data_to_send()
    else:
        assert type(only(session, events.Closed).error) is ProtocolError
