"""How a dialler goes on dialling a peer that hangs up, or says nothing: with pauses, and it says why."""

import logging
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


async def test_a_peer_that_hangs_up_on_fresh_lanes() -> None:
    """That a lane was up for a moment is no reason to dial the next one at once."""

    async def hang_up(reader: object, writer: object) -> None:
        del reader, writer

    async with kit.joined() as pair, serving(hang_up) as port:
        dialler = dialler_of(pair)
        honest = dialler._address
        dialler._address = ("127.0.0.1", port)
        close_lanes(pair)
        await kit.eventually(lambda: dialler._redials >= 6, lambda: f"{dialler._redials} redials in a row")
        dialler._address = honest
        await kit.eventually(lambda: pair.link.lanes == 2, lambda: pair.link)
        await kit.still_works(pair)  # which is what a lane proves itself by
        assert any(stats["received_frames"] for stats in pair.link.lane_stats())
        close_lanes(pair)
        await kit.eventually(lambda: dialler._redials <= 2, lambda: f"{dialler._redials} redials in a row")
        await kit.eventually(lambda: pair.link.lanes == 2, lambda: pair.link)


async def test_lanes_that_have_lived_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvwire.dialler.PROVED_S", 0.0)
    async with kit.joined() as pair:
        dialler = dialler_of(pair)
        dialler._redials = 100
        close_lanes(pair)
        await kit.eventually(lambda: dialler._redials <= 2, lambda: f"{dialler._redials} redials in a row")
        await kit.eventually(lambda: pair.link.lanes == 2, lambda: pair.link)


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
