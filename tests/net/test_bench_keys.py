"""Keys at kvwire-bench's two ends: who may talk to whom, what is said to who may not, and what the audit log keeps."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvwire
from kvwire.cli import sealing
from tests.net import kit
from tests.net.bench import BENCH, PATIENCE_S, SMALL, Server, environment, fails, result_of, run, serving

HERE = ("-B", "127.0.0.1", "-p", "0")


@pytest.fixture(scope="module")
def local() -> Iterator[Server]:
    with serving(*HERE) as made:
        yield made


@pytest.fixture(scope="module")
def plain() -> Iterator[Server]:
    with serving(*HERE, "--plain") as made:
        yield made


def without_keys(*words: str) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if name != sealing.ENVIRONMENT}
    command = [*BENCH, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, env=kept)


def test_sealed_by_the_environment_and_by_the_flag(local: Server) -> None:
    assert "sealed, as kvwire://acme/both/eu-west/serve" in local.wait_for("listening")
    found = result_of(run("127.0.0.1", "-p", local.port, *SMALL, "--json"))
    assert found["sealed"] is True
    assert found["cipher"] == found["machines"]["client"]["cipher"] == found["machines"]["server"]["cipher"]
    assert "by kvwire://acme/both/eu-west/run" in local.wait_for("up, 4 transfers")
    other = str(kit.key_directory(name="another"))
    done = run("127.0.0.1", "-p", local.port, *SMALL, "--bidir", "--keys", other)
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 lanes, " in done.stdout
    assert "AES-256-GCM, compression auto; a round trip of" in done.stdout
    assert "every cell had the right tag; the last" in done.stdout
    assert "by kvwire://acme/both/eu-west/another" in local.wait_for("up and down, 4 transfers")


def test_plain_on_both_ends(plain: Server) -> None:
    assert "plain: anybody may connect" in plain.wait_for("listening")
    found = result_of(run("127.0.0.1", "-p", plain.port, *SMALL, "--plain", "--json"))
    assert (found["sealed"], found["cipher"]) == (False, None)
    done = run("127.0.0.1", "-p", plain.port, *SMALL, "--plain")
    assert "CRC32C, not encrypted, compression auto; a round trip of" in done.stdout
    assert "every cell had the right CRC32C; the last" in done.stdout


def test_plain_against_sealed(local: Server, plain: Server) -> None:
    fails(run("127.0.0.1", "-p", local.port, "--plain"), "this side is plain and the peer is sealed")
    fails(run("127.0.0.1", "-p", plain.port), "this side is sealed and the peer is plain")


@pytest.mark.parametrize("words", [("run", "127.0.0.1"), ("serve", *HERE)])
def test_without_keys_it_says_how_to_make_some(words: tuple[str, ...]) -> None:
    fails(without_keys(*words), "kvwire-keys self", "kvwire-keys pin", "kvwire-keys ca", "issue", "--keys", "--plain")


def test_keys_that_cannot_be_used(tmp_path: Path) -> None:
    fails(run("127.0.0.1", "--keys", str(tmp_path / "none")), "identity.pem: No such file or directory")
    fails(run("127.0.0.1", "--keys", str(tmp_path), "--plain"), "not allowed with argument --keys")
    kvwire.self_signed(tmp_path, kvwire.Subject("acme", "both", "eu-west", "lonely"))
    fails(run("127.0.0.1", "--keys", str(tmp_path)), "nobody is trusted", "kvwire-keys pin")
    one_way = str(kit.key_directory(role="prefill"))
    sentence = "has the role prefill: serve and run need --role both"
    fails(run("127.0.0.1", "--keys", one_way), sentence)
    fails(without_keys("serve", *HERE, "--keys", one_way), sentence)


def test_two_hosts_that_have_pinned_each_other(tmp_path: Path) -> None:
    names = "decode", "prefill"
    for name in names:
        kvwire.self_signed(tmp_path / name, kvwire.Subject("acme", "both", "eu-west", name))
    for name, other in (names, names[::-1]):
        kvwire.pin(tmp_path / name, tmp_path / other / "certificate.pem")
    with serving(*HERE, "--keys", str(tmp_path / "decode")) as server:
        result_of(run("127.0.0.1", "-p", server.port, *SMALL, "--keys", str(tmp_path / "prefill"), "--json"))
        fails(run("127.0.0.1", "-p", server.port), "the peer's certificate: ")


def test_who_is_not_wanted_is_refused_and_written_down(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    ca = kvwire.Authority.create(tmp_path / "ca")
    ca.issue(tmp_path / "stranger", kvwire.Subject("acme", "both", "eu-west", "stranger"))
    kvwire.pin(tmp_path / "stranger", kit.key_directory(name="serve") / "certificate.pem")
    with serving(*HERE, "--audit", str(log)) as server:
        at = ("127.0.0.1", "-p", server.port)
        result_of(run(*at, *SMALL, "--json"))
        fails(run(*at, "--keys", str(kit.key_directory(tenant="other"))), "tenant acme is not this node's, other")
        # It knows the server, which does not know it: it learns that it was turned away, and not why.
        done = run(*at, "--keys", str(tmp_path / "stranger"))
        fails(done, f"127.0.0.1 port {server.port}: ", "it may not believe this node's certificate", "audit log")
        fails(run(*at, "--plain"), "this side is plain and the peer is sealed")
        server.process.terminate()
        assert server.process.wait(PATIENCE_S) == 0
    assert kvwire.verify_audit(log).closed
    events = [json.loads(line) for line in log.read_text().splitlines()]
    refused = [(event["error"], event["reason"]) for event in events if event["event"] == "link_refused"]
    assert [error for error, _ in refused] == ["NotAllowed", "AuthenticationFailed", "ModeMismatch"]
    assert refused[0][1] == "tenant other is not this node's, acme"
    assert {event["name"] for event in events if event["event"] == "link_up"} == {"run"}
    assert sum(event["event"] == "commit" for event in events) > 4


def test_an_audit_log_that_cannot_be_written(tmp_path: Path) -> None:
    log = tmp_path / "no" / "audit.log"
    done = subprocess.run(
        [*BENCH, "serve", *HERE, "--audit", str(log)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env=environment("serve"),
    )
    fails(done, f"{log}: No such file or directory")
