"""What leaves over a link: rates that are kept to, controllers that may fail, reports, deadlines, and order."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

import kvwire
from kvwire import Config, ConfigError, DeadlineExceeded, Decision, DType, EgressReport, GroupSpec, SpecError
from kvwire.congestion import PathSample, Stragglers, Uncapped
from tests.net import kit
from tests.net.kit import Caches, Pair

MIB = 1 << 20
BULK = GroupSpec.attention(
    "full", range(8), DType.BF16, block_tokens=16, heads=8, head_dim=128
)  # 64 KiB a block, layer
BPS = 8 * 4 * MIB


def bulk(request_id: str, mib: int) -> kvwire.Manifest:
    return kit.manifest(request_id, (BULK,), mib * 2 * 16)


class Moving:
    """A transfer of `mib` MiB that is wholly ready."""

    def __init__(
        self, pair: Pair, out: kvwire.Outgoing, incoming: kvwire.Incoming, source: Caches, target: Caches
    ) -> None:
        self.pair, self.out, self.incoming = pair, out, incoming
        self._source, self._target = source, target

    def landed(self) -> int:
        return sum(stats["acked_bytes"] for stats in self.pair.link.lane_stats())

    async def rate_bps(self, seconds: float) -> float:
        """What lands from now on, for so long."""
        before, began = self.landed(), time.monotonic()
        await asyncio.sleep(seconds)
        return 8 * (self.landed() - before) / (time.monotonic() - began)

    async def end(self) -> None:
        await self.out.committed()
        await self.incoming.committed()
        kit.same(self._source, self._target)


async def begin(pair: Pair, mib: int, request_id: str = "bulk", **more: object) -> Moving:
    offer = bulk(request_id, mib)
    source, target = Caches(offer, filled=True), Caches(offer)
    out, incoming = await kit.granted(pair.link, pair.server, offer, source, target, **more)
    kit.ready_all(out)
    return Moving(pair, out, incoming, source, target)


@asynccontextmanager
async def paced(controller: object = "none") -> AsyncIterator[Pair]:
    async with kit.joined(client=Config(lanes=2, controller=controller)) as pair:  # type: ignore[arg-type]
        yield pair


class TestBudget:
    async def test_it_is_kept_to_and_lifted(self) -> None:
        async with paced() as pair:
            pair.link.set_budget(BPS, expires_in_s=60)
            moving = await begin(pair, 64)
            await asyncio.sleep(0.3)  # the first burst
            assert 0.3 * BPS < await moving.rate_bps(1.0) < 1.3 * BPS
            pair.link.set_budget(BPS / 4, expires_in_s=60)
            await asyncio.sleep(0.1)
            assert await moving.rate_bps(1.0) < 0.5 * BPS, "a change takes effect within 100 ms"
            pair.link.set_budget(1e12, expires_in_s=60)
            await moving.end()

    async def test_a_lease_that_is_over_leaves_the_floor(self) -> None:
        async with paced() as pair:
            pair.link.set_budget(1e12, min_bps=BPS / 4, expires_in_s=0.2)
            moving = await begin(pair, 1)
            await moving.end()
            moving = await begin(pair, 64, "later")
            await asyncio.sleep(0.5)
            assert await moving.rate_bps(1.0) < 0.5 * BPS
            pair.link.set_budget(1e12, expires_in_s=60)
            await moving.end()

    @pytest.mark.parametrize(
        "arguments",
        [
            {"max_bps": float("nan"), "expires_in_s": 1},
            {"max_bps": 0, "expires_in_s": 1},
            {"max_bps": -5e6, "expires_in_s": 1},
            {"max_bps": 1e8, "expires_in_s": 0},
            {"max_bps": 1e8, "expires_in_s": -3},
            {"max_bps": 1e8, "expires_in_s": float("inf")},
            {"max_bps": 1e8, "min_bps": 2e8, "expires_in_s": 1},
        ],
    )
    async def test_one_that_is_none(self, arguments: dict[str, float]) -> None:
        async with paced() as pair:
            with pytest.raises(ConfigError):
                pair.link.set_budget(**arguments)
            await kit.move(pair.link, pair.server, "r")


class TestControllers:
    async def test_one_by_name_with_its_rate(self) -> None:
        async with paced(f"fixed:pace_bps={BPS}") as pair:
            moving = await begin(pair, 16)
            await asyncio.sleep(0.3)
            assert await moving.rate_bps(1.0) < 1.3 * BPS
            await moving.end()

    async def test_its_rate_holds_from_the_first_byte(self) -> None:
        async with paced(f"fixed:pace_bps={BPS}") as pair:
            moving = await begin(pair, 16)
            await asyncio.sleep(0.2)
            assert moving.landed() < 16 * MIB / 2, "it left before anybody had looked"
            await moving.end()

    async def test_one_of_the_application_s(self) -> None:
        """A factory; it is told of lanes, samples and commits, and its decisions count."""
        told = []

        class Telling(Uncapped):
            def on_lane(self, now: float, lane: int, up: bool, reason: str) -> None:
                told.append(f"lane {lane} {up}")

            def on_landed(self, now: float, nbytes: int, queue_s: float, net_s: float) -> None:
                told.append(f"landed {nbytes}")

            def decide(self, now: float) -> Decision:
                return Decision(pace_bps=BPS, next_tick_s=0.02)

        async with paced(Telling) as pair:
            moving = await begin(pair, 8)
            await moving.end()
            assert {"lane 0 True", "lane 1 True", f"landed {8 * MIB}"} <= set(told)

    @pytest.mark.parametrize("wrong", [float("nan"), -1e6, 1e30, "fast"])
    async def test_absurd_decisions_stop_nothing(self, wrong: float) -> None:
        class Absurd(Uncapped):
            def decide(self, now: float) -> Decision:
                return Decision(pace_bps=wrong, next_tick_s=0.02)

        async with paced(Absurd) as pair:
            reports: list[EgressReport] = []
            pair.link.on_report(reports.append, 0.1)
            await (await begin(pair, 8)).end()
            await kit.eventually(lambda: reports and reports[-1].totals.controller_faults >= 3, "the faults to be told")
            await kit.eventually(lambda: reports[-1].controller == "none", "another one to take its place")

    async def test_a_number_of_lanes_that_the_application_has_fixed_stays(self) -> None:
        """At whichever side."""

        class Many(Uncapped):
            def decide(self, now: float) -> Decision:
                return Decision(lanes=5, next_tick_s=0.02)

        fixed = Config(lanes=2, controller=Many)
        async with kit.joined(client=fixed, server=fixed) as pair:
            await (await begin(pair, 8)).end()
            await kit.move(pair.back, pair.client, "back")
            assert pair.link.lanes == pair.back.lanes == 2
            reports = [await anext(link.telemetry(0.1)) for link in (pair.link, pair.back)]
            assert [report.lanes_wanted for report in reports] == [2, 2]

    async def test_one_that_raises_stops_nothing(self) -> None:
        class Raising(Uncapped):
            def on_sample(self, now: float, sample: object) -> None:
                raise ZeroDivisionError("no segments")

        async with paced(Raising) as pair:
            await (await begin(pair, 8)).end()

    @pytest.mark.parametrize("name", ["warp", "", "fixed", "fixed:pace_bps=quick", "aimd:x=1"])
    async def test_a_name_that_none_has(self, name: str) -> None:
        with pytest.raises(ConfigError):
            await kit.start(Config(controller=name))

    def test_what_is_no_controller(self) -> None:
        with pytest.raises(ConfigError, match="controller is 7"):
            Config(controller=7)  # type: ignore[arg-type]


class TestReports:
    async def test_they_say_what_left(self) -> None:
        async with paced() as pair:
            following = pair.link.telemetry(0.1)
            moving = await begin(pair, 16)
            await moving.end()
            # The receipt may be faster than the last acknowledgements.
            await kit.eventually(lambda: not any(it["unacked_bytes"] for it in pair.link.lane_stats()), "them")
            landed = moving.landed()
            latest: EgressReport | None = None
            async for report in following:
                latest = report
                if sum(lane.landed_bytes for lane in report.lanes) >= landed:
                    break
            assert latest is not None
            assert latest.totals.landed_bytes == landed
            assert latest.lanes_up == latest.lanes_wanted == 2
            assert latest.controller == "none"
            assert sum(lane.landed_bytes for lane in latest.lanes) == landed
            assert set(latest.congestion) == set(pair.link.lane_congestion.values())
            assert latest.totals.retransmitted_bytes < landed / 2  # on a busy machine TCP's probes of the tail are some

    async def test_they_end_with_the_link(self) -> None:
        async with paced() as pair:
            following = pair.link.telemetry(0.1)
            await pair.link.close()
            assert [report async for report in following] == []

    async def test_a_node_hears_all_its_links(self) -> None:
        async with paced() as pair:
            links = []
            pair.client.on_report(lambda report: links.append(report.link))
            await kit.eventually(lambda: links, "a report")
            assert set(links) == {pair.link._session.link_id.hex()}

    async def test_a_node_hears_a_link_that_only_receives(self) -> None:
        async with await kit.serve(config=Config(lanes=2)) as server, await kit.start(Config(lanes=2)) as client:
            heard: list[EgressReport] = []
            server.on_report(heard.append)
            link = await client.connect("127.0.0.1", server.port)
            await kit.eventually(lambda: heard, "a report")
            assert heard[0].totals.landed_bytes == 0
            assert link.lanes == 2, "and nobody has asked for other lanes"

    async def test_a_listener_that_raises_hurts_nobody(self) -> None:
        async with paced() as pair:
            heard: list[EgressReport] = []
            pair.link.on_report(lambda report: 1 / 0, 0.1)
            pair.link.on_report(heard.append, 0.1)
            await kit.eventually(lambda: heard and heard[-1].listeners.removed, "the first one to be dropped")
            assert heard[-1].listeners.faults == 10
            await kit.move(pair.link, pair.server, "r")

    async def test_a_listener_whose_future_is_cancelled_does_not_end_the_reports(self) -> None:
        async with paced() as pair:
            heard: list[EgressReport] = []
            gone = asyncio.get_running_loop().create_future()
            gone.cancel()
            pair.link.on_report(lambda report: gone.result(), 0.1)
            pair.link.on_report(heard.append, 0.1)
            await kit.eventually(lambda: heard and heard[-1].listeners.faults >= 2, "reports to go on")

    async def test_a_bug_does_not_end_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with paced() as pair:
            heard: list[EgressReport] = []
            pair.link.on_report(heard.append, 0.1)
            await kit.eventually(lambda: heard, "a report")
            failures = 3

            def broken(self: Stragglers, now: float, sample: PathSample) -> tuple[int, ...]:
                nonlocal failures
                failures -= 1
                if failures >= 0:
                    raise RuntimeError("a bug")
                return ()

            monkeypatch.setattr(Stragglers, "straggling", broken)
            await kit.eventually(lambda: failures < 0, "the link to be looked at again")
            so_far = len(heard)
            await kit.eventually(lambda: len(heard) > so_far, "reports to go on")

    async def test_an_interval_that_is_none(self) -> None:
        async with paced() as pair:
            with pytest.raises(ConfigError):
                pair.link.telemetry(0.0)


class TestOrder:
    async def test_urgent_overtakes_what_is_queued(self) -> None:
        async with paced() as pair:
            pair.link.set_budget(BPS, expires_in_s=60)
            background = await begin(pair, 16, "background", klass=2)
            urgent = await begin(pair, 1, "urgent", klass=0)
            await urgent.end()
            done, total = background.out.progress
            assert done < total / 2, "the urgent one waited for the other"
            pair.link.set_budget(1e12, expires_in_s=60)
            await background.end()

    async def test_the_earliest_deadline_first(self) -> None:
        async with paced() as pair:
            pair.link.set_budget(BPS, expires_in_s=60)
            later = await begin(pair, 8, "later", deadline_s=100)
            sooner = await begin(pair, 1, "sooner", deadline_s=50)
            await sooner.end()
            done, total = later.out.progress
            assert done < total
            pair.link.set_budget(1e12, expires_in_s=60)
            await later.end()

    async def test_a_deadline_that_has_passed(self) -> None:
        async with paced() as pair:
            offer = bulk("late", 1)
            source = Caches(offer, filled=True)
            with pytest.raises(DeadlineExceeded, match=r"passed 2 s ago.*late=.send"):
                await pair.link.offer(offer, source.at(), deadline_s=-2)
            await pair.settled()
            assert not pair.back.busy, "nothing was sent"
            await (await begin(pair, 1, "late", deadline_s=-2, late="send")).end()

    @pytest.mark.parametrize(
        "more", [{"deadline_s": float("nan")}, {"deadline_s": "soon"}, {"deadline_s": 1, "late": "maybe"}]
    )
    async def test_a_deadline_that_is_none(self, more: dict[str, object]) -> None:
        async with paced() as pair:
            offer = bulk("none", 1)
            with pytest.raises(SpecError):
                await pair.link.offer(offer, Caches(offer, filled=True).at(), **more)  # type: ignore[arg-type]


class TestSharedLanes:
    """All links to one host have 64 lanes between them."""

    @pytest.mark.parametrize("links", [5, 8])
    async def test_every_link_gets_its_share(self, links: int) -> None:
        config = Config(plain=True, lanes=16)
        async with await kit.serve(config=Config(plain=True)) as server, await kit.start(config) as client:
            there = [await client.connect("127.0.0.1", server.port) for _ in range(links)]
            for link in there:
                link.on_report(lambda report: None, 0.1)

            def shared() -> bool:
                lanes = [link.lanes for link in there]
                return min(lanes) >= 64 // links and sum(lanes) <= 64

            await kit.eventually(shared, lambda: [link.lanes for link in there])

    async def test_what_others_do_not_want_is_free(self) -> None:
        big, small = Config(plain=True, lanes=60), Config(plain=True, lanes=4)
        async with await kit.serve(config=Config(plain=True)) as server, await kit.start(big) as client:
            link = await client.connect("127.0.0.1", server.port)
            assert link.lanes == 60
            async with await kit.start(small) as other:
                assert (await other.connect("127.0.0.1", server.port)).lanes == 4


async def test_a_straggler_stays_condemned_until_it_is_replaced() -> None:
    """The verdict comes once, and the fresh lane, which has sent nothing yet, takes more than a tick."""
    async with kit.joined(client=Config(lanes=4, controller=_Hurried)) as pair:
        pair.link.on_report(lambda report: None, 0.1)
        await kit.eventually(lambda: pair.link._egress.lanes_wanted == 4, "the first tick")
        before = {(stats["lane"], stats["incarnation"]) for stats in pair.link.lane_stats()}
        pair.link._egress._slow.add(2)

        def replaced() -> bool:
            now = {(stats["lane"], stats["incarnation"]) for stats in pair.link.lane_stats()}
            return len(now) == 4 and before - now == {(2, 1)}

        await kit.eventually(replaced, pair.link.lane_stats)
        await kit.still_works(pair)


async def test_a_lane_that_is_no_longer_needed_is_lost_by_nobody() -> None:
    async with kit.joined() as pair:
        pair.link.engine_link.drain_lane(0)
        for link in (pair.link, pair.back):
            there = link

            def drained(link: kvwire.Link = there) -> bool:
                return (0, 1) not in {(it["lane"], it["incarnation"]) for it in link.lane_stats()}

            await kit.eventually(drained, link.lane_stats)
        assert pair.link._egress._lost == pair.back._egress._lost == 0
        await kit.still_works(pair)


async def test_a_lane_that_its_dialler_has_closed_is_not_lost_whoever_says_so_first() -> None:
    async with kit.joined() as pair:
        pair.back._lanes.close(0, 1)  # as if the control connection had brought it before the lane's own end
        await kit.eventually(lambda: 0 not in lanes_of(pair.back), pair.back.lane_stats)
        assert pair.back._egress._lost == 0
        await kit.still_works(pair)


def lanes_of(link: kvwire.Link) -> set[int]:
    return {stats["lane"] for stats in link.lane_stats() if stats["incarnation"] == 1}


class _Hurried(Uncapped):
    def decide(self, now: float) -> Decision:
        return Decision(next_tick_s=0.005)


@pytest.mark.parametrize("lanes", [2, 64])
async def test_a_lane_that_nobody_delivers_is_hedged_and_replaced(lanes: int) -> None:
    """The kernel at the other end of the wire acknowledges; the peer hears nothing of it. With 64 lanes there is no
    room for another one beside it."""
    async with kit.through_proxy(Config(lanes=lanes)) as (pair, proxy):
        reports: list[EgressReport] = []
        pair.link.on_report(reports.append, 0.1)
        pair.link.set_budget(BPS, expires_in_s=60)
        moving = await begin(pair, 16)
        await asyncio.sleep(0.1)
        proxy.stall_one("lane", "up")
        pair.link.set_budget(1e12, expires_in_s=60)
        await moving.end()
        assert not pair.link.closed
        await kit.eventually(lambda: reports[-1].totals.lanes_lost, "the lane to be counted as lost")
        assert 0 < reports[-1].totals.hedged_bytes <= 4 * MIB + reports[-1].totals.sent_bytes // 100
        await kit.eventually(lambda: pair.link.lanes == lanes, "a fresh one in its place")
