"""Two hosts and a short, fast cable between them, of a rate: what TUN devices are too slow for."""

from functools import cache

from kvwire.emulate.hosts import ADDRESSES, Buffers, Hosts
from kvwire.emulate.namespaces import Namespace, why_no_namespaces

BURST_BYTES = 256 * 1024
"""Of the token bucket: some of TCP's super-packets of 64 KB, which stay in one piece."""


@cache
def why_not_shaped() -> str:
    """Empty, or a sentence: what this process would need for Shaped."""
    fault = why_no_namespaces()
    if not fault:
        host = Namespace()
        try:
            host.tool("tc qdisc add dev lo root tbf rate 1mbit burst 2kb limit 9kb")
        except OSError as error:
            fault = f"A shaped cable needs the command `tc` and the kernel's tbf: {error}."
        finally:
            host.close()
    return fault


class Shaped(Hosts):
    """Hosts a and b joined by a veth whose ends send at most `rate_bps` of Ethernet; a context manager.

    No delay, no loss but that of a full queue of `queue_bytes`, by default 10 ms of the rate. OSError, with a sentence,
    where this machine cannot have one.
    """

    def __init__(
        self,
        rate_bps: float,
        *,
        burst_bytes: int = BURST_BYTES,
        queue_bytes: int | None = None,
        mtu: int = 1500,
        buffers: Buffers = "default",
    ) -> None:
        fault = why_not_shaped()
        if fault:
            raise OSError(fault)
        super().__init__(buffers)
        limit = queue_bytes or max(int(rate_bps / 800), 2 * burst_bytes)
        first, second = self._hosts["a"], self._hosts["b"]
        try:
            first.ip(f"link add wan mtu {mtu} type veth peer name wan mtu {mtu} netns {second.path}")
            for host, address in zip((first, second), ADDRESSES, strict=True):
                host.ip("link set wan up", f"address add {address}/24 dev wan")
                tbf = f"tbf rate {rate_bps:.0f}bit burst {burst_bytes}b limit {limit}b"
                host.tool(f"tc qdisc add dev wan root {tbf}")
        except BaseException:
            self.close()
            raise
