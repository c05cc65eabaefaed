import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

class Segment:
    """The bytes of one group in one layer, as they lie in this process's memory; does not own that memory.

    `base`: address. `block_offsets`: int64 `[blocks * pages_per_block]`, bytes from `base`. `pattern`: int64
    `[n, 7]`, rows of (start, nbytes, page, offset, rows, row_bytes, row_stride), gapless over `block_bytes`.
    Raises SpecError where they do not fit each other.
    """

    def __init__(
        self,
        base: int,
        block_offsets: NDArray[np.int64],
        pages_per_block: int,
        pattern: NDArray[np.int64],
        block_bytes: int,
    ) -> None: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def block_bytes(self) -> int: ...
    def read(self, offset: int, length: int) -> bytes: ...
    def write(self, offset: int, data: Buffer) -> None: ...
    def pieces(self, offset: int, length: int) -> list[tuple[int, int]]:
        """(address, bytes) of the contiguous pieces of a range, in order. Raises IndexError outside the segment."""
