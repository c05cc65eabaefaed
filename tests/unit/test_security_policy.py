"""Policies: who may have a link, what may be sent and offered, and quotas over all links of a tenant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvwire import ConfigError, Manifest, ModelTag, NotAllowed, Policy, PolicyError, Quota, Subject
from kvwire.security import Usage
from tests.unit.security_kit import DECODE, OTHER, PREFILL
from tests.unit.wire_pair import MODEL, SPECS

BOTH = Subject("acme", "both", "eu", "b1")


def manifest(residency: str = "", model: ModelTag = MODEL) -> Manifest:
    return Manifest.of("request", model, 32, SPECS, residency=residency)


# --- links ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "peer"),
    [
        (Policy(), PREFILL),
        (Policy(), BOTH),
        (Policy(tenants={"acme", "globex"}), OTHER),
        (Policy(tenants=["globex"]), OTHER),
        (Policy(roles=("prefill",)), PREFILL),
        (Policy(regions={"eu"}), PREFILL),
        (Policy(regions={"us", "eu-west"}), PREFILL),
    ],
)
def test_peers_that_may_connect(policy: Policy, peer: Subject) -> None:
    policy.check_peer(DECODE, peer)


@pytest.mark.parametrize(
    ("policy", "peer", "reason"),
    [
        (Policy(), OTHER, "tenant globex is not this node's, acme"),
        (Policy(tenants={"globex", "initech"}), PREFILL, "tenant acme is none of globex, initech"),
        (Policy(tenants=()), PREFILL, "tenant acme is none of nobody's"),
        (Policy(roles={"prefill"}), BOTH, "role both is none of prefill"),
        (Policy(regions={"eu-north", "us"}), PREFILL, "region eu-west is in none of eu-north, us"),
        (Policy(regions={"e"}), PREFILL, "region eu-west is in none of e"),
    ],
)
def test_peers_that_may_not(policy: Policy, peer: Subject, reason: str) -> None:
    with pytest.raises(NotAllowed) as refusal:
        policy.check_peer(DECODE, peer)
    assert str(refusal.value) == reason


# --- transfers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("residency", ["", "eu", "eu-north"])
def test_what_may_be_sent_may_be_offered(residency: str) -> None:
    Policy().check_sending(PREFILL, DECODE, manifest(residency))
    Policy().check_offer(DECODE, PREFILL, manifest(residency))
    Policy().check_sending(BOTH, DECODE, manifest(residency))
    Policy().check_offer(DECODE, BOTH, manifest(residency))


@pytest.mark.parametrize(
    ("own", "peer", "residency", "reason"),
    [
        (DECODE, DECODE, "", "this node's role is decode: it may not offer transfers"),
        (PREFILL, PREFILL, "", "the peer's role is prefill: it may not receive transfers"),
        (PREFILL, DECODE, "us", "this KV may not leave us; the peer is in eu-north"),
        (PREFILL, DECODE, "eu-west", "this KV may not leave eu-west; the peer is in eu-north"),
        (PREFILL, BOTH, "eu-west", "this KV may not leave eu-west; the peer is in eu"),
    ],
)
def test_what_may_not_be_sent(own: Subject, peer: Subject, residency: str, reason: str) -> None:
    with pytest.raises(PolicyError) as refusal:
        Policy().check_sending(own, peer, manifest(residency))
    assert str(refusal.value) == reason


@pytest.mark.parametrize(
    ("own", "peer", "residency", "reason"),
    [
        (DECODE, DECODE, "", "the peer's role is decode: it may not offer transfers"),
        (PREFILL, PREFILL, "", "this node's role is prefill: it may not receive transfers"),
        (DECODE, PREFILL, "us", "this KV may not leave us; this node is in eu-north"),
        (DECODE, PREFILL, "eu-west", "this KV may not leave eu-west; this node is in eu-north"),
    ],
)
def test_what_may_not_be_offered(own: Subject, peer: Subject, residency: str, reason: str) -> None:
    with pytest.raises(NotAllowed) as refusal:
        Policy().check_offer(own, peer, manifest(residency))
    assert str(refusal.value) == reason


def test_models_of_a_tenant() -> None:
    policy = Policy(tenants={"acme", "globex"}, models={"acme": [MODEL], "globex": ()})
    policy.check_offer(DECODE, PREFILL, manifest())
    for model in (ModelTag(MODEL.name, "r2"), ModelTag("other", MODEL.revision), ModelTag(MODEL.name, "r1", "layout")):
        with pytest.raises(NotAllowed, match="tenant acme may not offer ModelTag"):
            policy.check_offer(DECODE, PREFILL, manifest(model=model))
    with pytest.raises(NotAllowed, match="tenant globex may not offer"):
        policy.check_offer(DECODE, OTHER, manifest())
    Policy(tenants={"globex"}, models={"acme": ()}).check_offer(DECODE, OTHER, manifest())


# --- what is no policy ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"tenants": "acme"},
        {"tenants": {"ACME"}},
        {"tenants": {"acme": 1}},
        {"tenants": 5},
        {"tenants": [None]},
        {"roles": {"reader"}},
        {"roles": "both"},
        {"regions": {"eu-"}},
        {"models": [MODEL]},
        {"models": {"ACME": [MODEL]}},
        {"models": {"acme": MODEL}},
        {"models": {"acme": ["a-model"]}},
        {"models": {"acme": "a-model"}},
        {"quota": None},
        {"quota": 5},
        {"quotas": {"acme": 5}},
        {"quotas": {"": Quota()}},
        {"quotas": Quota()},
        {"lossy": None},
        {"lossy": 1},
        {"lossy": "no"},
    ],
)
def test_what_is_no_policy(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="policy: "):
        Policy(**wrong)


@pytest.mark.parametrize("wrong", [{"transfers": -1}, {"lanes": 1.5}, {"bytes": True}, {"bytes": "1"}])
def test_what_is_no_quota(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"quota: {next(iter(wrong))} is"):
        Quota(**wrong)


def test_a_policy_does_not_change() -> None:
    tenants, models = {"acme"}, {"acme": [MODEL]}
    quotas = {"acme": Quota(lanes=1)}
    policy = Policy(tenants=tenants, models=models, quotas=quotas)
    tenants.add("globex")
    models["acme"].clear()
    quotas.clear()
    with pytest.raises(NotAllowed):
        policy.check_peer(DECODE, OTHER)
    policy.check_offer(DECODE, PREFILL, manifest())
    assert policy.quota_of("acme").lanes == 1


# --- quotas -----------------------------------------------------------------------------------------------------------


def test_quotas_are_over_all_links_of_a_tenant() -> None:
    usage = Usage(Policy(quota=Quota(transfers=2, bytes=100), quotas={"globex": Quota()}))
    usage.add_transfer("acme", 40)
    usage.add_transfer("acme", 40)
    with pytest.raises(NotAllowed, match="tenant acme would have 3 transfers under way; its quota is 2"):
        usage.add_transfer("acme", 1)
    usage.end_transfer("acme", 40)
    with pytest.raises(NotAllowed, match="tenant acme would have 101 bytes under way; its quota is 100"):
        usage.add_transfer("acme", 61)
    usage.shrink("acme", 40, 10)
    usage.add_transfer("acme", 90)
    usage.add_transfer("globex", 1 << 60)
    usage.end_transfer("globex", 1 << 60)
    usage.end_transfer("acme", 90)
    usage.end_transfer("acme", 10)
    assert usage.tenants == ()


class Counting(RuleBasedStateMachine):
    """Usage against sums over what is under way."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = Policy(quota=Quota(transfers=3, bytes=50), quotas={"b": Quota(bytes=20)})
        self.usage = Usage(self.policy)
        self.transfers: list[tuple[str, int]] = []

    def room(self, tenant: str, what: str, more: int) -> bool:
        used: Mapping[str, int] = {
            "transfers": sum(owner == tenant for owner, _ in self.transfers),
            "bytes": sum(nbytes for owner, nbytes in self.transfers if owner == tenant),
        }
        most = getattr(self.policy.quota_of(tenant), what)
        return most is None or used[what] + more <= most

    @rule(tenant=st.sampled_from("abc"), nbytes=st.integers(0, 30))
    def begin(self, tenant: str, nbytes: int) -> None:
        if self.room(tenant, "transfers", 1) and self.room(tenant, "bytes", nbytes):
            self.usage.add_transfer(tenant, nbytes)
            self.transfers.append((tenant, nbytes))
        else:
            with pytest.raises(NotAllowed):
                self.usage.add_transfer(tenant, nbytes)

    @precondition(lambda self: self.transfers)
    @rule(data=st.data())
    def shrink(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.transfers) - 1))
        tenant, before = self.transfers[index]
        after = data.draw(st.integers(0, before))
        self.usage.shrink(tenant, before, after)
        self.transfers[index] = tenant, after

    @precondition(lambda self: self.transfers)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.usage.end_transfer(*self.transfers.pop(data.draw(st.integers(0, len(self.transfers) - 1))))

    @invariant()
    def counts_who_has_something_under_way(self) -> None:
        assert set(self.usage.tenants) == {tenant for tenant, _ in self.transfers}

    def teardown(self) -> None:
        for transfer in self.transfers:
            self.usage.end_transfer(*transfer)
        assert self.usage.tenants == ()


TestCounting = Counting.TestCase
