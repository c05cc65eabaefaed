"""What the audit log hears of a link: facts, never a key, a prompt or a block hash."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvwire.errors import KvwireError
from kvwire.types import Manifest

if TYPE_CHECKING:
    from kvwire.link import Link
    from kvwire.transfer import Transfer


class Journal:
    """Of one link."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def note(self, event: str, **fields: str | int) -> None:
        """Something has happened on the link."""
        link = self._link
        who: dict[str, str] = {}
        if link.identity is not None:
            subject = link.identity.subject
            who = {"tenant": subject.tenant, "role": subject.role, "region": subject.region, "name": subject.name}
            who["fingerprint"] = link.identity.fingerprint
        link._node._guard.write(event, link=link._session.link_id.hex(), address=link.peer, **who, **fields)

    def offered(self, transfer: int, manifest: Manifest, direction: str) -> None:
        """A transfer was offered."""
        model = {"model": manifest.model.name, "revision": manifest.model.revision, "layout": manifest.model.layout}
        what = {"request": manifest.request_id, "residency": manifest.residency, **model}
        self.note("offer", transfer=transfer, direction=direction, bytes=manifest.nbytes, **what)

    def ended(self, transfer: Transfer, direction: str) -> None:
        """A transfer that had been granted, or was to be granted here, is over."""
        if transfer.state == "committed":
            self.note("commit", transfer=transfer.transfer_id, direction=direction, bytes=transfer._bytes)
        else:
            self.given_up(transfer.transfer_id, direction, transfer._error or transfer._lost())

    def given_up(self, transfer: int, direction: str, error: KvwireError) -> None:
        """A transfer is over and not complete."""
        self.note("abort", transfer=transfer, direction=direction, error=type(error).__name__, reason=str(error))
