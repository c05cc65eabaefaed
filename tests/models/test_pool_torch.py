"""torch tensors as registered memory, the dtypes that numpy has not among them."""

from typing import Any

import numpy as np
import pytest
import torch

from kvwire._ext.layout import Segment
from kvwire.errors import SpecError
from kvwire.pool import Pages
from kvwire.types import BlockRange, DType, GroupKind, GroupOffer, GroupSpec

TORCH = {
    DType.BF16: torch.bfloat16,
    DType.FP16: torch.float16,
    DType.FP32: torch.float32,
    DType.FP64: torch.float64,
    DType.FP8_E4M3: torch.float8_e4m3fn,
    DType.FP8_E5M2: torch.float8_e5m2,
    DType.UINT8: torch.uint8,
    DType.INT8: torch.int8,
    DType.INT16: torch.int16,
    DType.INT32: torch.int32,
    DType.INT64: torch.int64,
    DType.BOOL: torch.bool,
}
SHAPE = (5, 2, 4, 2, 3)  # slots, K and V, tokens, heads, dim


def spec_of(dtype: DType, heads: int = 2) -> GroupSpec:
    return GroupSpec.attention("kv", [0], dtype, block_tokens=4, heads=heads, head_dim=3)


def noise(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    size = torch.empty(0, dtype=dtype).element_size()
    raw = torch.randint(0, 2, (*shape[:-1], shape[-1] * size), dtype=torch.uint8)  # 0 and 1: valid booleans too
    return raw.view(dtype)


def raw_bytes(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().view(torch.uint8).numpy().tobytes())


def segment_of(spec: GroupSpec, entry: Any, slots: list[int]) -> tuple[Pages, Segment]:
    pages = Pages(spec, [entry], writable=True)
    offer = GroupOffer(spec, BlockRange(0, len(slots)))
    return pages, pages.at(slots).segments(offer, np.arange(len(slots)))[0]


@pytest.mark.parametrize("dtype", list(DType))
def test_every_dtype_reads_and_writes(dtype: DType) -> None:
    tensor = noise(SHAPE, TORCH[dtype])
    pages, segment = segment_of(spec_of(dtype), tensor, [3, 1])
    assert segment.read(0, segment.nbytes) == raw_bytes(tensor[3]) + raw_bytes(tensor[1])
    new = noise((2, *SHAPE[1:]), TORCH[dtype])
    segment.write(0, raw_bytes(new))
    assert raw_bytes(tensor[[3, 1]].view(torch.uint8)) == raw_bytes(new)
    pages.close()


@pytest.mark.parametrize("dtype", [DType.BF16, DType.FP8_E4M3, DType.FP32])
def test_views_of_larger_tensors(dtype: DType) -> None:
    wide = noise((5, 2, 4, 6, 3), TORCH[dtype])
    heads = wide[:, :, :, 2:4]  # the heads of one tensor-parallel rank
    strided = wide[1::2, :, :, ::3]
    transposed = noise((5, 2, 2, 4, 3), TORCH[dtype]).transpose(2, 3)
    vllm = noise((2, 5, 4, 2, 3), TORCH[dtype])
    for entry, view in [
        (heads, heads),
        (strided, strided),
        (transposed, transposed),
        ((vllm[0], vllm[1]), vllm.transpose(0, 1)),
    ]:
        pages, segment = segment_of(spec_of(dtype), entry, [1, 0])
        assert segment.read(0, segment.nbytes) == raw_bytes(view[1]) + raw_bytes(view[0])
        before = raw_bytes(wide)
        segment.write(0, segment.read(0, segment.nbytes))
        assert raw_bytes(wide) == before
        pages.close()


def test_integers_stand_for_elements_of_their_size() -> None:
    tensor = noise(SHAPE, torch.bfloat16)
    _, segment = segment_of(spec_of(DType.BF16), tensor.view(torch.int16).numpy(), [4])
    assert segment.read(0, segment.nbytes) == raw_bytes(tensor[4])


def test_a_flat_tensor_of_bytes() -> None:
    spec = spec_of(DType.FP8_E4M3)
    memory = torch.zeros(3 * spec.block_bytes, dtype=torch.uint8)
    _, segment = segment_of(spec, memory, [2])
    segment.write(0, bytes([7]) * spec.block_bytes)
    assert memory.tolist() == [0] * 2 * spec.block_bytes + [7] * spec.block_bytes


def test_registered_memory_outlives_the_tensor() -> None:
    tensor = noise(SHAPE, torch.bfloat16)
    expected = raw_bytes(tensor[0])
    _pages, segment = segment_of(spec_of(DType.BF16), tensor, [0])
    del tensor
    _others = [torch.ones(SHAPE, dtype=torch.bfloat16) for _ in range(100)]
    assert segment.read(0, segment.nbytes) == expected


def test_a_state() -> None:
    spec = GroupSpec.state("ssm", GroupKind.RECURRENT, [0], DType.FP32, (4, 3))
    tensor = torch.rand(1, 4, 3)
    _, segment = segment_of(spec, tensor, [0])
    assert segment.read(0, segment.nbytes) == raw_bytes(tensor)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(SHAPE, dtype=torch.float16), "elements are float16; expected bfloat16"),
        (torch.zeros(SHAPE, dtype=torch.float32), "elements are float32"),
        (torch.zeros(SHAPE, dtype=torch.bfloat16, requires_grad=True), r"requires grad.*array\.detach\(\)"),
        (torch.zeros((5, 2, 4, 3, 2), dtype=torch.bfloat16), "shape is"),
        (torch.zeros(SHAPE, dtype=torch.bfloat16, device="meta"), "layer 0"),
        (torch.zeros(SHAPE, dtype=torch.bfloat16).to_sparse(), "layer 0"),
    ],
)
def test_tensors_that_do_not_fit(tensor: torch.Tensor, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Pages(spec_of(DType.BF16), [tensor])


def test_an_expanded_tensor_is_only_read() -> None:
    tensor = torch.zeros(SHAPE[1:], dtype=torch.bfloat16).expand(SHAPE)
    pages = Pages(spec_of(DType.BF16), [tensor])
    pages.at([0]).lease_read("transfer 1").release()
    with pytest.raises(SpecError, match="overlaps itself"):
        pages.at([0]).lease_write("transfer 2")
