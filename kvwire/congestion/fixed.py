"""`fixed`: one rate, whatever happens."""

from __future__ import annotations

from kvwire.congestion.bounds import MAX_RATE_BPS, checked, checked_rate
from kvwire.congestion.samples import Controller, Decision


class Fixed(Controller):
    """Paces at a rate that somebody knows: a contract, a share of a leased line.

    `pace_bps`: average, bits per second. `peak_bps`: of bursts, at least `pace_bps`; None: twice that.
    """

    def __init__(self, *, pace_bps: float, peak_bps: float | None = None) -> None:
        pace_bps = checked_rate("pace_bps", pace_bps)
        if peak_bps is not None:
            peak_bps = checked("peak_bps", peak_bps, pace_bps, MAX_RATE_BPS)
        self._decision = Decision(pace_bps=pace_bps, peak_bps=peak_bps)

    def decide(self, now: float) -> Decision:
        return self._decision
