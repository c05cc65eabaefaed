"""Whoever a sealed node does not deal with: it is told nothing, whatever the reason, and the audit log has it."""

import asyncio
import contextlib
import random
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvwire import Authority, Config, Identity, Node, Policy, Subject, pin, revoke, self_signed, wire
from kvwire.security import ALPN
from kvwire.wire.preamble import preamble
from tests.net import kit
from tests.net.sealed import SEALED, Log, context, logged, rest, tcp
from tests.unit.security_kit import PREFILL, Signer, bare_context, ca_of, forge, put

pytestmark = pytest.mark.usefixtures("nothing_left")

HERE = Subject("acme", "decode", "eu-north", "d1")
POLICY = Policy(tenants={"acme", "initech"}, roles={"prefill", "both"}, regions={"eu"})


@dataclass
class Scene:
    """A node that believes a CA and a pinned certificate, its log, and where keys lie."""

    node: Node
    log: Log
    root: Path
    pinned: Signer

    @property
    def ca(self) -> Path:
        return self.root / "ca" / "ca.pem"

    def forged(self, *uris: str, issuer: Signer | None = None, **how: float) -> Path:
        """Key and certificate, from the node's CA where no other issuer is named."""
        pem, _ = forge(uris, issuer=issuer or ca_of(self.root / "ca"), **how)  # type: ignore[arg-type]
        return put(self.root / "forged.pem", pem)

    def issued(self, tenant: str = "acme", role: str = "prefill", region: str = "eu-west") -> Path:
        """Key and certificate as kvwire-keys makes them."""
        where = self.root / "-".join((tenant, role, region))
        Authority.load(self.root / "ca").issue(where, Subject(tenant, role, region, "p1"))
        return where / "identity.pem"


@asynccontextmanager
async def scene(root: Path, config: Config | None = None) -> AsyncIterator[Scene]:
    Authority.create(root / "ca").issue(root / "node", HERE)
    pem, pinned = forge((PREFILL.uri,), name="pinned")
    pin(root / "node", put(root / "pinned.pem", pem))
    identity = Identity.load(root / "node")
    with logged(root / "audit.jsonl") as log:
        async with await kit.serve(config=config, identity=identity, policy=POLICY, audit=log.audit) as node:
            yield Scene(node, log, root, pinned)


def revoked(scene: Scene) -> Path:
    shows = scene.issued()
    found = Authority.load(scene.root / "ca").issue(scene.root / "revoked", PREFILL)
    revoke(scene.root / "node", found.fingerprint)
    return shows.parents[1] / "revoked" / "identity.pem"


def of_another_ca(scene: Scene) -> Path:
    Authority.create(scene.root / "other").issue(scene.root / "stranger", PREFILL)
    return scene.root / "stranger" / "identity.pem"


def signed_by_itself(scene: Scene) -> Path:
    self_signed(scene.root / "alone", PREFILL)
    return scene.root / "alone" / "identity.pem"


AUTH = "AuthenticationFailed"
CERTIFICATES: dict[str, tuple[Callable[[Scene], Path | None], str, str]] = {
    "none": (lambda _: None, AUTH, "PEER_DID_NOT_RETURN_A_CERTIFICATE"),
    "another CA's": (of_another_ca, AUTH, "unable to get local issuer certificate"),
    "its own": (signed_by_itself, AUTH, "self-signed certificate"),
    "expired": (lambda it: it.forged(PREFILL.uri, begins_days=-9, ends_days=-1), AUTH, "certificate has expired"),
    "early": (lambda it: it.forged(PREFILL.uri, begins_days=1, ends_days=9), AUTH, "certificate is not yet valid"),
    "revoked": (revoked, AUTH, "is revoked"),
    "without names": (lambda it: it.forged("https://acme.example/"), AUTH, "without kvwire's names"),
    "two names": (lambda it: it.forged(PREFILL.uri, "kvwire://acme/both/eu/x"), AUTH, "without kvwire's names"),
    "from a pinned one": (lambda it: it.forged(PREFILL.uri, issuer=it.pinned), AUTH, "invalid CA certificate"),
    "tenant": (lambda it: it.issued(tenant="globex"), "NotAllowed", "tenant globex is none of acme, initech"),
    "role": (lambda it: it.issued(role="decode"), "NotAllowed", "role decode is none of both, prefill"),
    "region": (lambda it: it.issued(region="us-east"), "NotAllowed", "region us-east is in none of eu"),
}


@dataclass(frozen=True)
class Seen:
    """What a dialler got to see: bytes before the end of TLS's handshake, what was said inside it, how it ended."""

    handshake: int
    said: bytes
    end: str


async def knock(port: int, tls: ssl.SSLContext) -> Seen:
    """A dialler that speaks TLS, checks nothing, and says something that looks like HELLO."""
    loop, sock = asyncio.get_running_loop(), await tcp(port)
    coming, going = ssl.MemoryBIO(), ssl.MemoryBIO()
    end = tls.wrap_bio(coming, going)
    with sock:
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()
        await loop.sock_sendall(sock, SEALED + going.read())
        assert await asyncio.wait_for(loop.sock_recv(sock, len(SEALED)), kit.PATIENCE_S) == SEALED
        count = 0
        while True:
            data = await asyncio.wait_for(loop.sock_recv(sock, 65536), kit.PATIENCE_S)
            assert data
            count += coming.write(data)
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
                break
        end.write(b"\x64\x00\x00\x00" + bytes(100))
        await loop.sock_sendall(sock, going.read())
        return Seen(count, *await rest(sock))


async def test_nobody_is_told_why(tmp_path: Path) -> None:
    """In TLS 1.3 a dialler has authenticated its peer before it shows itself. From there on it sees an end, no byte."""
    seen = {}
    async with scene(tmp_path) as there:
        for name, (make, _, _) in CERTIFICATES.items():
            seen[name] = await knock(there.node.port, context(make(there), there.ca))
        refusals = there.log.refusals()
        assert len(refusals) == len(CERTIFICATES)
        for found, (_, error, reason) in zip(refusals, CERTIFICATES.values(), strict=True):
            assert found[0] == error
            assert reason in found[1]
        assert len(set(seen.values())) == 1, seen
        assert seen["none"].said == b""
        assert seen["none"].end == "eof"
        assert not there.node.links
        assert not there.log.events("link_up", "link_down")


TENANTS = {"its own": "acme", "of another tenant": "initech"}


@pytest.mark.parametrize("whose", TENANTS)
async def test_who_fits_is_let_in(whose: str, tmp_path: Path) -> None:
    """So that the others are refused for what they are refused for."""
    async with scene(tmp_path) as there:
        shows = there.issued(tenant=TENANTS[whose])
        await honest(there, Identity.load(shows.parent))
        pinned = await knock(there.node.port, context(there.root / "pinned.pem", there.ca))
        assert pinned.said  # its HELLO was none, and to somebody that it knows the node says so
        assert [error for error, _ in there.log.refusals()] == ["ProtocolError"]


async def honest(there: Scene, identity: Identity) -> None:
    """A link and a transfer over it."""
    policy = Policy(tenants={HERE.tenant})
    async with await kit.start(Config(lanes=1), identity=identity, policy=policy) as client:
        link = await client.connect("127.0.0.1", there.node.port)
        await kit.move(link, there.node, "honest")


# --- what is no TLS of ours -------------------------------------------------------------------------------------------


def client_hello(most: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> bytes:
    """The first flight of a TLS dialler without a certificate."""
    tls = bare_context()
    tls.maximum_version = most
    tls.set_alpn_protocols([ALPN])
    going = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.wrap_bio(ssl.MemoryBIO(), going).do_handshake()
    return going.read()


NOISE = random.Random(5).randbytes(100_000)
ENDLESS = b"\x16\x03\x01\x40\x00" + b"\x01\xff\xff\xff" + bytes(0x3FFC)
"""A record of 16 KiB: the beginning of a ClientHello of 16 MiB."""
MORE = b"\x16\x03\x01\x40\x00" + bytes(0x4000)

STRANGERS: dict[str, tuple[bytes, bytes, tuple[str, str] | None]] = {
    "HTTP": (b"GET / HTTP/1.1\r\n\r\n", b"", None),
    "noise": (NOISE, b"", None),
    "TLS without a preamble": (client_hello(), b"", None),
    "a plain node": (
        wire.control_preamble(plain=True),
        SEALED,
        ("ModeMismatch", "this side is sealed and the peer is"),
    ),
    "a plain lane": (
        preamble(wire.ConnectionKind.LANE, plain=True) + bytes(wire.JOIN_BYTES),
        SEALED,
        ("ModeMismatch", "this side is sealed and the peer is plain"),
    ),
    "an older version": (
        preamble(wire.ConnectionKind.CONTROL, plain=False, version=wire.WIRE_VERSION - 1),
        SEALED,
        ("VersionMismatch", "the peer speaks wire version 0, this side 1"),
    ),
    "both modes": (SEALED[:6] + b"\x03\x00", b"", ("ProtocolError", "flags 0x3")),
    "noise instead of TLS": (SEALED + NOISE, SEALED, (AUTH, "no TLS")),
    "HELLO without TLS": (SEALED + b"\x05\x00\x00\x00hello", SEALED, (AUTH, "no TLS")),
    "TLS 1.2": (SEALED + client_hello(ssl.TLSVersion.TLSv1_2), SEALED, (AUTH, "no TLS: UNSUPPORTED_PROTOCOL")),
    "a ClientHello without an end": (SEALED + ENDLESS + MORE * 8, SEALED, (AUTH, "no TLS")),
    "a lane of nobody's": (
        preamble(wire.ConnectionKind.LANE, plain=False) + bytes(wire.JOIN_BYTES),
        b"",
        ("ProtocolError", "a lane for a link that is not here"),
    ),
}


@pytest.mark.parametrize("stranger", STRANGERS)
async def test_strangers_are_hung_up_on(stranger: str, tmp_path: Path) -> None:
    says, answer, logs = STRANGERS[stranger]
    async with scene(tmp_path) as there:
        loop, sock = asyncio.get_running_loop(), await tcp(there.node.port)
        with sock:
            with contextlib.suppress(ConnectionError):  # it does not read to the end
                await loop.sock_sendall(sock, says)
            said, _ = await rest(sock)
        assert said == answer[: len(said)]  # of a reset the kernel may keep what came before to itself
        await kit.eventually(lambda: not there.node._acceptor.strangers, "its place")  # type: ignore[union-attr]
        refusals = there.log.refusals()
        assert [error for error, _ in refusals] == ([logs[0]] if logs else [])
        assert logs is None or logs[1] in refusals[0][1]
        await honest(there, Identity.load(there.issued().parent))


@pytest.mark.parametrize("alpn", [None, "h2"])
async def test_another_protocol_in_tls(alpn: str | None, tmp_path: Path) -> None:
    async with scene(tmp_path) as there:
        seen = await knock(there.node.port, context(there.issued(), there.ca, alpn=alpn))
        assert (seen.said, seen.end) == (b"", "eof")
        assert there.log.refusals() == [(AUTH, "TLS was agreed on as ('TLSv1.3', None); expected TLSv1.3 and kvwire/1")]


SILENCES = {
    "nothing": b"",
    "half a preamble": SEALED[:5],
    "a preamble": SEALED,
    "half a ClientHello": SEALED + client_hello()[:99],
    "a ClientHello": SEALED + client_hello(),
    "half a JOIN": preamble(wire.ConnectionKind.LANE, plain=False) + bytes(20),
}


async def test_whoever_says_too_little_goes_when_its_time_is_over(tmp_path: Path) -> None:
    async with scene(tmp_path, Config(handshake_timeout_s=0.2)) as there:
        for says in SILENCES.values():
            sock = await tcp(there.node.port)
            with sock:
                await asyncio.get_running_loop().sock_sendall(sock, says)
                _, end = await rest(sock)
                assert end == "eof"
        late = ("ConnectTimeout", "it did not say who it is within 0.2 s")
        assert there.log.refusals() == [late] * len(SILENCES)
        await honest(there, Identity.load(there.issued().parent))


async def test_whoever_says_it_byte_by_byte_has_no_more_time(tmp_path: Path) -> None:
    async with scene(tmp_path, Config(handshake_timeout_s=0.3)) as there:
        loop, sock = asyncio.get_running_loop(), await tcp(there.node.port)
        with sock, contextlib.suppress(ConnectionError):
            for byte in SEALED + client_hello()[:-1]:
                await loop.sock_sendall(sock, bytes([byte]))
                await asyncio.sleep(0.01)
        assert there.log.refusals() == [("ConnectTimeout", "it did not say who it is within 0.3 s")]
