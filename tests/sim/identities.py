"""Who the hosts are: identities under one CA, made once for a process, from keys that are the same in every one."""

from __future__ import annotations

import random
import tempfile
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kvwire import Authority, Identity, Subject
from kvwire.security import certificates

HOSTS = 3
"""As many as a world has at most."""
_directory = tempfile.TemporaryDirectory(prefix="kvwire-sim-")


def identity_of(host: int) -> Identity:
    """Of the host with this number, from 1 on."""
    return _identities()[host - 1]


@cache
def _identities() -> tuple[Identity, ...]:
    rng = random.Random("identities")
    serials = mock.patch.object(x509, "random_serial_number", side_effect=partial(rng.randrange, 1 << 126, 1 << 127))
    keys = SimpleNamespace(generate=lambda: Ed25519PrivateKey.from_private_bytes(rng.randbytes(32)))
    root = Path(_directory.name)
    with serials, mock.patch.object(certificates, "Ed25519PrivateKey", keys):
        authority = Authority.create(root / "ca")
        for host in range(1, HOSTS + 1):
            subject = Subject(tenant="acme", role="both", region="eu", name=f"host-{host}")
            authority.issue(root / f"host-{host}", subject)
    return tuple(Identity.load(root / f"host-{host}") for host in range(1, HOSTS + 1))
