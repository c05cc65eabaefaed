"""Any order of calls on two sessions, with bytes under way for as long as it takes and connections that are lost at
any moment: the two always agree in the end."""

from __future__ import annotations

import contextlib

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvwire import Config, DuplicateTransfer, LimitExceeded, LinkLost, OfferRefused, PeerAborted
from kvwire.types import BlockRange, Grant
from kvwire.wire import LENGTH_BYTES, Session, events, states
from kvwire.wire.states import Transfer
from kvwire.wire.transfers import Transfers
from tests.unit.wire_pair import Pair, drain, make_manifest, whole

# One ping would be a lot of silence here: what is tested is transfers. And nobody gives a link up.
PATIENT = Config(max_message_bytes=65536, max_transfers=4, ping_interval_s=3600.0, resume_timeout_s=86400.0)
MANIFESTS = [make_manifest(f"r{number}", tokens=40) for number in range(5)]
SIDES = st.booleans()
PICK = st.integers(0, 1 << 16)
SELDOM = st.sampled_from([False, False, False, True])  # what ends a transfer, so that some get far


class TwoSessions(RuleBasedStateMachine):
    manifests = MANIFESTS
    begun = 3  # each way, to begin with: all but one of them are granted

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair(PATIENT, PATIENT)
        self.sessions = (self.pair.dialler, self.pair.acceptor)
        self.up = True
        self.under_way = (bytearray(), bytearray())  # said by each
        self.asked: tuple[list[int], list[int]] = ([], [])  # offers that each has to answer
        self.aborted: tuple[list[int], list[int]] = ([], [])  # what each has to be drained of
        self.wanted: tuple[list[int], list[int]] = ([], [])  # ledgers that each has to give
        self.granted: set[int] = set()
        self.committed: set[int] = set()
        for side in (False, True):
            for which in range(self.begun):
                self.offer(side, which, 90.0, 180.0)
        self.travel_both_ways()
        for side in (False, True):
            for _ in range(1, self.begun):
                self.answer(side, 0, False)
        self.travel_both_ways()

    def transfers(self, side: bool, *, mine: bool, state: Transfer) -> list[int]:
        table = self.sessions[side]._outgoing if mine else self.sessions[side]._incoming
        return sorted(number for number, entry in table._entries.items() if entry.state is state)

    def listen(self, side: bool) -> None:
        """Take what a session has to tell."""
        for event in drain(self.sessions[side]):
            match event:
                case events.Offered():
                    assert event.transfer not in self.asked[side]  # once, however often it was lost
                    self.asked[side].append(event.transfer)
                case events.Granted():
                    assert event.transfer in self.granted
                case events.Aborted():
                    assert event.transfer not in self.aborted[side]
                    self.aborted[side].append(event.transfer)
                case events.Suspended():
                    self.cut()
                case events.LedgerWanted():
                    self.wanted[side].append(event.transfer)
                case events.LedgerCame():
                    assert event.landed == event.transfer.to_bytes(8, "little")
                case events.CommitLearnt():
                    assert event.transfer in self.committed
                    self.sessions[side].transfer_done(event.transfer)
                case events.Dropped():
                    assert isinstance(event.error, OfferRefused | PeerAborted)
                    alive = {entry for table in tables(self.sessions[not side]) for entry in table._entries}
                    assert event.transfer not in alive
                case events.Declined():  # the peer has waited for DRAINED for long enough, and offers in its place
                    assert "under way" in event.reason
                case events.Refused() | events.Drained() | events.OfferTimedOut() | events.TransferTimedOut():
                    pass
                case events.Resumed():
                    pass
                case _:
                    raise AssertionError(event)

    def send(self, side: bool) -> None:
        data = self.sessions[side].data_to_send()
        if self.up:
            self.under_way[side].extend(data)

    def deliver(self, side: bool, count: int) -> None:
        """Some bytes that this side said arrive."""
        data = bytes(self.under_way[side][:count])
        del self.under_way[side][:count]
        self.sessions[not side].receive_data(self.pair.now, data)
        self.listen(not side)

    @rule(side=SIDES, which=PICK, timeout_s=st.sampled_from([90.0, 1.0]), deadline_s=st.sampled_from([180.0, 2.0]))
    def offer(self, side: bool, which: int, timeout_s: float, deadline_s: float) -> None:
        manifest = self.manifests[which % len(self.manifests)]
        with contextlib.suppress(DuplicateTransfer, LimitExceeded):
            self.pair.offer(manifest, by=self.sessions[side], timeout_s=timeout_s, deadline_s=deadline_s)

    @rule(side=SIDES, which=PICK, refuse=SELDOM)
    def answer(self, side: bool, which: int, refuse: bool) -> None:
        choices = self.transfers(side, mine=False, state=Transfer.OFFERED)
        if not choices:
            return
        transfer = choices[which % len(choices)]
        assert transfer in self.asked[side]
        session = self.sessions[side]
        if refuse:
            session.refuse(self.pair.now, transfer, "refused", "")
        else:
            one_block = ((BlockRange(0, 1),), *((),) * (len(self.manifests[0].groups) - 1))
            grant = whole(self.manifests[0]) if which % 3 else Grant(one_block, 4096)
            session.grant(self.pair.now, transfer, grant)
            self.granted.add(transfer)

    @rule(side=SIDES, mine=st.booleans(), which=PICK, really=SELDOM)
    def abort(self, side: bool, mine: bool, which: int, really: bool) -> None:
        choices = [t for state in Transfer for t in self.transfers(side, mine=mine, state=state)]
        if choices and really:
            self.sessions[side].abort(self.pair.now, choices[which % len(choices)], "aborted", "")

    @rule(side=SIDES, which=PICK)
    def commit(self, side: bool, which: int) -> None:
        """The receiver's data plane has everything; the sender's hears of it whenever it likes."""
        reached = self.transfers(not side, mine=True, state=Transfer.ACTIVE)
        choices = [t for t in self.transfers(side, mine=False, state=Transfer.ACTIVE) if t in reached]
        if choices:
            transfer = choices[which % len(choices)]
            self.sessions[side].transfer_done(transfer)
            self.committed.add(transfer)

    @rule(side=SIDES)
    def receipt(self, side: bool) -> None:
        for state in (Transfer.ACTIVE, Transfer.DRAINING, Transfer.QUIETING):
            for transfer in set(self.transfers(side, mine=True, state=state)) & self.committed:
                self.sessions[side].transfer_done(transfer)

    @rule(side=SIDES)
    def quiet(self, side: bool) -> None:
        if self.aborted[side]:
            self.sessions[side].drained(self.pair.now, self.aborted[side].pop())

    @rule(side=SIDES, committed=st.booleans())
    def ledger(self, side: bool, committed: bool) -> None:
        """Answer a question, perhaps of a connection that is gone."""
        if not self.wanted[side]:
            return
        transfer = self.wanted[side].pop()
        reached = transfer in self.transfers(not side, mine=True, state=Transfer.ACTIVE)
        if committed and reached and transfer in self.transfers(side, mine=False, state=Transfer.ACTIVE):
            self.committed.add(transfer)
            self.sessions[side].ledger(self.pair.now, transfer, None)
        else:
            self.sessions[side].ledger(self.pair.now, transfer, transfer.to_bytes(8, "little"))

    @rule(side=SIDES, count=st.sampled_from([1 << 20, 1, 50]))
    def travel(self, side: bool, count: int) -> None:
        self.send(side)
        self.deliver(side, count)

    @rule(side=SIDES)
    def travel_a_message(self, side: bool) -> None:
        self.send(side)
        self.deliver(side, LENGTH_BYTES + int.from_bytes(self.under_way[side][:LENGTH_BYTES], "little"))

    @rule()
    def travel_both_ways(self) -> None:
        for side in (False, True, False, True):
            self.travel(side, 1 << 20)

    @rule(seconds=st.sampled_from([0.1, 0.5, 0.1, 2.0, 0.1, 31.0]), both=st.booleans(), side=SIDES)
    @precondition(lambda self: self.pair.now < 3000.0)
    def tick(self, seconds: float, both: bool, side: bool) -> None:
        self.pair.tick(seconds, () if both else [self.sessions[side]])
        self.listen(False)
        self.listen(True)

    @rule()
    def cut(self) -> None:
        """The connection is gone, with all that was under way."""
        self.up = False
        for data in self.under_way:
            data.clear()

    @rule(side=SIDES)
    @precondition(lambda self: not self.up)
    def notice(self, side: bool) -> None:
        self.sessions[side].lost(self.pair.now, LinkLost("the cable is cut"))
        self.listen(side)

    @rule()
    @precondition(lambda self: not self.up and self.pair.dialler.state is states.Session.SUSPENDED)
    def connect(self) -> None:
        """The dialler dials anew, which is how an acceptor hears of a loss that it has not noticed."""
        self.notice(True)
        self.up = True
        for session in self.sessions:
            session.resume(self.pair.now, b"R" * 32)

    @invariant()
    def not_over(self) -> None:
        for session in self.sessions:
            assert session.state is not states.Session.CLOSED
            assert session.next_timer() is not None

    def settle(self) -> None:
        """A connection that lasts, until nobody has anything to say on it."""
        if not self.up:
            self.notice(False)
            self.connect()
        while any(map(any, (self.under_way, self.aborted, self.wanted, [session._out for session in self.sessions]))):
            for side in (False, True):
                self.travel(side, 1 << 20)
                while self.aborted[side]:
                    self.quiet(side)
                while self.wanted[side]:
                    self.ledger(side, False)
        assert [session.state for session in self.sessions] == [states.Session.OPEN] * 2

    def agree(self) -> None:
        """Both have the same transfers in the same state."""
        self.settle()
        for side in (False, True):
            self.receipt(side)
        for side in (False, True):
            sender, receiver = self.sessions[side]._outgoing, self.sessions[not side]._incoming
            states_here = {number: entry.state for number, entry in sender._entries.items()}
            assert set(states_here.values()) <= {Transfer.OFFERED, Transfer.ACTIVE}
            assert states_here == {number: entry.state for number, entry in receiver._entries.items()}

    def run_out(self) -> None:
        """Of time, for all of them."""
        self.pair.tick(200.0)
        for _ in range(2):
            self.listen(False)
            self.listen(True)
            self.settle()
        assert not any(len(table) for session in self.sessions for table in tables(session))
        self.not_over()

    def teardown(self) -> None:
        self.agree()
        self.run_out()


def tables(session: Session) -> tuple[Transfers, Transfers]:
    return session._outgoing, session._incoming


TwoSessions.TestCase.settings = settings(max_examples=300, stateful_step_count=50)
TestTwoSessions = TwoSessions.TestCase
