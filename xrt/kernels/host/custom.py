"""Kernels that users registered for operators of their own; see `xrt.register_kernel`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from xrt import custom
from xrt.custom import ArrayType, CustomOp
from xrt.errors import KernelError


def build(op: CustomOp, node: ir.Node) -> Callable[..., Any]:
    """The function that runs `node`, with its attributes bound."""
    attributes = custom.attributes_of(node)
    count = len(node.outputs)
    if op.device == "cuda":
        from xrt.kernels.cuda.custom import DeviceKernel

        return DeviceKernel(op, attributes, count)
    kernel = op.kernel
    assert callable(kernel)

    def run(*inputs: Any) -> tuple[Any, ...]:
        given = kernel(*inputs, **attributes)
        results = tuple(_array(each) for each in (given if isinstance(given, tuple) else (given,)))
        if len(results) != count:
            raise KernelError(
                f"The kernel of {op.name} gave {len(results)} outputs at node {node.name!r}, which "
                f"has {count}. Return a tuple of {count} arrays."
            )
        types = custom.output_types(op, inputs, attributes, count)
        if types is not None:
            _check(op, results, types)
        return results

    return run


def _array(result: Any) -> Any:
    return result if isinstance(result, (np.ndarray, list)) else np.asarray(result)


def _check(op: CustomOp, results: Sequence[Any], types: Sequence[ArrayType]) -> None:
    """What follows was compiled for what `outputs` said."""
    for number, (result, said) in enumerate(zip(results, types, strict=True)):
        if (result.shape, result.dtype) != said:
            raise KernelError(
                f"The kernel of {op.name} gave {result.dtype}{list(result.shape)} as output "
                f"{number}; its function 'outputs' says {said.dtype}{list(said.shape)}."
            )
