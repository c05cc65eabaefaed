"""What the audit log hears of a link: facts, never a key, a prompt or a block hash."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from kvwire.codecs.choice import Choice
from kvwire.codings import spoken
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
        self._link._node._guard.write(event, **self._where(), **fields)

    def refused(self, transfer: int, direction: str, reason: str) -> None:
        """A transfer was not allowed, or does not fit."""
        what: dict[str, str | int] = {"transfer": transfer, "direction": direction, "reason": reason}
        self._link._node._guard.write_some("policy_refused", self._link.tenant, **self._where(), **what)

    def _where(self) -> dict[str, str]:
        link = self._link
        where = {"link": link._session.link_id.hex(), "address": link.peer}
        if link.identity is not None:
            subject = link.identity.subject
            where |= {"tenant": subject.tenant, "role": subject.role, "region": subject.region, "name": subject.name}
            where["fingerprint"] = link.identity.fingerprint
        return where

    def offered(self, transfer: int, manifest: Manifest, direction: str, choices: Iterable[Choice | None]) -> None:
        """A transfer was offered. `choices`: by group, what its cells may go through."""
        model = {"model": manifest.model.name, "revision": manifest.model.revision, "layout": manifest.model.layout}
        what = {"request": manifest.request_id, "residency": manifest.residency, **model}
        size = {"bytes": manifest.nbytes, "tokens": manifest.tokens}
        codecs = spoken((each.codec.name, each.codec.lossless) for each in choices if each is not None)
        self.note("offer", transfer=transfer, direction=direction, codecs=codecs, **size, **what)

    def ended(self, transfer: Transfer, direction: str) -> None:
        """A transfer that had been granted, or was to be granted here, is over."""
        if transfer.state == "committed":
            coded = transfer._coded.values()
            where: dict[str, str | int] = {"transfer": transfer.transfer_id, "direction": direction}
            where["codecs"] = spoken((each.codec, each.lossless) for each in coded)
            sizes = {
                "coded_bytes": sum(each.plain_bytes for each in coded),
                "wire_bytes": sum(each.wire_bytes for each in coded),
            }
            self.note("commit", **where, bytes=transfer._bytes, **sizes)
        else:
            self.given_up(transfer.transfer_id, direction, transfer._error or transfer._lost())

    def given_up(self, transfer: int, direction: str, error: KvwireError) -> None:
        """A transfer is over and not complete."""
        self.note("abort", transfer=transfer, direction=direction, error=type(error).__name__, reason=str(error))
