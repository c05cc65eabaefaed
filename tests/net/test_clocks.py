"""Clocks that jump, and clocks that have nothing in common: only certificates, reports and logs ask for the time.

Four steps with `KVWIRE_STORM_S`, as in `make faults`; the suite has two.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest

from kvwire import AuthenticationFailed, Config, DeadlineExceeded, verify_audit
from tests.net import kit
from tests.net.killed_process import AUDIT, CONFIG, offer
from tests.net.kit import Caches, same
from tests.net.peers import another_process, line, say
from tests.net.proxy import proxied

pytestmark = pytest.mark.usefixtures("nothing_left")

HOUR_S, YEAR_S = 3600, 365 * 86400
STEPS_S = (-HOUR_S, 20 * YEAR_S, HOUR_S, -20 * YEAR_S)[: None if "KVWIRE_STORM_S" in os.environ else 2]


def has_time_namespaces() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(("unshare", "--time", "--monotonic", "1", "true"), capture_output=True).returncode == 0


needs_time_namespaces = pytest.mark.skipif(not has_time_namespaces(), reason="this host gives out no time namespaces")


class WallClock:
    """Of another process, which is to have `variables` in its environment."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "clock"
        self.step(0)
        library = directory / "wall_clock.so"
        source = Path(__file__).with_name("wall_clock.c")
        subprocess.run(("cc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", source, "-o", library), check=True)
        others = os.environ.get("LD_PRELOAD", "")
        self.variables = {"LD_PRELOAD": f"{others} {library}".strip(), "KVWIRE_TEST_CLOCK": str(self._file)}

    def step(self, to_s: int) -> None:
        """So far from the right time, from now on."""
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(to_s.to_bytes(8, "little", signed=True))


@pytest.mark.parametrize("step_s", STEPS_S)
async def test_the_wall_clock_of_a_receiver_jumps(step_s: int, tmp_path: Path) -> None:
    """A transfer and its deadline, a lane that is lost, its ticket: as if nothing had been. Who connects anew meets
    certificates that are not valid yet or any more; and is let in when the clock is right again."""
    clock, log = WallClock(tmp_path), tmp_path / "audit"
    variables = clock.variables | {AUDIT: str(log)}
    manifest, source = offer()
    async with another_process("killed_process", "receive", "never", variables=variables) as process:
        with proxied(int(await line(process))) as proxy:
            async with await kit.start(Config(lanes=2)) as node:
                link = await node.connect("127.0.0.1", proxy.port)
                out = await link.offer(manifest, source.at(), deadline_s=kit.PATIENCE_S)
                assert await line(process) == "granted"
                first, *rest = manifest.segments()
                out.ready(*first)
                await kit.eventually(lambda: out.progress[0] > 0, lambda: out)
                clock.step(step_s)
                before = proxy.accepted
                await asyncio.to_thread(proxy.reset, "lane", 1)
                await kit.eventually(lambda: link.lanes == 2 and proxy.accepted > before, "another lane")
                for name, layer in rest:
                    out.ready(name, layer)
                await out.committed()
                assert await line(process) == f"committed {kit.digest(source)}"
                late = await link.offer(manifest, source.at(), deadline_s=1.0)
                assert await line(process) == "granted"
                with pytest.raises(DeadlineExceeded):
                    await late.committed()
                assert (await line(process)).startswith("ended ")
                if step_s == HOUR_S:
                    await (await node.connect("127.0.0.1", proxy.port)).close()
                else:
                    with pytest.raises(AuthenticationFailed):
                        await node.connect("127.0.0.1", proxy.port)
                assert not link.suspended
                clock.step(0)
                await (await node.connect("127.0.0.1", proxy.port)).close()
    report = verify_audit(log)
    assert report.lines >= 8
    years = [int(json.loads(text)["time"][:4]) for text in log.read_text().splitlines()]
    assert max(years) - min(years) >= abs(step_s) // YEAR_S - 1


@pytest.mark.parametrize("step_s", STEPS_S)
async def test_the_wall_clock_of_a_sender_jumps(step_s: int, tmp_path: Path) -> None:
    clock = WallClock(tmp_path)
    manifest, source = offer()
    target = Caches(manifest)
    async with await kit.serve("127.0.0.1", 0, CONFIG) as node:
        with proxied(node.port) as proxy:
            arguments = ("send", "never", str(proxy.port), str(kit.PATIENCE_S))
            async with another_process("killed_process", *arguments, variables=clock.variables) as process:
                incoming = await asyncio.wait_for(node.accept(), kit.PATIENCE_S)
                await incoming.grant(target.at())
                assert await line(process) == "granted"
                await incoming.wait_layer(*manifest.segments()[0])
                clock.step(step_s)
                before = proxy.accepted
                await asyncio.to_thread(proxy.reset, "lane", 1)
                (link,) = node.links
                await kit.eventually(lambda: link.lanes == 2 and proxy.accepted > before, "another lane")
                say(process)
                receipt = await incoming.committed()
                assert await line(process) == f"committed {receipt.bytes}"
                same(source, target)
                target.check_free()


@needs_time_namespaces
@pytest.mark.parametrize("role", ["receive", "send"])
async def test_two_hosts_that_have_been_up_for_different_times(role: str) -> None:
    """CLOCK_MONOTONIC of the one is ten years ahead: deadlines travel as durations."""
    ahead = str(10 * YEAR_S)
    under = ("unshare", "--time", "--monotonic", ahead, "--boottime", ahead)
    manifest, source = offer()
    if role == "receive":
        async with another_process("killed_process", "receive", "never", under=under) as process:
            port = int(await line(process))
            async with await kit.start(Config(lanes=2)) as node:
                link = await node.connect("127.0.0.1", port)
                for deadline_s in (kit.PATIENCE_S, 1.0):
                    out = await link.offer(manifest, source.at(), deadline_s=deadline_s)
                    assert await line(process) == "granted"
                    if deadline_s == 1.0:
                        with pytest.raises(DeadlineExceeded):
                            await out.committed()
                        assert (await line(process)).startswith("ended ")
                    else:
                        kit.ready_all(out)
                        await out.committed()
                        assert await line(process) == f"committed {kit.digest(source)}"
        return
    target = Caches(manifest)
    async with await kit.serve("127.0.0.1", 0, CONFIG) as node:
        for deadline_s in (kit.PATIENCE_S, 1.0):
            arguments = ("send", "never", str(node.port), str(deadline_s))
            async with another_process("killed_process", *arguments, under=under) as process:
                incoming = await asyncio.wait_for(node.accept(), kit.PATIENCE_S)
                await incoming.grant(target.at())
                assert await line(process) == "granted"
                if deadline_s == 1.0:
                    with pytest.raises(DeadlineExceeded):
                        await incoming.committed()
                else:
                    say(process)
                    await incoming.committed()
                    same(source, target)
            await kit.eventually(lambda: not node.links, lambda: node.links)
            target.check_free()


def test_the_clock_of_the_tests_jumps(tmp_path: Path) -> None:
    """What is preloaded does what it says: Python's clock and no other one."""
    clock = WallClock(tmp_path)
    clock.step(-20 * YEAR_S)
    code = "import time, datetime; print(int(time.time()), datetime.datetime.now().year, time.monotonic())"
    done = subprocess.run(
        (sys.executable, "-c", code), env=os.environ | clock.variables, capture_output=True, text=True
    )
    wall, year, monotonic = done.stdout.split()
    assert done.returncode == 0
    assert abs(int(wall) + 20 * YEAR_S - time.time()) < 60
    assert int(year) < datetime.now().year - 15
    assert abs(float(monotonic) - time.monotonic()) < 60
