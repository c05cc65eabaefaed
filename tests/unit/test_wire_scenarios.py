"""Every way in which a transfer can go, between two sessions; together they take every row of the tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import pytest

from kvwire import LinkLost
from kvwire.wire import Session, events, states
from tests.unit.test_wire_loss import LOSSES
from tests.unit.test_wire_meanwhile import MEANWHILES
from tests.unit.test_wire_restart import RESTARTS
from tests.unit.wire_pair import CONFIG, Pair, act, drain, make_manifest, only, whole

MANIFEST = make_manifest()


def end(pair: Pair, transfer: int) -> None:
    """Everybody answers what was given up; then nothing of the transfer is left anywhere."""
    for _ in range(3):
        pair.exchange()
        for session in (pair.dialler, pair.acceptor):
            for event in drain(session):
                assert not isinstance(event, events.Closed)
                if isinstance(event, events.Aborted):
                    session.drained(pair.now, event.transfer)
    for session in (pair.dialler, pair.acceptor):
        assert session._table(transfer).get(transfer) is None
        assert session.state is states.Session.OPEN


def offered() -> tuple[Pair, int]:
    pair = Pair()
    transfer = pair.offer()
    pair.exchange()
    assert only(pair.acceptor, events.Offered) == events.Offered(transfer, MANIFEST, 1)
    return pair, transfer


def granted() -> tuple[Pair, int]:
    pair, transfer = offered()
    pair.acceptor.grant(pair.now, transfer, whole(MANIFEST))
    pair.exchange()
    assert only(pair.dialler, events.Granted) == events.Granted(transfer, whole(MANIFEST))
    return pair, transfer


def committed() -> None:
    pair, transfer = granted()
    pair.acceptor.transfer_done(transfer)
    pair.dialler.transfer_done(transfer)
    end(pair, transfer)


def refused() -> None:
    pair, transfer = offered()
    pair.acceptor.refuse(pair.now, transfer, "refused", "no room")
    end(pair, transfer)


def refusal_crosses_abort() -> None:
    pair, transfer = offered()
    pair.acceptor.refuse(pair.now, transfer, "refused", "no room")
    pair.dialler.abort(pair.now, transfer, "aborted", "")
    end(pair, transfer)


def grant_crosses_abort() -> None:
    pair, transfer = offered()
    pair.acceptor.grant(pair.now, transfer, whole(MANIFEST))
    pair.dialler.abort(pair.now, transfer, "aborted", "")
    end(pair, transfer)


def abort_crosses_offer_timeout() -> None:
    pair, transfer = offered()
    pair.tick(20.0, [pair.dialler])
    pair.acceptor.abort(pair.now, transfer, "aborted", "")
    end(pair, transfer)


def offer_times_out_there() -> None:
    pair, transfer = offered()
    pair.now += 15.0
    pair.tick(45.0, [pair.acceptor])
    end(pair, transfer)


def sender_aborts() -> None:
    pair, transfer = granted()
    pair.dialler.abort(pair.now, transfer, "aborted", "")
    end(pair, transfer)


def receiver_aborts() -> None:
    pair, transfer = granted()
    pair.acceptor.abort(pair.now, transfer, "aborted", "")
    end(pair, transfer)


def both_abort() -> None:
    pair, transfer = granted()
    pair.dialler.abort(pair.now, transfer, "aborted", "")
    pair.acceptor.abort(pair.now, transfer, "aborted", "")
    there, back = pair.dialler.data_to_send(), pair.acceptor.data_to_send()
    pair.acceptor.receive_data(pair.now, there)
    pair.acceptor.drained(pair.now, transfer)
    pair.dialler.receive_data(pair.now, back + pair.acceptor.data_to_send())
    pair.dialler.drained(pair.now, transfer)
    only(pair.acceptor, events.Aborted)
    only(pair.dialler, events.Aborted)
    end(pair, transfer)


def both_abort_the_other_answers_first() -> None:
    pair, transfer = granted()
    pair.dialler.abort(pair.now, transfer, "aborted", "")
    pair.acceptor.abort(pair.now, transfer, "aborted", "")
    there, back = pair.dialler.data_to_send(), pair.acceptor.data_to_send()
    pair.dialler.receive_data(pair.now, back)
    pair.dialler.drained(pair.now, transfer)
    pair.acceptor.receive_data(pair.now, there + pair.dialler.data_to_send())
    pair.acceptor.drained(pair.now, transfer)
    only(pair.acceptor, events.Aborted)
    only(pair.dialler, events.Aborted)
    end(pair, transfer)


def commit_crosses_abort(giver: str, committer: str) -> None:
    pair, transfer = granted()
    one: Session = getattr(pair, giver)
    other: Session = getattr(pair, committer)
    one.abort(pair.now, transfer, "aborted", "")
    other.transfer_done(transfer)
    one.transfer_done(transfer)
    end(pair, transfer)


def commit_after_abort_came(giver: str, committer: str) -> None:
    pair, transfer = granted()
    one: Session = getattr(pair, giver)
    other: Session = getattr(pair, committer)
    one.abort(pair.now, transfer, "aborted", "")
    other.receive_data(pair.now, one.data_to_send())
    other.transfer_done(transfer)
    other.drained(pair.now, only(other, events.Aborted).transfer)
    end(pair, transfer)


def deadline_passes() -> None:
    pair, transfer = granted()
    pair.now += 15.0
    pair.dialler._ping_due = pair.acceptor._ping_due = math.inf
    pair.tick(45.0)
    late = only(pair.acceptor, events.TransferTimedOut)
    assert "60 s" in str(late.error)
    end(pair, transfer)


def no_answer_to_abort(giver: str) -> None:
    pair, transfer = granted()
    one: Session = getattr(pair, giver)
    one.abort(pair.now, transfer, "aborted", "")
    pair.tick(30.0, [one])
    assert not drain(one)
    end(pair, transfer)


def given_up_before_granted() -> None:
    pair, transfer = offered()
    pair.acceptor.abort(pair.now, transfer, "aborted", "")
    end(pair, transfer)


def withdrawn() -> None:
    pair, transfer = offered()
    pair.dialler.abort(pair.now, transfer, "cancelled", "")
    end(pair, transfer)


def greet_and_part() -> None:
    pair = Pair()
    pair.dialler.close(pair.now, "done")
    pair.exchange()
    assert only(pair.acceptor, events.Closed).error.__class__ is LinkLost


def session_ends(state: states.Session, what: str) -> None:
    session = Session("dialler", CONFIG, b"d" * 16, b"D" * 32, b"", 0.0)
    if state is states.Session.OPEN:
        act(session, 0.0, "recv hello")
    act(session, 0.0, what)
    assert session.state is states.Session.CLOSED


def scenarios() -> Iterator[tuple[str, Callable[[], None]]]:
    plain: tuple[Callable[[], None], ...] = (
        committed, refused, refusal_crosses_abort, grant_crosses_abort, abort_crosses_offer_timeout,
        offer_times_out_there, sender_aborts, receiver_aborts, both_abort, both_abort_the_other_answers_first,
        deadline_passes, given_up_before_granted, withdrawn, greet_and_part,
    )  # fmt: skip
    for scenario in plain:
        yield scenario.__name__, scenario
    for giver, committer in (("dialler", "acceptor"), ("acceptor", "dialler")):
        yield f"commit_crosses_abort-{giver}", partial(commit_crosses_abort, giver, committer)
        yield f"commit_after_abort_came-{giver}", partial(commit_after_abort_came, giver, committer)
        yield f"no_answer_to_abort-{giver}", partial(no_answer_to_abort, giver)
    for state, what in product((states.Session.GREETING, states.Session.OPEN), ("recv goodbye", "fail")):
        yield f"session_ends-{state.value}-{what}", partial(session_ends, state, what)
    yield "session_ends-greeting-close", partial(session_ends, states.Session.GREETING, "close")


SCENARIOS = dict(scenarios())


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name: str) -> None:
    SCENARIOS[name]()


class Walked(dict[object, object]):
    """A table that remembers which rows were taken."""

    def __init__(self, rows: object) -> None:
        super().__init__(rows)  # type: ignore[call-overload]
        self.taken: set[object] = set()

    def __getitem__(self, row: object) -> object:
        self.taken.add(row)
        return super().__getitem__(row)


def test_scenarios_take_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {name: Walked(getattr(states, name)) for name in ("SESSION", "OUTGOING", "INCOMING")}
    for name, table in tables.items():
        monkeypatch.setattr(states, name, table)
    for scenario in (*SCENARIOS.values(), *LOSSES.values(), *MEANWHILES.values(), *RESTARTS.values()):
        scenario()
    # Rows of sealed sessions: test_wire_states.py and test_wire_sealed.py.
    sealed = {row for row in states.SESSION if "CONFIRMING" in row[0].name or row[1] == "recv sealed hello"}
    tables["SESSION"].taken |= sealed
    assert {name: set(table) - table.taken for name, table in tables.items()} == {name: set() for name in tables}
