"""Emulated wide area links between two network namespaces: what tests/wan and kvwire-bench wan run on.

with Wan(Path(delay_s=0.02, rate_bps=1e9, queue_bytes=5_000_000, loss=0.001)) as wan:
    server = wan.popen("b", ["iperf3", "-s", "-1"])
    wan.run("a", ["iperf3", "-c", wan.addresses[1]])
    print(wan.counters()["there"].lost)
"""

from kvwire.emulate.hosts import Side
from kvwire.emulate.namespaces import enter_user_namespace
from kvwire.emulate.path import Counters, Histogram, Path
from kvwire.emulate.shaped import Shaped, why_not_shaped
from kvwire.emulate.wan import Kind, Wan, available, why_not

__all__ = [
    "Counters",
    "Histogram",
    "Kind",
    "Path",
    "Shaped",
    "Side",
    "Wan",
    "available",
    "enter_user_namespace",
    "why_not",
    "why_not_shaped",
]
