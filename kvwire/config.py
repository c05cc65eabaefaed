"""Every knob: unit, default and the reason for it, under each field."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from ipaddress import ip_address
from typing import Any, NoReturn

from kvwire.errors import ConfigError
from kvwire.types import GroupKind, ModelTag

KIB = 1024
MIB = 1024 * 1024
GIB = 1024 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Configuration of a node. Frozen: a node's configuration does not change while it runs."""

    lanes: int | None = None
    """TCP lanes per link, 1 to 64, opened by the side that dials. None: what the path is worth. That is four within a
    site, which use several cores and queues of a network card and survive the loss of one, 16 on a long path, and from
    there as many as the goodput pays for (docs/congestion.md). All links to one host have 64 between them."""

    workers: int = 2
    """Native threads that move bytes, 2 to 64. One can receive while another sends; more than the cores that may
    be spent on the network is waste."""

    cell_bytes: int = 64 * KIB
    """Bytes in one frame, 4 KiB to 256 KiB, a multiple of 4 KiB; the receiver's choice counts. 64 KiB stays in
    the L2 cache while it is checked and copied, and is what one TCP super-packet holds."""

    stream_bytes: int = 512 * KIB
    """Bytes of a lane's receive buffer, twice the cell size to 64 MiB. Half of an L2 cache: what the kernel wrote
    is still there when it is verified and placed (bench/stream_buffer.py)."""

    plain: bool = False
    """No keys: nobody is authenticated, and nothing is encrypted; frames carry CRC32C. For trusted fabrics and for
    measurements; both ends must ask for it."""

    rekey_bytes: int = 64 * GIB
    """Bytes that a lane seals with one key, 1 MiB to 64 GiB, a direction; then the next key of its chain."""

    rekey_frames: int = 1 << 24
    """Frames that a lane seals with one key, 16 to 2**24 (docs/security.md)."""

    rekey_s: float = 3600.0
    """How long a lane seals with one key, 0.01 s to an hour."""

    models: tuple[ModelTag, ...] = ()
    """Model tags this node accepts KV for. Empty: it accepts any, and the caller of `accept` decides."""

    max_transfers: int = 256
    """Transfers under way per link and direction, 1 to 65536; an offer beyond it is refused. A peer with small messages
    takes fewer: a 16th of its `max_message_bytes`."""

    max_queued_runs: int = 65536
    """Runs of ready cells per link that no lane has taken yet, 1 to 2**24; a call of `ready` makes one for each run of
    blocks it names. A run takes 72 bytes. Beyond it `Outgoing.ready` raises QueueFull, and `wait_ready` waits."""

    max_message_bytes: int = 4 * MIB
    """Largest control message, 64 KiB to 64 MiB. 128 Ki tokens in blocks of 16 need 128 KiB of hashes a group."""

    max_links: int = 1024
    """Links that a serving node holds at once, 1 to 2**20, suspended ones included; of those, one that carries no
    transfer makes room. Who dials in vain gets PeerBusy."""

    max_handshakes: int = 256
    """Connections that have not yet said who they are, at once, 1 to 65536; a further one takes the place of one that
    has got less far than others."""

    handshake_timeout_s: float = 5.0
    """Longest time for a new connection to say who it is. This time and the next three: 1 ms to a week."""

    connect_timeout_s: float = 10.0
    """Longest time to resolve, dial and greet a peer."""

    offer_timeout_s: float = 30.0
    """Longest time an offer waits for its grant, when the call names none."""

    transfer_timeout_s: float = 300.0
    """Longest time a transfer may take from grant to receipt, when the call names none."""

    resume_timeout_s: float = 30.0
    """How long a link whose control connection was lost waits for another one, with its transfers, 0 (not at all) to a
    week. The side that dialled dials again all the time; the shorter of both sides' times counts."""

    ping_interval_s: float = 1.0
    """Silence on the control connection after which a ping is sent, 0.05 s to an hour. Its answer proves nothing and is
    not waited for: a peer whose Python stands still is alive. It gives the kernel something to miss when the peer's
    host is gone."""

    tcp_user_timeout_s: float = 3.5
    """How long sent bytes may stay unacknowledged by the peer's kernel before a connection counts as dead, 0.1 s to an
    hour (TCP_USER_TIMEOUT, RFC 5482). With the pings, a host that is gone is noticed within 5 s; as links are resumed,
    a path that was only slow costs nothing but a new connection."""

    local_addresses: tuple[str, ...] = ()
    """IP addresses of this host to dial from; lanes take them in turn, so that several network cards share the work.
    Only those of the peer's family count. Empty: the kernel chooses."""

    congestion: str | None = None
    """Kernel congestion control for lanes (TCP_CONGESTION), for example "cubic" or "bbr". None: BBR on a path longer
    than 2 ms where the host has it, else the host's choice."""

    controller: str | Callable[[], Any] = "none"
    """What caps the rate of a link above the kernel's congestion control: a name (`kvwire.controllers()`), or what
    makes a `kvwire.Controller` for each link (docs/congestion.md)."""

    compression: str | Mapping[str, str] = field(default="auto", hash=False)
    """What blocks go through on their way (docs/compression.md). "auto": the lossless codec, while that brings more
    through the link than it costs; "off": nothing; or the name of a codec, lossy ones among them, for all that leaves.
    A mapping says it by kind of group, `{"full": "int8", "recurrent": "zstd"}`, or by members of `GroupKind`; kinds
    that it leaves out are "auto"."""

    def __reduce__(self) -> tuple[partial[Config], tuple[()]]:
        """To be pickled by names of fields: another version may have others."""
        return partial(type(self), **{each.name: getattr(self, each.name) for each in fields(self)}), ()

    def __post_init__(self) -> None:
        def check(name: str, low: float, high: float) -> None:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ConfigError(f"{name} is {value!r}; expected {low} to {high}")
            wants_int = type(_DEFAULTS[name]) is int or name == "lanes"
            if wants_int and not isinstance(value, int):
                raise ConfigError(f"{name} is {value!r}; expected an integer")

        if self.lanes is not None:
            check("lanes", 1, 64)
        check("workers", 2, 64)
        check("cell_bytes", 4 * KIB, 256 * KIB)
        if self.cell_bytes % (4 * KIB):
            raise ConfigError(f"cell_bytes is {self.cell_bytes}; expected a multiple of 4096")
        check("stream_bytes", 2 * self.cell_bytes, 64 * MIB)
        check("rekey_bytes", MIB, 64 * GIB)
        check("rekey_frames", 16, 1 << 24)
        check("rekey_s", 0.01, 3600.0)
        check("max_transfers", 1, 65536)
        check("max_queued_runs", 1, 1 << 24)
        check("max_message_bytes", 64 * KIB, 64 * MIB)
        check("max_links", 1, 1 << 20)
        check("max_handshakes", 1, 1 << 16)
        for name in ("handshake_timeout_s", "connect_timeout_s", "offer_timeout_s", "transfer_timeout_s"):
            check(name, 0.001, 7 * 86400.0)
        check("resume_timeout_s", 0, 7 * 86400.0)
        check("ping_interval_s", 0.05, 3600.0)
        check("tcp_user_timeout_s", 0.1, 3600.0)
        if not isinstance(self.plain, bool):
            raise ConfigError(f"plain is {self.plain!r}; expected True or False")
        if not isinstance(self.models, tuple) or not all(isinstance(tag, ModelTag) for tag in self.models):
            raise ConfigError(f"models is {self.models!r:.80}; expected a tuple of ModelTag")
        if not isinstance(self.local_addresses, tuple) or not all(map(_is_address, self.local_addresses)):
            raise ConfigError(f"local_addresses is {self.local_addresses!r:.80}; expected a tuple of IP addresses")
        if self.congestion is not None and not isinstance(self.congestion, str):
            raise ConfigError(f"congestion is {self.congestion!r:.80}; expected a name or None")
        if not isinstance(self.controller, str) and not callable(self.controller):
            raise ConfigError(f"controller is {self.controller!r:.80}; expected a name, or what makes a controller")
        object.__setattr__(self, "compression", check_compression(self.compression))


class ByKind(dict[str, str]):
    """Codecs by kind of group, of a Config, which does not change."""

    __slots__ = ()

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("these are a Config's codecs, and it does not change; dict(...) of them does")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[type[ByKind], tuple[dict[str, str]]]:
        return type(self), (dict(self),)


def check_compression(value: object) -> str | Mapping[str, str]:
    """A choice of codecs, which nobody can change any more. ConfigError for what is none; whether there are codecs of
    those names is another question (`kvwire.codecs.choice`)."""
    if isinstance(value, str):
        return value
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value.values()):
        raise ConfigError(
            f"compression is {value!r:.80}", hint='"auto", "off", the name of a codec, or such a name by kind of group'
        )
    found = {}
    for kind, name in value.items():
        try:
            found[GroupKind(kind).value] = name
        except ValueError:
            kinds = ", ".join(kind.value for kind in GroupKind)
            raise ConfigError(f"compression: {kind!r:.80} is no kind of group", hint=f"there are {kinds}") from None
    return ByKind(found)


def _is_address(text: object) -> bool:
    try:
        ip_address(text if isinstance(text, str) else "")
    except ValueError:
        return False
    return True


_DEFAULTS = {f.name: f.default for f in fields(Config)}
