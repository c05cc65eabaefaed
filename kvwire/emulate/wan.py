"""Two hosts and the wide area link between them."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import cache
from typing import Literal, Protocol

from kvwire.emulate import netem, tun
from kvwire.emulate.hosts import ADDRESSES, Buffers, Hosts
from kvwire.emulate.namespaces import why_no_namespaces
from kvwire.emulate.netem import NetemLink
from kvwire.emulate.path import Counters, Path, Wishes
from kvwire.emulate.tun import TunLink

Kind = Literal["netem", "tun"]


class Link(Protocol):
    """A way to join two hosts."""

    def apply(self, wishes: Wishes) -> None: ...
    def counters(self) -> tuple[Counters, Counters]: ...


@cache
def why_not(kind: Kind | None = None) -> str:
    """Empty, or a sentence: what this process would need for a link of that kind; without one, of any."""
    fault = why_no_namespaces()
    if fault:
        return fault
    if kind is None:
        return "" if available() else why_not("tun")
    try:
        (netem if kind == "netem" else tun).probe()
    except OSError as error:
        return f"A link of kind {kind} cannot be made: {error}."
    return ""


def available() -> Kind | None:
    """The kind of link that `Wan` makes unless told otherwise: the kernel's netem where it has one."""
    kinds: tuple[Kind, ...] = ("netem", "tun")
    return next((kind for kind in kinds if not why_not(kind)), None)


class Wan(Hosts):
    """Hosts a and b and a link between them; a context manager.

    `back` is as `there` where it is not given. `kind`: "netem" or "tun", by default what `available` says. `seed`: of
    the emulator's lots; netem draws its own. `buffers`: "big" raises what TCP may buffer to 64 MiB. OSError, with a
    sentence, where this machine cannot have one; ValueError for what this kind cannot do.
    """

    def __init__(
        self,
        there: Path,
        back: Path | None = None,
        *,
        kind: Kind | None = None,
        mtu: int = 1500,
        seed: int = 1,
        buffers: Buffers = "default",
    ) -> None:
        chosen = kind or available() or "tun"
        fault = why_not(chosen)
        if fault:
            raise OSError(fault)
        super().__init__(buffers)
        self.kind: Kind = chosen
        self._lock = threading.Lock()
        self._wishes = Wishes(there=there, back=back or there)
        hosts = self._hosts["a"], self._hosts["b"]
        self._link: Link
        try:
            if chosen == "netem":
                self._link = NetemLink(hosts, self._host(), ADDRESSES, self._wishes, mtu)
            else:
                self._link = TunLink(hosts, ADDRESSES, self._wishes, mtu, seed)
                self._stack.callback(self._link.close)
        except BaseException:
            self.close()
            raise

    def change(self, there: Path, back: Path | None = None) -> None:
        """From now on the link is like that; what it holds stays on its way: a shorter delay lets packets overtake."""
        with self._lock:
            self._apply(replace(self._wishes, there=there, back=back or there))

    def black_hole(self, active: bool, *, port: int | None = None) -> None:
        """Whether what is sent from now on vanishes, either way: everything, or what belongs to TCP connections that
        have this port on a. Call it for several ports; "everything" and ports are switched separately."""
        with self._lock:
            if port is None:
                self._apply(replace(self._wishes, black_hole=active))
            else:
                ports = self._wishes.ports | {port} if active else self._wishes.ports - {port}
                self._apply(replace(self._wishes, ports=ports))

    def _apply(self, wishes: Wishes) -> None:
        self._link.apply(wishes)
        self._wishes = wishes

    def counters(self) -> dict[str, Counters]:
        """As of now, "there" (from a to b) and "back"."""
        there, back = self._link.counters()
        return {"there": there, "back": back}
