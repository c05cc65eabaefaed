"""Where the memory of a caller's array lies: numpy, buffer protocol, `__array_interface__`, DLPack on the CPU.

DLPack is read here with ctypes and not by `numpy.from_dlpack`, because numpy has no bf16 and no fp8, which is what
KV caches are made of. The structures are those of dlpack.h 1.1 (github.com/dmlc/dlpack).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from kvwire.errors import SpecError
from kvwire.types import DType


@dataclass(frozen=True, slots=True)
class View:
    """Memory of one array. `strides` are bytes; `owner` keeps the memory alive, and exported where it can be."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    itemsize: int
    dtype: str
    raw: bool
    """Integers and void, which may stand for any element of their size; floats and booleans mean what they say."""
    readonly: bool
    owner: object

    def check_dtype(self, what: str, dtype: DType) -> None:
        """`SpecError` unless the elements can be those of `dtype`."""
        if self.itemsize != dtype.itemsize or not (self.raw or self.dtype == _NAMES[dtype]):
            raise SpecError(
                f"{what}: elements are {self.dtype}; expected {_NAMES[dtype]}, or integers or void of "
                f"{dtype.itemsize} bytes that stand for it"
            )


def view_of(what: str, array: object) -> View:
    """Where `array` lies. `what` names it in errors. Copies nothing.

    `SpecError`: not an array, not on the CPU, requires grad, not in native byte order, or with negative strides.
    """
    if isinstance(array, np.ndarray):
        view = _from_numpy(what, array)
    elif hasattr(array, "__dlpack__"):
        view = _from_dlpack(what, array)
    else:
        view = _from_numpy(what, _from_buffer(what, array))
    if not view.shape or 0 in view.shape:
        raise SpecError(f"{what}: shape is {list(view.shape)}; expected blocks along axis 0, and none of them empty")
    if any(stride < 0 for extent, stride in zip(view.shape, view.strides, strict=True) if extent > 1):
        raise SpecError(f"{what}: strides {list(view.strides)} (bytes) run backwards; expected none below zero")
    return view


def _from_buffer(what: str, array: Any) -> np.ndarray[Any, Any]:
    try:
        exported = memoryview(array)
    except TypeError:
        if hasattr(array, "__array_interface__"):
            return np.asarray(array)
        raise SpecError(
            f"{what} is a {type(array).__name__}; expected a buffer, a numpy array, or anything with "
            "__array_interface__ or DLPack"
        ) from None
    try:
        return np.asarray(exported)  # its base is `exported`: freeing or resizing the buffer raises BufferError
    except ValueError as error:
        raise SpecError(f"{what}: buffer format {exported.format!r} is not understood: {error}") from None


def _from_numpy(what: str, array: np.ndarray[Any, Any]) -> View:
    dtype = array.dtype
    if dtype.hasobject or not dtype.isnative:
        raise SpecError(f"{what}: elements are {dtype.str}; expected plain elements in native byte order")
    return View(
        address=array.__array_interface__["data"][0],
        shape=array.shape,
        strides=array.strides,
        itemsize=dtype.itemsize,
        dtype=dtype.name,
        # Extension dtypes (bfloat16, fp8) are void to numpy too: their name tells them from untyped bytes.
        raw=dtype.kind in "iuV" and dtype.name not in _FLOAT_NAMES,
        readonly=not array.flags.writeable,
        owner=array,
    )


# --- DLPack ---------------------------------------------------------------------------------------------------


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _DLManagedTensorVersioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _DLTensor),
    )


_FLAG_READ_ONLY: Final = 1
_HOST_DEVICES: Final = (1, 3, 11)  # kDLCPU, kDLCUDAHost, kDLROCMHost: memory the CPU reads
_MAX_VERSION: Final = (1, 0)

_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_capsule_is = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)


def _from_dlpack(what: str, array: Any) -> View:
    if getattr(array, "requires_grad", False):
        raise SpecError(f"{what} requires grad; expected plain memory", hint="pass array.detach()")
    try:
        device = int(array.__dlpack_device__()[0])
        if device not in _HOST_DEVICES:
            raise SpecError(
                f"{what} lies on DLPack device type {device}; expected memory of the CPU",
                hint="copy it to the CPU first",
            )
        try:
            capsule = array.__dlpack__(max_version=_MAX_VERSION, copy=False)
        except TypeError:  # an exporter from before DLPack 1.0 takes no arguments
            capsule = array.__dlpack__()
    except SpecError:
        raise
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise SpecError(
            f"{what} does not export its memory: {error}", hint="view it as an integer type of the same size"
        ) from error
    readonly = False
    if _capsule_is(capsule, b"dltensor_versioned"):
        managed = _DLManagedTensorVersioned.from_address(_capsule_pointer(capsule, b"dltensor_versioned"))
        readonly = bool(managed.flags & _FLAG_READ_ONLY)
        tensor = managed.tensor
    else:
        tensor = _DLTensor.from_address(_capsule_pointer(capsule, b"dltensor"))
    if tensor.lanes != 1 or tensor.bits % 8:
        raise SpecError(f"{what}: elements are {tensor.lanes} x {tensor.bits} bits; expected one of whole bytes")
    itemsize = tensor.bits // 8
    shape = tuple(tensor.shape[: tensor.ndim])
    if tensor.strides:
        strides = tuple(stride * itemsize for stride in tensor.strides[: tensor.ndim])
    else:  # C order, by definition
        strides = tuple(itemsize * int(np.prod(shape[axis + 1 :], dtype=np.int64)) for axis in range(len(shape)))
    return View(
        address=(tensor.data or 0) + tensor.byte_offset,
        shape=shape,
        strides=strides,
        itemsize=itemsize,
        dtype=_CODE_NAMES.get(tensor.code, f"DLPack type {tensor.code} of {{}} bits").format(tensor.bits),
        raw=tensor.code in (0, 1),
        readonly=readonly,
        # The capsule owns one reference to the memory, and gives it back when it is dropped unused.
        owner=(array, capsule),
    )


_CODE_NAMES: Final = {
    0: "int{}",
    1: "uint{}",
    2: "float{}",
    4: "bfloat{}",
    5: "complex{}",
    6: "bool",
    8: "float8_e4m3",
    10: "float8_e4m3fn",
    12: "float8_e5m2",
}

_NAMES: Final = {
    DType.BF16: "bfloat16",
    DType.FP16: "float16",
    DType.FP32: "float32",
    DType.FP64: "float64",
    DType.FP8_E4M3: "float8_e4m3fn",
    DType.FP8_E5M2: "float8_e5m2",
    DType.UINT8: "uint8",
    DType.INT8: "int8",
    DType.INT16: "int16",
    DType.INT32: "int32",
    DType.INT64: "int64",
    DType.BOOL: "bool",
}
_FLOAT_NAMES: Final = frozenset(
    {"bfloat16", "float8_e4m3", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"}
)
