"""`none`: the kernel's congestion control, and nothing on top of it."""

from __future__ import annotations

from kvwire.congestion.samples import Controller, Decision


class Uncapped(Controller):
    """Never caps anything. The default."""

    def decide(self, now: float) -> Decision:
        return Decision()
