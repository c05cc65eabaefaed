"""Roles, regions, models, quotas and tenants over real links: what is not allowed is not done, without a word."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from kvwire import Config, Link, ModelMismatch, ModelTag, Node, OfferRefused, Policy, PolicyError, Quota, wire
from tests.net import kit
from tests.net.kit import Caches, manifest
from tests.net.sealed import CONFIG, Log, Peer, logged, peer_of

pytestmark = pytest.mark.usefixtures("nothing_left")

BOTH_TENANTS = Policy(tenants={"acme", "globex"})


@dataclass
class Scene:
    """A node, its log, and how to reach it."""

    node: Node
    log: Log
    stack: contextlib.AsyncExitStack

    async def link(self, tenant: str = "acme", role: str = "both", region: str = "eu-west", **config: Any) -> Link:
        """From another node, of this subject."""
        identity = kit.keys(tenant, role, region)
        client = await kit.start(replace(CONFIG, **config), identity=identity, policy=BOTH_TENANTS)
        await self.stack.enter_async_context(client)
        return await client.connect("127.0.0.1", self.node.port)

    def back(self, link: Link) -> Link:
        """The same link, as the node has it."""
        return next(other for other in self.node.links if other._session.link_id == link._session.link_id)

    def refused_for(self, reason: str) -> bool:
        """Whether this is why the policy has refused the last offer."""
        return reason in self.log.events("policy_refused")[-1]["reason"]


@asynccontextmanager
async def scene(
    tmp_path: Path, policy: Policy = BOTH_TENANTS, role: str = "both", config: Config = CONFIG
) -> AsyncIterator[Scene]:
    with logged(tmp_path / "audit.jsonl") as log:
        identity = kit.keys(role=role, region="eu-north", name="server")
        node = await kit.serve(config=config, identity=identity, policy=policy, audit=log.audit)
        async with node, contextlib.AsyncExitStack() as stack:
            yield Scene(node, log, stack)
        assert node._guard.usage.tenants == ()


async def offer_refused(link: Link, offer: Any, error: type[OfferRefused] = OfferRefused) -> str:
    """An offer over this link is refused; what the peer says of it."""
    with pytest.raises(OfferRefused) as caught:
        await link.offer(offer, Caches(offer).at())
    assert type(caught.value) is error
    return str(caught.value)


async def raw_refused(peer: Peer, offer: Any) -> wire.Refused:
    """The same, of a peer that does not ask itself whether it may."""
    await peer.say()
    await peer.hear(wire.HelloDone)
    peer.session.offer(time.monotonic(), offer, timeout_s=60, deadline_s=60, klass=1)
    await peer.say()
    refused = await peer.hear(wire.Refused)
    assert isinstance(refused, wire.Refused)
    return refused


# --- roles and regions ------------------------------------------------------------------------------------------------


async def test_a_decode_node_may_not_offer(tmp_path: Path) -> None:
    offer = manifest()
    async with scene(tmp_path) as there:
        link = await there.link(role="decode")
        with pytest.raises(PolicyError, match="this node's role is decode: it may not offer"):
            await link.offer(offer, Caches(offer).at())
        assert not there.log.events("offer")
        await kit.move(there.back(link), link._node, "to it")
        async with peer_of(there.node, kit.keys(role="decode")) as peer:
            refused = await raw_refused(peer, offer)
            assert "role" not in str(refused.error)
            assert there.refused_for("the peer's role is decode: it may not offer transfers")


async def test_nobody_offers_to_a_prefill_node(tmp_path: Path) -> None:
    offer = manifest()
    async with scene(tmp_path, role="prefill") as there:
        link = await there.link()
        with pytest.raises(PolicyError, match="the peer's role is prefill: it may not receive"):
            await link.offer(offer, Caches(offer).at())
        await kit.move(there.back(link), link._node, "from it")
        async with peer_of(there.node) as peer:
            refused = await raw_refused(peer, offer)
            assert "role" not in str(refused.error)
            assert there.refused_for("this node's role is prefill: it may not receive transfers")


async def test_residency(tmp_path: Path) -> None:
    european, american = manifest("european", residency="eu"), manifest("american", residency="us")
    async with scene(tmp_path) as there:
        link = await there.link(region="us-east")
        with pytest.raises(PolicyError, match="may not leave us; the peer is in eu-north"):
            await link.offer(american, Caches(american).at())
        with pytest.raises(PolicyError, match="may not leave eu; the peer is in us-east"):
            await there.back(link).offer(european, Caches(european).at())
        for sender, receiver, offer in ((link, there.node, european), (there.back(link), link._node, american)):
            source, target = Caches(offer, filled=True), Caches(offer)
            out, _ = await kit.granted(sender, receiver, offer, source, target)
            kit.ready_all(out)
            await out.committed()
        async with peer_of(there.node, kit.keys(region="us-east")) as peer:
            refused = await raw_refused(peer, american)
            assert "us" not in str(refused.error).replace("refused", "")
            assert there.refused_for("this KV may not leave us; this node is in eu-north")


async def test_a_plain_link_proves_no_region() -> None:
    offer = manifest(residency="eu")
    plain = replace(CONFIG, plain=True)
    async with kit.joined(plain, plain) as pair:
        with pytest.raises(PolicyError, match="a plain link does not prove where the peer is"):
            await pair.link.offer(offer, Caches(offer).at())


# --- models -----------------------------------------------------------------------------------------------------------


async def test_models_by_tenant(tmp_path: Path) -> None:
    allowed, other = ModelTag("allowed"), ModelTag("other")
    policy = replace(BOTH_TENANTS, models={"globex": {allowed}})
    async with scene(tmp_path, policy) as there:
        theirs, ours = await there.link("globex"), await there.link("acme")
        said = await offer_refused(theirs, manifest(model=other))
        assert "other" not in said
        assert there.refused_for("tenant globex may not offer")
        for link, model in ((theirs, allowed), (ours, other)):
            offering, incoming = await kit.offered(
                link, there.node, manifest(model=model), Caches(manifest(model=model))
            )
            await incoming.refuse()
            with pytest.raises(OfferRefused):
                await offering


async def test_what_does_not_fit_is_said_within_a_tenant_only(tmp_path: Path) -> None:
    config = replace(CONFIG, models=(ModelTag("secret", "r1"),))
    async with scene(tmp_path, config=config) as there:
        ours, theirs = await there.link("acme"), await there.link("globex")
        offer = manifest(model=ModelTag("secret", "r2"))
        assert "r1" in await offer_refused(ours, offer, ModelMismatch)
        said = await offer_refused(theirs, offer)
        assert "r1" not in said
        assert "secret" not in said
        # And a model that fits, refused by whoever accepts: its words are its own.
        assert said == await offer_refused(theirs, manifest(model=ModelTag("unheard of")))


# --- quotas -----------------------------------------------------------------------------------------------------------


async def test_transfers_of_a_tenant(tmp_path: Path) -> None:
    """Over all its links; another tenant has its own."""
    policy = replace(BOTH_TENANTS, quotas={"acme": Quota(transfers=2)})
    async with scene(tmp_path, policy) as there:
        one, two, other = await there.link(), await there.link(), await there.link("globex")
        held = []
        for number, link in enumerate((one, two, other, other, other)):
            offer = manifest(f"r{number}")
            source, target = Caches(offer, filled=True), Caches(offer)
            held.append(((await kit.granted(link, there.node, offer, source, target))[0], target))
        for link in (one, two):
            said = await offer_refused(link, manifest("one more"))
            assert "quota" not in said
            assert there.refused_for("tenant acme would have 3 transfers under way; its quota is 2")
        out, _ = held[0]
        kit.ready_all(out)
        await out.committed()
        await kit.eventually(lambda: not there.back(one).busy, "the node to know")
        await kit.move(two, there.node, "in its place")
        for out, _ in held[1:]:
            await out.abort()
        await kit.eventually(lambda: there.node._guard.usage.tenants == (), "nothing to be left")


async def test_bytes_of_a_tenant(tmp_path: Path) -> None:
    """What is on offer counts whole, what is granted as it was granted."""
    offer = manifest("first")
    policy = replace(BOTH_TENANTS, quotas={"acme": Quota(bytes=offer.nbytes + offer.nbytes // 2)})
    async with scene(tmp_path, policy) as there:
        one, two, other = await there.link(), await there.link(), await there.link("globex")
        source, target = Caches(offer, filled=True), Caches(offer)
        offering, incoming = await kit.offered(one, there.node, offer, source)
        await offer_refused(two, manifest("second"))
        assert there.refused_for(f"tenant acme would have {2 * offer.nbytes} bytes under way; its quota is")
        await kit.move(other, there.node, "another's")
        await incoming.grant(target.at({"full": range(4)}))
        out = await offering
        await kit.move(two, there.node, "second")  # smaller than what is left
        whole = manifest("third")
        offering, incoming = await kit.offered(two, there.node, whole, Caches(whole, filled=True))
        await incoming.refuse("later")
        with pytest.raises(OfferRefused, match="later"):
            await offering
        await out.abort()
        await kit.eventually(lambda: there.node._guard.usage.tenants == (), "nothing to be left")


async def test_lanes_of_a_tenant(tmp_path: Path) -> None:
    """A link gets fewer, and does with them; when another one ends, it gets the rest."""
    policy = replace(BOTH_TENANTS, quotas={"acme": Quota(lanes=3)})
    async with scene(tmp_path, policy) as there:
        one = await there.link(lanes=2)
        two = await there.link(lanes=2, connect_timeout_s=0.3)
        other = await there.link("globex", lanes=4)
        assert (one.lanes, two.lanes, other.lanes) == (2, 1, 4)
        await kit.move(two, there.node, "over one lane")
        await one.close()
        await kit.eventually(lambda: two.lanes == 2, two.lane_stats)
        assert other.lanes == 4


# --- whatever becomes of it -------------------------------------------------------------------------------------------


async def committed(there: Scene, link: Link) -> None:
    await kit.move(link, there.node, "r")


async def under_way(there: Scene, link: Link, **more: Any) -> Any:
    offer = manifest("r")
    return await kit.granted(link, there.node, offer, Caches(offer, filled=True), Caches(offer), **more)


async def aborted_by_the_sender(there: Scene, link: Link) -> None:
    await (await under_way(there, link))[0].abort()


async def aborted_by_the_receiver(there: Scene, link: Link) -> None:
    await (await under_way(there, link))[1].abort()


async def refused(there: Scene, link: Link) -> None:
    offering, incoming = await kit.offered(link, there.node, manifest("r"), Caches(manifest("r")))
    await incoming.refuse()
    with pytest.raises(OfferRefused):
        await offering


async def withdrawn(there: Scene, link: Link) -> None:
    offering, _ = await kit.offered(link, there.node, manifest("r"), Caches(manifest("r")))
    offering.cancel()
    await asyncio.wait([offering])


async def never_taken(there: Scene, link: Link) -> None:
    with pytest.raises(TimeoutError):
        await link.offer(manifest("r"), Caches(manifest("r")).at(), timeout_s=0.05)


async def late(there: Scene, link: Link) -> None:
    out, incoming = await under_way(there, link, deadline_s=0.05)
    for half in (out, incoming):
        with pytest.raises(TimeoutError):
            await half.committed()


async def with_its_link(there: Scene, link: Link) -> None:
    await under_way(there, link)
    offer = manifest("on offer")
    offering, _ = await kit.offered(link, there.node, offer, Caches(offer))
    await link.close()
    await asyncio.wait([offering])
    assert offering.exception()


async def with_a_sender_that_does_not_come_back(there: Scene, link: Link) -> None:
    """What it had under way counts as long as it may."""
    await under_way(there, link)
    assert link._control is not None
    link._dialler = None
    link._control._sock.shutdown(2)
    await kit.eventually(lambda: there.back(link).suspended, "the loss to be noticed")
    assert there.node._guard.usage.tenants == ("acme",)
    await kit.eventually(lambda: not there.node.links, "the link to be given up")


ENDS = (
    committed, aborted_by_the_sender, aborted_by_the_receiver, refused, withdrawn, never_taken, late, with_its_link,
    with_a_sender_that_does_not_come_back,
)  # fmt: skip


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
async def test_nothing_is_counted_of_what_is_over(end: Any, tmp_path: Path) -> None:
    config = replace(CONFIG, resume_timeout_s=0.3)
    async with scene(tmp_path, config=config) as there:
        await end(there, await there.link())
        await kit.eventually(lambda: there.node._guard.usage.tenants == (), lambda: there.node._guard.usage._counts)


# --- what tenants know of each other ----------------------------------------------------------------------------------


@pytest.mark.parametrize("link_is", ["up", "gone"])
async def test_outcomes_are_their_tenant_s(link_is: str, tmp_path: Path) -> None:
    async with scene(tmp_path) as there:
        link = await there.link()
        receipt, _ = await kit.move(link, there.node, "r")
        key = link._session.link_id, receipt.transfer_id
        if link_is == "gone":
            await link.close()
            await kit.eventually(lambda: not there.node.links, "the link to go")
        answers = {}
        for tenant in ("acme", "globex"):
            async with peer_of(there.node, kit.keys(tenant)) as peer:
                await peer.say()
                await peer.hear(wire.HelloDone)
                await peer.say()
                for asked in (key, (key[0], key[1] + 2), (bytes(16), 1)):
                    peer.session.ask(*asked)
                    await peer.say()
                    answer = await peer.hear(wire.Answered)
                    assert isinstance(answer, wire.Answered)
                    answers[tenant, asked] = answer.outcome
        assert {asked: outcome for asked, outcome in answers.items() if outcome != "unknown"} == {
            ("acme", key): "committed"
        }
