"""The tables of a transfer's states: every row does what it says, and what has no row is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import pytest

from kvwire import Closed, LinkLost, PeerAborted, ProtocolError
from kvwire.wire import events, schema, states
from kvwire.wire.manifest import pack_manifest, pack_runs
from kvwire.wire.states import INCOMING, OUTGOING, SESSION, Transfer
from tests.unit.wire_pair import HELLO, Pair, drain, make_manifest, messages, only, whole

MANIFEST = make_manifest()
LOSS = {"lose", "recv over", "start over"}  # tests of their own
WHATS = sorted({what for table in (OUTGOING, INCOMING) for _, what in table} - LOSS)
SIDES = ("outgoing", "incoming")
TABLES = {"outgoing": OUTGOING, "incoming": INCOMING}
LOCAL = {"grant", "refuse", "done", "drained"}  # a caller who may not is told, unless it is over anyway


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
    table = TABLES[side]
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
    if what in LOCAL and not (what in ("done", "drained") and state is Transfer.OVER):
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


@pytest.mark.parametrize(("side", "state"), list(product(SIDES, Transfer)))
def test_loss(side: str, state: Transfer) -> None:
    """What is under way waits; what only waited for the peer's last word is over, and nobody has to be told."""
    scene = Scene(side, state)
    scene.me.lost(scene.pair.now, LinkLost("the cable is cut"))
    assert scene.state is TABLES[side].get((state, "lose"), Transfer.OVER)
    only(scene.me, events.Suspended)
    assert not scene.me.data_to_send()


def over(scene: Scene) -> None:
    """The peer is back and has no such transfer under way."""
    if scene.outgoing:
        scene.pair.tell(scene.me, schema.Resume(b""), schema.Ledger(scene.transfer, "aborted", [], 0, b""))
    else:
        scene.pair.tell(scene.me, schema.Resume(b""))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("state", [Transfer.OFFERED, Transfer.ACTIVE, Transfer.DRAINING])
def test_over(side: str, state: Transfer) -> None:
    """ "recv over", which is what RESUME and LEDGER say."""
    scene = Scene(side, Transfer.OFFERED if state is Transfer.DRAINING else state)
    scene.me.lost(scene.pair.now, LinkLost("the cable is cut"))
    scene.me.resume(scene.pair.now, b"R" * 32)
    scene.pair.tell(scene.me, HELLO)
    if state is Transfer.DRAINING:
        scene.do("abort")
    drain(scene.me)
    scene.me.data_to_send()
    over(scene)
    if (state, "recv over") not in TABLES[side]:  # it was told that we give up, and will answer that
        assert scene.state is state
        assert not drain(scene.me)
    elif state is Transfer.DRAINING:
        assert scene.state is Transfer.OVER
        assert only(scene.me, events.Drained) == events.Drained(scene.transfer)
    else:
        assert scene.state is Transfer.OVER
        assert type(only(scene.me, events.Dropped).error) is PeerAborted
    assert not scene.me.data_to_send()


def test_every_state_is_reached_and_left() -> None:
    for table, first, last in (
        (OUTGOING, Transfer.OFFERED, Transfer.OVER),
        (INCOMING, Transfer.OFFERED, Transfer.OVER),
        (SESSION, states.Session.GREETING, states.Session.CLOSED),
    ):
        starts = {state for state, _ in table}
        assert starts == set(type(first)) - {last}
        assert set(table.values()) | {first} == set(type(first))
