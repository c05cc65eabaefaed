"""Messages that are well formed and wrong, from one real node to another."""

import pytest

from kvwire import Config, DType, GroupKind, GroupSpec, Link, LinkLost, ProtocolError
from kvwire.wire import schema
from tests.net import kit
from tests.net.kit import Caches, granted, joined, manifest, same, through_proxy
from tests.net.proxy import Way

pytestmark = pytest.mark.usefixtures("nothing_left")


BIG = GroupSpec.state("big", GroupKind.RECURRENT, range(8), DType.UINT8, (8 << 20,))


def say(link: Link, message: schema.Message) -> None:
    """What no session of ours would say."""
    link._session._send(message)
    link._pump()


def lanes(link: Link) -> set[tuple[int, int]]:
    return {(stats["lane"], stats["incarnation"]) for stats in link.lane_stats()}


async def test_an_abort_of_what_is_over() -> None:
    async with joined() as pair:
        await kit.move(pair.link, pair.server, "first")
        for link in (pair.link, pair.back):
            say(link, schema.Abort(1, "aborted", "late"))
        await kit.still_works(pair)


@pytest.mark.parametrize("transfer", [99, 2**63 + 1])
async def test_an_abort_of_what_never_was_ends_its_link_only(transfer: int) -> None:
    """The id may be that of a transfer on another link."""
    offer = manifest()
    source, targets = Caches(offer, filled=True), [Caches(offer), Caches(offer)]
    async with joined() as pair, await kit.start() as stranger:
        out, incoming = await granted(pair.link, pair.server, offer, source, targets[0])
        foul = await stranger.connect("127.0.0.1", pair.server.port)
        other, other_incoming = await granted(foul, pair.server, offer, source, targets[1])
        say(foul, schema.Abort(transfer, "aborted", "not mine"))
        with pytest.raises(ProtocolError, match=f"transfer {transfer} was never offered"):
            await other_incoming.committed()
        with pytest.raises((LinkLost, ProtocolError), match=f"transfer {transfer} was never offered"):
            await other.committed()
        targets[1].check_free()
        kit.ready_all(out)
        await incoming.committed()
        same(source, targets[0])
        await foul.wait_closed()
        await kit.still_works(pair)


async def test_lanes_that_end_at_the_peer_only() -> None:
    """Also where no kernel says so: the lane is replaced, and one that never was, or is no more, is none of ours."""
    async with joined() as pair:
        await kit.eventually(lambda: pair.link.lanes == pair.back.lanes == 2, "both lanes")
        for one, other in ((pair.link, pair.back), (pair.back, pair.link)):
            before = lanes(other)
            lane, incarnation = min(before)
            for key in ((7, 1), (lane, incarnation + 1)):
                say(one, schema.LaneClosed(*key, "who knows", 0))
            await kit.move(one, pair.server if one is pair.link else pair.client, "still there")
            assert lanes(other) == before
            say(one, schema.LaneClosed(lane, incarnation, "gone", 0))

            def replaced(link: Link = other, gone: tuple[int, int] = (lane, incarnation)) -> bool:
                return len(lanes(link)) == 2 and gone not in lanes(link)

            await kit.eventually(replaced, other.lane_stats)
        await kit.still_works(pair)


@pytest.mark.parametrize("way", ["up", "down"])
async def test_a_lane_of_which_one_direction_is_a_black_hole(way: Way) -> None:
    """One end's kernel gives the lane up and cannot tell the other's: LANE_CLOSED does, and both replace it."""
    config = Config(lanes=2, tcp_user_timeout_s=0.5)
    async with through_proxy(config) as (pair, proxy):
        offer = manifest("r", (BIG,))
        source, target = Caches(offer, filled=True), Caches(offer)
        sides = {"up": (pair.link, pair.server), "down": (pair.back, pair.client)}
        sender, receiver = sides[way]
        out, incoming = await granted(sender, receiver, offer, source, target)
        before = lanes(sender)
        proxy.stall_one("lane", way)
        kit.ready_all(out)
        await out.committed()
        await incoming.committed()
        same(source, target)
        assert out._handle.resent_cells or sender.engine_link.link_stats()["hedged_bytes"]
        await kit.eventually(
            lambda: len(before & lanes(pair.link)) == 1 and len(lanes(pair.link)) == 2, lambda: lanes(pair.link)
        )
        await kit.eventually(lambda: lanes(pair.link) == lanes(pair.back), lambda: lanes(pair.back))
        await kit.still_works(pair)
