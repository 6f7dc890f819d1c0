"""Operators that users define: a kernel for an operator of a domain that ONNX does not know."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  (NumPy knows bfloat16 by name then)
import numpy as np
import onnx
import onnx_ir as ir

from xrt.errors import KernelError, OptionError, UnsupportedOpError, unknown

DEVICES = ("cpu", "cuda")

ONNX_DOMAINS = frozenset(schema.domain for schema in onnx.defs.get_all_schemas()) | {"ai.onnx"}
"""Domains whose operators onnx itself defines."""


@dataclass(frozen=True)
class CudaKernel:
    """A kernel written in CUDA C++, compiled for the GPU present when it first runs.

    The function takes the addresses of the inputs, those of the outputs, the number of elements of
    the first output (`long long`), and the attributes that are named here (`long long` or `float`).
    It is launched with a thread for each of those elements::

        extern "C" __global__ void scale(const IN0* x, OUT0* y, long long size, float factor) {
            long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
            if (i < size) y[i] = x[i] * factor;
        }

    The macros IN0, IN1, ..., OUT0, ... stand for the types of inputs and outputs; the source is
    compiled once for each combination of types that occurs.

    Attributes:
        source: CUDA C++. Types of 16 bits need `#include <cuda_fp16.h>` or `<cuda_bf16.h>`.
        name: The `__global__` function.
        attributes: Attributes of the node that it takes, in this order; all are required.
        block: Threads of a block.
    """

    source: str
    name: str
    attributes: tuple[str, ...] = ()
    block: int = 256

    def __post_init__(self) -> None:
        if not 1 <= self.block <= 1024:
            raise OptionError(f"CudaKernel.block must be 1 to 1024; got {self.block!r}.")
        if self.name not in self.source:
            raise OptionError(f"CudaKernel: the source has no function {self.name!r}.")


class ArrayType(NamedTuple):
    """What is known of an array before there is one.

    Attributes:
        shape: Its shape.
        dtype: Its NumPy dtype.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


Outputs = Callable[..., Any]
"""Inputs (with `shape` and `dtype`) and attributes -> (shape, dtype) of the output, or a list."""


@dataclass(frozen=True, eq=False)
class CustomOp:
    """An operator that a user defined.

    Attributes:
        domain: Its domain.
        op_type: Its name.
        kernel: What computes it.
        outputs: What its outputs are like; None if that is not known.
        device: Where the kernel wants its arrays: "cpu" or "cuda".
    """

    domain: str
    op_type: str
    kernel: Callable[..., Any] | CudaKernel
    outputs: Outputs | None
    device: str

    @property
    def name(self) -> str:
        """Domain and name."""
        return f"{self.domain}::{self.op_type}"


_REGISTERED: dict[tuple[str, str], CustomOp] = {}


def register_kernel(
    domain: str,
    op_type: str,
    kernel: Callable[..., Any] | CudaKernel,
    *,
    outputs: Outputs | None = None,
    device: str = "cpu",
) -> None:
    """Let models use an operator of your own: programs run `kernel` for it, between the clusters.

    The kernel is a pure function of its inputs and attributes, and never writes to its inputs. It
    must be registered before a model that uses it is compiled, in each process; registering anew
    replaces it for what is compiled later.

    Args:
        domain: The domain of the operator; not one of ONNX's.
        op_type: Its name.
        kernel: On the CPU, a function: inputs by position as NumPy arrays (None for one that is
            absent), attributes as keywords; it returns an array, or a tuple of them. On a GPU a
            `CudaKernel`, or a function that is given `xrt` device arrays, those to be filled after
            the inputs. If it has a parameter `stream`, it must launch on that (a handle); else it
            launches on the default stream, as functions of pycuda's `SourceModule` do.
        outputs: Inputs and attributes like the kernel's, of which only `shape` and `dtype` count,
            to the (shape, dtype) of the output, or a list of such. Nodes that follow then can be in
            clusters. Without it types are those that the model declares; on a GPU the one output is
            like the first input.
        device: "cpu" or "cuda": where the kernel wants its arrays. A `CudaKernel` is on a GPU.

    Raises:
        OptionError: If an argument is of no use.
    """
    if not domain or domain in ONNX_DOMAINS or domain == "xrt":
        raise OptionError(
            f"register_kernel: the domain {domain!r} is not yours to define. Use one of your own, "
            "as 'com.example'."
        )
    if isinstance(kernel, CudaKernel):
        device = "cuda"
    elif not callable(kernel):
        raise OptionError(
            f"register_kernel: a kernel is a function or an xrt.CudaKernel; got {kernel!r:.80}."
        )
    if device not in DEVICES:
        raise OptionError(unknown("Device", device, DEVICES))
    _REGISTERED[domain, op_type] = CustomOp(domain, op_type, kernel, outputs, device)


def unregister_kernel(domain: str, op_type: str) -> None:
    """Forget an operator; programs that were compiled with it go on."""
    _REGISTERED.pop((domain, op_type), None)


def find(node: ir.Node) -> CustomOp | None:
    """The operator of `node` if a user defined it."""
    return _REGISTERED.get((node.domain, node.op_type)) if _REGISTERED else None


def is_on_gpu(node: ir.Node) -> bool:
    """Whether a kernel of the user's computes `node` on a GPU."""
    found = find(node)
    return found is not None and found.device == "cuda"


def names() -> list[str]:
    """The operators that are registered."""
    return sorted(op.name for op in _REGISTERED.values())


def attributes_of(node: ir.Node) -> dict[str, Any]:
    """The attributes of `node` as kernels take them: numbers, strings, tuples, arrays.

    Raises:
        UnsupportedOpError: If one is of another kind.
    """
    return {name: _value(node, attribute) for name, attribute in node.attributes.items()}


def _value(node: ir.Node, attribute: ir.Attr) -> Any:
    kinds = ir.AttributeType
    if attribute.type == kinds.TENSOR and not attribute.is_ref():
        return attribute.as_tensor().numpy()
    if attribute.type in (kinds.INTS, kinds.FLOATS, kinds.STRINGS):
        return tuple(attribute.value)
    if attribute.is_ref() or attribute.type not in (kinds.INT, kinds.FLOAT, kinds.STRING):
        raise UnsupportedOpError(
            f"Attribute {attribute.name!r} of {node.domain}::{node.op_type} at node {node.name!r} "
            f"is of type {attribute.type}. Kernels take numbers, strings, lists of these and "
            "tensors."
        )
    return attribute.value


def output_types(
    op: CustomOp, inputs: Sequence[Any], attributes: Mapping[str, Any], count: int
) -> list[ArrayType] | None:
    """What the outputs of a node are like; None if that is not known.

    Args:
        op: The operator.
        inputs: Arrays, or `ArrayType`s; None for an absent one.
        attributes: Those of the node.
        count: Number of outputs of the node.

    Raises:
        KernelError: If `outputs`, which the user gave, fails or says something of no use.
    """
    if op.outputs is None:
        if op.device == "cpu" or count != 1 or not inputs or inputs[0] is None:
            return None
        return [ArrayType(tuple(inputs[0].shape), np.dtype(inputs[0].dtype))]
    try:
        said = op.outputs(*inputs, **attributes)
        listed = said if isinstance(said, list) else [said]
        types = [ArrayType(tuple(map(int, shape)), np.dtype(dtype)) for shape, dtype in listed]
    except Exception as error:
        raise KernelError(
            f"The function 'outputs' of {op.name} failed: {type(error).__name__}: {error}"
        ) from error
    if len(types) != count or any(min(t.shape, default=0) < 0 for t in types):
        raise KernelError(
            f"The function 'outputs' of {op.name} gave {types} for a node of {count} outputs."
        )
    return types


def accepts(function: Callable[..., Any], name: str) -> bool:
    """Whether `function` has a parameter of that name."""
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):  # a function of C, as pycuda's
        return False
