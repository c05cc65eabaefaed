"""What the tests of emulated links share: when they run, and plain sockets across a link."""

import hashlib
import random
import socket
import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path as File

import pytest

from kvwire.emulate import Path, Side, Wan, available, why_not
from kvwire.emulate.hosts import Hosts

needs_wan = pytest.mark.skipif(bool(why_not()), reason=f"no emulated WAN here: {why_not()}")
only_tun = pytest.mark.skipif(available() != "tun", reason="the kernel's netem does not have this")

in_user_mode = "User Mode Linux" in File("/proc/cpuinfo").read_text()
needs_speed = pytest.mark.skipif(in_user_mode, reason="user-mode Linux is too slow to measure on")

PATIENCE_S = 30.0
PORT = 5000
DATAGRAM = struct.Struct("!Id")
HEADERS_BYTES = 28  # IPv4 and UDP


@dataclass(frozen=True)
class Heard:
    """Datagrams in the order in which they came: their numbers, and how long each was under way."""

    numbers: list[int]
    delays_s: list[float]


def datagrams(wan: Wan, count: int, *, size: int = 64, gap_s: float = 0.0005, patience_s: float = 1.0) -> Heard:
    """Sends numbered datagrams from a to b; what has come when nothing more does for a while."""
    with wan.entered("b"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
        sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)  # the kernel takes what it allows
        sink.bind((wan.addresses[1], PORT))
        sink.settimeout(patience_s)
        sender = threading.Thread(target=_send, args=(wan, count, size, gap_s))
        sender.start()
        numbers, delays = [], []
        try:
            while True:
                number, sent = DATAGRAM.unpack_from(sink.recv(65536))
                numbers.append(number)
                delays.append(time.monotonic() - sent)
        except TimeoutError:
            sender.join()
    return Heard(numbers, delays)


def _send(wan: Wan, count: int, size: int, gap_s: float) -> None:
    with wan.entered("a"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        start = time.monotonic()
        for number in range(count):
            time.sleep(max(0.0, start + number * gap_s - time.monotonic()))
            datagram = DATAGRAM.pack(number, time.monotonic()).ljust(size, b"\0")
            sock.sendto(datagram, (wan.addresses[1], PORT))


def connect(wan: Hosts, port: int = PORT) -> tuple[socket.socket, socket.socket]:
    """A connection from a to b: its ends on a and on b."""
    with wan.entered("b"), socket.create_server((wan.addresses[1], port)) as server:
        server.settimeout(PATIENCE_S)
        with wan.entered("a"):
            here = socket.create_connection((wan.addresses[1], port), timeout=PATIENCE_S)
        there, _ = server.accept()
    there.settimeout(PATIENCE_S)
    return here, there


def stream(wan: Hosts, nbytes: int, side: Side = "a") -> float:
    """Sends random bytes over one TCP connection, which arrive as they were; seconds."""
    data = random.Random(nbytes).randbytes(nbytes)
    digest, got = hashlib.sha256(), 0
    source, sink = connect(wan) if side == "a" else connect(wan)[::-1]
    with source, sink:
        start = time.monotonic()
        sender = threading.Thread(target=source.sendall, args=(data,))
        sender.start()
        while got < nbytes:
            piece = sink.recv(1 << 20)
            assert piece, f"the connection ended after {got} of {nbytes} bytes"
            digest.update(piece)
            got += len(piece)
        took = time.monotonic() - start
        sender.join()
    assert digest.digest() == hashlib.sha256(data).digest()
    return took


def check_counters(wan: Wan) -> None:
    """in = out + drops + held, each way."""
    for way, c in wan.counters().items():
        drops = c.lost + c.overflowed + c.black_holed + c.failed
        assert c.segments_in == c.segments_out + drops + c.held, f"{way}: {c}"


def fast(delay_s: float = 0.005) -> Path:
    """A way on which nothing happens."""
    return Path(delay_s=delay_s)
