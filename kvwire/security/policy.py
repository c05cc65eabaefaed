"""Who may do what: tenants, roles, regions, models and quotas. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType

from kvwire.errors import ConfigError, NotAllowed, PolicyError
from kvwire.security.subject import ROLES, Subject, resides_in
from kvwire.types import LABEL_RULE, Manifest, ModelTag, is_label


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What one tenant may have under way at a node, over all its links; None: no limit."""

    transfers: int | None = None
    """Transfers it has offered that are not over."""

    links: int | None = None
    """Links to this node."""

    lanes: int | None = None
    """Lanes, over all its links."""

    bytes: int | None = None
    """Bytes of those transfers, attachments as 64 KiB: what is on offer until it is granted, then what was granted."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
                raise ConfigError(f"quota: {each.name} is {value!r:.80}; expected a number from 0 on, or None")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Which peers a node talks to, and what they may offer. Names are those in certificates or the pin file."""

    tenants: Collection[str] | None = None
    """Tenants that may connect. None: this node's own, and no other."""

    roles: Collection[str] | None = None
    """Roles that may connect, of "prefill", "decode" and "both". None: any."""

    regions: Collection[str] | None = None
    """Regions that may connect; "eu" stands for "eu" and every "eu-...". None: any."""

    models: Mapping[str, Collection[ModelTag]] = field(default_factory=dict)
    """By tenant, the model tags that it may offer. A tenant that is not in it: any that `Config.models` takes."""

    quota: Quota = Quota()
    """What every tenant may have under way."""

    quotas: Mapping[str, Quota] = field(default_factory=dict)
    """By tenant, what stands in the place of `quota`."""

    lossy: bool = True
    """Whether this node takes KV that has been through a lossy codec. If not, its peers are told so: an honest one does
    not offer any, and another one's link ends."""

    def __post_init__(self) -> None:
        for name, is_one, rule in (
            ("tenants", is_label, LABEL_RULE),
            ("roles", ROLES.__contains__, ", ".join(ROLES)),
            ("regions", is_label, LABEL_RULE),
        ):
            value = getattr(self, name)
            if value is not None:
                if isinstance(value, str | Mapping) or not isinstance(value, Collection) or not all(map(is_one, value)):
                    raise ConfigError(f"policy: {name} is {value!r:.80}; expected a set of names ({rule}), or None")
                object.__setattr__(self, name, frozenset(value))
        _check_by_tenant("models", self.models)
        for tags in self.models.values():
            if not isinstance(tags, Collection) or not all(isinstance(tag, ModelTag) for tag in tags):
                raise ConfigError(f"policy: models has {tags!r:.80}; expected a set of ModelTag by tenant")
        frozen = {tenant: frozenset(tags) for tenant, tags in self.models.items()}
        object.__setattr__(self, "models", MappingProxyType(frozen))
        _check_by_tenant("quotas", self.quotas)
        if not all(isinstance(quota, Quota) for quota in (self.quota, *self.quotas.values())):
            raise ConfigError("policy: quota and quotas hold Quota")
        object.__setattr__(self, "quotas", MappingProxyType(dict(self.quotas)))
        if not isinstance(self.lossy, bool):
            raise ConfigError(f"policy: lossy is {self.lossy!r:.80}; expected True or False")

    def quota_of(self, tenant: str) -> Quota:
        """What this tenant may have under way."""
        return self.quotas.get(tenant, self.quota)

    def check_peer(self, own: Subject, peer: Subject) -> None:
        """Whether a peer may have a link with this node. NotAllowed says why not, for the audit log and no one else."""
        if self.tenants is None:
            if peer.tenant != own.tenant:
                raise NotAllowed(f"tenant {peer.tenant} is not this node's, {own.tenant}")
        elif peer.tenant not in self.tenants:
            raise NotAllowed(f"tenant {peer.tenant} is none of {_list(self.tenants)}")
        if self.roles is not None and peer.role not in self.roles:
            raise NotAllowed(f"role {peer.role} is none of {_list(self.roles)}")
        if self.regions is not None and not any(resides_in(peer.region, region) for region in self.regions):
            raise NotAllowed(f"region {peer.region} is in none of {_list(self.regions)}")

    def check_sending(self, own: Subject, peer: Subject, manifest: Manifest) -> None:
        """Whether this node may offer this KV to the peer. PolicyError says why not; nothing has been sent."""
        if not own.may_offer:
            raise PolicyError(f"this node's role is {own.role}: it may not offer transfers")
        if not peer.may_receive:
            raise PolicyError(f"the peer's role is {peer.role}: it may not receive transfers")
        if manifest.residency and not resides_in(peer.region, manifest.residency):
            raise PolicyError(f"this KV may not leave {manifest.residency}; the peer is in {peer.region}")

    def check_offer(self, own: Subject, peer: Subject, manifest: Manifest) -> None:
        """Whether this node may receive this KV from the peer. NotAllowed says why not."""
        if not peer.may_offer:
            raise NotAllowed(f"the peer's role is {peer.role}: it may not offer transfers")
        if not own.may_receive:
            raise NotAllowed(f"this node's role is {own.role}: it may not receive transfers")
        if manifest.residency and not resides_in(own.region, manifest.residency):
            raise NotAllowed(f"this KV may not leave {manifest.residency}; this node is in {own.region}")
        tags = self.models.get(peer.tenant)
        if tags is not None and manifest.model not in tags:
            raise NotAllowed(f"tenant {peer.tenant} may not offer {manifest.model}")


def _check_by_tenant(name: str, value: object) -> None:
    if not isinstance(value, Mapping) or not all(map(is_label, value)):
        raise ConfigError(f"policy: {name} is {value!r:.80}; expected a mapping from tenants ({LABEL_RULE})")


def _list(names: Collection[str]) -> str:
    return ", ".join(sorted(names)) or "nobody's"


@dataclass(slots=True)
class _Count:
    transfers: int = 0
    bytes: int = 0


class Usage:
    """The transfers that every tenant has under way at a node, held against its quota. What is added has to be ended.

    Lanes are not counted here: there are as many as the node's links have.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._counts: dict[str, _Count] = {}

    @property
    def tenants(self) -> tuple[str, ...]:
        """Tenants that have a transfer under way."""
        return tuple(self._counts)

    def add_transfer(self, tenant: str, nbytes: int) -> None:
        """A transfer of at most `nbytes` begins. NotAllowed, and nothing counted, where that would be too much."""
        count, quota = self._counts.get(tenant, _Count()), self._policy.quota_of(tenant)
        transfers, total = count.transfers + 1, count.bytes + nbytes
        for number, most, what in ((transfers, quota.transfers, "transfers"), (total, quota.bytes, "bytes")):
            if most is not None and number > most:
                raise NotAllowed(f"tenant {tenant} would have {number} {what} under way; its quota is {most}")
        self._counts[tenant] = _Count(transfers, total)

    def shrink(self, tenant: str, before: int, after: int) -> None:
        """Of the `before` bytes of a transfer no more than `after` are to come."""
        self._counts[tenant].bytes -= before - after

    def end_transfer(self, tenant: str, nbytes: int) -> None:
        """A transfer that still counted `nbytes` is over."""
        count = self._counts[tenant]
        count.transfers -= 1
        count.bytes -= nbytes
        assert count.transfers >= 0, f"more transfers of {tenant} have ended than had begun"
        assert count.bytes >= 0, f"more bytes of {tenant} have ended than had begun"
        if count == _Count():
            del self._counts[tenant]
