"""What became of transfers whose links are gone, for senders that were left with CommitUnknown."""

from __future__ import annotations

import asyncio
from copy import copy
from typing import TYPE_CHECKING

from kvwire.errors import DeadlineExceeded, KvwireError
from kvwire.transfer import LONGEST_WAIT_S

if TYPE_CHECKING:
    from kvwire.link import Link
    from kvwire.outgoing import Outgoing

REMEMBERED = 4096
"""Outcomes that a node keeps of each tenant."""


class Outcomes:
    """What a node knows, of the transfers that were offered to it."""

    def __init__(self) -> None:
        self._gone: dict[str, dict[tuple[bytes, int], str]] = {}  # by tenant, the latest

    def keep(self, link: Link) -> None:
        """The link ends."""
        mine, link_id = self._gone.setdefault(link.tenant, {}), link._session.link_id
        mine |= {(link_id, transfer): outcome for transfer, outcome in link._exchange.outcomes().items()}
        for key in list(mine)[: max(0, len(mine) - REMEMBERED)]:
            del mine[key]

    def of(self, tenant: str, link: Link | None, link_id: bytes, transfer: int) -> str:
        """What became of one, over `link` if that is still there. "unknown" also while it is under way, and for another
        tenant than the one that offered it."""
        if link is None:
            return self._gone.get(tenant, {}).get((link_id, transfer), "unknown")
        return link._exchange.outcomes().get(transfer, "unknown") if link.tenant == tenant else "unknown"


class Questions:
    """What is asked over a link, and by whom."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._asked: dict[asyncio.Future[str], tuple[bytes, int]] = {}  # one for each who waits

    def __len__(self) -> int:
        return len(self._asked)

    async def ask(self, outgoing: Outgoing, timeout_s: float) -> str:
        """What became of it. DeadlineExceeded where no answer comes."""
        link, key = self._link, (outgoing.link._session.link_id, outgoing.transfer_id)
        answer: asyncio.Future[str] = link.loop.create_future()
        self._asked[answer] = key
        try:
            link._session.ask(*key)
            link._pump()
            return await asyncio.wait_for(answer, min(timeout_s, LONGEST_WAIT_S))
        except TimeoutError:
            raise DeadlineExceeded(f"{link.peer} did not say what became of {outgoing!r}") from None
        finally:
            self._asked.pop(answer, None)

    def answered(self, link_id: bytes, transfer: int, outcome: str) -> None:
        """The peer has said so."""
        for answer, asked in self._asked.items():
            if asked == (link_id, transfer) and not answer.done():
                answer.set_result(outcome)

    def fail(self, error: KvwireError) -> None:
        """Nobody answers any more."""
        for answer in self._asked:
            if not answer.done():
                answer.set_exception(copy(error))  # one for each who waits: the traceback holds what they hold
