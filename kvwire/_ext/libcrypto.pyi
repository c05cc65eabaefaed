from typing import Literal, final

ENVIRONMENT: str

@final
class Libcrypto:
    """An opened libcrypto, 3.0 or newer."""

    @property
    def path(self) -> str: ...
    @property
    def version(self) -> str:
        """As "3.0.19"."""

    @property
    def number(self) -> int:
        """OpenSSL_version_num(): 0x300000d0 is 3.0.13, 0x30500000 is 3.5.0."""

    @property
    def found_as(self) -> Literal["KVWIRE_LIBCRYPTO", "bundled", "python", "system"]: ...

def load(file: str, found_as: str = ...) -> Libcrypto:
    """`file`, as dlopen takes it. OSError says why it cannot be used."""

def find() -> Libcrypto | None:
    """The first that can be used: KVWIRE_LIBCRYPTO, the wheel's own, the one Python's ssl module uses, the system's.

    ConfigError where KVWIRE_LIBCRYPTO names one that cannot be used; None where there is none at all.
    """
