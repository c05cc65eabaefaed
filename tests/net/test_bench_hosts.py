"""kvwire-bench serve and run, as users run them: on two hosts, and with all that can go wrong between them."""

import contextlib
import os
import pty
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvwire import wire
from tests.net.bench import (
    BENCH,
    PATIENCE_S,
    SMALL,
    Server,
    environment,
    fails,
    measuring,
    result_of,
    run,
    serving,
    start,
)
from tests.net.namespaces import Host, needs_ipv6, needs_namespaces, two_hosts

# --- two hosts ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    with two_hosts() as made:
        yield made


@pytest.fixture(scope="module")
def server(hosts: tuple[Host, Host]) -> Iterator[Server]:
    """One server for all tests: it has to outlive what each of them does to it."""
    with serving(host=hosts[0]) as made:
        yield made


@needs_namespaces
class TestTwoHosts:
    @pytest.mark.parametrize("family", ["ipv4", pytest.param("ipv6", marks=needs_ipv6)])
    @pytest.mark.parametrize(("flags", "directions"), [([], ["up"]), (["-R"], ["down"]), (["--bidir"], ["up", "down"])])
    def test_directions(
        self, hosts: tuple[Host, Host], server: Server, family: str, flags: list[str], directions: list[str]
    ) -> None:
        address = getattr(hosts[0], family)
        found = result_of(run(address, *SMALL, *flags, "-P", "2", "--json", host=hosts[1]))
        assert [flow["direction"] for flow in found["flows"]] == directions
        for flow in found["flows"]:
            assert (flow["bytes"], flow["transfers"], flow["damage"]) == (16 << 20, 4, [])
            assert flow["checked"] > 0
            assert sum(interval["bytes"] for interval in flow["intervals"]) == flow["bytes"]
        assert set(found["machines"]) == {"client", "server"}

    @pytest.mark.parametrize("lanes", [1, 4, 16])
    def test_lanes(self, hosts: tuple[Host, Host], server: Server, lanes: int) -> None:
        found = result_of(run(hosts[0].ipv4, *SMALL, "-P", str(lanes), "--json", host=hosts[1]))
        assert found["lanes"] == lanes

    def test_two_clients_at_once(self, hosts: tuple[Host, Host], server: Server) -> None:
        clients = [start(hosts[0].ipv4, "-t", "2", flag, "--json", host=hosts[1]) for flag in ("-R", "--bidir")]
        server.wait_for("down, 2 s")
        server.wait_for("up and down, 2 s")
        for client in clients:
            out, err = client.communicate(timeout=50)
            result_of(subprocess.CompletedProcess(client.args, client.returncode, out, err))

    def test_a_killed_client_leaves_nothing(self, hosts: tuple[Host, Host], server: Server) -> None:
        result_of(run(hosts[0].ipv4, *SMALL, "--json", host=hosts[1]))
        before = server.open_files()
        gone = sum("gone: " in line for line in server.lines)
        victim = start(hosts[0].ipv4, "-t", "30", "--bidir", "--json", host=hosts[1])
        try:
            server.wait_for("up and down, 30 s")
            assert server.open_files() > before
        finally:
            victim.send_signal(signal.SIGKILL)  # `ip netns exec` has become the bench itself
            victim.communicate()
        server.wait_for("gone: ", gone + 1)
        result_of(run(hosts[0].ipv4, *SMALL, "--json", host=hosts[1]))
        until = time.monotonic() + PATIENCE_S
        while server.open_files() > before:
            assert time.monotonic() < until
            time.sleep(0.05)

    @needs_ipv6
    def test_family_and_source_address(self, hosts: tuple[Host, Host], server: Server) -> None:
        result_of(run(hosts[0].ipv6, *SMALL, "-6", "-B", hosts[1].ipv6, "--json", host=hosts[1]))
        server.wait_for(f"{hosts[1].ipv6} port")
        fails(run(hosts[0].ipv4, "-6", host=hosts[1]), "does not resolve to an IPv6 address")
        fails(run(hosts[0].ipv4, "-B", "10.78.0.99", host=hosts[1]), "cannot dial from 10.78.0.99")
        fails(run(hosts[0].ipv4, "-B", hosts[1].ipv6, host=hosts[1]), "the local addresses are of the other")

    @needs_ipv6
    def test_a_server_of_one_family(self, hosts: tuple[Host, Host]) -> None:
        with serving("-6", "-p", "7900", host=hosts[0]):
            fails(run(hosts[0].ipv4, "-p", "7900", host=hosts[1]), "nothing listens at 10.78.0.1 port 7900")
            result_of(run(hosts[0].ipv6, "-p", "7900", *SMALL, "--json", host=hosts[1]))


# --- one host -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def local() -> Iterator[Server]:
    with serving("-B", "127.0.0.1", "-p", "0", "--max-memory", "512MiB") as made:
        yield made


def test_a_model_paced_over_its_prefill(local: Server) -> None:
    arguments = ["--model", "kimi-linear-48b", "--tokens", "100", "--prefill", "0.3", "-n", "1"]
    found = result_of(run("127.0.0.1", "-p", local.port, *arguments, "--json"))
    assert (found["model"], found["tokens"], found["at_once"]) == ("kimi-linear-48b", 100, 1)
    (flow,) = found["flows"]
    assert flow["transfers"] == 1
    assert flow["seconds"] > 0.3
    assert 0 < flow["tail_s"] < flow["seconds"]


@pytest.mark.parametrize(
    ("flags", "ratio"),
    [
        (["--compression", "zstd", "--content", "kv"], 1.47),
        (["--compression", "full=int8", "--content", "kv", "--scatter"], 1.88),
        (["--compression", "zstd"], None),
        (["--compression", "off", "--content", "kv"], None),
    ],
)
def test_both_directions_go_through_what_was_ordered(local: Server, flags: list[str], ratio: float | None) -> None:
    found = result_of(run("127.0.0.1", "-p", local.port, *SMALL, "--bidir", "--json", *flags))
    assert (found["compression"], found["content"]) == (flags[1], "kv" if "kv" in flags else "noise")
    for flow in found["flows"]:
        assert flow["checked"] > 0
        assert flow["coded_share"] == (0.0 if ratio is None else 1.0)
        assert flow["coded_ratio"] == (None if ratio is None else pytest.approx(ratio, abs=0.05))


def test_it_says_what_went_coded(local: Server) -> None:
    done = run("127.0.0.1", "-p", local.port, *SMALL, "--compression", "zstd", "--content", "kv")
    assert "; 100 % coded, 1.4" in done.stdout
    assert "compression zstd" in done.stdout


def test_quiet_in_a_pipe_unless_asked(local: Server) -> None:
    arguments = ["127.0.0.1", "-p", local.port, "-t", "1.2"]
    silent, asked = run(*arguments), run(*arguments, "-i", "0.5")
    assert (silent.returncode, asked.returncode, silent.stderr, asked.stderr) == (0, 0, "", "")
    assert len([line for line in silent.stdout.splitlines() if line.startswith("[  up]")]) == 1
    assert len([line for line in asked.stdout.splitlines() if line.startswith("[  up]")]) >= 3
    assert "compared byte by byte: all right" in asked.stdout


def test_bars_and_intervals_on_a_terminal(local: Server) -> None:
    ours, theirs = pty.openpty()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, ours)
        command = [*BENCH, "run", "127.0.0.1", "-p", local.port, "-t", "2.2"]
        client = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment("run"))
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the terminal has been hung up
            while chunk := os.read(ours, 65536):
                shown += chunk
        assert client.wait(PATIENCE_S) == 0
    text = shown.decode()
    assert text.count("[  up]") >= 3  # two whole seconds, the rest unless it was short, the sum
    assert "[#############" in text


def test_interrupted_it_shows_what_there_is(local: Server) -> None:
    client = measuring("127.0.0.1", "-p", local.port, "-t", "30", "--bidir")
    client.send_signal(signal.SIGINT)
    out, err = client.communicate(timeout=PATIENCE_S)
    assert (client.returncode, err) == (130, "")
    assert "compared byte by byte: all right" in out
    assert "interrupted after" in out
    assert out.count("[  up]    0.0-") == out.count("[down]    0.0-") == 1


def test_a_server_killed_in_mid_run() -> None:
    with serving("-B", "127.0.0.1", "-p", "0") as server:
        client = measuring("127.0.0.1", "-p", server.port, "-t", "30", "--bidir")
        server.process.kill()
        out, err = client.communicate(timeout=PATIENCE_S)
    fails(subprocess.CompletedProcess(client.args, client.returncode, out, err), "gone: ", "had landed after")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_that_is_ended(number: int) -> None:
    with serving("-B", "127.0.0.1", "-p", "0") as server:
        client = start("127.0.0.1", "-p", server.port, "-t", "30", "-R")
        server.wait_for("down, 30 s")
        server.process.send_signal(number)
        assert server.process.wait(PATIENCE_S) == 0
        out, err = client.communicate(timeout=PATIENCE_S)
        fails(subprocess.CompletedProcess(client.args, client.returncode, out, err), "gone: ")
    assert not any("Traceback" in line for line in server.lines)


def test_one_off() -> None:
    with serving("-B", "127.0.0.1", "-p", "0", "-1") as server:
        result_of(run("127.0.0.1", "-p", server.port, *SMALL, "--json"))
        assert server.process.wait(PATIENCE_S) == 0


def test_more_memory_than_the_server_gives(local: Server) -> None:
    asked = ["127.0.0.1", "-p", local.port, "--transfer", "256MiB"]
    fails(run(*asked, "--json"), "refused: this needs 774 MiB of memory at the server, which has 512 MiB")
    fails(run(*asked, "--bidir", "--json"), "refused: this needs 1.261 GiB")
    result_of(run("127.0.0.1", "-p", local.port, *SMALL, "--json"))


def resident_bytes(server: Server) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def test_memory_of_clients_that_vanish_is_given_back() -> None:
    with serving("-B", "127.0.0.1", "-p", "0", "--max-memory", "512MiB") as server:
        result_of(run("127.0.0.1", "-p", server.port, *SMALL, "--json"))
        before = resident_bytes(server)
        for number in range(1, 5):
            victim = start("127.0.0.1", "-p", server.port, "-t", "30", "--bidir")  # 320 MiB at the server
            server.wait_for("up and down, 30 s", number)
            time.sleep(0.3)
            victim.kill()
            victim.communicate()
            server.wait_for("gone: ", number)
        until = time.monotonic() + PATIENCE_S
        while resident_bytes(server) > before + (64 << 20):
            assert time.monotonic() < until, resident_bytes(server) >> 20
            time.sleep(0.05)


@pytest.mark.parametrize("arguments", [["models"], ["models", "--json"], ["doctor", "--json"]])
def test_output_that_cannot_be_written(arguments: list[str]) -> None:
    for redirection, said in ((">/dev/full", "No space left on device"), (">&-", ""), ("| true", "")):
        shell = f"set -o pipefail; {' '.join([*BENCH, *arguments])} {redirection}"
        done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert done.returncode in (0, 2), done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr
        assert "Exception" not in done.stderr


def test_a_server_that_nobody_listens_to_serves_on() -> None:
    for redirection in (">&-", ">/dev/full"):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        shell = f"exec {' '.join(BENCH)} serve -B 127.0.0.1 -p {port} -1 {redirection}"
        server = subprocess.Popen(["bash", "-c", shell], stderr=subprocess.PIPE, text=True, env=environment("serve"))
        until = time.monotonic() + PATIENCE_S
        while (done := run("127.0.0.1", "-p", port, *SMALL, "--json")).returncode:
            assert time.monotonic() < until, done.stderr
        result_of(done)
        _, err = server.communicate(timeout=PATIENCE_S)
        assert "Traceback" not in err


# --- no server ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def stranger(answer: Callable[[socket.socket], object]) -> Iterator[str]:
    """Something else that listens; says what `answer` says to whoever connects. Yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with listener.accept()[0] as connection:
                        answer(connection)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield str(listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def hang_up(connection: socket.socket) -> None:
    """Without a word, and without a reset: what the other side says is read."""
    connection.shutdown(socket.SHUT_WR)
    while connection.recv(4096):
        pass


def test_nothing_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    fails(run("127.0.0.1", "-p", port), f"nothing listens at 127.0.0.1 port {port}")
    fails(run("no.such.host.invalid"), "'no.such.host.invalid' does not resolve")


def test_another_version_there() -> None:
    other = struct.pack("<4sHH", b"KVWC", wire.WIRE_VERSION + 6, 1)
    with stranger(lambda connection: connection.sendall(other + connection.recv(8))) as port:
        versions = f"the peer speaks wire version {wire.WIRE_VERSION + 6}, this side {wire.WIRE_VERSION}"
        fails(run("127.0.0.1", "-p", port), f"127.0.0.1 port {port}: {versions}")


def test_something_else_there() -> None:
    with stranger(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        fails(run("127.0.0.1", "-p", port), "HTTP")
    with stranger(hang_up) as port:
        fails(run("127.0.0.1", "-p", port), f"127.0.0.1 port {port}: it closed the connection after 0 bytes")


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        command = [*BENCH, "serve", "-B", "127.0.0.1", "-p", port]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, env=environment("serve")
        )
    fails(done, f"cannot listen at 127.0.0.1 port {port}: Address already in use")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-P", "0"], "'0'; expected an integer in 1 to 64"),
        (["-P", "65"], "'65'; expected an integer in 1 to 64"),
        (["-p", "0"], "'0'; expected an integer in 1 to 65535"),
        (["-t", "0"], "'0'; expected a number in 0.1 to 86400"),
        (["-t", "1", "-n", "1M"], "not allowed with argument -t"),
        (["-R", "--bidir"], "not allowed with argument"),
        (["-4", "-6"], "not allowed with argument"),
        (["-n", "-5"], "expected one argument"),
        (["-n", "1.5X"], "is no size"),
        (["-n", "9" * 400], "is no size"),
        (["-n", "999999999999G"], "transfers of 64 MiB; at most"),
        (["--page", "7"], "--page is 7 bytes; expected a multiple of 8"),
        (["--transfer", "1KiB"], "less than one page"),
        (["--at-once", "17"], "'17'; expected an integer in 1 to 16"),
        (["--tokens", "5"], "--tokens needs --model"),
        (["--model", "llama-3-70b"], "--model needs --tokens"),
        (["--model", "lama-3-70b", "--tokens", "5"], "did you mean llama-3-70b"),
        (["--model", "llama-3-70b", "--tokens", "16000000"], "of memory and the host has"),
        (["--cc", "nosuch"], "--cc nosuch: this host does not let us use it"),
        (["-i", "0"], "'0'; expected a number in 0.1 to 3600"),
        (["--compression", "zip"], "there is no codec 'zip' (known: zstd"),
        (["--compression", "full"], "there is no codec 'full'"),
        (["--compression", "int8"], "codec 'int8' does not take group 'pages', which is full of uint8"),
        (["--content", "text"], "invalid choice: 'text'"),
    ],
)
def test_impossible_flags(arguments: list[str], sentence: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    given = arguments if "-p" in arguments else ["-p", port, *arguments]
    fails(run("127.0.0.1", *given), sentence)


def test_a_killed_client_without_a_good_bye_is_one_sentence(local: Server) -> None:
    result_of(run("127.0.0.1", "-p", local.port, *SMALL, "--json"))
    before = [line for line in local.lines if "gone: " in line]
    client = start("127.0.0.1", "-p", local.port, "-t", "30")
    local.wait_for("up, 30 s")
    client.kill()
    client.communicate()
    local.wait_for("gone: ", len(before) + 1)
    assert not any("Traceback" in line for line in local.lines)
    assert Path(f"/proc/{local.process.pid}").exists()
