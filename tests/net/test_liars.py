"""Authenticated peers that lie: each lie is told to a real node, and nobody but the liar notices.

The tables are in `lies` (frames), `lies_said` (messages) and `lies_codecs`. Before, while and after a lie is told,
another tenant's transfer goes through the same node, and no byte of the node's memory is other than it was, but for
what honest cells have brought.
"""

import asyncio
import logging
from pathlib import Path

import pytest

from kvwire import wire
from tests.net import kit
from tests.net.liar import Liar, liar
from tests.net.lies import CELLS, RECEIVED, Lie
from tests.net.lies_codecs import CODECS
from tests.net.lies_said import RETURNED, SAID

pytestmark = pytest.mark.usefixtures("nothing_left")

LIES = CELLS | RECEIVED | SAID | RETURNED | CODECS
FAULTS = ("lane_fault", "tag_failure")


async def led_to(lie: Lie, there: Liar, open_lanes: int) -> None:
    """What the lie had to lead to."""
    of_liar = there.link._session.link_id.hex()
    if lie.ends == "link":
        error = await asyncio.wait_for(there.link.wait_closed(), kit.PATIENCE_S)
        assert type(error) is lie.error
        assert lie.words in str(error)
        (down,) = there.log.events("link_down")
        assert (down["link"], down["error"]) == (of_liar, lie.error.__name__)
        assert lie.words in down["reason"]
        assert not there.log.events(*FAULTS)
        return
    if lie.ends == "lane":
        closed = await there.peer.hear(wire.LaneClosed)
        assert isinstance(closed, wire.LaneClosed)
        assert lie.words in closed.reason
        assert not there.has(there.lanes[-1])
        (fault,) = there.log.events(*FAULTS)
        assert (fault["link"], fault["reason"]) == (of_liar, closed.reason)
    await there.answers()
    assert len(there.link.lane_stats()) == open_lanes - (lie.ends == "lane")
    assert not there.log.events("link_down", *(() if lie.ends == "lane" else FAULTS))
    assert len(there.log.refusals()) == there.forgiven


@pytest.mark.parametrize("mode", ["plain", "sealed"])
@pytest.mark.parametrize("name", LIES)
async def test_a_lie(name: str, mode: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lie = LIES[name]
    async with liar(tmp_path, plain=mode == "plain") as there:
        finish = await there.half("before, during")
        check = await lie.tell(there)
        await led_to(lie, there, len(there.lanes))
        assert check is None or check()
        there.memory.check()
        await finish()
        await (await there.half("after"))()
        there.memory.check()
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
