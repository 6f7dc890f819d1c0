"""Arrays at the door of a program: torch, NumPy and JAX in, the same kind out, without copies.

Arrays of other libraries that are on a GPU (CuPy, pycuda, Numba, xrt's own) come in too, and then
xrt's own, which those libraries take, go out.

Nothing here imports torch or jax unless the caller already did: an array of theirs is the proof.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from xrt.errors import InputError
from xrt.kernels.cuda import array as cuda_array
from xrt.kernels.cuda import device as cuda_device
from xrt.kernels.cuda import staging as cuda_staging
from xrt.kernels.cuda import streams
from xrt.kernels.cuda.array import DeviceArray

Kind = str
"""Whose arrays a call uses: "numpy", "jax", "torch", "torch:cuda:0" for tensors on a GPU, or "cuda"
for arrays of other libraries on a GPU."""

_DLPACK_CPU = 1


def kind_of(leaves: Sequence[Any]) -> Kind:
    """The kind of a call: torch if any input is a tensor, else jax if any is, else numpy.

    Tensors on a GPU decide over those on the CPU, among which may be constants of the caller's.
    """
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    while any(isinstance(leaf, list) for leaf in leaves):
        leaves = [e for leaf in leaves for e in (leaf if isinstance(leaf, list) else (leaf,))]
    if torch is not None:
        devices = [leaf.device for leaf in leaves if isinstance(leaf, torch.Tensor)]
        if devices:
            return next((f"torch:{d}" for d in devices if d.type != "cpu"), "torch")
    if jax is not None and any(isinstance(leaf, jax.Array) for leaf in leaves):
        return "jax"
    return "cuda" if any(map(_is_cuda, leaves)) else "numpy"


def _is_cuda(leaf: Any) -> bool:
    """Whether `leaf` is an array on a GPU, neither torch's nor JAX's."""
    if leaf is None or isinstance(leaf, np.ndarray):
        return False
    return isinstance(leaf, DeviceArray) or hasattr(leaf, "__cuda_array_interface__")


def dtype_name(leaf: Any) -> str:
    """The dtype of an array of any library by NumPy's name: "float32"."""
    return _name(leaf.dtype)


@functools.cache
def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype of a name that `dtype_name` gave: NumPy's own, or one of ml_dtypes."""
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        small: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return small


def take(leaf: Any) -> Any:
    """An input as the schedule wants it: NumPy over the same memory, or a device array.

    A sequence is a list of such on the host, an empty optional is None.

    Raises:
        InputError: If a tensor has no dense memory: it is sparse, or on the device "meta".
    """
    if isinstance(leaf, np.ndarray) or leaf is None:
        return leaf
    if isinstance(leaf, list):
        return [on_host(take(item)) for item in leaf]
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(leaf, torch.Tensor):
        leaf = leaf.detach()
        if leaf.layout is not torch.strided or leaf.is_meta:
            raise InputError(
                f"A tensor of layout {leaf.layout} on the device {str(leaf.device)!r} was passed; "
                "programs take dense tensors that hold data."
            )
        if leaf.device.type != "cpu":
            return _from_gpu(leaf.resolve_conj().resolve_neg().contiguous())
        if leaf.dtype == torch.bfloat16:
            import ml_dtypes

            return leaf.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return leaf.resolve_conj().resolve_neg().numpy()
    jax = sys.modules.get("jax")
    if not (jax is not None and isinstance(leaf, jax.Array)) and _is_cuda(leaf):
        return cuda_array.of(leaf, streams.lane())
    return leaf if hasattr(leaf, "__dlpack__") else np.asarray(leaf)


def _from_gpu(tensor: Any) -> Any:
    """A dense torch tensor on a GPU as an array over the same memory."""
    if cuda_device.support():
        return cuda_array.of(tensor, streams.lane())
    import jax  # which needs no cuda-core, and takes GPUs of other makers

    return jax.dlpack.from_dlpack(tensor)


def widen(leaf: Any, dtype: ir.DataType) -> Any:
    """A JAX array as `dtype`, if that holds every value of its own; anything else as it is.

    JAX makes int32 of int64 unless the user sets jax_enable_x64, so a model that takes int64 could
    not be called with its arrays at all. NumPy and torch have both, and are taken at their word.
    """
    jax = sys.modules.get("jax")
    if jax is None or not isinstance(leaf, jax.Array):
        return leaf
    wanted = dtype.numpy()
    if leaf.dtype == wanted or leaf.dtype.kind != wanted.kind:
        return leaf
    if not np.can_cast(leaf.dtype, wanted, "safe"):
        return leaf
    with jax.enable_x64(True):
        return leaf.astype(wanted)


def on_host(leaf: Any) -> Any:
    """What `take` gave as host kernels want it: device arrays become NumPy."""
    return leaf if leaf is None or isinstance(leaf, (np.ndarray, list)) else np.asarray(leaf)


class _Memory:
    """Keeps an array of another library alive while NumPy views its memory and may write there."""

    __slots__ = ("__array_interface__", "_owner")

    def __init__(self, owner: Any, view: np.ndarray[Any, Any]) -> None:
        self._owner = owner
        self.__array_interface__ = {**view.__array_interface__, "data": (view.ctypes.data, False)}


def to_numpy(array: Any) -> np.ndarray[Any, Any]:
    """An array that nobody else holds as a writable NumPy array, without a copy on the CPU."""
    view = np.asarray(array)
    if view.flags.writeable or not view.size:
        return view
    if view.dtype.isbuiltin != 1:  # ml_dtypes: bfloat16 and the like have no array interface
        raw = view.view(np.dtype(f"u{view.dtype.itemsize}"))
        return np.asarray(_Memory(array, raw)).view(view.dtype)
    return np.asarray(_Memory(array, view))


def give(array: Any, kind: Kind) -> Any:
    """An output of the schedule, which nobody else holds, as an array of `kind`."""
    if kind == "jax":
        return _to_jax(array)
    if kind.startswith("torch"):
        return _to_torch(array, kind.partition(":")[2] or "cpu")
    if kind == "cuda":
        return _to_cuda(array)
    return array if isinstance(array, (list, type(None))) else to_numpy(array)


def _to_cuda(array: Any) -> Any:
    if isinstance(array, (list, type(None))):
        return array if array is None else [_to_cuda(item) for item in array]
    if cuda_array.is_on_device(array):
        return cuda_array.of(array, streams.lane())
    return cuda_staging.upload(np.asarray(array), streams.lane())


def _to_torch(array: Any, device: str) -> Any:
    import torch

    if isinstance(array, list):
        return [_to_torch(item, device) for item in array]
    if array is None:
        return None
    if not isinstance(array, np.ndarray):
        on_cpu = array.__dlpack_device__()[0] == _DLPACK_CPU
        if on_cpu == (device == "cpu"):
            return torch.from_dlpack(array)
        array = to_numpy(array)
    if array.dtype.name == "bfloat16":
        tensor = torch.from_numpy(to_numpy(array).view(np.int16)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))
    return tensor.to(device)


def _to_jax(array: Any) -> Any:
    import jax

    from xrt.engines.xla import device

    if isinstance(array, list):
        return [_to_jax(item) for item in array]
    home = jax.devices()[0]
    if array is None or (isinstance(array, jax.Array) and array.devices() == {home}):
        return array
    return device.put(array, home)
