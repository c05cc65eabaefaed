from typing import Literal, final

ENVIRONMENT: str

@final
class Zstd:
    """An opened libzstd, 1.4.0 or newer."""

    @property
    def path(self) -> str: ...
    @property
    def version(self) -> str:
        """As "1.5.7"."""

    @property
    def found_as(self) -> Literal["KVWIRE_LIBZSTD", "zstandard", "system"]: ...

def load(file: str, found_as: str = ...) -> Zstd:
    """`file`, as dlopen takes it. OSError says why it cannot be used."""

def packages() -> list[str]:
    """Extension modules of the package `zstandard`, which is not imported for that; none where it is not installed."""

def find() -> Zstd | None:
    """The first that can be used, looked for once: KVWIRE_LIBZSTD, that of the package `zstandard`, the system's.

    ConfigError where KVWIRE_LIBZSTD names one that cannot be used; None where there is none at all.
    """
