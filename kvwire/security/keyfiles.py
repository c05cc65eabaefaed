"""What lies in a directory of keys, or in one file of it, for people to look at."""

from __future__ import annotations

from dataclasses import dataclass

from kvwire.errors import IdentityError
from kvwire.security import files
from kvwire.security.certificates import CA, CERTIFICATE, IDENTITY, REVOKED, Certificate, read_certificates
from kvwire.security.pins import PINS, Pin, read_pins
from kvwire.security.revocation import read_revoked


@dataclass(frozen=True, slots=True)
class KeyFiles:
    """Certificates and what they are there for; nothing of it is checked against time or against each other.

    `own`: of an identity, the leaf and its chain; of a single file whatever is in it. `revoked`: fingerprints.
    """

    own: tuple[Certificate, ...] = ()
    authorities: tuple[Certificate, ...] = ()
    pins: tuple[Pin, ...] = ()
    revoked: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: files.Name) -> KeyFiles:
        """Of a directory as kvwire-keys makes it, or of one file with certificates. IdentityError where it is neither.

        No key is read: a directory is shown by its public copy where there is one.
        """
        where = files.path_of(path)
        if not where.is_dir():
            return cls(own=read_certificates(where))
        shown = next((name for name in (CERTIFICATE, IDENTITY) if (where / name).exists()), None)
        found = cls(
            own=read_certificates(where / shown) if shown else (),
            authorities=read_certificates(where / CA) if files.is_there(where / CA) else (),
            pins=read_pins(where / PINS) if files.is_there(where / PINS) else (),
            revoked=tuple(sorted(read_revoked(where / REVOKED))) if files.is_there(where / REVOKED) else (),
        )
        if found == cls():
            raise IdentityError(f"{where} holds no certificate, CA or pin")
        return found
