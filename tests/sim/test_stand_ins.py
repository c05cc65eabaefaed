"""The stand-ins of the engine have what the native classes have, and do with a lost link what they do."""

import numpy as np
import pytest

from kvwire._ext import engine, incoming, lanes, outgoing
from kvwire._ext.layout import Segment
from kvwire.errors import ProtocolError
from tests.sim.engine import SimEngine, SimEngineLink
from tests.sim.transfers import SimInTransfer, SimOutTransfer
from tests.sim.world import World

WAITS = {"wait", "wait_segment"}
"""What blocks a thread: there is none to block."""


@pytest.mark.parametrize(
    ("native", "stand_in"),
    [
        (engine.Engine, SimEngine),
        (lanes.EngineLink, SimEngineLink),
        (outgoing.OutTransfer, SimOutTransfer),
        (incoming.InTransfer, SimInTransfer),
    ],
)
def test_a_stand_in_has_what_the_native_class_has(native: type, stand_in: type) -> None:
    known = set(dir(stand_in)) | set(stand_in.__init__.__code__.co_names)  # type: ignore[misc]
    assert {name for name in dir(native) if not name.startswith("_")} - WAITS <= known


def test_what_had_landed_before_the_link_was_lost_is_not_queued_again() -> None:
    process = World(0).processes[0]
    memory = np.zeros(4 * 4096, np.uint8)
    whole = np.array([[0, 4096, 0, 0, 1, 4096, 4096]], dtype=np.int64)
    segment = Segment(memory.ctypes.data, np.arange(4, dtype=np.int64) * 4096, 1, whole, 4096)
    with process.loop.entered():
        link = SimEngineLink(SimEngine())
    out = SimOutTransfer(link, 1, [segment], 4096, True)
    incoming = SimInTransfer(link, 2, [segment], 4096, True)
    out.ready(0, 0, 3)
    for cell in (0, 2):
        assert incoming.claim(0, cell, 4096) == "own"
        out.read(0, cell)
        incoming.land(0, cell)
    link.suspend()
    out.attach(b"late")
    assert link.queued_runs == 0
    assert incoming.landed() == bytes([0b00101])
    out.resume(incoming.landed())
    assert [link.queue.claim(9) for _ in range(3)] == [(1, 0, 1, 1, 1), (1, 1, 0, 1, 2), None]
    assert out.cells == (2, 5)
    out.ready(0, 3, 1)
    with pytest.raises(ProtocolError, match="not every cell"):
        out.commit()
    for at in ((0, 1), (0, 3), (1, 0)):
        out.read(*at)
    out.commit()
    assert (out.state, out.cells) == ("committed", (5, 5))
