"""Hosts that have run out of something: room for the audit log, descriptors. Transfers go on; what cannot be had is
said by name and counted; and when there is some again, so it is with the node.
"""

import asyncio
import contextlib
import itertools
import json
import os
import resource
import shutil
import subprocess
import time
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvwire import Config, ConnectTimeout, Link, LinkLost, LocalError, Manifest, verify_audit
from tests.net import kit
from tests.net.killed_process import AUDIT, offer
from tests.net.kit import Caches
from tests.net.peers import another_process, line
from tests.net.proxy import proxied

pytestmark = pytest.mark.usefixtures("nothing_left")

LONG = "KVWIRE_STORM_S" in os.environ
EVENTS_OF_ONE = 3
"""Of a transfer, in its receiver's log: offer, grant, commit."""


async def moved(link: Link, process: Process, manifest: Manifest, source: Caches) -> None:
    """A transfer to a receiver in another process, every byte of it."""
    out = await link.offer(manifest, source.at())
    assert await line(process) == "granted"
    kit.ready_all(out)
    await asyncio.wait_for(out.committed(), kit.PATIENCE_S)
    assert await line(process) == f"committed {kit.digest(source)}"
    source.check_free()


# --- the audit log ----------------------------------------------------------------------------------------------------

Steps = tuple[Callable[[Process], Awaitable[None]], Callable[[Process], Awaitable[None]]]


async def run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(*command)
    assert await process.wait() == 0, command


def limited(log: Path) -> Steps:
    """A process that may write no further: its limit lies in the middle of its next line."""

    async def fill(process: Process) -> None:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (log.stat().st_size + 100, resource.RLIM_INFINITY))

    async def make_room(process: Process) -> None:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    return fill, make_room


def full(log: Path) -> Steps:
    """A disk that somebody else fills, to the last page."""
    other = log.with_name("somebody else's")

    async def fill(process: Process) -> None:
        with other.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    async def make_room(process: Process) -> None:
        other.unlink()

    return fill, make_room


def own_disk(where: str) -> tuple[str, ...]:
    """A command that runs the rest of its line with a disk of 64 KiB there, which nobody else sees."""
    return ("unshare", "--mount", "sh", "-c", f"mount -t tmpfs -o size=64k none '{where}' && exec \"$@\"", "sh")


def has_own_disks() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run((*own_disk("/tmp"), "true"), capture_output=True).returncode == 0


needs_own_disks = pytest.mark.skipif(not has_own_disks(), reason="this host gives out no mount namespaces")


@pytest.mark.parametrize("how", ["limited", pytest.param("full", marks=needs_own_disks)])
async def test_an_audit_log_that_cannot_be_written(how: str, tmp_path: Path) -> None:
    """No transfer waits for it, none of its lines is broken, and what is missing it says itself (docs/security.md)."""
    inside = tmp_path / "disk" / "log"
    inside.parent.mkdir()
    under = own_disk(str(inside.parent)) if how == "full" else ()
    manifest, source = offer()
    async with another_process(
        "killed_process", "receive", "never", under=under, variables={AUDIT: str(inside)}
    ) as peer:
        port = int(await line(peer))
        log = Path(f"/proc/{peer.pid}/root{inside}")
        fill, make_room = (full if how == "full" else limited)(log)
        async with await kit.start(Config(lanes=2)) as node:
            link = await node.connect("127.0.0.1", port)
            await moved(link, peer, manifest, source)
            before = verify_audit(log)
            await fill(peer)
            many = 30 if how == "full" else 5  # what is left of a page is filled first
            for _ in range(many):
                await moved(link, peer, manifest, source)
            held = verify_audit(log)  # whole, whatever the kernel took of the next line
            assert held.lines - before.lines < EVENTS_OF_ONE * many
            assert (await node.connect("127.0.0.1", port)).lanes == 2  # a link whose `link_up` is lost
            await make_room(peer)
            await moved(link, peer, manifest, source)
            verify_audit(log)
            found = [json.loads(text) for text in log.read_text().splitlines()]
            lost = sum(event["count"] for event in found if event["event"] == "lost")
            told = sum(event["event"] != "lost" for event in found) - before.lines
            assert told + lost == EVENTS_OF_ONE * (many + 1) + 1
            print(f"{how}: {lost} events were lost, {told} told")


# --- descriptors ------------------------------------------------------------------------------------------------------


def numbers(pid: int) -> set[int]:
    """Of the descriptors that a process has."""
    where = f"/proc/{pid}/fd"
    return {int(each) for each in os.listdir(where) if os.path.lexists(f"{where}/{each}")}  # but for what lists them


@contextmanager
def no_number_from(limit: int, pid: int) -> Iterator[None]:
    """A process gets no descriptor with this number or a higher one."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def limit_with(more: int) -> int:
    """With which this process may have so many descriptors more."""
    there = numbers(os.getpid())
    free = (number for number in itertools.count() if number not in there)
    return next(itertools.islice(free, more, None))


def cpu_s(pid: int) -> float:
    """What a process has taken of processors."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def test_a_receiver_without_descriptors() -> None:
    """Who dials is hung up on and knows, what is up goes on, nothing spins; with descriptors all is as before."""
    manifest, source = offer()
    async with another_process("killed_process", "receive", "never") as peer:
        with proxied(int(await line(peer))) as proxy:
            async with await kit.start(Config(lanes=2, connect_timeout_s=5.0)) as node:
                before = numbers(peer.pid)
                link = await node.connect("127.0.0.1", proxy.port)
                await moved(link, peer, manifest, source)
                # Of what the link has, none is to be had again: as if something else in that process took it.
                with no_number_from(min(numbers(peer.pid) - before), peer.pid):
                    for _ in range(3):
                        with pytest.raises((LinkLost, ConnectTimeout)):
                            await node.connect("127.0.0.1", proxy.port)
                    accepted = proxy.accepted
                    await asyncio.to_thread(proxy.reset, "lane", 1)
                    await kit.eventually(
                        lambda: proxy.accepted > accepted + 3, "the lane to be dialled again and again"
                    )
                    assert not link.suspended
                    await moved(link, peer, manifest, source)
                    begun, cpu = time.monotonic(), cpu_s(peer.pid)
                    await asyncio.sleep(10.0 if LONG else 2.0)
                    spent_s, took_s = cpu_s(peer.pid) - cpu, time.monotonic() - begun
                    print(f"{spent_s:.2f} s of a processor in {took_s:.1f} s without descriptors")
                    assert spent_s < took_s / 2
                await kit.eventually(lambda: link.lanes == 2 and not link.suspended, lambda: (link, link._error))
                await (await node.connect("127.0.0.1", proxy.port)).close()
                await moved(link, peer, manifest, source)


async def test_a_dialler_without_descriptors() -> None:
    """At every point of a link's beginning: typed, or a link with the lanes that could be had and soon with all."""
    manifest, source = offer()
    ends: list[str] = []
    async with another_process("killed_process", "receive", "never") as peer:
        port = int(await line(peer))
        async with await kit.start(Config(lanes=4, connect_timeout_s=1.0)) as node:
            for more in range(7):
                link: Link | None = None
                with no_number_from(limit_with(more), os.getpid()):
                    try:
                        link = await node.connect("127.0.0.1", port)
                    except (LocalError, ConnectTimeout) as error:
                        ends.append(type(error).__name__)
                        assert not node.links
                    else:
                        ends.append(f"{link.lanes} lanes")
                if link is not None:
                    await all_lanes(link)
                    await moved(link, peer, manifest, source)
                    await link.close()
            print(ends)
    assert ends[0] == "LocalError"
    assert ends[-1] in ("3 lanes", "4 lanes"), "on a slow machine the last one comes later"
    assert {"1 lanes", "2 lanes", "3 lanes"} & set(ends)


async def all_lanes(link: Link) -> None:
    await kit.eventually(lambda: link.lanes == 4, lambda: link)


async def test_a_dialler_that_cannot_resume_for_want_of_descriptors(caplog: pytest.LogCaptureFixture) -> None:
    """It goes on trying; its transfer is where it was once there are some."""
    manifest, source = offer()
    async with another_process("killed_process", "receive", "never") as peer:
        with proxied(int(await line(peer))) as proxy:
            async with await kit.start(Config(lanes=2)) as node:
                link = await node.connect("127.0.0.1", proxy.port)
                out = await link.offer(manifest, source.at())
                assert await line(peer) == "granted"
                first, *rest = manifest.segments()
                out.ready(*first)
                await kit.eventually(lambda: out.progress[0] > 0, lambda: out)
                caplog.set_level("INFO", "kvwire")
                with no_number_from(3, os.getpid()):  # nor one that the link gives back
                    proxy.cut()  # only now: the proxy could not accept what is dialled a moment before
                    await kit.eventually(lambda: link.suspended, lambda: link)
                    await kit.eventually(lambda: caplog.text.count("no descriptor") > 1, lambda: caplog.text)
                assert link.suspended
                proxy.heal()
                for name, layer in rest:
                    out.ready(name, layer)
                await asyncio.wait_for(out.committed(), kit.PATIENCE_S)
                assert await line(peer) == f"committed {kit.digest(source)}"
