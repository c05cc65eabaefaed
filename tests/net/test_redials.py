"""How a dialler goes on dialling a peer that hangs up, or says nothing: with pauses, and it says why."""

import logging
import math
from dataclasses import replace

import pytest

from kvwire import Config
from kvwire.dialler import Dialler
from tests.net import kit
from tests.net.peers import serving

pytestmark = pytest.mark.usefixtures("nothing_left", "sealing")


def close_lanes(pair: kit.Pair) -> None:
    for stats in pair.link.lane_stats():
        pair.link.engine_link.close_lane(stats["lane"])


def dialler_of(pair: kit.Pair) -> Dialler:
    assert pair.link._dialler is not None
    return pair.link._dialler


async def hang_up(reader: object, writer: object) -> None:
    """Which whoever serves does when this returns."""
    del reader, writer


async def test_a_peer_that_hangs_up_on_fresh_lanes() -> None:
    """That a lane was up for a moment is no reason to dial the next one at once."""
    async with kit.joined() as pair, serving(hang_up) as port:
        dialler = dialler_of(pair)
        honest, dialler._address = dialler._address, ("127.0.0.1", port)
        close_lanes(pair)
        await kit.eventually(lambda: dialler._redials >= 6, lambda: f"{dialler._redials} redials in a row")
        dialler._address = honest
        await kit.eventually(lambda: pair.link.lanes == 2, lambda: pair.link)
        await kit.still_works(pair)
        assert dialler._redials <= 2


@pytest.mark.parametrize("proof", ["age", "use"])
async def test_a_lane_that_has_proved_itself(proof: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it ends the next one is dialled at once, however hard it was to get."""
    monkeypatch.setattr("kvwire.dialler.PROVED_S", 0.0 if proof == "age" else math.inf)
    async with kit.joined(client=Config(lanes=1)) as pair:
        if proof == "use":
            await kit.still_works(pair)
            assert pair.link.lane_stats()[0]["received_frames"]
        dialler = dialler_of(pair)
        dialler._unproved = {lane: (up_at, 100) for lane, (up_at, _) in dialler._unproved.items()}
        assert dialler._unproved
        incarnation = pair.link.lane_stats()[0]["incarnation"]
        close_lanes(pair)
        await kit.eventually(
            lambda: [stats for stats in pair.link.lane_stats() if stats["incarnation"] != incarnation], "a fresh lane"
        )
        assert dialler._redials < 100


async def test_why_there_is_no_control_connection(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "kvwire")
    config = Config(lanes=1)
    async with kit.through_proxy(config) as (pair, proxy):
        pair.link.config = replace(config, handshake_timeout_s=0.2)
        proxy.stall("control")
        proxy.reset("control")
        await kit.eventually(lambda: "no control connection" in caplog.text, lambda: caplog.text)
        assert "did not say who it is within 0.2 s" in caplog.text
        proxy.heal()
        await kit.eventually(lambda: not pair.link.suspended, lambda: pair.link)
        await kit.move(pair.link, pair.server, "afterwards")
