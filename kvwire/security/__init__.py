"""Who a node is, whom it believes, what it allows, and the record of it."""

from kvwire.security.audit import AuditLog
from kvwire.security.certificates import Authority, Certificate, self_signed
from kvwire.security.chain import AuditReport, verify_audit
from kvwire.security.identity import ALPN, Identity
from kvwire.security.keyfiles import KeyFiles
from kvwire.security.pins import Pin, pin
from kvwire.security.policy import Policy, Quota, Usage
from kvwire.security.revocation import revoke
from kvwire.security.subject import Peer, Subject, resides_in

__all__ = [
    "ALPN",
    "AuditLog",
    "AuditReport",
    "Authority",
    "Certificate",
    "Identity",
    "KeyFiles",
    "Peer",
    "Pin",
    "Policy",
    "Quota",
    "Subject",
    "Usage",
    "pin",
    "resides_in",
    "revoke",
    "self_signed",
    "verify_audit",
]
