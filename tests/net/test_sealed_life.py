"""Sealed links that last: re-keying, losses, restarts, certificates replaced or revoked, and the record."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kvwire import (
    AuthenticationFailed,
    Authority,
    DType,
    GroupSpec,
    Identity,
    Incoming,
    LinkLost,
    Manifest,
    OfferRefused,
    Outgoing,
    Subject,
    block_hashes,
    revoke,
)
from tests.net import kit
from tests.net.kit import Caches, half_sent, manifest
from tests.net.proxy import Proxy, proxied
from tests.net.sealed import CONFIG, Log, logged
from tests.net.test_resume import up

pytestmark = pytest.mark.usefixtures("nothing_left")

SERVER, CLIENT = Subject("acme", "both", "eu-north", "server"), Subject("acme", "both", "eu-west", "client")
CELLS = GroupSpec.mla("kv", range(8), DType.UINT8, block_tokens=16, latent=256)  # blocks of 4 KiB


# --- keys that follow one another -------------------------------------------------------------------------------------


async def test_keys_follow_one_another_after_so_many_frames(tmp_path: Path) -> None:
    """Both logs say so, lane by lane, epoch after epoch; no transfer notices."""
    config = replace(CONFIG, rekey_frames=16, cell_bytes=4096)
    offer = manifest("r", (CELLS,), 16 * 64)  # 512 cells
    with logged(tmp_path / "there.jsonl") as there, logged(tmp_path / "here.jsonl") as here:
        server = await kit.serve(config=config, audit=there.audit)
        async with server, await kit.start(config, audit=here.audit) as client:
            link = await client.connect("127.0.0.1", server.port)
            source, target = Caches(offer, filled=True), Caches(offer)
            out, incoming = await kit.granted(link, server, offer, source, target)
            kit.ready_all(out)
            await out.committed()
            await incoming.committed()
            kit.same(source, target)
            sent = {stats["lane"]: stats["sent_epoch"] for stats in link.lane_stats()}
            assert sum(sent.values()) >= 512 / 16
            again = {lane for lane, epoch in sent.items() if epoch > 1}
            await kit.eventually(lambda: epochs(here, "out").keys() == again, lambda: (epochs(here, "out"), sent))
            await kit.eventually(lambda: epochs(there, "in").keys() == again, lambda: (epochs(there, "in"), sent))
            assert not link._lanes.faults


def epochs(log: Log, direction: str) -> dict[int, int]:
    """The latest epoch of each lane, as the log has it, which is told of each lane once a second; epochs must rise."""
    found: dict[int, int] = {}
    for event in log.events("rekey"):
        if event["direction"] == direction:
            assert event["epoch"] > found.get(event["lane"], 1)
            found[event["lane"]] = event["epoch"]
    return found


async def test_keys_follow_one_another_after_so_much_time(tmp_path: Path) -> None:
    config = replace(CONFIG, lanes=1, rekey_s=0.05)
    with logged(tmp_path / "audit.jsonl") as log:
        async with await kit.serve(config=config, audit=log.audit) as server, await kit.start(config) as client:
            link = await client.connect("127.0.0.1", server.port)
            for number in range(4):
                await kit.move(link, server, f"r{number}")
                await asyncio.sleep(0.06)
            (stats,) = server.links[0].lane_stats()
            assert stats["received_epoch"] >= 4
            assert epochs(log, "in")[0] > 1


# --- certificates that are replaced, or count no more -----------------------------------------------------------------


@dataclass
class Scene:
    """Two nodes whose keys lie in a directory of the test's own, a link through a proxy, and both logs."""

    pair: kit.Pair
    proxy: Proxy
    root: Path
    here: Log
    there: Log

    @property
    def authority(self) -> Authority:
        return Authority.load(self.root / "ca")

    async def move(self, request_id: str) -> None:
        await kit.move(self.pair.link, self.pair.server, request_id)


@asynccontextmanager
async def scene(root: Path) -> AsyncIterator[Scene]:
    authority = Authority.create(root / "ca")
    authority.issue(root / "server", SERVER)
    authority.issue(root / "client", CLIENT)
    config = replace(CONFIG, resume_timeout_s=3.0)
    with logged(root / "there.jsonl") as there, logged(root / "here.jsonl") as here:
        server = await kit.serve(config=config, identity=Identity.load(root / "server"), audit=there.audit)
        async with server:
            client = await kit.start(config, identity=Identity.load(root / "client"), audit=here.audit)
            async with client:
                with proxied(server.port) as proxy:
                    link = await client.connect("127.0.0.1", proxy.port)
                    yield Scene(kit.Pair(server, client, link), proxy, root, here, there)


@pytest.mark.parametrize("whose", ["server", "client"])
async def test_a_certificate_that_is_replaced(whose: str, tmp_path: Path) -> None:
    """The link that is up keeps the old one; resumed, it is known by the new one, and its transfers go on."""
    subject = {"server": SERVER, "client": CLIENT}[whose]
    async with scene(tmp_path) as there:
        half = await half_sent(there.pair, manifest("r", kit.FIVE))
        new = there.authority.issue(tmp_path / whose, subject, replace=True)
        link = there.pair.link if whose == "server" else there.pair.back
        assert link.identity is not None
        assert link.identity.fingerprint != new.fingerprint
        there.proxy.reset()
        await kit.eventually(lambda: link.identity.fingerprint == new.fingerprint, lambda: link.identity)  # type: ignore[union-attr]
        await up(there.pair)
        await kit.finish(*half)
        await kit.still_works(there.pair)
        assert not there.here.events("link_down")


@pytest.mark.parametrize("other", ["name", "tenant", "role", "region"])
async def test_somebody_else_in_a_peer_s_place(other: str, tmp_path: Path) -> None:
    """Its certificate is good, but it is not the one that the link is with: it gets nothing of the link."""
    changed = {"name": "other", "tenant": "globex", "role": "decode", "region": "eu-south"}
    async with scene(tmp_path) as there:
        out, incoming, *_ = await half_sent(there.pair, manifest("r", kit.FIVE))
        subject = replace(SERVER, **{other: changed[other]})
        there.authority.issue(tmp_path / "other", subject)
        there.proxy.cut()
        with logged(tmp_path / "other.jsonl") as log:
            identity = Identity.load(tmp_path / "other")
            async with await kit.serve(config=CONFIG, identity=identity, audit=log.audit) as impostor:
                there.proxy.target = impostor.port
                there.proxy.heal()
                with pytest.raises(LinkLost):
                    await out.committed()
                assert not impostor._offers
                assert not log.events("offer", "link_up")
            with pytest.raises(LinkLost):
                await incoming.committed()


@pytest.mark.parametrize("whose", ["server", "client"])
async def test_a_certificate_that_is_revoked_while_a_link_is_up(whose: str, tmp_path: Path) -> None:
    """Within seconds the link ends, at both ends, and so does what was on it."""
    other = {"server": "client", "client": "server"}[whose]
    async with scene(tmp_path) as there:
        link, far = (there.pair.link, there.pair.back) if other == "client" else (there.pair.back, there.pair.link)
        halves = (await half_sent(there.pair, manifest("r", kit.FIVE)))[:2]
        assert link.identity is not None
        revoke(tmp_path / other, link.identity.fingerprint)
        async with asyncio.timeout(kit.PATIENCE_S):
            error = await link.wait_closed()
            assert isinstance(error, AuthenticationFailed)
            assert "is revoked" in str(error)
            assert isinstance(await far.wait_closed(), LinkLost)
            for half in halves:
                with pytest.raises((AuthenticationFailed, LinkLost)):
                    await half.committed()
        log = there.here if other == "client" else there.there
        (down,) = log.events("link_down")
        assert (down["error"], "is revoked" in down["reason"]) == ("AuthenticationFailed", True)
        with pytest.raises(AuthenticationFailed):
            await there.pair.client.connect("127.0.0.1", there.proxy.port)
        assert "is revoked" in log.refusals()[-1][1]


# --- the record -------------------------------------------------------------------------------------------------------


async def test_the_record_of_a_life(tmp_path: Path) -> None:
    """Every event on both sides, who the peer was, and nothing that is a key, a prompt or the hash of one."""
    prompt = list(range(7_000_000, 7_000_000 + kit.TOKENS))
    hashes = block_hashes(prompt, 16, seed=b"a seed that nobody knows")
    offers: list[Manifest] = []
    async with scene(tmp_path) as there:
        link, server = there.pair.link, there.pair.server

        def offer(request_id: str) -> Manifest:
            offers.append(manifest(request_id, hashes={"full": hashes}, residency="eu"))
            return offers[-1]

        async def under_way(request_id: str) -> tuple[Outgoing, Incoming]:
            made = offer(request_id)
            return await kit.granted(link, server, made, Caches(made, filled=True), Caches(made))

        out, incoming = await under_way("commits")
        kit.ready_all(out)
        await out.committed()
        await incoming.committed()
        out, incoming = await under_way("is aborted")
        await out.abort("the client went away")
        await kit.eventually(lambda: incoming.state == "aborted", incoming)
        made = offer("is refused")
        offering, incoming = await kit.offered(link, server, made, Caches(made))
        await incoming.refuse("no room")
        with pytest.raises(OfferRefused):
            await offering
        secrets = [keys._lanes for keys in (link._session._keys, there.pair.back._session._keys)]  # type: ignore[union-attr]
        secrets += [link._session._join_secret]
        await link.close()
        await kit.eventually(lambda: not server.links, "the link to go")
    life = {"offer": 3, "grant": 2, "commit": 1, "abort": 2, "link_up": 1, "link_down": 1, "open": 1, "closed": 1}
    for log, direction, peer in ((there.here, "out", SERVER), (there.there, "in", CLIENT)):
        events = log.events()
        assert Counter(event["event"] for event in events) == life
        for event in log.events("offer", "grant", "commit", "abort"):
            assert event["direction"] == direction
        for event in log.events(*(life.keys() - {"open", "closed"})):
            found = {name: event[name] for name in ("tenant", "role", "region", "name")}
            assert Subject(**found) == peer
        assert {event["request"] for event in log.events("offer")} == {"commits", "is aborted", "is refused"}
        text = json.dumps(events)
        forbidden = [*secrets, *hashes, b"a seed that nobody knows"]
        for secret in forbidden:
            assert secret.hex() not in text
        assert "7000000" not in text
