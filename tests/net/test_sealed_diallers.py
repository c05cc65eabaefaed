"""What a sealed node may find where it dials: it says what is wrong, and has shown nothing of itself before it knew."""

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from kvwire import (
    AuthenticationFailed,
    Authority,
    Config,
    ConnectTimeout,
    Identity,
    KvwireError,
    LinkLost,
    ModeMismatch,
    NotAllowed,
    Policy,
    ProtocolError,
    Subject,
    VersionMismatch,
    pin,
    revoke,
    wire,
)
from kvwire.wire.preamble import preamble
from tests.net import kit
from tests.net.peers import Handler, serving
from tests.net.sealed import SEALED, context, logged
from tests.unit.security_kit import DECODE, ca_of, forge, put

pytestmark = pytest.mark.usefixtures("nothing_left")

HERE = Subject("acme", "prefill", "eu-west", "p1")
POLICY = Policy(regions={"eu"}, roles={"decode", "both"})


@dataclass
class Server:
    """Answers TLS with a certificate, checks nothing, and then says `says`; `heard`: what came, TLS and inside it."""

    tls: ssl.SSLContext
    says: bytes = b""
    heard: list[bytes] = field(default_factory=list)
    inside: bytearray = field(default_factory=bytearray)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        coming, going = ssl.MemoryBIO(), ssl.MemoryBIO()
        end = self.tls.wrap_bio(coming, going, server_side=True)
        assert await reader.readexactly(len(SEALED)) == SEALED
        writer.write(SEALED)
        up = False
        try:
            while data := await reader.read(65536):
                self.heard.append(data)
                coming.write(data)
                try:
                    if not up:
                        end.do_handshake()
                        up = True
                        if self.says:
                            end.write(self.says)
                    self.inside += end.read(65536)
                    if not self.says:
                        return
                except ssl.SSLWantReadError:
                    pass
                finally:
                    writer.write(going.read())
        finally:
            self.over.set()


def identity(root: Path) -> Identity:
    """Of a node that believes a CA and, maybe, a pinned certificate."""
    Authority.create(root / "ca").issue(root / "node", HERE)
    return Identity.load(root / "node")


def forged(root: Path, *uris: str, **how: float) -> Path:
    return put(root / "forged.pem", forge(uris, issuer=ca_of(root / "ca"), **how)[0])  # type: ignore[arg-type]


def issued(root: Path, subject: Subject = DECODE) -> Path:
    Authority.load(root / "ca").issue(root / "there", subject)
    return root / "there" / "identity.pem"


def of_another_ca(root: Path) -> Path:
    Authority.create(root / "other").issue(root / "stranger", DECODE)
    return root / "stranger" / "identity.pem"


def revoked(root: Path) -> Path:
    revoke(root / "node", Authority.load(root / "ca").issue(root / "revoked", DECODE).fingerprint)
    return root / "revoked" / "identity.pem"


def from_a_pinned_one(root: Path) -> Path:
    pem, pinned = forge((DECODE.uri,), name="pinned")
    pin(root / "node", put(root / "pinned.pem", pem))
    return put(root / "forged.pem", forge((DECODE.uri,), issuer=pinned)[0])


def elsewhere(region: str, role: str = "decode", tenant: str = "acme") -> Callable[[Path], Path]:
    return lambda root: issued(root, Subject(tenant, role, region, "d1"))


CERTIFICATES: dict[str, tuple[Callable[[Path], Path], type[KvwireError], str]] = {
    "another CA's": (of_another_ca, AuthenticationFailed, "unable to get local issuer certificate"),
    "expired": (
        lambda root: forged(root, DECODE.uri, begins_days=-9, ends_days=-1),
        AuthenticationFailed,
        "certificate has expired",
    ),
    "not yet valid": (
        lambda root: forged(root, DECODE.uri, begins_days=1, ends_days=9),
        AuthenticationFailed,
        "certificate is not yet valid",
    ),
    "revoked": (revoked, AuthenticationFailed, "is revoked"),
    "without names": (lambda root: forged(root, "https://acme/"), AuthenticationFailed, "without kvwire's names"),
    "from a pinned one": (from_a_pinned_one, AuthenticationFailed, "invalid CA certificate"),
    "tenant": (elsewhere("eu", tenant="globex"), NotAllowed, "tenant globex is not this node's, acme"),
    "role": (elsewhere("eu", role="prefill"), NotAllowed, "role prefill is none of both, decode"),
    "region": (elsewhere("us-east"), NotAllowed, "region us-east is in none of eu"),
}


@pytest.mark.parametrize("certificate", CERTIFICATES)
async def test_a_server_that_is_not_to_be_dealt_with(certificate: str, tmp_path: Path) -> None:
    make, error, reason = CERTIFICATES[certificate]
    who, shows = identity(tmp_path), make(tmp_path)
    server = Server(context(shows, tmp_path / "ca" / "ca.pem", server=True))
    with logged(tmp_path / "log") as log:
        async with (
            await kit.start(identity=who, policy=POLICY, audit=log.audit) as node,
            serving(server.answer) as port,
        ):
            with pytest.raises(error, match=rf"127\.0\.0\.1 port {port}: .*{reason}"):
                await node.connect("127.0.0.1", port)
            assert not node.links
            await server.over.wait()
        ((kind, why),) = log.refusals()
        assert (kind, reason in why) == (error.__name__, True)
    assert not server.inside  # no HELLO
    in_tls = certificate in ("another CA's", "expired", "not yet valid", "from a pinned one")
    assert (len(server.heard) == 1) is in_tls  # a certificate that TLS does not take sees not even ours


def said(data: bytes, *, tls: bool = True, wait: bool = False) -> Handler:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(SEALED))
        writer.write((SEALED if tls else b"") + data)
        await reader.read(4096)
        if wait:
            await asyncio.sleep(60)

    return answer


ANSWERS: dict[str, tuple[Handler, type[KvwireError], str]] = {
    "a plain node": (
        said(wire.control_preamble(plain=True), tls=False),
        ModeMismatch,
        "this side is sealed and the peer is plain; nothing was sent",
    ),
    "an older version": (
        said(preamble(wire.ConnectionKind.CONTROL, plain=False, version=0), tls=False),
        VersionMismatch,
        "the peer speaks wire version 0, this side 1",
    ),
    "both modes": (said(SEALED[:6] + b"\x03\x00", tls=False), ProtocolError, "flags 0x3; known are"),
    "noise": (said(bytes(range(256)) * 8), AuthenticationFailed, "no TLS"),
    "an alert": (said(b"\x15\x03\x03\x00\x02\x02\x28"), AuthenticationFailed, "no TLS"),
    "nothing": (said(b""), LinkLost, "hung up during the TLS handshake"),
    "a record without an end": (said(b"\x16\x03\x03\x40\x00" + bytes(80), wait=True), ConnectTimeout, "within 0.3 s"),
    "silence": (said(b"", wait=True), ConnectTimeout, "within 0.3 s"),
}


@pytest.mark.parametrize("answer", ANSWERS)
async def test_what_is_no_tls_of_ours(answer: str) -> None:
    handle, error, reason = ANSWERS[answer]
    async with await kit.start(Config(connect_timeout_s=0.3)) as node, serving(handle) as port:
        with pytest.raises(error, match=f"127.0.0.1 port {port}.*{reason}"):
            await node.connect("127.0.0.1", port)
        assert not node.links


@pytest.mark.parametrize("most", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_another_tls(most: ssl.TLSVersion, tmp_path: Path) -> None:
    """An older one, or one that agrees on no protocol inside it."""
    who = identity(tmp_path)
    older = most is ssl.TLSVersion.TLSv1_2
    tls = context(issued(tmp_path), tmp_path / "ca" / "ca.pem", server=True, alpn="kvwire/1" if older else None)
    tls.maximum_version = most
    server = Server(tls)
    async with await kit.start(identity=who) as node, serving(server.answer) as port:
        with pytest.raises(AuthenticationFailed, match="no TLS" if older else r"agreed on as \('TLSv1.3', None\)"):
            await node.connect("127.0.0.1", port)
        await server.over.wait()
    assert not server.inside


GREETINGS: dict[str, tuple[bytes, type[KvwireError], str]] = {
    "too much": ((1 << 30).to_bytes(4, "little"), ProtocolError, "1073741824 bytes; at most 4096"),
    "no map": (b"\x01\x00\x00\x00\x05", ProtocolError, "expected a map"),
    "good-bye": (wire.goodbye("protocol", "you again"), ProtocolError, "you again"),
    "half of it": (b"\x00\x04\x00\x00" + bytes(99), LinkLost, "did not say hello in time"),
    "an end": (b"", AuthenticationFailed, "it may not believe this node's certificate, or not allow it"),
}


@pytest.mark.parametrize("greeting", GREETINGS)
async def test_a_greeting_that_is_none(greeting: str, tmp_path: Path) -> None:
    says, error, reason = GREETINGS[greeting]
    who = identity(tmp_path)
    server = Server(context(issued(tmp_path), tmp_path / "ca" / "ca.pem", server=True), says)
    config = Config(handshake_timeout_s=0.3)
    async with await kit.start(config, identity=who) as node, serving(server.answer) as port:
        with pytest.raises(error, match=reason):
            await node.connect("127.0.0.1", port)
        assert not node.links
        await server.over.wait()
    assert server.inside  # HELLO


# --- two nodes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plain", ["dialler", "acceptor"])
async def test_one_plain_and_one_sealed(plain: str, tmp_path: Path) -> None:
    """Both must ask for plain: nobody is talked down to it."""
    sealed, dialling_plain = Config(), plain == "dialler"
    with logged(tmp_path / "log") as log:
        server = await kit.serve(config=replace(sealed, plain=not dialling_plain), audit=log.audit)
        async with server, await kit.start(replace(sealed, plain=dialling_plain)) as node:
            with pytest.raises(ModeMismatch, match=r"Config\.plain has to be the same on both"):
                await node.connect("127.0.0.1", server.port)
            assert not server.links
            assert not node.links
        ((kind, _),) = log.refusals()
        assert kind == "ModeMismatch"


async def test_who_is_refused_is_told_that_it_may_be_its_certificate(tmp_path: Path) -> None:
    with logged(tmp_path / "there") as there, logged(tmp_path / "here") as here:
        server = await kit.serve(audit=there.audit)
        either = Policy(tenants={"acme", "globex"})
        async with server, await kit.start(identity=kit.keys("globex"), policy=either, audit=here.audit) as node:
            with pytest.raises(AuthenticationFailed, match="may not believe this node's certificate, or not allow it"):
                await node.connect("127.0.0.1", server.port)
            assert not node.links
        assert there.refusals() == [("NotAllowed", "tenant globex is not this node's, acme")]
        ((kind, _),) = here.refusals()
        assert kind == "AuthenticationFailed"
