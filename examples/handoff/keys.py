"""Keys for one hand-off. Real hosts have them from kvwire-keys, each its own, and keep them."""

from __future__ import annotations

from pathlib import Path

import kvwire


def make(where: Path) -> None:
    """An identity for each of the two processes, under a CA that nobody else has."""
    authority = kvwire.Authority.create(where / "ca", days=1)
    for role in ("prefill", "decode"):
        authority.issue(where / role, kvwire.Subject("handoff", role, "here", role), days=1)


def load(where: Path | None, role: str) -> kvwire.Identity | None:
    """What the node of one process gets; None: the link is plain."""
    return None if where is None else kvwire.Identity.load(where / role)
