"""What an engine's own threads may call, and who still holds memory: blocking waits, leases, and counting to zero."""

import asyncio
import gc
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from kvwire import (
    Closed,
    Config,
    DeadlineExceeded,
    KvwireError,
    LeaseHeld,
    Link,
    Pages,
    PeerAborted,
    PlacementError,
    ReadyError,
    WrongThread,
)
from tests.net import kit
from tests.net.engines import in_child, open_things
from tests.net.kit import FIVE, Caches, granted, joined, manifest, offered, same

pytestmark = pytest.mark.usefixtures("nothing_left")

LONG_S = 30.0


async def test_blocking_waits_in_threads() -> None:
    offer = manifest("blocking", FIVE)
    source, target = Caches(offer, filled=True), Caches(offer, seed=2)
    async with joined() as pair:
        out, incoming = await granted(pair.link, pair.server, offer, source, target)

        def decode() -> None:
            for group, layer in offer.segments():
                incoming.wait_for_layer(group, layer, LONG_S)
                assert np.array_equal(source.rows(group, layer), target.rows(group, layer))

        def prefill() -> None:
            for group, layer in offer.segments():
                out.ready(group, layer)

        with ThreadPoolExecutor(4) as pool:
            loop = asyncio.get_running_loop()
            decoding = loop.run_in_executor(pool, decode)
            waits = [loop.run_in_executor(pool, wait, LONG_S) for wait in (out.wait_committed, incoming.wait_committed)]
            await loop.run_in_executor(pool, prefill)
            await decoding
            sent, got = await asyncio.gather(*waits)
            assert sent.bytes == got.bytes
            assert sent == await out.committed()
            assert got == await incoming.committed()
        same(source, target)
        await kit.still_works(pair)


async def test_the_loop_may_stand_still() -> None:
    """From `ready` to the receipt nothing goes through the event loop, and leases end without it too."""
    offer = manifest("still", FIVE)
    source, target = Caches(offer, filled=True), Caches(offer, seed=2)
    done: list[str] = []
    async with joined() as pair:
        out, incoming = await granted(pair.link, pair.server, offer, source, target)

        def work() -> None:
            kit.ready_all(out)
            incoming.wait_committed(LONG_S)
            out.wait_committed(LONG_S)
            source.check_free()
            target.check_free()
            done.append("all of it")

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(LONG_S)  # on the loop's thread: it does nothing else meanwhile
        assert done == ["all of it"]
        same(source, target)


async def test_blocking_on_the_loop_s_own_thread() -> None:
    offer = manifest()
    async with joined() as pair:
        out, incoming = await granted(pair.link, pair.server, offer, Caches(offer), Caches(offer))
        waits: list[Callable[[], object]] = [
            lambda: out.wait_committed(1),
            lambda: incoming.wait_committed(1),
            lambda: incoming.wait_for_layer("full", 0, 1),
        ]
        for wait in waits:
            with pytest.raises(WrongThread, match="await the asyncio form"):
                wait()
        kit.ready_all(out)
        await incoming.committed()
        for wait in waits:  # also when there would be nothing to wait for
            with pytest.raises(WrongThread):
                wait()


async def test_blocking_waits_have_a_time_out_and_go_on() -> None:
    offer = manifest()
    source, target = Caches(offer, filled=True), Caches(offer)
    async with joined() as pair:
        out, incoming = await granted(pair.link, pair.server, offer, source, target)
        for wait in (out.wait_committed, incoming.wait_committed):
            with pytest.raises(DeadlineExceeded, match=r"not committed after 0.01 s \(it goes on\)"):
                await asyncio.to_thread(wait, 0.01)
        with pytest.raises(DeadlineExceeded, match="layer 1 of full is not complete after 0 s"):
            await asyncio.to_thread(incoming.wait_for_layer, "full", 1, 0)
        kit.ready_all(out)
        await asyncio.to_thread(incoming.wait_for_layer, "full", 1, LONG_S)
        await incoming.committed()
        same(source, target)


async def test_blocking_waits_end_with_the_transfer() -> None:
    offer = manifest()
    async with joined() as pair:
        out, incoming = await granted(pair.link, pair.server, offer, Caches(offer), Caches(offer))
        waits = [
            asyncio.create_task(asyncio.to_thread(incoming.wait_for_layer, "full", 0, LONG_S)),
            asyncio.create_task(asyncio.to_thread(incoming.wait_committed, LONG_S)),
            asyncio.create_task(asyncio.to_thread(out.wait_committed, LONG_S)),
        ]
        await asyncio.sleep(0.02)
        await asyncio.to_thread(out.abort_nowait, "prefill failed")
        errors = await asyncio.gather(*waits, return_exceptions=True)
        assert [type(error) for error in errors] == [PeerAborted, PeerAborted, Closed]
        assert all("prefill failed" in str(error) for error in errors)
        with pytest.raises(Closed, match="prefill failed"):
            await out.committed()
        with pytest.raises(PeerAborted, match="prefill failed"):
            await incoming.committed()
        await kit.still_works(pair)


async def test_blocking_waits_before_the_grant() -> None:
    offer = manifest()
    async with joined() as pair:
        task, incoming = await offered(pair.link, pair.server, offer, Caches(offer))
        with pytest.raises(Closed, match="has not been granted"):
            await asyncio.to_thread(incoming.wait_committed, 1)
        with pytest.raises(Closed, match="has not been granted"):
            await asyncio.to_thread(incoming.wait_for_layer, "full", 0, 1)
        await incoming.refuse()
        with pytest.raises(KvwireError):
            await task


async def test_one_block_is_ready_once_whatever_threads_do() -> None:
    offer = manifest()
    source, target = Caches(offer, filled=True), Caches(offer)
    async with joined() as pair:
        out, incoming = await granted(pair.link, pair.server, offer, source, target)
        won: list[int] = []
        barrier = threading.Barrier(4)

        def claim(who: int) -> None:
            barrier.wait()
            for start in range(0, 12, 2):
                try:
                    out.ready("full", 0, [start, start + 1] if who % 2 else [start, (start + 7) % 12])
                    won.append(who)
                except ReadyError:
                    pass

        threads = [threading.Thread(target=claim, args=(who,)) for who in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert won
        for block in range(13):
            try:
                out.ready("full", 0, [block])
            except ReadyError:
                continue
        out.ready("full", 1)
        await incoming.committed()  # neither a block too few nor one too many
        same(source, target)


# --- leases ---------------------------------------------------------------------------------------------------


async def test_memory_that_a_transfer_uses_says_so() -> None:
    offer = manifest()
    source, target = Caches(offer, filled=True), Caches(offer)
    async with joined() as pair:
        task, incoming = await offered(pair.link, pair.server, offer, source)
        source.check_free()  # before the grant nothing is read
        target.check_free()
        await incoming.grant(target.at())
        out = await task
        ours, theirs = source.slot_of["full"][3], target.slot_of["full"][3]
        for pages, slot, verb in (
            (source.pages["full"], ours, "read"),
            (target.pages["full"], theirs, "written"),
        ):
            with pytest.raises(LeaseHeld, match=f"slot {slot} is still being {verb} by transfer 1"):
                pages.check_free([slot])
            with pytest.raises(LeaseHeld, match=f"is still being {verb} by transfer 1"):
                pages.close()
            free = set(range(pages.slots)) - set((source if verb == "read" else target).slot_of["full"].values())
            pages.check_free(free)
        kit.ready_all(out)
        await out.committed()
        await incoming.committed()
        source.check_free()
        target.check_free()
        same(source, target)
        source.pages["full"].close()
        target.pages["full"].close()
        for caches in (source, target):
            with pytest.raises(Closed, match="pages of group full are closed"):
                caches.at()


async def test_one_source_for_several_receivers() -> None:
    """Many may read the same slots; nobody may write what is being read."""
    offers = [manifest(f"r{i}") for i in range(2)]
    source = Caches(offers[0], filled=True)
    targets = [Caches(offers[0], seed=i) for i in range(2)]
    async with joined() as pair:
        transfers = [
            await granted(pair.link, pair.server, offer, source, target)
            for offer, target in zip(offers, targets, strict=True)
        ]
        task, third = await offered(pair.back, pair.client, manifest("into the source"), targets[0])
        with pytest.raises(PlacementError, match="is still being read by transfer"):
            await third.grant(source.at())
        await third.refuse()
        with pytest.raises(KvwireError):
            await task
        for out, incoming in transfers:
            kit.ready_all(out)
            await out.committed()
            await incoming.committed()
        for target in targets:
            same(source, target)
        source.check_free()


async def test_freeing_a_buffer_that_is_registered() -> None:
    buffer = bytearray(13 * kit.MLA.block_bytes * 2)
    view = memoryview(buffer)
    half = len(buffer) // 2
    pages = Pages(kit.MLA, [view[:half], view[half:]])
    view.release()
    with pytest.raises(BufferError):
        buffer.clear()
    pages.close()
    gc.collect()
    buffer.clear()


# --- counting to zero -----------------------------------------------------------------------------------------


async def test_three_hundred_transfers_leave_nothing() -> None:
    offer = manifest("shape", FIVE, 50)
    source, target = Caches(offer, filled=True), [Caches(offer, seed=i) for i in range(32)]
    async with joined() as pair:
        free = list(target)

        async def receive() -> None:
            running: set[asyncio.Task[None]] = set()

            async def one() -> None:
                incoming = await pair.server.accept()
                into = free.pop()
                await incoming.grant(into.at())
                await incoming.committed()
                free.append(into)

            for _ in range(100):
                if len(running) == 32:
                    _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                running.add(asyncio.create_task(one()))
            await asyncio.gather(*running)

        async def send(link: Link, number: int, places: asyncio.Semaphore) -> None:
            async with places:
                out = await link.offer(manifest(f"r{number}", FIVE, 50), source.at())
                kit.ready_all(out)
                await out.committed()

        async def hundred(first: int) -> tuple[tuple[int, int], int]:
            places = asyncio.Semaphore(32)
            sends = (send(pair.link, first + i, places) for i in range(100))
            await asyncio.gather(receive(), *sends)
            await pair.settled()
            source.check_free()
            for caches in target:
                caches.check_free()
            gc.collect()
            return open_things(), tracemalloc.get_traced_memory()[0]

        tracemalloc.start()
        try:
            tasks = asyncio.all_tasks()
            start, start_bytes = await hundred(0)
            await hundred(100)
            end, end_bytes = await hundred(200)
        finally:
            tracemalloc.stop()
        assert end <= start
        assert end_bytes - start_bytes < 256 * 1024
        assert asyncio.all_tasks() <= tasks
        same(source, target[0])


async def test_transfers_that_end_badly_leave_nothing_either() -> None:
    offer = manifest("shape", FIVE, 50)
    source, target = Caches(offer, filled=True), Caches(offer)
    async with joined(client=Config(lanes=1)) as pair:
        for i in range(40):
            named = manifest(f"r{i}", FIVE, 50)
            task, incoming = await offered(pair.link, pair.server, named, source)
            if i % 4 == 0:
                await incoming.refuse()
            elif i % 4 == 1:
                task.cancel()
            else:
                await incoming.grant(target.at())
                out = await task
                out.ready("full", 0)
                await (out if i % 4 == 2 else incoming).abort("enough")
                with pytest.raises(KvwireError):
                    await out.committed()
            with pytest.raises((KvwireError, asyncio.CancelledError)):
                await task if i % 4 < 2 else await incoming.committed()
            await pair.settled()
            source.check_free()
            target.check_free()
        await kit.still_works(pair)


async def test_blocks_that_take_their_time_stop_nobody() -> None:
    """A generator may wait for a device between two blocks; the loop ends the transfer meanwhile."""
    async with joined() as pair:
        offer = manifest("r")
        source, target = Caches(offer, filled=True), Caches(offer)
        out, incoming = await granted(pair.link, pair.server, offer, source, target)
        begun, ended = threading.Event(), threading.Event()

        def slowly() -> Iterator[int]:
            begun.set()
            assert ended.wait(kit.PATIENCE_S)
            yield 0

        thread = asyncio.create_task(asyncio.to_thread(out.ready, "full", 0, slowly()))
        await asyncio.to_thread(begun.wait, kit.PATIENCE_S)
        await incoming.abort("enough")
        with pytest.raises(PeerAborted):
            await out.committed()
        ended.set()
        with pytest.raises(Closed):
            await thread
        await kit.still_works(pair)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
async def test_a_fork_while_other_threads_hold_locks() -> None:
    """The child's half of a transfer waits for no thread that is no more, and neither does its memory."""
    offer = manifest(attachment=True)
    source, target = Caches(offer, filled=True), Caches(offer)
    held, forked = threading.Event(), threading.Event()
    async with joined() as pair:
        out, incoming = await granted(pair.link, pair.server, offer, source, target)
        first, second = (caches.pages["full"]._leases._lock for caches in (source, target))

        def hold() -> None:
            with out._lock, first, second:
                held.set()
                forked.wait(kit.PATIENCE_S)

        def use() -> None:
            calls: tuple[Callable[[], None], ...] = (lambda: out.ready("full", 0), lambda: out.attach(1))
            for call in calls:
                with pytest.raises(Closed, match="parent"):
                    call()
            for half, caches in ((out, source), (incoming, target)):
                with pytest.raises(LeaseHeld):
                    caches.check_free()
                half.abort_nowait("in the child")
                caches.check_free()

        thread = threading.Thread(target=hold)
        thread.start()
        assert await asyncio.to_thread(held.wait, kit.PATIENCE_S)
        status = in_child(use)
        forked.set()
        thread.join()
        assert status == 0
        out.attach(1)
        kit.ready_all(out)
        await out.committed()
        await incoming.committed()
    same(source, target)
