from typing import final

from kvwire._ext.codec import Cell, Native

@final
class Gauge:
    """What is measured of one kind of cell, and whether it is worth encoding."""

    @property
    def samples(self) -> int:
        """Cells that were encoded."""

    @property
    def ratio(self) -> float:
        """Bytes of a cell to bytes of its payload, smoothed; 0.0 before the first."""

    @property
    def on(self) -> bool:
        """Whether that is above 1.1, and has been, or has not been, for long enough."""

    def wants(self, affordable: bool, sample_due_ns: int, now_ns: int) -> tuple[bool, int]:
        """Whether to encode the next cell, and when the worker may sample again. For tests."""

    def measured(self, plain: int, wire: int, now_ns: int) -> None:
        """A cell of `plain` bytes was encoded to `wire`, or, where these are as many, did not shrink. For tests."""

@final
class Coding:
    """The codec of one segment's cells. Without a gauge each is encoded, and what does not shrink goes as it is."""

    def __init__(self, codec: Native, cell: Cell, gauge: Gauge | None = None) -> None: ...
    @property
    def codec(self) -> Native: ...
    @property
    def cell(self) -> Cell:
        """Of the segment's begin."""

    @property
    def gauge(self) -> Gauge | None: ...
