"""Which addresses a node listens at, dials from and dials to."""

import asyncio
import contextlib
import errno
import os
import resource
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from kvwire import Closed, Config, ConfigError, ConnectRefused, LinkLost, LocalError, NetworkError, sockets
from kvwire.acceptor import Acceptor, Stranger
from tests.net import kit
from tests.net.kit import joined
from tests.net.namespaces import needs_ipv6

pytestmark = pytest.mark.usefixtures("nothing_left")


@needs_ipv6
async def test_an_empty_host_means_both_families() -> None:
    async with await kit.serve("", 0) as node, await kit.start() as client:
        for host in ("127.0.0.1", "::1"):
            link = await client.connect(host, node.port)
            await link.close()


@needs_ipv6
@pytest.mark.parametrize(("host", "good", "bad"), [("::", "::1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1", "::1")])
async def test_a_wildcard_of_one_family_is_of_one_family(host: str, good: str, bad: str) -> None:
    async with await kit.serve(host, 0) as node, await kit.start() as client:
        await client.connect(good, node.port)
        with pytest.raises(ConnectRefused):
            await client.connect(bad, node.port)


async def test_ipv4_is_shown_as_ipv4() -> None:
    async with await kit.serve("", 0) as node, await kit.start() as client:
        await client.connect("127.0.0.1", node.port)
        await kit.eventually(lambda: node.links, "a link")
        assert [link.peer.split()[0] for link in node.links] == ["127.0.0.1"]


async def test_lanes_are_dialled_from_the_local_addresses_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    add_lane = Acceptor._identify

    async def note(acceptor: Acceptor, stranger: Stranger) -> None:
        seen.append(stranger.address.split()[0])
        await add_lane(acceptor, stranger)

    monkeypatch.setattr(Acceptor, "_identify", note)
    sources = ("127.0.0.2", "::1", "127.0.0.3")
    async with joined(Config(), Config(lanes=4, local_addresses=sources)) as pair:
        await kit.move(pair.link, pair.server, "from-several")
    assert seen[0] == "127.0.0.2"
    assert sorted(seen[1:]) == ["127.0.0.2", "127.0.0.2", "127.0.0.3", "127.0.0.3"]


async def test_a_source_that_is_not_ours() -> None:
    async with await kit.serve("127.0.0.1", 0) as node:
        async with await kit.start(Config(local_addresses=("192.0.2.1",))) as client:
            with pytest.raises(ConfigError, match=r"cannot dial from 192\.0\.2\.1"):
                await client.connect("127.0.0.1", node.port)
        async with await kit.start(Config(local_addresses=("::1",))) as client:
            with pytest.raises(NetworkError, match="the local addresses are of the other"):
                await client.connect("127.0.0.1", node.port)


async def test_a_dial_that_is_cancelled_twice_as_it_succeeds() -> None:
    """The connection comes while whoever dialled is on the way out, and is cancelled once more: it is closed."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for turns in range(12):
            dialling = asyncio.create_task(sockets.dial("127.0.0.1", listener.getsockname()[1], 5.0))
            for _ in range(turns):
                await asyncio.sleep(0)
            dialling.cancel()
            await asyncio.sleep(0)
            dialling.cancel()
            await asyncio.wait((dialling,))
            if not dialling.cancelled():
                dialling.result().close()
            listener.settimeout(0.2)
            try:
                sock, _ = await loop.run_in_executor(None, listener.accept)
            except TimeoutError:
                continue  # cancelled before it called
            with sock:
                sock.settimeout(5)
                assert await loop.run_in_executor(None, sock.recv, 1) == b""


@pytest.mark.parametrize("value", ["127.0.0.1", ("localhost",), ("127.0.0.1", 7), (b"127.0.0.1",), ("10.0.0.256",)])
def test_local_addresses_are_addresses(value: Any) -> None:
    with pytest.raises(ConfigError, match="local_addresses"):
        Config(local_addresses=value)


async def test_lanes_go_to_the_host_that_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name may stand for several hosts, and mean another one at the next look-up."""
    async with await kit.serve("127.0.0.1", 0) as node, await kit.start() as client:
        looked_up: list[str] = []
        resolve = asyncio.get_running_loop().getaddrinfo

        async def note(host: str, *arguments: Any, **more: Any) -> Any:
            looked_up.append(host)
            return await resolve(host, *arguments, **more)

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", note, raising=False)
        await client.connect("localhost", node.port)
        assert looked_up.count("localhost") == 1


async def test_progress_on_both_sides() -> None:
    async with joined() as pair:
        offer = kit.manifest("progress", (kit.FULL,))
        source, target = kit.Caches(offer, filled=True), kit.Caches(offer)
        out, incoming = await kit.granted(pair.link, pair.server, offer, source, target)
        assert out.link is pair.link
        assert incoming.link is pair.back
        cells = incoming.progress[1]
        assert cells > 1
        assert out.progress == (0, cells)
        out.ready("full", 0)
        await kit.eventually(lambda: out.progress == (cells // 2, cells), lambda: out.progress)
        assert incoming.progress == (cells // 2, cells)
        out.ready("full", 1)
        await out.committed()
        await incoming.committed()
        assert out.progress == incoming.progress == (cells, cells)


async def test_waiting_for_the_end_of_a_link() -> None:
    async with joined() as pair:
        waits = [asyncio.ensure_future(link.wait_closed()) for link in (pair.link, pair.back)]
        waits[0].cancel()  # whoever stops waiting disturbs nobody
        await asyncio.sleep(0)
        assert not pair.link.closed
        await pair.link.close()
        assert isinstance(await pair.link.wait_closed(), Closed)
        assert isinstance(await asyncio.wait_for(waits[1], 10), Closed | LinkLost)


@pytest.fixture
def link_local() -> str:
    """A link-local address of this host, with its scope, as `ip -6 address` has it."""
    for line in Path("/proc/net/if_inet6").read_text().splitlines():
        digits, _, _, scope, flags, name = line.split()
        if scope == "20" and not int(flags, 16) & 0x40:  # link-local, and not tentative
            address = ":".join(digits[at : at + 4] for at in range(0, 32, 4))
            return f"{address}%{name}"
    pytest.skip("this machine has no link-local address")


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_link_local_address_keeps_its_scope(link_local: str, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def dial() -> None:
        async with await kit.serve("::", 0) as node, await kit.start() as client:
            await client.connect(link_local, node.port)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(dial())


async def test_without_descriptors_strangers_are_hung_up_on() -> None:
    """A connection that is left in the backlog would swallow what is sent over it."""
    async with await kit.serve("127.0.0.1", 0) as node:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        stranger = socket.socket()
        stranger.setblocking(False)
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, hard))
        try:
            await asyncio.get_running_loop().sock_connect(stranger, ("127.0.0.1", node.port))
            assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(stranger, 1), 10) == b""
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            stranger.close()
        async with await kit.start() as client:
            await client.connect("127.0.0.1", node.port)


async def test_a_spare_descriptor_that_somebody_else_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """The node goes on without one, gets one later, and closes nothing that is not its own."""

    def gone() -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    async with await kit.serve("127.0.0.1", 0) as node, await kit.start() as client:
        assert node._acceptor is not None
        with monkeypatch.context() as without:
            without.setattr("kvwire.acceptor.open_spare", gone)
            node._acceptor.turn_away()
        assert node._acceptor.spare == -1
        await client.connect("127.0.0.1", node.port)
        node._acceptor.turn_away()
        assert node._acceptor.spare >= 0


def test_a_node_that_gets_no_descriptors_leaves_none_behind() -> None:
    """At every point of its beginnings: typed, and as if it had never been."""

    async def serve() -> None:
        async with await kit.serve("127.0.0.1", 0, Config(workers=2)):
            pass

    def left() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    problems = []
    with asyncio.Runner() as runner:
        runner.run(asyncio.sleep(0))
        before = left()
        for more in range(1, 40):
            resource.setrlimit(resource.RLIMIT_NOFILE, (before[0] + more, hard))
            try:
                runner.run(serve())
            except LocalError as error:
                problems.append(str(error))
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            until = time.monotonic() + kit.PATIENCE_S
            # A thread that was joined is listed for a moment longer; so may one have been that an earlier test left.
            while any(now > then for now, then in zip(left(), before, strict=True)):
                assert time.monotonic() < until, (left(), before)
    assert 2 < len(problems) < 39
    assert all("Too many open files" in problem for problem in problems)


async def test_a_local_address_that_is_gone_is_not_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control connection and each lane are dialled from the next one."""
    bind = sockets._bind_source

    def without(sock: socket.socket, sources: Any, turn: int, host: str) -> None:
        if sources[turn % 2] == "127.0.0.5":
            raise ConfigError("cannot dial from 127.0.0.5: Cannot assign requested address")
        bind(sock, sources, turn, host)

    async with joined(Config(lanes=2), Config(lanes=2, local_addresses=("127.0.0.5", "127.0.0.6"))) as pair:
        monkeypatch.setattr(sockets, "_bind_source", without)
        pair.link._connection_lost(pair.link._control, LinkLost("the card is gone"))
        await kit.eventually(lambda: not pair.link.suspended and pair.link.lanes == 2, lambda: pair.link)
        await kit.still_works(pair)


async def test_another_host_of_the_same_name_is_not_the_one_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may answer when the link is dialled by name: what was for the first one is not offered to it."""
    resolve = sockets._resolve

    async def two(host: str, port: int, **more: Any) -> Any:
        hosts = ("127.0.0.1", "127.0.0.2") if host == "decode" else (host,)
        return [address for each in hosts for address in await resolve(each, port, **more)]

    monkeypatch.setattr(sockets, "_resolve", two)
    config = Config(lanes=1)
    async with await kit.start(config) as client, await kit.serve("127.0.0.1", 0, config) as first:
        port = first.port
        async with await kit.serve("127.0.0.2", port, config) as other:
            link = await client.connect("decode", port)
            offer = kit.manifest("r")
            source, target = kit.Caches(offer, filled=True), kit.Caches(offer)
            out, incoming = await kit.granted(link, first, offer, source, target)
            answers, away = [], True

            async def elsewhere(acceptor: Acceptor, stranger: Stranger) -> None:
                if acceptor._node is first and away:
                    raise LinkLost("its network is away")
                answers.append(acceptor._node)
                await identify(acceptor, stranger)

            identify = Acceptor._identify
            monkeypatch.setattr(Acceptor, "_identify", elsewhere)
            dial = sockets.dial

            async def refused(host: str, port: int, *more: Any) -> socket.socket:
                return await dial("127.0.0.2" if host == "decode" and away else host, port, *more)

            monkeypatch.setattr(sockets, "dial", refused)
            link._connection_lost(link._control, LinkLost("its network is away"))
            await kit.eventually(lambda: other in answers, "the other host to be reached")
            await asyncio.sleep(0.1)
            assert link.suspended
            assert not other._offers
            away = False
            kit.ready_all(out)
            await out.committed()
            await incoming.committed()
            kit.same(source, target)
            assert not other._offers


async def test_an_address_that_swallows_everything_only_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name of several addresses, of which the first never answers: its backlog is full."""
    async with await kit.serve("127.0.0.1", 0) as node, await kit.start() as client:
        port = node.port
        with socket.create_server(("127.0.0.9", port), backlog=0), contextlib.ExitStack() as stack:
            for _ in range(4):  # until the kernel takes no more
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.9", port))
            resolve = sockets._resolve

            async def several(host: str, port: int, **more: Any) -> Any:
                found = await resolve("127.0.0.1", port) if host == "127.0.0.1" else []
                return found or [*await resolve("127.0.0.9", port), *await resolve("127.0.0.1", port)]

            monkeypatch.setattr(sockets, "_resolve", several)
            link = await client.connect("decode", port)
            assert link._dialler is not None
            assert link._dialler._address == ("127.0.0.1", port)
            assert node.links


def test_families_take_turns() -> None:
    six, four = socket.AF_INET6, socket.AF_INET
    found: list[tuple[int, tuple[object, ...]]] = [(six, ("a",)), (six, ("b",)), (six, ("c",)), (four, ("1",))]
    assert [address[0] for _, address in sockets._by_turns(found)] == ["a", "1", "b", "c"]
    assert sockets._by_turns([]) == []
