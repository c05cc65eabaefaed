"""Two hosts and the wide area link between them."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from functools import cache
from typing import Literal, Protocol

from kvwire.emulate import tun
from kvwire.emulate.hosts import ADDRESSES, Buffers, Hosts
from kvwire.emulate.namespaces import may_make_namespaces
from kvwire.emulate.path import Counters, Path, Wishes
from kvwire.emulate.tun import TunLink

Kind = Literal["netem", "tun"]


class Link(Protocol):
    """A way to join two hosts."""

    def apply(self, wishes: Wishes) -> None: ...
    def counters(self) -> tuple[Counters, Counters]: ...
    def close(self) -> None: ...


@cache
def why_not(kind: Kind | None = None) -> str:
    """Empty, or a sentence: what this process would need for an emulated link, of that kind."""
    if shutil.which("ip") is None:
        return "The command `ip` is missing; Debian's package is iproute2."
    fault = may_make_namespaces()
    if fault:
        return (
            f"Network namespaces need root or a user namespace, in which `python -m kvwire.emulate COMMAND` runs a"
            f" command where the host allows it ({fault})."
        )
    fault = tun.why_not()
    return f"The emulator needs TUN devices: {fault}." if fault else ""


def available() -> Kind | None:
    """The kind of link that `Wan` makes unless told otherwise."""
    return None if why_not("tun") else "tun"


class Wan(Hosts):
    """Hosts a and b and a link between them; a context manager.

    `back` is as `there` where it is not given. `kind`: "netem" or "tun", by default what `available` says. `buffers`:
    "big" raises what TCP may buffer to 64 MiB. OSError, with a sentence, where this machine cannot have one.
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
        try:
            self._link: Link = TunLink(hosts, ADDRESSES, self._wishes, mtu, seed)
        except BaseException:
            self.close()
            raise
        self._stack.callback(self._link.close)

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
