"""The state tables: every row does what it says, and what has no row is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import pytest

from kvwire import Closed, LinkLost, ProtocolError
from kvwire.wire import Session, events, schema, states
from kvwire.wire.manifest import pack_manifest, pack_runs
from kvwire.wire.states import INCOMING, OUTGOING, SESSION, Transfer
from tests.unit.wire_pair import CONFIG, Pair, act, drain, make_manifest, messages, only, whole

MANIFEST = make_manifest()
WHATS = sorted({what for table in (OUTGOING, INCOMING) for _, what in table})
SIDES = ("outgoing", "incoming")
LOCAL = {"grant", "refuse", "done", "drained"}  # a caller who may not is told


def message(transfer: int, what: str) -> schema.Message:
    """What the peer says for "recv ..."."""
    said: dict[str, schema.Message] = {
        "recv grant": schema.GrantMessage(transfer, pack_runs(whole(MANIFEST)), 65536),
        "recv refuse": schema.Refuse(transfer, "refused", "no room"),
        "recv abort": schema.Abort(transfer, "aborted", "no use"),
        "recv drained": schema.Drained(transfer),
    }
    return said[what]


class Scene:
    """A dialler with one transfer, which is the peer's where the side is "incoming"."""

    def __init__(self, side: str, state: Transfer) -> None:
        self.pair = Pair()
        self.me = self.pair.dialler
        self.outgoing = side == "outgoing"
        if self.outgoing:
            self.transfer = self.pair.offer(MANIFEST)
        else:
            self.transfer = 2
            self.pair.tell(self.me, schema.Offer(2, pack_manifest(MANIFEST), 60.0, 1))
        granting, refusing = ("recv grant", "recv refuse") if self.outgoing else ("grant", "refuse")
        first = {
            Transfer.ACTIVE: granting,
            Transfer.DRAINING: "abort",
            Transfer.QUIETING: "recv abort",
            Transfer.OVER: refusing,
        }
        if state in first:
            self.do(first[state])
        drain(self.me)
        self.me.data_to_send()
        assert self.state is state

    @property
    def state(self) -> Transfer:
        table = self.me._outgoing if self.outgoing else self.me._incoming
        entry = table.get(self.transfer)
        return entry.state if entry else Transfer.OVER

    def do(self, what: str) -> None:
        me, now, transfer = self.me, self.pair.now, self.transfer
        if what.startswith("recv "):
            self.pair.tell(me, message(transfer, what))
        elif what == "time out":
            table = me._outgoing if self.outgoing else me._incoming
            due = table.next_due()
            me._ping_due = math.inf
            me.handle_timer(due if math.isfinite(due) else now + 1e6)
        else:
            acts: dict[str, Callable[[], None]] = {
                "grant": lambda: me.grant(now, transfer, whole(MANIFEST)),
                "refuse": lambda: me.refuse(now, transfer, "refused", "no room"),
                "abort": lambda: me.abort(now, transfer, "aborted", "no use"),
                "drained": lambda: me.drained(now, transfer),
                "done": lambda: me.transfer_done(transfer),
            }
            acts[what]()


def news(side: str, state: Transfer, what: str) -> list[type[events.Event]]:
    """The events that a row tells."""
    fresh = {
        "recv grant": events.Granted,
        "recv refuse": events.Refused,
        "recv abort": events.Aborted,
        "time out": events.TransferTimedOut,
    }
    if (side, state, what) == ("outgoing", Transfer.OFFERED, "time out"):
        return [events.OfferTimedOut]
    given_up = {"recv abort": events.Aborted, "recv refuse": events.Drained, "recv drained": events.Drained}
    by_state = {Transfer.OFFERED: fresh, Transfer.ACTIVE: fresh, Transfer.DRAINING: given_up}
    kind = by_state.get(state, {}).get(what)
    return [kind] if kind else []


def said(state: Transfer, what: str) -> list[type[schema.Message]]:
    """The messages that a row sends."""
    if what == "time out" and state is Transfer.DRAINING:
        return []
    sent: dict[str, type[schema.Message]] = {
        "grant": schema.GrantMessage,
        "refuse": schema.Refuse,
        "abort": schema.Abort,
        "time out": schema.Abort,
        "drained": schema.Drained,
    }
    return [sent[what]] if what in sent else []


@pytest.mark.parametrize(("side", "state", "what"), list(product(SIDES, Transfer, WHATS)))
def test_transfer(side: str, state: Transfer, what: str) -> None:
    table = OUTGOING if side == "outgoing" else INCOMING
    scene = Scene(side, state)
    me = scene.me
    if (state, what) in table:
        scene.do(what)
        assert scene.state is table[state, what]
        assert [type(event) for event in drain(me)] == news(side, state, what)
        assert [type(m) for m in messages(me.data_to_send())] == said(state, what)
        assert me.state is states.Session.OPEN
        return
    over_already = state is Transfer.OVER and (side == "outgoing" or what not in ("recv grant", "recv refuse"))
    if what in LOCAL and not (what == "done" and state is Transfer.OVER):
        with pytest.raises(Closed):
            scene.do(what)
        assert scene.state is state
        assert not me.data_to_send()
        assert not drain(me)
    elif what.startswith("recv ") and not over_already:
        scene.do(what)
        closed = only(me, events.Closed)
        assert type(closed.error) is ProtocolError
        (goodbye,) = messages(me.data_to_send())
        assert isinstance(goodbye, schema.Goodbye)
        assert goodbye.code == "protocol"
        assert me.state is states.Session.CLOSED
    else:  # nothing happens; but who gives up what is over here waits for an answer
        scene.do(what)
        assert scene.state is state
        answer: list[schema.Message] = [schema.Drained(scene.transfer)] if what == "recv abort" else []
        assert messages(me.data_to_send()) == answer
        assert not drain(me)


# --- the same between two sessions --------------------------------------------------------------------------------


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
    for what in ("time out", "close"):
        yield f"session_ends-greeting-{what}", partial(session_ends, states.Session.GREETING, what)


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
    for scenario in SCENARIOS.values():
        scenario()
    assert {name: set(table) - table.taken for name, table in tables.items()} == {name: set() for name in tables}


def test_every_state_is_reached_and_left() -> None:
    for table, first, last in (
        (OUTGOING, Transfer.OFFERED, Transfer.OVER),
        (INCOMING, Transfer.OFFERED, Transfer.OVER),
        (SESSION, states.Session.GREETING, states.Session.CLOSED),
    ):
        starts = {state for state, _ in table}
        assert starts == set(type(first)) - {last}
        assert set(table.values()) | {first} == set(type(first))
