"""What an emulated link does to packets, seen from outside by plain sockets and by its own counters."""

import threading
import time
from itertools import pairwise

import pytest

from kvwire.emulate import Path, Wan
from tests.wan.kit import HEADERS_BYTES, check_counters, connect, datagrams, fast, needs_wan, only_tun, stream

pytestmark = needs_wan


def test_delay_of_each_direction() -> None:
    with Wan(Path(delay_s=0.03), Path(delay_s=0.01)) as wan:
        heard = datagrams(wan, 50, gap_s=0.005)
        assert heard.numbers == list(range(50))
        assert min(heard.delays_s) > 0.029
        assert sorted(heard.delays_s)[25] < 0.06
        start = time.monotonic()
        here, there = connect(wan)
        with here, there:
            assert time.monotonic() - start > 0.039
        check_counters(wan)


def test_loss_is_of_single_packets() -> None:
    with Wan(Path(delay_s=0.005, loss=0.1), fast()) as wan:
        heard = datagrams(wan, 4000)
        counted = wan.counters()["there"]
        check_counters(wan)
    assert counted.segments_in == 4000
    assert counted.lost == 4000 - len(heard.numbers)
    assert 280 < counted.lost < 520  # six standard deviations about 400
    assert counted.bytes_out == len(heard.numbers) * (64 + HEADERS_BYTES)


def test_loss_comes_in_bursts() -> None:
    with Wan(Path(delay_s=0.005, burst=(0.02, 0.25)), fast()) as wan:
        heard = datagrams(wan, 4000)
        counted = wan.counters()["there"]
    missing = sorted(set(range(4000)) - set(heard.numbers))
    assert counted.lost == len(missing)
    bursts = 1 + sum(after != number + 1 for number, after in pairwise(missing))
    assert 150 < len(missing) < 600  # 0.02 / (0.02 + 0.25) of them are 296
    assert 2 < len(missing) / bursts < 8  # 1 / 0.25 is 4


def test_rate() -> None:
    with Wan(Path(delay_s=0.005, rate_bps=20e6, queue_bytes=100_000), fast()) as wan:
        took = stream(wan, 3_000_000)
        counted = wan.counters()["there"]
        check_counters(wan)
    assert 1.2 < took < 3.0  # 1.24 with nothing but the rate
    assert counted.bytes_out > 3_000_000


def test_a_full_queue_drops_the_rest() -> None:
    with Wan(Path(delay_s=0.005, rate_bps=2e6, queue_bytes=10_000), fast()) as wan:
        heard = datagrams(wan, 200, size=1372, gap_s=0.0)
        counted = wan.counters()["there"]
        check_counters(wan)
    assert counted.overflowed == 200 - len(heard.numbers) > 50
    assert heard.numbers == sorted(heard.numbers)
    assert max(heard.delays_s) > 0.03  # 40 ms of queue and 5 of delay
    if wan.kind == "tun":
        assert counted.queueing is not None
        assert counted.queue_max_bytes is not None
        assert 8_600 < counted.queue_max_bytes <= 10_000
        assert 0.02 < counted.queueing.quantile_s(0.95) < 0.043
        assert counted.queueing.total == len(heard.numbers)


def test_reordering() -> None:
    with Wan(Path(delay_s=0.02, reorder=0.05), fast()) as wan:
        heard = datagrams(wan, 2000)
        counted = wan.counters()["there"]
    early = sum(number > after for number, after in pairwise(heard.numbers))
    assert sorted(heard.numbers) == list(range(2000))
    assert 40 < early < 200  # 100, less where two of them follow one another
    assert counted.reordered is None or early <= counted.reordered < 200


def test_jitter_keeps_the_order() -> None:
    with Wan(Path(delay_s=0.03, jitter_s=0.02), fast()) as wan:
        heard = datagrams(wan, 200, gap_s=0.005)
    assert heard.numbers == list(range(200))
    assert min(heard.delays_s) > 0.009
    assert max(heard.delays_s) - min(heard.delays_s) > 0.01


def test_a_change_holds_at_once() -> None:
    with Wan(fast(), fast()) as wan:
        assert min(datagrams(wan, 20).delays_s) < 0.05
        wan.change(Path(delay_s=0.1, loss=0.5), fast())
        heard = datagrams(wan, 100)
        assert min(heard.delays_s) > 0.099
        assert 20 < len(heard.numbers) < 80
        wan.change(Path(delay_s=0.005, rate_bps=1e6, queue_bytes=10_000))
        assert len(datagrams(wan, 100, size=1372, gap_s=0.0).numbers) < 50
        wan.change(Path(delay_s=0.005, rate_bps=50e6, queue_bytes=200_000))
        assert len(datagrams(wan, 100, size=1372, gap_s=0.0).numbers) == 100
        wan.change(fast())
        assert len(datagrams(wan, 100, size=1372, gap_s=0.0).numbers) == 100
        check_counters(wan)


@only_tun
def test_a_slower_link_drains_its_queue_slowly() -> None:
    with Wan(Path(delay_s=0.001, rate_bps=4e6, queue_bytes=100_000), fast()) as wan:
        here, there = connect(wan)
        with here, there:
            here.sendall(bytes(60_000))
            wan.change(Path(delay_s=0.001, rate_bps=0.4e6, queue_bytes=100_000), fast())
            start, got = time.monotonic(), 0
            while got < 60_000:
                got += len(there.recv(65536))
            assert time.monotonic() - start > 0.3  # 1.2 s for all of it, less for what left before


def test_black_hole_of_everything() -> None:
    with Wan(fast(), fast()) as wan:
        wan.black_hole(True)
        assert datagrams(wan, 100, patience_s=0.3).numbers == []
        wan.black_hole(False)
        assert len(datagrams(wan, 100).numbers) == 100
        assert wan.counters()["there"].black_holed == 100
        check_counters(wan)


def test_black_hole_of_one_connection() -> None:
    with Wan(fast(), fast()) as wan:
        pairs = [connect(wan), connect(wan)]
        port = pairs[0][0].getsockname()[1]
        wan.black_hole(True, port=port)
        for here, there in pairs:
            here.sendall(b"forth")
            there.sendall(b"back")
        here, there = pairs[1]
        assert (here.recv(5), there.recv(5)) == (b"back", b"forth")
        for end in pairs[0]:
            end.settimeout(0.3)
            with pytest.raises(TimeoutError):
                end.recv(5)
        counted = wan.counters()
        assert counted["there"].black_holed > 0
        assert counted["back"].black_holed > 0
        wan.black_hole(False, port=port)
        here, there = pairs[0]
        here.settimeout(10)
        there.settimeout(10)
        assert (here.recv(5), there.recv(5)) == (b"back", b"forth")
        for pair in pairs:
            for end in pair:
                end.close()


def test_a_stream_survives_all_of_it() -> None:
    way = Path(delay_s=0.01, jitter_s=0.002, rate_bps=20e6, queue_bytes=100_000, loss=0.005, reorder=0.01)
    with Wan(way) as wan:
        stream(wan, 1_000_000)
        stream(wan, 1_000_000, "b")
        check_counters(wan)
        assert min(counted.lost for counted in wan.counters().values()) > 0


def test_counters_while_packets_move() -> None:
    with Wan(Path(delay_s=0.02, rate_bps=20e6, queue_bytes=50_000)) as wan:
        start = read = wan.counters()["there"]
        sender = threading.Thread(target=stream, args=(wan, 3_000_000))
        sender.start()
        while sender.is_alive():
            check_counters(wan)
            before, read = read, wan.counters()["there"]
            assert read.segments_out >= before.segments_out
            assert read.queue_bytes <= 50_000
        sender.join()
        counted = wan.counters()["there"].since(start)
    assert counted.bytes_out > 3_000_000
    if wan.kind == "tun":
        assert counted.lateness is not None
        assert counted.lateness.total == counted.segments_out
        assert counted.late_mean_s is not None
        assert counted.late_max_s is not None
        assert 0.0 <= counted.late_mean_s <= counted.late_max_s


@only_tun
def test_ecn_marks() -> None:
    with Wan(Path(delay_s=0.01, rate_bps=20e6, queue_bytes=1_000_000, mark_bytes=30_000), fast()) as wan:
        for side in wan.sides:
            with wan.entered(side), open("/proc/sys/net/ipv4/tcp_ecn", "w") as file:
                file.write("1")
        stream(wan, 2_000_000)
        counted = wan.counters()["there"]
    assert counted.marked > 0
    assert counted.overflowed == counted.lost == 0


@only_tun
def test_the_same_seed_loses_the_same_packets() -> None:
    runs = []
    for seed in (1, 1, 2):
        with Wan(Path(loss=0.2), fast(), seed=seed) as wan:
            runs.append(datagrams(wan, 300, patience_s=0.3).numbers)
    assert runs[0] == runs[1] != runs[2]


def test_what_a_kind_cannot_do() -> None:
    with Wan(fast()) as wan:
        if wan.kind == "netem":
            with pytest.raises(ValueError, match="mark_bytes"):
                wan.change(Path(rate_bps=1e6, mark_bytes=1000))
            with pytest.raises(ValueError, match="bursts"):
                wan.change(Path(loss=0.1, burst=(0.1, 0.1)))
        else:
            with pytest.raises(OSError, match="netem"):
                Wan(fast(), kind="netem")


def test_buffers() -> None:
    limits = []
    for kept in (Wan(fast()), Wan(fast(), buffers="big")):
        with kept as wan, wan.entered("b"), open("/proc/sys/net/ipv4/tcp_rmem") as file:
            limits.append(int(file.read().split()[2]))
    assert limits[0] < limits[1] == 64 << 20
