"""kvwire-keys: makes, shows, replaces and revokes the certificates by which kvwire's nodes know each other.

With a CA: `ca` once, then `issue` for each node. Without one: `self` on each of two hosts, and `pin` the other one's
certificate.pem. docs/security.md says what lies in which file.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kvwire
from kvwire.cli import entry
from kvwire.cli.arguments import Subparsers, within
from kvwire.cli.failure import Failure

CA_DIRECTORY = "kvwire-ca"
KEY_DIRECTORY = "kvwire-keys"
CA_DAYS = 3650
DAYS = 90
MOST_DAYS = 36500
NAMES = ("tenant", "role", "region", "name")
HELP = {
    "tenant": "whose node it is",
    "role": "prefill (offers transfers), decode (receives them) or both",
    "region": "where it stands, such as eu-west",
    "name": "what it is called; default: the host's name",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 all well, 2 it could not run, 130 interrupted."""
    return entry.run("kvwire-keys", __doc__, (add_commands,), arguments)


def add_commands(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("ca", help="make a CA")
    parser.add_argument("directory", nargs="?", default=CA_DIRECTORY, metavar="DIR", help=f"default: {CA_DIRECTORY}")
    parser.add_argument(
        "--tenant", action="append", default=[], help="its certificates count for this tenant only; may be repeated"
    )
    _add_days(parser, CA_DAYS)
    parser.set_defaults(command=_ca)

    parser = subparsers.add_parser("issue", help="make a node's key and certificate, signed by the CA")
    _add_names(parser, required=True)
    _add_ca(parser)
    _add_output(parser)
    parser.set_defaults(command=_issue)

    parser = subparsers.add_parser("self", help="make a node's key and certificate, signed by no CA, to be pinned")
    _add_names(parser, required=True)
    _add_output(parser)
    parser.set_defaults(command=_self)

    parser = subparsers.add_parser("pin", help="let a node know a peer by its certificate alone")
    parser.add_argument("certificate", metavar="CERTIFICATE", help="the peer's certificate.pem")
    _add_names(parser, required=False)
    _add_keys(parser)
    parser.set_defaults(command=_pin)

    parser = subparsers.add_parser("show", help="what is in a directory of keys, or in a certificate")
    parser.add_argument("path", nargs="?", default=KEY_DIRECTORY, metavar="FILE|DIR", help=f"default: {KEY_DIRECTORY}")
    parser.add_argument("--json", action="store_true", help="one JSON object on one line")
    parser.set_defaults(command=_show)

    parser = subparsers.add_parser("rotate", help="a new key and certificate for the same node, by one rename")
    parser.add_argument("directory", nargs="?", default=KEY_DIRECTORY, metavar="DIR", help=f"default: {KEY_DIRECTORY}")
    _add_ca(parser)
    _add_days(parser, DAYS)
    parser.set_defaults(command=_rotate)

    parser = subparsers.add_parser("revoke", help="let a node refuse a certificate from now on")
    parser.add_argument("certificate", metavar="CERTIFICATE|FINGERPRINT", help="a PEM file, or SHA-256 of it in hex")
    _add_keys(parser)
    parser.set_defaults(command=_revoke)


def _add_names(parser: argparse.ArgumentParser, *, required: bool) -> None:
    for name in NAMES:
        note = HELP[name] if required else f"{name}, whatever the certificate says"
        parser.add_argument(f"--{name}", required=required and name != "name", help=note)


def _add_ca(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ca", default=CA_DIRECTORY, metavar="DIR", help=f"the CA's; default: {CA_DIRECTORY}")


def _add_keys(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keys", default=KEY_DIRECTORY, metavar="DIR", help=f"the node's; default: {KEY_DIRECTORY}")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", default=KEY_DIRECTORY, metavar="DIR", help=f"default: {KEY_DIRECTORY}")
    _add_days(parser, DAYS)


def _add_days(parser: argparse.ArgumentParser, default: int) -> None:
    note = f"how long it is valid; default: {default}"
    parser.add_argument("--days", type=within(1, MOST_DAYS, int), default=default, metavar="N", help=note)


# --- commands ---------------------------------------------------------------------------------------------------------


def _ca(options: argparse.Namespace) -> int:
    made = kvwire.Authority.create(options.directory, tenants=options.tenant, days=options.days)
    return _made(options.directory, made.certificate)


def _issue(options: argparse.Namespace) -> int:
    authority = kvwire.Authority.load(options.ca)
    return _made(options.output, authority.issue(options.output, _subject(options), days=options.days))


def _self(options: argparse.Namespace) -> int:
    return _made(options.output, kvwire.self_signed(options.output, _subject(options), days=options.days))


def _rotate(options: argparse.Namespace) -> int:
    own = kvwire.KeyFiles.read(options.directory).own
    if not own or own[0].subject is None:
        raise Failure(f"{options.directory} holds no identity of a node's")
    authority = kvwire.Authority.load(options.ca)
    made = authority.issue(options.directory, own[0].subject, days=options.days, replace=True)
    print(f"replaced: {own[0].fingerprint}, which stays valid until {_moment(own[0].expires)} unless it is revoked")
    return _made(options.directory, made)


def _pin(options: argparse.Namespace) -> int:
    given = {name: value for name in NAMES if (value := getattr(options, name)) is not None}
    subject = None
    if given:
        own = kvwire.KeyFiles.read(options.certificate).own[0].subject
        known = {name: getattr(own, name) for name in NAMES} if own else {}
        missing = [f"--{name}" for name in NAMES if name not in known | given]
        if missing:
            raise Failure(f"{options.certificate} has no names of kvwire's: {', '.join(missing)} must say whose it is")
        subject = kvwire.Subject(**known | given)
    pin = kvwire.pin(options.keys, options.certificate, subject)
    print(f"pinned in {options.keys}: {pin.subject}\n  fingerprint  {pin.certificate.fingerprint}")
    return 0


def _revoke(options: argparse.Namespace) -> int:
    fingerprint, note = options.certificate, ""
    if Path(fingerprint).exists():
        own = kvwire.KeyFiles.read(fingerprint).own
        if not own:
            raise Failure(f"{fingerprint} holds no certificate of its own")
        fingerprint, note = own[0].fingerprint, str(own[0].subject or "")
    new = kvwire.revoke(options.keys, fingerprint, note)
    print(f"{'revoked' if new else 'revoked before'} in {options.keys}: {fingerprint}")
    return 0


def _subject(options: argparse.Namespace) -> kvwire.Subject:
    name = options.name
    if name is None:
        name = re.sub(r"[^a-z0-9.-]+", "-", socket.gethostname().lower())[:63].strip("-.")
        if not name:
            raise Failure("this host's name is no name for a node: give --name")
    return kvwire.Subject(options.tenant, options.role, options.region, name)


# --- output -----------------------------------------------------------------------------------------------------------


def _made(directory: str, certificate: kvwire.Certificate) -> int:
    print(f"in {directory}: {_title(certificate)}\n{_details(certificate)}")
    return 0


def _show(options: argparse.Namespace) -> int:
    found = kvwire.KeyFiles.read(options.path)
    if options.json:
        print(json.dumps(_record(found)))
        return 0
    blocks = [f"{_title(certificate)}\n{_details(certificate, found.revoked)}" for certificate in found.own]
    blocks += [f"trusts {_title(each)}\n{_details(each)}" for each in found.authorities]
    blocks += [f"trusts, pinned: {pin.subject}\n{_details(pin.certificate, found.revoked)}" for pin in found.pins]
    if found.revoked:
        blocks.append("\n  ".join(["revoked", *found.revoked]))
    print("\n".join(blocks))
    return 0


def _record(found: kvwire.KeyFiles) -> dict[str, Any]:
    def tell(certificate: kvwire.Certificate, subject: kvwire.Subject | None) -> dict[str, Any]:
        return {
            "subject": str(subject) if subject else None,
            **{name: getattr(subject, name, None) for name in NAMES},
            "fingerprint": certificate.fingerprint,
            "begins": certificate.begins.isoformat(),
            "expires": certificate.expires.isoformat(),
            "is_authority": certificate.is_authority,
            "revoked": certificate.fingerprint in found.revoked,
        }

    return {
        "kvwire_keys": 1,
        "certificates": [tell(each, each.subject) for each in found.own],
        "authorities": [tell(each, each.subject) for each in found.authorities],
        "pins": [tell(pin.certificate, pin.subject) for pin in found.pins],
        "revoked": list(found.revoked),
    }


def _title(certificate: kvwire.Certificate) -> str:
    if certificate.is_authority:
        return "a CA"
    return str(certificate.subject or "a certificate without kvwire's names")


def _details(certificate: kvwire.Certificate, revoked: Sequence[str] = ()) -> str:
    now = datetime.now(UTC)
    state = (
        "REVOKED" if certificate.fingerprint in revoked
        else "EXPIRED" if now > certificate.expires
        else "NOT YET VALID" if now < certificate.begins
        else f"{(certificate.expires - now).days} days left"
    )  # fmt: skip
    period = f"{_moment(certificate.begins)} to {_moment(certificate.expires)}, {state}"
    return f"  fingerprint  {certificate.fingerprint}\n  valid        {period}"


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


if __name__ == "__main__":
    sys.exit(main())
