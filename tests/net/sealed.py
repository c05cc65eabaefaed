"""Ends of sealed connections in a test's own hands, honest up to where the test is not; and audit logs to look into."""

import asyncio
import contextlib
import json
import secrets
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from kvwire import AuditLog, Config, Identity, Node, verify_audit, wire
from kvwire.control import Stream, open_control
from kvwire.security import ALPN
from kvwire.security.schedule import Agreement
from kvwire.security.tls import Tls
from kvwire.wire import schema
from tests.net import kit
from tests.unit.security_kit import bare_context

SEALED = wire.control_preamble(plain=False)
LANES = 2
CONFIG = Config(lanes=LANES)


# --- the audit log ----------------------------------------------------------------------------------------------------


@dataclass
class Log:
    """A node's audit log, and what has been written to it."""

    path: Path
    audit: AuditLog

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        """Those of these kinds, in order; all without."""
        found = [json.loads(line) for line in self.path.read_text().splitlines()]
        return [event for event in found if not kinds or event["event"] in kinds]

    def refusals(self) -> list[tuple[str, str]]:
        """Type of the error and reason, of each connection that was refused."""
        return [(event["error"], event["reason"]) for event in self.events("link_refused")]


@contextlib.contextmanager
def logged(path: Path) -> Iterator[Log]:
    """A log, which is in order when the test is over."""
    with AuditLog(path) as audit:
        log = Log(path, audit)
        yield log
    assert verify_audit(path).closed


# --- a peer -----------------------------------------------------------------------------------------------------------


def context(shows: Path | None, trusts: Path, *, server: bool = False, alpn: str | None = ALPN) -> ssl.SSLContext:
    """For the TLS of a side that checks nothing of its own certificate, and trusts whom it is told."""
    if server:
        found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        found.load_verify_locations(trusts)
        found.verify_mode = ssl.CERT_REQUIRED
        found.num_tickets = 0
        assert shows is not None
        found.load_cert_chain(shows)
    else:
        found = bare_context(trusts=trusts, shows=shows)
    if alpn:
        found.set_alpn_protocols([alpn])
    return found


def leaf(path: Path) -> bytes:
    """The first certificate of a PEM file, DER."""
    return x509.load_pem_x509_certificates(path.read_bytes())[0].public_bytes(Encoding.DER)


@dataclass
class Peer:
    """The dialler of a sealed control connection."""

    stream: Stream
    session: wire.Session
    heard: list[wire.Event] = field(default_factory=list)

    async def say(self, data: bytes = b"") -> None:
        """Send this, or what the session has to say."""
        await self.stream.write(data or self.session.data_to_send())

    async def hear(self, *kinds: type[wire.Event]) -> wire.Event:
        """Listen, answering nothing by itself, until something of these kinds has happened; takes it."""
        while True:
            for event in self.heard:
                if isinstance(event, kinds):
                    self.heard.remove(event)
                    return event
            data = await asyncio.wait_for(self.stream.read(), kit.PATIENCE_S)
            assert data, "the node hung up"
            self.session.receive_data(time.monotonic(), data)
            while (news := self.session.next_event()) is not None:
                self.heard.append(news)

    async def tickets(self, count: int) -> list[wire.Ticket]:
        """The next tickets that come."""
        found: list[wire.Ticket] = []
        while len(found) < count:
            event = await self.hear(wire.Ticket)
            assert isinstance(event, wire.Ticket)
            found.append(event)
        return found

    async def messages(self) -> list[schema.Message]:
        """Everything that the node still says, up to its hanging up."""
        reader, found = schema.MessageReader(1 << 20), []
        while data := await asyncio.wait_for(self.stream.read(), kit.PATIENCE_S):
            reader.feed(data)
        while (message := reader.next()) is not None:
            found.append(message)
        return found


def dialler_session(
    stream: Stream, identity: Identity, peer_tenant: str, link_id: bytes = b"", boot_id: bytes = b"p" * 16
) -> wire.Session:
    """What an honest node of this identity would drive, over a connection that has authenticated both."""
    assert stream.tls is not None
    tenants = identity.subject.tenant, peer_tenant
    agreement = Agreement("dialler", (stream.tls.own, stream.tls.peer), tenants, secrets.token_bytes(32))
    random = secrets.token_bytes(32)
    return wire.Session("dialler", CONFIG, boot_id, random, link_id, time.monotonic(), agreement, lanes=LANES)


@asynccontextmanager
async def peer_of(
    node: Node, identity: Identity | None = None, *, link_id: bytes = b"", boot_id: bytes = b"p" * 16
) -> AsyncIterator[Peer]:
    """A control connection up to where HELLO is to be said."""
    who = identity or kit.keys()
    sock = await tcp(node.port)
    try:
        stream = await open_control(sock, Tls(who.context(False), who.certificate, server=False))
        assert node._guard._identity is not None
        tenant = node._guard._identity.subject.tenant
        yield Peer(stream, dialler_session(stream, who, tenant, link_id, boot_id))
    finally:
        sock.close()


async def tcp(port: int) -> socket.socket:
    """A connection, non-blocking."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    return sock


async def rest(sock: socket.socket) -> tuple[bytes, str]:
    """What comes until the other side hangs up, and how: "eof" or "reset"."""
    loop, found = asyncio.get_running_loop(), b""
    try:
        async with asyncio.timeout(kit.PATIENCE_S):
            while data := await loop.sock_recv(sock, 1 << 16):
                found += data
    except ConnectionResetError:
        return found, "reset"
    return found, "eof"


async def join(port: int, first: bytes) -> socket.socket:
    """A lane that says this to begin with."""
    sock = await tcp(port)
    await asyncio.get_running_loop().sock_sendall(sock, first)
    return sock
