"""The pin file: peers that are known by their certificates alone, without a CA."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvwire.errors import IdentityError
from kvwire.security import files
from kvwire.security.certificates import Certificate, check_leaf, parse_certificates, read_certificates
from kvwire.security.subject import Subject

PINS = "pins.json"
VERSION = 1
NAMES = ("tenant", "role", "region", "name")
FIELDS = {"sha256", *NAMES, "certificate"}


@dataclass(frozen=True, slots=True)
class Pin:
    """A certificate, and who it stands for: what the pin says counts, whatever names the certificate has."""

    certificate: Certificate
    subject: Subject


def read_pins(path: Path) -> tuple[Pin, ...]:
    """The entries of a pin file, each checked. IdentityError where one is wrong."""
    content = files.read(path)
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise IdentityError(f"{path} is not JSON") from None
    if not isinstance(found, dict) or found.get("kvwire_pins") != VERSION or not isinstance(found.get("pins"), list):
        raise IdentityError(f'{path} is no pin file; expected {{"kvwire_pins": {VERSION}, "pins": [...]}}')
    pins = tuple(_parse(entry, f"{path}, pin {number}") for number, entry in enumerate(found["pins"], 1))
    fingerprints = [pin.certificate.fingerprint for pin in pins]
    if len(set(fingerprints)) != len(fingerprints):
        raise IdentityError(f"{path} pins a certificate twice")
    return pins


def _parse(entry: Any, where: str) -> Pin:
    if not isinstance(entry, dict) or set(entry) != FIELDS or not all(isinstance(v, str) for v in entry.values()):
        raise IdentityError(f"{where}: expected strings called {', '.join(sorted(FIELDS))}")
    certificate = parse_certificates(entry["certificate"].encode(errors="replace"), Path(where))[0]
    if certificate.fingerprint != entry["sha256"]:
        raise IdentityError(f"{where}: sha256 is not that of the certificate, which is {certificate.fingerprint}")
    check_leaf(certificate, where)
    try:
        return Pin(certificate, Subject(*(entry[name] for name in NAMES)))
    except IdentityError as error:
        raise IdentityError(f"{where}: {error}") from None


def pin(directory: files.Name, certificate_file: files.Name, subject: Subject | None = None) -> Pin:
    """Let the node whose identity is in `directory` know a peer by its certificate.

    `subject` says who it is; None: its certificate does. A certificate that is pinned already gets the new names.
    IdentityError where nobody says who it is, it may sign others, or a file cannot be used.
    """
    certificate = read_certificates(files.path_of(certificate_file))[0]
    check_leaf(certificate, certificate_file)
    known = subject or certificate.subject
    if known is None:
        raise IdentityError(f"{certificate_file} is a certificate without kvwire's names", hint="say whose it is")
    made = Pin(certificate, known)
    where = files.path_of(directory)
    with files.key_directory(where):
        present = read_pins(where / PINS) if files.is_there(where / PINS) else ()
        others = tuple(each for each in present if each.certificate.fingerprint != certificate.fingerprint)
        files.write(where / PINS, _text((*others, made)), files.PUBLIC)
    return made


def _text(pins: tuple[Pin, ...]) -> bytes:
    entries = [
        {"sha256": pin.certificate.fingerprint}
        | {name: getattr(pin.subject, name) for name in NAMES}
        | {"certificate": pin.certificate.pem}
        for pin in pins
    ]
    return json.dumps({"kvwire_pins": VERSION, "pins": entries}, indent=2).encode() + b"\n"
