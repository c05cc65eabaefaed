from collections.abc import Iterable
from typing import Literal

class Ledger:
    """Which cells of a transfer have landed. `cells[i]`: number of cells of segment `i`, 0 to 2**32 - 1."""

    def __init__(self, cells: Iterable[int]) -> None: ...
    def claim(self, segment: int, cell: int) -> Literal["own", "duplicate", "outside"]:
        """Take the right to write a cell; only the first caller gets "own"."""

    def land(self, segment: int, cell: int) -> bool:
        """A claimed cell is in place; True when that completes the segment. ValueError if not claimed or twice."""

    def landed(self, segment: int, cell: int) -> bool: ...
    def missing(self, segment: int) -> int:
        """Cells of a segment that have not landed."""

    @property
    def missing_total(self) -> int:
        """Cells that have not landed, of all segments."""
