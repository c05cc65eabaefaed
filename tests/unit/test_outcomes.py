"""What a node knows of transfers whose links are gone, tenant by tenant."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kvwire.outcomes import Outcomes


@dataclass
class Gone:
    """What `Outcomes` asks of a link."""

    tenant: str
    link_id: bytes
    known: dict[int, str]
    _session: Any = field(init=False)
    _exchange: Any = field(init=False)

    def __post_init__(self) -> None:
        self._session = SimpleNamespace(link_id=self.link_id)
        self._exchange = SimpleNamespace(outcomes=lambda: self.known)


def keep(outcomes: Outcomes, tenant: str, link_id: bytes, known: dict[int, str]) -> None:
    outcomes.keep(cast(Any, Gone(tenant, link_id, known)))


def test_only_the_tenant_that_offered_is_told() -> None:
    outcomes = Outcomes()
    keep(outcomes, "acme", b"L", {1: "committed", 3: "aborted"})
    assert outcomes.of("acme", None, b"L", 1) == "committed"
    assert outcomes.of("acme", None, b"L", 5) == outcomes.of("other", None, b"L", 1) == "unknown"
    alive = cast(Any, Gone("acme", b"L", {1: "committed"}))
    assert outcomes.of("acme", alive, b"L", 1) == "committed"
    assert outcomes.of("other", alive, b"L", 1) == "unknown"


def test_one_tenant_does_not_push_out_what_is_known_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvwire.outcomes.REMEMBERED", 3)
    outcomes = Outcomes()
    keep(outcomes, "acme", b"L", {1: "committed"})
    keep(outcomes, "other", b"M", dict.fromkeys(range(1, 21, 2), "refused"))
    assert outcomes.of("acme", None, b"L", 1) == "committed"
    assert [outcomes.of("other", None, b"M", n) for n in (13, 15, 17, 19)] == ["unknown", *["refused"] * 3]
