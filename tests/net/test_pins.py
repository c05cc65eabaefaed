"""Nodes without a CA, over sockets: what a pin says of a peer counts on one side, and both still agree on keys."""

from pathlib import Path

import pytest

from kvwire import Identity, Policy, Subject, pin, self_signed
from tests.net.kit import move, serve, start


@pytest.mark.parametrize("named", ["as in its certificate", "as of another tenant"])
async def test_whatever_a_pin_calls_a_peer_frames_can_be_opened(tmp_path: Path, named: str) -> None:
    own = Subject("acme", "both", "eu", "dialler")
    called = own if named == "as in its certificate" else Subject("globex", "both", "us", "guest")
    self_signed(tmp_path / "dialler", own)
    self_signed(tmp_path / "server", Subject("acme", "both", "eu", "server"))
    pin(tmp_path / "dialler", tmp_path / "server" / "certificate.pem")
    pin(tmp_path / "server", tmp_path / "dialler" / "certificate.pem", called)
    policy = Policy(tenants={called.tenant})
    async with (
        await serve(identity=Identity.load(tmp_path / "server"), policy=policy) as server,
        await start(identity=Identity.load(tmp_path / "dialler")) as dialler,
    ):
        link = await dialler.connect("127.0.0.1", server.port)
        (back,) = server.links
        assert back.identity is not None
        assert back.identity.subject == called
        await move(link, server, "there")
        await move(back, dialler, "and back")
