from collections.abc import Callable, Sequence
from typing import Any, final

from numpy.typing import NDArray
from typing_extensions import Buffer

from kvwire._ext.zstdlib import Zstd

Data = Buffer | NDArray[Any]

@final
class Scratch:
    """What one worker works in: memory, and zstd's contexts where there is a libzstd. One thread uses it at a time."""

    def __init__(self, cell_bytes: int = ..., zstd: Zstd | None = None) -> None:
        """For cells of at most `cell_bytes` (256 KiB), by the libzstd of this process unless another one is given."""

@final
class Cell:
    """What codecs are told of a cell: `kvwire.codecs.cell` makes it from a group's spec."""

    def __init__(
        self,
        element: int,
        itemsize: int,
        parts: Sequence[tuple[int, int, int, bool]],
        offset: int = 0,
        layer: int = 0,
        layers: int = 1,
    ) -> None:
        """`element` 0: what has no meaning, 1 bf16, 2 fp16, 3 fp32, 4 fp64. ValueError for what cannot be."""

    @property
    def element(self) -> int: ...
    @property
    def itemsize(self) -> int:
        """Bytes of an element."""

    @property
    def parts(self) -> tuple[tuple[int, int, int, bool], ...]:
        """Of a block: elements before the token axis, along it, behind it, and whether scales are per channel."""

    @property
    def offset(self) -> int:
        """Bytes from the begin of a block to that of the cell."""

    @property
    def layer(self) -> int:
        """The place of the layer among the `layers` of its group."""

    @property
    def layers(self) -> int: ...

@final
class Native:
    """A codec as workers call it."""

    @property
    def name(self) -> str: ...
    @property
    def id(self) -> int:
        """Its number on the wire."""

    @property
    def needs_zstd(self) -> bool: ...
    @property
    def nogil(self) -> bool:
        """Whether it works without the GIL."""

    def encode_into(self, cell: Cell, src: Data, dst: Data, scratch: Scratch) -> int:
        """Length of the payload in `dst`; -1 where the cell is to be sent as it is."""

    def decode_into(self, cell: Cell, src: Data, dst: Data, scratch: Scratch) -> bool:
        """Fills `dst`; False where `src` is no payload of a cell of that length."""

    def encode(self, cell: Cell, data: Data, scratch: Scratch) -> bytes | None:
        """The payload; None where the cell is to be sent as it is."""

    def decode(self, cell: Cell, payload: Data, n: int, scratch: Scratch) -> bytes:
        """The cell's `n` bytes. ProtocolError where the payload is none of such a cell."""

def own(name: str, wire_id: int) -> Native:
    """One of kvwire's own: "zstd", "bf16", "fp8", "int8", "int4", "int2", "delta"; KeyError for another name."""

def of_python(
    name: str,
    wire_id: int,
    encode: Callable[[Cell, memoryview], Buffer | None],
    decode: Callable[[Cell, memoryview, int], Buffer],
) -> Native:
    """By functions in Python, which take the GIL for every cell. What they raise is taken for -1, and for damage."""

def of_addresses(name: str, wire_id: int, encode: int, decode: int, provider: int = 0, keep: object = None) -> Native:
    """By the functions of codec_impl.h at these addresses. `keep`: what has to live as long as the codec."""

def split_planes(src: Data, dst: Data, size: int, rotate: bool) -> None: ...
def merge_planes(src: Data, dst: Data, size: int, rotate: bool) -> None: ...
