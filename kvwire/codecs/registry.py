"""Codecs by name: those that come with kvwire, and an application's own."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterable
from typing import Any

from kvwire._ext.codec import Cell, Native, of_addresses, of_python, own
from kvwire.codecs.description import Codec
from kvwire.errors import ConfigError, WrongThread
from kvwire.types import DType, GroupKind

log = logging.getLogger("kvwire")

Data = bytes | bytearray | memoryview
Encode = Callable[[Cell, memoryview], Data | None]
"""The payload of a cell, or None where the cell is to be sent as it is."""
Decode = Callable[[Cell, memoryview, int], Data]
"""The cell again, of so many bytes; it raises where the payload is none."""

FIRST_ID, LAST_ID = 128, 255
"""Numbers on the wire that applications have for themselves."""
MOST = 32
"""Codecs of a process: both sides of a link say all of theirs in one message."""

_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,63}")
_RESERVED = ("auto", "off")

_ALL_KINDS = frozenset(GroupKind)
_ALL_DTYPES = frozenset(DType)
_ATTENTION = frozenset(kind for kind in GroupKind if not kind.is_state)
_HALVES_AND_SINGLES = frozenset((DType.BF16, DType.FP16, DType.FP32))


def _own(name: str, wire_id: int, lossless: bool, kinds: frozenset[GroupKind], dtypes: frozenset[DType]) -> Codec:
    return Codec(name, wire_id, lossless, kinds, dtypes, own(name, wire_id))


_codecs: dict[str, Codec] = {
    codec.name: codec
    for codec in (
        _own("zstd", 1, True, _ALL_KINDS, _ALL_DTYPES),
        _own("bf16", 2, False, _ALL_KINDS, frozenset((DType.FP32,))),
        _own("fp8", 3, False, _ATTENTION, _HALVES_AND_SINGLES),
        _own("int8", 4, False, _ATTENTION, _HALVES_AND_SINGLES),
        _own("int4", 5, False, _ATTENTION, _HALVES_AND_SINGLES),
        _own("int2", 6, False, _ATTENTION, _HALVES_AND_SINGLES),
        _own("delta", 7, False, _ATTENTION, _HALVES_AND_SINGLES),
    )
}


def codecs() -> tuple[Codec, ...]:
    """Every codec of this process, by number; `Codec.available` says whether this machine has what it needs."""
    return tuple(sorted(_codecs.values(), key=lambda codec: codec.wire_id))


def find_codec(name: str) -> Codec:
    """The codec of this name. ConfigError where there is none, or this machine lacks what it needs."""
    codec = _codecs.get(name) if isinstance(name, str) else None
    if codec is None:
        raise ConfigError(f"there is no codec {name!r:.80}", hint=f"known: {', '.join(c.name for c in codecs())}")
    codec.check_available()
    return codec


def register_codec(
    name: str,
    wire_id: int,
    encode: Encode | int,
    decode: Decode | int,
    *,
    lossless: bool,
    kinds: Iterable[GroupKind] = _ALL_KINDS,
    dtypes: Iterable[DType] = _ALL_DTYPES,
    provider: int = 0,
    keep: object = None,
) -> Codec:
    """Adds a codec of the application's, for this process; both ends of a link have to know it by the same name and id.

    `encode` and `decode` are functions in Python, which take the GIL for every cell, or both the addresses of functions
    in C as kvwire/_ext/codec_impl.h has them; `provider` is an address that those find in their codec, and `keep` an
    object that has to live as long. ConfigError where the name or the id is taken or cannot be one. Links that are up
    do not take what is registered later.

    A codec's functions run in the workers, while these read pages. So they must not call what waits for a worker, which
    would be their own: in functions in Python aborting a transfer, `ready`, `attach` and blocking waits raise
    WrongThread; in those in C they hang. A cell that `encode` makes nothing of goes as it is, a payload that `decode`
    makes nothing of ends the lane; that one in Python raises, or returns what is no bytes, is logged the first time.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r:.80} is no name of a codec; expected lower case, digits, '_', '-' and '.'")
    if name in _RESERVED:
        raise ConfigError(f"a codec cannot be called {name!r}, which says how codecs are chosen")
    if not isinstance(wire_id, int) or isinstance(wire_id, bool) or not FIRST_ID <= wire_id <= LAST_ID:
        raise ConfigError(f"codec {name!r}: id {wire_id!r:.80}; applications have {FIRST_ID} to {LAST_ID}")
    for codec in codecs():
        if codec.name == name or codec.wire_id == wire_id:
            raise ConfigError(f"codec {name!r}, id {wire_id}: there is {codec.name!r}, id {codec.wire_id}, already")
    if len(_codecs) >= MOST:
        raise ConfigError(f"codec {name!r}: there are {MOST} codecs already, and no more can be")
    taken = f"codec {name!r}: kinds are of GroupKind, dtypes of DType, one of each at least"
    try:
        kinds, dtypes = frozenset(kinds), frozenset(dtypes)
    except TypeError:
        raise ConfigError(taken) from None
    if not kinds or not kinds <= _ALL_KINDS or not dtypes or not dtypes <= _ALL_DTYPES:
        raise ConfigError(taken)
    made = Codec(name, wire_id, bool(lossless), kinds, dtypes, _native(name, wire_id, encode, decode, provider, keep))
    _codecs[name] = made
    return made


_running = threading.local()


class _Function:
    """A codec's function in Python: it is known that it runs, and its first error is logged. The engine only sees that
    there was no payload, or no cell."""

    def __init__(self, codec: str, does: str, function: Callable[..., Any]) -> None:
        self._what = f"codec {codec!r}, {does}"
        self._may_be_none = does == "encode"
        self._function = function
        self._has_raised = False

    def __call__(self, *args: object) -> Any:
        around = getattr(_running, "what", None)
        _running.what = self._what
        try:
            made = self._function(*args)
            if made is not None or not self._may_be_none:
                memoryview(made)  # TypeError for what is no bytes
            return made
        except BaseException:
            if not self._has_raised:
                self._has_raised = True
                log.warning("%s: failed, which is said once", self._what, exc_info=True)
            raise
        finally:
            _running.what = around


def check_outside_codecs() -> None:
    """WrongThread in a codec's function: who waits for a worker there waits for the thread that he is in."""
    what = getattr(_running, "what", None)
    if what is not None:
        raise WrongThread(
            f"this would wait for the worker that runs {what}",
            hint="leave it to another thread and go on: loop.call_soon_threadsafe(transfer.abort_nowait)",
        )


def _native(name: str, wire_id: int, encode: Encode | int, decode: Decode | int, provider: int, keep: object) -> Native:
    if callable(encode) and callable(decode):
        return of_python(name, wire_id, _Function(name, "encode", encode), _Function(name, "decode", decode))
    if isinstance(encode, int) and isinstance(decode, int) and min(encode, decode) > 0:
        return of_addresses(name, wire_id, encode, decode, provider, keep)
    raise ConfigError(f"codec {name!r}: encode and decode are neither two functions nor two addresses of functions")
