"""Any order of calls on two sessions, with bytes under way for as long as it takes: the two always agree in the end."""

from __future__ import annotations

import contextlib

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvwire import Config, DuplicateTransfer, LimitExceeded
from kvwire.types import Grant
from kvwire.wire import Session, events, states
from kvwire.wire.states import Transfer
from kvwire.wire.transfers import Transfers
from tests.unit.wire_pair import Pair, drain, make_manifest, whole

# One ping would be a lot of silence here: what is tested is transfers.
PATIENT = Config(max_message_bytes=65536, max_transfers=3, ping_interval_s=3600.0)
MANIFESTS = [make_manifest(f"r{number}", tokens=40) for number in range(5)]
SIDES = st.booleans()
PICK = st.integers(0, 1 << 16)


class TwoSessions(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair(PATIENT, PATIENT)
        self.sessions = (self.pair.dialler, self.pair.acceptor)
        self.under_way = (bytearray(), bytearray())  # said by each
        self.asked: tuple[list[int], list[int]] = ([], [])  # offers that each has to answer
        self.aborted: tuple[list[int], list[int]] = ([], [])  # what each has to be drained of
        self.granted: set[int] = set()
        self.committed: set[int] = set()

    def transfers(self, side: bool, *, mine: bool, state: Transfer) -> list[int]:
        table = self.sessions[side]._outgoing if mine else self.sessions[side]._incoming
        return sorted(number for number, entry in table._entries.items() if entry.state is state)

    def listen(self, side: bool) -> None:
        """Take what a session has to tell."""
        for event in drain(self.sessions[side]):
            match event:
                case events.Offered():
                    self.asked[side].append(event.transfer)
                case events.Granted():
                    assert event.transfer in self.granted
                case events.Aborted():
                    assert event.transfer not in self.aborted[side]
                    self.aborted[side].append(event.transfer)
                case events.Refused() | events.Drained() | events.OfferTimedOut() | events.TransferTimedOut():
                    pass
                case _:
                    raise AssertionError(event)

    def send(self, side: bool) -> None:
        self.under_way[side].extend(self.sessions[side].data_to_send())

    def deliver(self, side: bool, count: int) -> None:
        """Some bytes that this side said arrive."""
        data = bytes(self.under_way[side][:count])
        del self.under_way[side][:count]
        self.sessions[not side].receive_data(self.pair.now, data)
        self.listen(not side)

    @rule(side=SIDES, which=PICK, timeout_s=st.sampled_from([1.0, 30.0]), deadline_s=st.sampled_from([2.0, 100.0]))
    def offer(self, side: bool, which: int, timeout_s: float, deadline_s: float) -> None:
        manifest = MANIFESTS[which % len(MANIFESTS)]
        with contextlib.suppress(DuplicateTransfer, LimitExceeded):
            self.pair.offer(manifest, by=self.sessions[side], timeout_s=timeout_s, deadline_s=deadline_s)

    @rule(side=SIDES, which=PICK, refuse=st.booleans())
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
            grant = whole(MANIFESTS[0]) if which % 3 else Grant(((),) * len(MANIFESTS[0].groups), 4096)
            session.grant(self.pair.now, transfer, grant)
            self.granted.add(transfer)

    @rule(side=SIDES, mine=st.booleans(), which=PICK)
    def abort(self, side: bool, mine: bool, which: int) -> None:
        choices = [t for state in Transfer for t in self.transfers(side, mine=mine, state=state)]
        if choices:
            self.sessions[side].abort(self.pair.now, choices[which % len(choices)], "aborted", "")

    @rule(side=SIDES, which=PICK)
    def commit(self, side: bool, which: int) -> None:
        """The receiver's data plane has everything; the sender's hears of it whenever it likes."""
        choices = self.transfers(side, mine=False, state=Transfer.ACTIVE)
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

    @rule(side=SIDES, count=st.sampled_from([1, 50, 400, 1 << 20]))
    def travel(self, side: bool, count: int) -> None:
        self.send(side)
        self.deliver(side, count)

    @rule(seconds=st.sampled_from([0.5, 2.0, 31.0]), both=st.booleans(), side=SIDES)
    @precondition(lambda self: self.pair.now < 3000.0)
    def tick(self, seconds: float, both: bool, side: bool) -> None:
        self.pair.tick(seconds, () if both else [self.sessions[side]])
        self.listen(False)
        self.listen(True)

    @invariant()
    def open(self) -> None:
        for session in self.sessions:
            assert session.state is states.Session.OPEN
            due = session.next_timer()
            assert due is not None

    def settle(self) -> None:
        while any(self.under_way) or any(self.aborted) or any(session._out for session in self.sessions):
            for side in (False, True):
                self.travel(side, 1 << 20)
                while self.aborted[side]:
                    self.quiet(side)

    def teardown(self) -> None:
        self.settle()
        for side in (False, True):
            self.receipt(side)
        self.open()
        for side in (False, True):
            sender, receiver = self.sessions[side]._outgoing, self.sessions[not side]._incoming
            states_here = {number: entry.state for number, entry in sender._entries.items()}
            assert set(states_here.values()) <= {Transfer.OFFERED, Transfer.ACTIVE}
            assert states_here == {number: entry.state for number, entry in receiver._entries.items()}
        self.pair.tick(200.0)
        for _ in range(2):
            self.listen(False)
            self.listen(True)
            self.settle()
        assert not any(len(table) for session in self.sessions for table in tables(session))
        self.open()


def tables(session: Session) -> tuple[Transfers, Transfers]:
    return session._outgoing, session._incoming


TwoSessions.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestTwoSessions = TwoSessions.TestCase
