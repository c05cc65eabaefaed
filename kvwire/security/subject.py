"""Who a node is: tenant, role, region and name, as one URI in a certificate."""

from __future__ import annotations

from dataclasses import dataclass, fields

from kvwire.errors import IdentityError
from kvwire.types import LABEL_RULE, is_label

SCHEME = "kvwire"
FORM = f"{SCHEME}://TENANT/ROLE/REGION/NAME"
ROLES = ("prefill", "decode", "both")


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose node it is, what it may do, where it stands, and what it is called.

    `role`: "prefill" may offer transfers, "decode" may receive them, "both" may do both. IdentityError for what is no
    label (`kvwire.types.LABEL_RULE`) or no role.
    """

    tenant: str
    role: str
    region: str
    name: str

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not is_label(value):
                raise IdentityError(f"{field.name} is {value!r:.80}; expected {LABEL_RULE}")
        if self.role not in ROLES:
            raise IdentityError(f"role is {self.role!r}; expected one of {', '.join(ROLES)}")

    def __str__(self) -> str:
        return self.uri

    @property
    def uri(self) -> str:
        """`kvwire://TENANT/ROLE/REGION/NAME`. The tenant is the host, which is what a CA's name constraints speak of
        (RFC 5280, 4.2.1.10)."""
        return f"{SCHEME}://{self.tenant}/{self.role}/{self.region}/{self.name}"

    @classmethod
    def from_uri(cls, uri: str) -> Subject:
        """The subject that has this URI, letter for letter. IdentityError for every other."""
        head, _, rest = uri.partition("://")
        labels = rest.split("/")
        if head != SCHEME or len(labels) != len(fields(cls)):
            raise IdentityError(f"{uri!r:.300} is no name of kvwire's; expected {FORM}")
        return cls(*labels)

    @property
    def may_offer(self) -> bool:
        """Whether it may send KV."""
        return self.role != "decode"

    @property
    def may_receive(self) -> bool:
        """Whether KV may be sent to it."""
        return self.role != "prefill"


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is on the other side: its subject, and SHA-256 (hex) of its whole leaf certificate."""

    subject: Subject
    fingerprint: str


def resides_in(region: str, label: str) -> bool:
    """Whether a region meets a residency label: "eu" is met by "eu" and by every "eu-..."."""
    return region == label or region.startswith(f"{label}-")
