"""Processes that are stopped (SIGSTOP), for a moment, for longer than a deadline, and for longer than a link waits.

For 20 s with `KVWIRE_STORM_S`, as in `make faults`, and 5 s in the suite.
"""

import asyncio
import os
import signal
import time

import pytest

from kvwire import Config, DeadlineExceeded, LinkLost
from tests.net import kit
from tests.net.killed_process import CONFIG, RESUME_S, offer
from tests.net.kit import Caches, same
from tests.net.peers import another_process, line, say, stopped
from tests.net.proxy import proxied

pytestmark = pytest.mark.usefixtures("nothing_left")

DEADLINE_S = 2.0
SHORT_S = 0.5
# Longer than the deadline, and than Config.tcp_user_timeout_s: the kernel of a process that is stopped still answers.
LONG_S = 20.0 if "KVWIRE_STORM_S" in os.environ else 5.0


@pytest.mark.parametrize("stopped_s", [SHORT_S, LONG_S])
async def test_a_receiver_that_is_stopped(stopped_s: float) -> None:
    manifest, source = offer()
    async with another_process("killed_process", "receive", "never") as process:
        port = int(await line(process))
        async with await kit.start(Config(lanes=2)) as node:
            link = await node.connect("127.0.0.1", port)
            in_time = stopped_s == SHORT_S
            deadline_s = kit.PATIENCE_S if in_time else DEADLINE_S
            out = await link.offer(manifest, source.at(), deadline_s=deadline_s)
            assert await line(process) == "granted"
            out.ready(*manifest.segments()[0])
            await kit.eventually(lambda: out.progress[0] > 0, lambda: out)
            await stopped(process)
            begun = time.monotonic()
            for name, layer in manifest.segments()[1:]:
                out.ready(name, layer)
            if in_time:
                await asyncio.sleep(stopped_s)
                assert out.state == "active"
            else:
                with pytest.raises(DeadlineExceeded):
                    await out.committed()
                assert time.monotonic() - begun < DEADLINE_S + 10  # shared machines stall
                source.check_free()
                await asyncio.sleep(max(0.0, begun + stopped_s - time.monotonic()))
            assert not link.suspended
            process.send_signal(signal.SIGCONT)
            if in_time:
                await asyncio.wait_for(out.committed(), kit.PATIENCE_S)
                assert await line(process) == f"committed {kit.digest(source)}"
            else:
                # Its timers are late by as much as it was stopped, its engine may have been faster than they.
                assert await line(process) in (
                    f"committed {kit.digest(source)}",
                    "ended DeadlineExceeded",
                    "ended PeerAborted",
                )
            source.check_free()
            again = await link.offer(manifest, source.at())
            kit.ready_all(again)
            await asyncio.wait_for(again.committed(), kit.PATIENCE_S)
            assert await line(process) == "granted"
            assert await line(process) == f"committed {kit.digest(source)}"


@pytest.mark.parametrize("stopped_s", [SHORT_S, LONG_S])
async def test_a_sender_that_is_stopped(stopped_s: float) -> None:
    manifest, source = offer()
    target = Caches(manifest)
    in_time = stopped_s == SHORT_S
    async with await kit.serve("127.0.0.1", 0, CONFIG) as node:
        deadline_s = kit.PATIENCE_S if in_time else DEADLINE_S
        async with another_process("killed_process", "send", "never", str(node.port), str(deadline_s)) as process:
            incoming = await asyncio.wait_for(node.accept(), kit.PATIENCE_S)
            await incoming.grant(target.at())
            assert await line(process) == "granted"
            await incoming.wait_layer(*manifest.segments()[0])
            await stopped(process)
            begun = time.monotonic()
            say(process)
            if in_time:
                await asyncio.sleep(stopped_s)
                assert incoming.state == "active"
            else:
                with pytest.raises(DeadlineExceeded):
                    await incoming.committed()
                assert time.monotonic() - begun < DEADLINE_S + 10
                assert any(incoming.failed_blocks().values())
                target.check_free()
                await asyncio.sleep(max(0.0, begun + stopped_s - time.monotonic()))
            (link,) = node.links
            assert not link.suspended
            process.send_signal(signal.SIGCONT)
            if in_time:
                receipt = await asyncio.wait_for(incoming.committed(), kit.PATIENCE_S)
                assert await line(process) == f"committed {receipt.bytes}"
                same(source, target)
            else:
                assert await line(process) in ("ended DeadlineExceeded", "ended PeerAborted")
                for pages in target.pages.values():
                    for layer in pages.spec.layers:
                        pages.array(layer).fill(kit.POISON)
                await asyncio.sleep(0.1)
                assert target.untouched({}), "not a byte after the end"
            target.check_free()
            assert link.lanes == 2


async def test_a_receiver_that_is_stopped_and_whose_link_is_cut() -> None:
    """It can be dialled, as its kernel answers; nobody greets, and the link is given up. Then it goes on."""
    manifest, source = offer()
    async with another_process("killed_process", "receive", "never") as process:
        with proxied(int(await line(process))) as proxy:
            async with await kit.start(CONFIG) as node:
                link = await node.connect("127.0.0.1", proxy.port)
                out = await link.offer(manifest, source.at())
                assert await line(process) == "granted"
                out.ready(*manifest.segments()[0])
                await kit.eventually(lambda: out.progress[0] > 0, lambda: out)
                await stopped(process)
                begun = time.monotonic()
                await asyncio.to_thread(proxy.reset)
                with pytest.raises(LinkLost, match="no connection within"):
                    await asyncio.wait_for(out.committed(), RESUME_S + kit.PATIENCE_S)
                assert time.monotonic() - begun < RESUME_S + 10
                assert link.closed
                source.check_free()
                process.send_signal(signal.SIGCONT)
                assert await line(process) in ("ended LinkLost", "ended PeerAborted")
                again = await node.connect("127.0.0.1", proxy.port)
                out = await again.offer(manifest, source.at())
                kit.ready_all(out)
                await asyncio.wait_for(out.committed(), kit.PATIENCE_S)
                assert await line(process) == "granted"
                assert await line(process) == f"committed {kit.digest(source)}"
