"""An authenticated peer that talks without end, and what of it another tenant may feel: nothing."""

import asyncio
import os
import ssl
import threading
import time
from pathlib import Path

import pytest

from kvwire import Closed, Config, ConfigError, Link, LinkLost, OfferRefused, PeerBusy, Policy, Quota, revoke, wire
from kvwire.guard import MOST_PER_S
from kvwire.wire import schema
from tests.net import kit
from tests.net.sealed import Peer, logged, peer_of

BOTH = Policy(tenants=("acme", "other"))
LONGEST_FLOOD_S = 20.0


class Flood:
    """Sends a message again and again, from a thread, until it is told to stop or cannot."""

    def __init__(self, peer: Peer, message: schema.Message) -> None:
        assert peer.stream.tls is not None
        self._tls, self._sock, self._said = peer.stream.tls, peer.stream.sock.dup(), schema.encode(message) * 3000
        self._sock.setblocking(True)
        self.over = threading.Event()
        self._stop_at = time.monotonic() + LONGEST_FLOOD_S
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while time.monotonic() < self._stop_at:
                self._sock.sendall(self._tls.send(self._said))
        except OSError:
            pass
        self.over.set()

    def stop(self) -> None:
        self._stop_at = 0.0
        self._sock.close()
        self._thread.join()


async def greeted(peer: Peer) -> None:
    await peer.say()
    await peer.hear(wire.HelloDone)
    await peer.say()


@pytest.mark.parametrize("message", [schema.Pong(1), schema.Answer(bytes(16), 1, "unknown")], ids=lambda m: m.TYPE)
async def test_others_are_served_while_a_peer_talks_without_end(message: schema.Message) -> None:
    node = await kit.serve(config=Config(lanes=2), policy=BOTH)
    async with node, await kit.start(Config(lanes=2)) as client, peer_of(node, kit.keys("other")) as peer:
        await greeted(peer)
        flood = Flood(peer, message)
        try:
            link = await client.connect("127.0.0.1", node.port)
            await kit.move(link, node, "meanwhile")
            assert not flood.over.is_set()
            revoke(os.path.join(os.environ[kit.KEYS], "acme-both-eu-west-host"), kit.keys("other").fingerprint)
            await asyncio.to_thread(flood.over.wait)
            assert time.monotonic() < flood._stop_at, "revoked, and cut off before it is weary"
        finally:
            flood.stop()
            Path(os.environ[kit.KEYS], "acme-both-eu-west-host", "revoked.txt").write_text("")


async def test_what_comes_after_the_end_of_tls_is_not_kept() -> None:
    async with await kit.serve() as node, peer_of(node) as peer:
        await greeted(peer)
        await kit.eventually(lambda: node.links, "the link")
        (link,) = node.links
        assert peer.stream.tls is not None
        with pytest.raises(ssl.SSLError):
            peer.stream.tls._tls.unwrap()
        await asyncio.get_running_loop().sock_sendall(peer.stream.sock, peer.stream.tls.pending())
        await kit.eventually(lambda: link.suspended or link.closed, "the connection to be given up")


async def test_a_child_leaves_the_parents_link_alone() -> None:
    async with kit.joined() as pair:
        child = os.fork()
        if child == 0:
            try:
                assert pair.link._control is not None
                tls = pair.link._control._stream.tls
                assert tls is not None
                with pytest.raises(Closed, match="the parent's"):
                    tls.send(b"x")
                pair.link._control.close()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        await kit.still_works(pair)
        assert not pair.link.suspended


async def test_a_flood_of_offers_that_are_not_allowed_is_counted(tmp_path: Path) -> None:
    with logged(tmp_path / "audit") as log:
        node = await kit.serve(policy=Policy(tenants=("other",), quotas={"other": Quota(transfers=0)}), audit=log.audit)
        async with node, await kit.start(identity=kit.keys("other"), policy=BOTH) as client:
            link = await client.connect("127.0.0.1", node.port)
            for number in range(5 * MOST_PER_S):
                offer = kit.manifest(f"r{number}")
                with pytest.raises(OfferRefused, match="the receiver does not want it"):
                    await link.offer(offer, kit.Caches(offer).at())
        refused = log.events("policy_refused")
        seconds = {event["time"][:19] for event in refused}
        assert all("quota" in event["reason"] or "count" in event for event in refused)
        assert sum(event.get("count", 1) for event in refused) == 5 * MOST_PER_S
        assert len(refused) <= (MOST_PER_S + 1) * (len(seconds) + 1)


async def test_a_tenant_has_as_many_links_as_its_quota(tmp_path: Path) -> None:
    with logged(tmp_path / "audit") as log:
        policy = Policy(tenants=("acme", "other"), quotas={"other": Quota(links=1)})
        other = {"identity": kit.keys("other"), "policy": BOTH}
        config = Config(lanes=1, max_links=2)
        async with (
            await kit.serve(config=config, policy=policy, audit=log.audit) as node,
            await kit.start(config, **other) as greedy,
            await kit.start(config) as honest,
        ):
            await greedy.connect("127.0.0.1", node.port)
            with pytest.raises(PeerBusy):
                await greedy.connect("127.0.0.1", node.port)
            assert [error for error, _ in log.refusals()] == ["LimitExceeded"]
            link = await honest.connect("127.0.0.1", node.port)
            await kit.move(link, node, "r")


async def test_a_suspended_link_makes_room_for_its_own_tenant_only(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(lanes=1, max_links=1)
    async with (
        await kit.serve(config=config, policy=BOTH) as node,
        await kit.start(config) as mine,
        await kit.start(config, identity=kit.keys("other"), policy=BOTH) as other,
    ):
        first = await mine.connect("127.0.0.1", node.port)
        (there,) = node.links
        assert isinstance(there, Link)
        first._node._closed = True  # it does not come back
        assert first._dialler is not None
        monkeypatch.setattr(first._dialler, "suspended", lambda: None)
        first._connection_lost(first._control, LinkLost("it is gone"))
        await kit.eventually(lambda: there.suspended, "the link to be suspended")
        with pytest.raises(PeerBusy):
            await other.connect("127.0.0.1", node.port)
        assert not there.closed
        first._node._closed = False
        await mine.connect("127.0.0.1", node.port)
        assert there.closed


async def test_a_plain_node_takes_no_policy() -> None:
    with pytest.raises(ConfigError, match="leave policy out"):
        await kit.start(Config(plain=True), policy=Policy())
