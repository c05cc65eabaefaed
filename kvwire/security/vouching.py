"""Whether one CA, by itself, vouches for a certificate.

A TLS context has one set of anchors. On a node with pins they are among them, so that a chain which OpenSSL has
accepted does not say by itself whose it is: a pin that may sign could put a CA's name and key under an intermediate of
its own making, without the CA's constraints. No such pin is accepted (`check_leaf`); besides, what is not pinned has to
pass here: RFC 5280, 6.1, for the chain of two.
"""

from __future__ import annotations

from datetime import datetime

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from kvwire.security.certificates import Certificate, extension

BOTH_WAYS = {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}


def vouches(authority: Certificate, leaf: Certificate, now: datetime) -> bool:
    """Whether the authority has signed the leaf, directly, counts now, and may do so for its tenant.

    What concerns the leaf alone (its time, its usages) OpenSSL has checked. A path length limits nothing: no CA stands
    between the two.
    """
    if leaf.subject is None or leaf.may_sign or not authority.is_authority or not leaf.is_issued_by(authority):
        return False
    if not authority.begins <= now <= authority.expires:
        return False
    found = x509.load_der_x509_certificate(authority.der)
    usage, purposes = extension(found, x509.KeyUsage), extension(found, x509.ExtendedKeyUsage)
    if (usage and not usage.key_cert_sign) or (purposes and not set(purposes) >= BOTH_WAYS):
        return False
    return _allows(extension(found, x509.NameConstraints), leaf.subject.tenant)


def _allows(limits: x509.NameConstraints | None, tenant: str) -> bool:
    """RFC 5280, 4.2.1.10, for the URI that says who it is; names of other kinds mean nothing to kvwire."""
    if limits is None:
        return True
    permitted, excluded = (
        [tree.value for tree in trees or () if isinstance(tree, x509.UniformResourceIdentifier)]
        for trees in (limits.permitted_subtrees, limits.excluded_subtrees)
    )
    return not _covered(tenant, excluded) and (not permitted or _covered(tenant, permitted))


def _covered(host: str, subtrees: list[str]) -> bool:
    """A subtree is a host, or with a dot before it every host below it."""
    return any(host.endswith(tree.lower()) if tree.startswith(".") else host == tree.lower() for tree in subtrees)
