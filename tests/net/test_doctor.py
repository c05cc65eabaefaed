"""kvwire-bench doctor as a user runs it, on hosts that were spoiled on purpose."""

import json
import platform
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kvwire.cli import sealing
from kvwire.wire.preamble import ConnectionKind, preamble
from tests.net import kit
from tests.net.namespaces import Host, namespace, needs_ipv6, needs_namespaces, two_hosts

Done = subprocess.CompletedProcess[str]
DOCTOR = (sys.executable, "-m", "kvwire.cli.bench", "doctor")

RENO_IS_ALL = """
import ctypes, os, platform, struct, sys
# seccomp(2): setsockopt(IPPROTO_TCP, TCP_CONGESTION) fails with EPERM, as in a sandbox that does not offer it.
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, EPERM = 0x7FFF0000, 0x00050001
number = {"x86_64": 54, "aarch64": 208}[platform.machine()]
code = [
    (LOAD, 0, 0, 0), (JUMP_IF_EQUAL, 0, 5, number),
    (LOAD, 0, 0, 24), (JUMP_IF_EQUAL, 0, 3, 6),
    (LOAD, 0, 0, 32), (JUMP_IF_EQUAL, 0, 1, 13),
    (RETURN, 0, 0, EPERM), (RETURN, 0, 0, ALLOW),
]
program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in code))
filter = ctypes.create_string_buffer(struct.pack("@HP", len(code), ctypes.addressof(program)))
prctl = ctypes.CDLL(None, use_errno=True).prctl
if prctl(38, 1, 0, 0, 0) or prctl(22, 2, filter, 0, 0):
    sys.exit(f"no seccomp: errno {ctypes.get_errno()}")
os.execv(sys.argv[1], sys.argv[1:])
"""
NODE = """
import asyncio, sys, kvwire
async def main(address, keys):
    identity = kvwire.Identity.load(keys) if keys else None
    node = await kvwire.Node.serve(address, 7878, kvwire.Config(plain=not keys), identity=identity)
    print("up", flush=True)
    await asyncio.Event().wait()
kvwire.run(main(*sys.argv[1:]))
"""


def run(*command: str) -> Done:
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)


def doctor(*arguments: str, within: Sequence[str] = ()) -> dict[str, Any]:
    """Its JSON, run by the command `within`."""
    done = run(*within, *DOCTOR, *arguments, "--json")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def findings(found: dict[str, Any], area: str) -> list[dict[str, str]]:
    return [finding for finding in found["findings"] if finding["area"] == area]


@pytest.fixture
def alone() -> Iterator[Host]:
    """A namespace with nothing but loopback."""
    with namespace("alone") as name:
        yield Host(name, "127.0.0.1", "::1")


@pytest.fixture
def joined() -> Iterator[tuple[Host, Host]]:
    with two_hosts() as hosts:
        yield hosts


def on(host: Host, *command: str) -> None:
    done = run(*host.command(*command))
    assert done.returncode == 0, done.stderr


@contextmanager
def node_on(host: Host, address: str, keys: Path | None = None) -> Iterator[None]:
    """Plain without `keys`."""
    command = host.command(sys.executable, "-c", NODE, address, str(keys or ""))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            yield
        finally:
            process.kill()


class TestSpoiledHosts:
    """What was spoiled is found, in a namespace or a limited shell of its own."""

    @needs_namespaces
    def test_a_small_send_buffer(self, alone: Host) -> None:
        on(alone, "sysctl", "-w", "net.ipv4.tcp_wmem=4096 16384 212992")
        found = doctor(within=alone.command())
        (finding,) = (finding for finding in findings(found, "buffers") if "tcp_wmem" in finding["found"])
        assert finding["level"] == "warning"
        assert "tcp_wmem ends at 212,992 bytes" in finding["found"]
        assert "42.6 Mbit/s at 40 ms" in finding["found"]
        # Doing as it says makes it say no more.
        for word in ("tcp_wmem", "tcp_rmem"):
            for finding in findings(found, "buffers"):
                if word in finding["change"]:
                    on(alone, "sh", "-c", finding["change"])
        assert {finding["level"] for finding in findings(doctor(within=alone.command()), "buffers")} == {"ok"}

    def test_few_descriptors(self) -> None:
        found = doctor(within=("sh", "-c", 'ulimit -n 64; exec "$@"', "sh"))
        (finding,) = findings(found, "descriptors")
        assert finding["level"] == "fault"
        assert finding["found"].startswith("64 descriptors: room for 6 links of 4 lanes, none for one of 64")
        assert "ulimit -n" in finding["change"]
        assert found["facts"]["files_soft"] == 64

    @needs_namespaces
    def test_reno_by_default(self, alone: Host) -> None:
        on(alone, "sysctl", "-w", "net.ipv4.tcp_congestion_control=reno")
        found = doctor(within=alone.command())
        assert found["facts"]["default_control"] == "reno"
        said = [finding for finding in findings(found, "congestion") if finding["level"] == "warning"]
        assert "reno" in said[0]["found"]

    @needs_namespaces
    def test_reno_only(self, alone: Host) -> None:
        if platform.machine() not in ("x86_64", "aarch64"):
            pytest.skip("the filter of system calls is written for x86-64 and aarch64")
        on(alone, "sysctl", "-w", "net.ipv4.tcp_congestion_control=reno")
        limited = alone.command(sys.executable, "-c", RENO_IS_ALL)
        if "no seccomp" in (done := run(*limited, "/bin/true")).stderr:
            pytest.skip(done.stderr.strip())
        # Choosing is forbidden, and reno is what a socket has anyway.
        found = doctor(within=limited)
        assert found["facts"]["default_control"] == "reno"
        assert found["facts"]["usable_controls"] == ["reno"]
        (finding,) = findings(found, "congestion")
        assert finding["level"] == "warning"
        assert "reno is the only congestion control" in finding["found"]
        allowed = found["facts"]["sysctls"]["net.ipv4.tcp_allowed_congestion_control"].split()
        assert ("seccomp" if "bbr" in allowed else "tcp_allowed_congestion_control") in finding["change"]

    @needs_namespaces
    def test_switched_off(self, alone: Host) -> None:
        on(alone, "sysctl", "-w", "net.ipv4.tcp_sack=0", "net.ipv4.tcp_window_scaling=0")
        found = [finding["found"].split(":")[0] for finding in findings(doctor(within=alone.command()), "tcp")]
        assert "tcp_sack is 0" in found
        assert "tcp_window_scaling is 0" in found

    def test_a_libcrypto_that_cannot_be_used(self) -> None:
        found = doctor(within=("env", "KVWIRE_LIBCRYPTO=/dev/null"))
        (fault,) = (f for f in findings(found, "crypto") if f["level"] == "fault")
        assert fault["found"].startswith("KVWIRE_LIBCRYPTO is '/dev/null'")

    def test_what_seals(self) -> None:
        found = doctor()
        crypto = found["facts"]["crypto"]
        assert crypto["cipher"] == found["machines"]["here"]["cipher"] == sealing.cipher_name()
        if crypto["libcrypto"]:
            said = f"libcrypto {crypto['libcrypto']} seals, {crypto['libcrypto_path']} ({crypto['libcrypto_found_as']})"
            assert any(finding["found"].startswith(said) for finding in findings(found, "crypto"))


class TestPaths:
    """The path to HOST, over real sockets."""

    @needs_namespaces
    def test_a_node_answers(self, joined: tuple[Host, Host]) -> None:
        here, there = joined
        with node_on(there, there.ipv4):
            found = doctor(there.ipv4, "--plain", "--rate", "1G", within=here.command())
        path = found["path"]
        assert (path["node"], path["rtt_by"], path["address"]) == ("kvwire", "handshake", there.ipv4)
        assert 0 < path["rtt_s"] < 0.05
        assert (path["interface"]["name"], path["interface"]["mtu"], path["path_mtu"]) == ("wire", 1500, 1500)
        assert (path["window_scaling"], path["sack"], path["mss"]) == (True, True, 1448)
        assert {finding["level"] for finding in findings(found, "buffers")} == {"ok"}
        said = [finding["found"] for finding in findings(found, "path")]
        assert f"a kvwire node answers at {there.ipv4} port 7878, its version fits, RTT" in said[1] + said[0]

    @needs_namespaces
    def test_a_sealed_node_answers(self, joined: tuple[Host, Host]) -> None:
        here, there = joined
        own = str(kit.key_directory(role="prefill", name="here"))
        with node_on(there, there.ipv4, kit.key_directory(role="decode", name="there")):
            found = doctor(there.ipv4, "--keys", own, within=here.command())
            unasked = doctor(there.ipv4, within=here.command())
            plain = doctor(there.ipv4, "--plain", within=here.command())
            stranger = doctor(there.ipv4, "--keys", str(kit.key_directory("other")), within=here.command())
        assert (found["path"]["node"], found["path"]["node_is"]) == ("kvwire", "kvwire://acme/decode/eu-west/there")
        said = [finding["found"] for finding in findings(found, "path")]
        assert any(text.endswith("it is kvwire://acme/decode/eu-west/there") for text in said)
        assert unasked["path"]["node"] == "unasked"
        assert unasked["path"]["mss"] == 1448
        (note,) = (f for f in findings(unasked, "path") if "it was not asked" in f["found"])
        assert note["change"] == "give the doctor --keys DIR or --plain"
        for found, sentence in ((plain, "this side is plain"), (stranger, "tenant acme is not this node's, other")):
            (fault,) = (f for f in findings(found, "path") if f["level"] == "fault")
            assert sentence in fault["found"]
            assert "--keys" in fault["change"]

    @needs_namespaces
    def test_buffers_against_the_path(self, joined: tuple[Host, Host]) -> None:
        here, there = joined
        on(here, "sysctl", "-w", "net.ipv4.tcp_wmem=4096 16384 16384")
        with node_on(there, there.ipv4):
            found = doctor(there.ipv4, "--plain", "--rate", "400G", within=here.command())
        finding = next(finding for finding in findings(found, "buffers") if "tcp_wmem" in finding["found"])
        assert finding["level"] in ("warning", "fault")
        reached_bps = 16384 * 8 / found["path"]["rtt_s"]
        assert reached_bps * 4 < 400e9
        assert "4 lanes reach 400 Gbit/s" in finding["gain"]

    @needs_namespaces
    def test_the_other_end_does_not_agree(self, joined: tuple[Host, Host]) -> None:
        here, there = joined
        on(there, "sysctl", "-w", "net.ipv4.tcp_window_scaling=0", "net.ipv4.tcp_sack=0")
        with node_on(there, there.ipv4):
            found = doctor(there.ipv4, within=here.command())
        said = [finding["found"] for finding in findings(found, "path")]
        assert any(text.startswith("tcp_window_scaling is on here and was not agreed on") for text in said)
        assert any(text.startswith("tcp_sack is on here and was not agreed on") for text in said)

    @needs_namespaces
    def test_nothing_listens(self, joined: tuple[Host, Host]) -> None:
        here, there = joined
        found = doctor(there.ipv4, "-p", "7", within=here.command())
        assert (found["path"]["node"], found["path"]["rtt_by"]) == ("none", "refusal")
        assert found["path"]["rtt_s"] > 0
        assert any(f"nothing listens at {there.ipv4} port 7, RTT" in f["found"] for f in findings(found, "path"))

    @needs_namespaces
    @needs_ipv6
    def test_ipv6(self, alone: Host) -> None:
        with node_on(alone, "::1"):
            found = doctor("::1", "--plain", within=alone.command())
        assert (found["path"]["node"], found["path"]["interface"]["name"]) == ("kvwire", "lo")

    def test_a_node_of_another_version(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            threading.Thread(
                target=answer, args=(server, preamble(ConnectionKind.CONTROL, plain=True, version=9)), daemon=True
            ).start()
            found = doctor("127.0.0.1", "-p", str(server.getsockname()[1]), "--plain")
        (finding,) = (f for f in findings(found, "path") if f["level"] == "fault")
        assert "wire version 9" in finding["found"]

    def test_something_else(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            threading.Thread(target=answer, args=(server, b"SSH-2.0-x\r\n"), daemon=True).start()
            found = doctor("127.0.0.1", "-p", str(server.getsockname()[1]), "--plain")
        assert found["path"]["node"] == "other"


def answer(server: socket.socket, data: bytes) -> None:
    """Says `data` to whoever connects, and waits until they go."""
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            try:
                connection.sendall(data)
                while connection.recv(4096):
                    pass
            except OSError:
                continue


class TestBadInput:
    """A sentence and exit status 2, after what could be found."""

    def test_keys_that_cannot_be_used(self, tmp_path: Path) -> None:
        done = self.refused("127.0.0.1", "--keys", str(tmp_path))
        assert f"{tmp_path}/identity.pem: No such file or directory" in done.stderr

    def refused(self, *arguments: str, within: Sequence[str] = ()) -> Done:
        done = run(*within, *DOCTOR, *arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        return done

    def test_a_name_that_does_not_resolve(self) -> None:
        done = self.refused("no.such.host.invalid", "--json")
        assert "'no.such.host.invalid' does not resolve" in done.stderr
        found = json.loads(done.stdout)
        assert found["path"] is None
        assert findings(found, "cpu")

    @needs_namespaces
    def test_no_route(self, alone: Host) -> None:
        done = self.refused("192.0.2.9", within=alone.command())
        assert "192.0.2.9 cannot be reached: Network is unreachable" in done.stderr
        assert "descriptors" in done.stdout

    @needs_namespaces
    def test_no_answer(self, joined: tuple[Host, Host]) -> None:
        here, _ = joined
        # Without ARP nobody is asked who has the address, and packets to it vanish.
        on(here, "ip", "link", "set", "wire", "arp", "off")
        done = self.refused("10.78.0.9", within=here.command())
        assert "10.78.0.9 port 7878 did not answer within 3 s" in done.stderr

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["-p", "0"], "expected an integer in 1 to 65535"),
            (["-p", "http"], "expected an integer in 1 to 65535"),
            (["--rate", "fast"], "'fast' is no rate"),
            (["--rate", "10"], "'10' is no rate"),
            (["one", "two"], "unrecognized arguments: two"),
            (["one", "--keys", "k", "--plain"], "not allowed with argument --keys"),
        ],
    )
    def test_impossible_flags(self, arguments: list[str], sentence: str) -> None:
        assert sentence in self.refused(*arguments).stderr


def test_for_people() -> None:
    done = run(*DOCTOR, "127.0.0.1", "-p", "7")
    assert done.returncode == 0
    assert "Wanted: 10 Gbit/s over 4 lanes to 127.0.0.1" in done.stdout
    assert "nothing listens at 127.0.0.1 port 7" in done.stdout
    assert "\x1b" not in done.stdout
