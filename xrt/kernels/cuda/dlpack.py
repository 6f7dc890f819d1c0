"""DLPack, both ways: memory that xrt owns given to other libraries, and theirs taken.

Written against the structures of dlpack.h 1.x with ctypes, so that every type of ONNX crosses,
bfloat16 too, on whatever device; cuda-core's own views refuse that one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from xrt.errors import InputError

CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13
"""Kinds of device, as dlpack.h numbers them."""

_CODES: dict[str, int] = {
    **{f"int{bits}": 0 for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": 1 for bits in (8, 16, 32, 64)},
    **{f"float{bits}": 2 for bits in (16, 32, 64)},
    "bfloat16": 4,
    "complex64": 5,
    "complex128": 5,
    "bool": 6,
    "float8_e4m3fn": 10,
    "float8_e5m2": 12,
}
_NAMES = {(code, np.dtype(name).itemsize * 8): name for name, code in _CODES.items()}
assert ml_dtypes.bfloat16  # importing it makes NumPy know the names above


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("number", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = (
        ("tensor", _Tensor),
        ("context", ctypes.c_void_p),
        ("deleter", _Deleter),
    )


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", _Deleter),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


_KINDS: tuple[tuple[bytes, bytes, type[_Managed] | type[_Versioned]], ...] = (
    (b"dltensor_versioned", b"used_dltensor_versioned", _Versioned),
    (b"dltensor", b"used_dltensor", _Managed),
)
"""Names of a capsule before and after it was consumed, and what it points to."""

# Prototypes of our own: the attributes of `ctypes.pythonapi` belong to the whole process.
_api = ctypes.pythonapi
_Destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, _Destructor)(
    ("PyCapsule_New", _api)
)
_is = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", _api))
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _api)
)
_rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_SetName", _api)
)
_keep = ctypes.PYFUNCTYPE(None, ctypes.py_object)(("Py_IncRef", _api))

_EXPORTED: dict[int, Any] = {}
"""Address of a structure that another library holds -> all that it needs."""


def _release(address: int, exported: dict[int, Any] = _EXPORTED) -> None:
    exported.pop(address, None)


def _destroy(
    capsule: int,
    kinds: Any = _KINDS,
    valid: Any = _is,
    pointer: Any = _pointer,
    done: Any = _release,
) -> None:
    for name, _, _ in kinds:
        if valid(capsule, name):  # nobody consumed it
            done(pointer(capsule, name))


_on_release, _on_destroy = _Deleter(_release), _Destructor(_destroy)
# A library may release memory while the interpreter shuts down: these two must outlive this module.
_keep(_on_release)
_keep(_on_destroy)
_keep(_KINDS)


def export(
    pointer: int,
    shape: Sequence[int],
    dtype: np.dtype[Any],
    device: tuple[int, int],
    owner: object,
    max_version: tuple[int, int] | None = None,
) -> Any:
    """A capsule of dense memory for a consumer of DLPack, which keeps `owner` alive.

    Raises:
        BufferError: If DLPack has no such dtype.
    """
    code = _CODES.get(dtype.name)
    if code is None:
        raise BufferError(f"DLPack has no type for dtype {dtype.name}.")
    ndim = len(shape)
    numbers = (ctypes.c_int64 * max(1, 2 * ndim))(*shape, *_strides(shape))
    versioned = max_version is not None and max_version[0] >= 1
    name, _, kind = _KINDS[0 if versioned else 1]
    made = kind()
    if isinstance(made, _Versioned):
        made.major, made.minor, made.flags = 1, 0, 0
    made.deleter = _on_release
    tensor = made.tensor
    tensor.data = pointer
    tensor.device = _Device(*device)
    tensor.ndim = ndim
    tensor.dtype = _DataType(code, dtype.itemsize * 8, 1)
    tensor.shape = ctypes.cast(numbers, ctypes.POINTER(ctypes.c_int64))
    begin = ctypes.addressof(numbers) + 8 * ndim
    tensor.strides = ctypes.cast(begin, ctypes.POINTER(ctypes.c_int64))
    address = ctypes.addressof(made)
    _EXPORTED[address] = (made, numbers, owner)
    try:
        return _new(address, name, _on_destroy)
    except BaseException:
        _release(address)
        raise


def _strides(shape: Sequence[int]) -> list[int]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(1, size)
    return strides[::-1]


class _Lent:
    """Memory of another library, given back when nobody uses it any more."""

    def __init__(self, managed: Any, address: int) -> None:
        self._managed, self._address = managed, address

    def __del__(self) -> None:
        if self._managed.deleter:
            self._managed.deleter(self._address)


@dataclass(frozen=True)
class Taken:
    """An array of another library.

    Attributes:
        pointer: Address of its first element.
        shape: Its shape.
        dtype: Its type.
        dense: Whether its elements lie in row-major order without gaps.
        device: Kind and number of the device, as dlpack.h numbers them.
        owner: Keeps the memory alive.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    dense: bool
    device: tuple[int, int]
    owner: object


def take(array: Any, stream: int | None = None) -> Taken:
    """What `array.__dlpack__` gives, its memory kept alive.

    Args:
        array: Anything with `__dlpack__` and `__dlpack_device__`.
        stream: The stream that will read it, which the producer makes wait; None on the CPU.

    Raises:
        InputError: If xrt knows no such dtype.
    """
    capsule = _capsule(array, {} if stream is None else {"stream": stream})
    # id() is the address of the object, which is what these functions take.
    for name, used, kind in _KINDS:
        if _is(id(capsule), name):
            address = _pointer(id(capsule), name)
            _rename(id(capsule), used)
            managed = kind.from_address(address)
            return _taken(managed.tensor, _Lent(managed, address))
    raise InputError(f"A {type(array).__name__} gave {capsule!r:.80}, which is no DLPack tensor.")


def _capsule(array: Any, keywords: dict[str, Any]) -> Any:
    try:
        return array.__dlpack__(max_version=(1, 0), **keywords)
    except TypeError:  # a producer from before version 1.0 knows no such keyword
        return array.__dlpack__(**keywords)


def _taken(tensor: _Tensor, owner: object) -> Taken:
    kind = (tensor.dtype.code, tensor.dtype.bits)
    name = _NAMES.get(kind)
    if name is None or tensor.dtype.lanes != 1:
        raise InputError(
            f"An array has DLPack's type (code {kind[0]}, {kind[1]} bits, {tensor.dtype.lanes} "
            "lanes), for which xrt has no dtype. Convert it first."
        )
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    strides = [tensor.strides[i] for i in range(tensor.ndim)] if tensor.strides else None
    dense = strides is None or all(
        size == 1 or have == want
        for size, have, want in zip(shape, strides, _strides(shape), strict=True)
    )
    return Taken(
        int(tensor.data or 0) + int(tensor.byte_offset),
        shape,
        np.dtype(name),
        dense or 0 in shape,
        (tensor.device.kind, tensor.device.number),
        owner,
    )
