"""What there is to know of a codec."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvwire._ext import zstdlib
from kvwire._ext.codec import Native
from kvwire.errors import ConfigError
from kvwire.types import DType, GroupKind, GroupSpec


@dataclass(frozen=True, slots=True)
class Codec:
    """A codec: its name, its number on the wire, and what it may be used for."""

    name: str
    wire_id: int
    """1 to 127: kvwire's own; 128 to 255: an application's. 0 stands for no codec."""
    lossless: bool
    """Whether every bit comes back. A lossy codec is used only where the sender names it."""
    kinds: frozenset[GroupKind]
    dtypes: frozenset[DType]
    native: Native = field(repr=False, compare=False)
    """What workers call."""

    def takes(self, spec: GroupSpec) -> bool:
        """Whether a group of this kind and dtype may go through it."""
        return spec.kind in self.kinds and spec.dtype in self.dtypes

    @property
    def available(self) -> bool:
        """Whether this machine has what the codec needs. ConfigError where KVWIRE_LIBZSTD names what cannot be used."""
        return not self.native.needs_zstd or zstdlib.find() is not None

    def check_available(self) -> None:
        """ConfigError, with what to do about it, where this machine lacks what the codec needs."""
        if not self.available:
            raise ConfigError(
                f"codec {self.name!r} needs a libzstd, and none was found",
                hint=f"install the package zstandard or the system's libzstd.so.1, or set {zstdlib.ENVIRONMENT}",
            )
