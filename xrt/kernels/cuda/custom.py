"""Kernels of users on the GPU: CUDA sources, and functions that launch kernels themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from xrt import custom
from xrt.custom import CudaKernel, CustomOp
from xrt.errors import KernelError
from xrt.kernels.cuda import array as A
from xrt.kernels.cuda import device, source, staging, streams
from xrt.kernels.cuda.array import DeviceArray
from xrt.kernels.cuda.streams import Lane


class DeviceKernel:
    """A node that a user's kernel computes on the GPU.

    Args:
        op: The operator.
        attributes: Those of the node.
        count: Number of outputs of the node.
    """

    on_device = True

    def __init__(self, op: CustomOp, attributes: Mapping[str, Any], count: int) -> None:
        self._op, self._attributes, self._count = op, dict(attributes), count
        self._numbers = numbers(op.kernel, attributes) if self.capturable else []
        kernel = op.kernel
        self._takes_stream = callable(kernel) and custom.accepts(kernel, "stream")

    @property
    def capturable(self) -> bool:
        """Whether launches can be captured: what functions of users do is not known."""
        return isinstance(self._op.kernel, CudaKernel)

    def __call__(self, *inputs: Any) -> tuple[DeviceArray, ...]:
        """Enqueue the kernel on the thread's lane."""
        lane = streams.lane()
        arrays = [None if each is None else _on_device(each, lane) for each in inputs]
        types = custom.output_types(self._op, arrays, self._attributes, self._count)
        if types is None:
            raise KernelError(
                f"What the outputs of {self._op.name} are like is not known. Pass 'outputs' to "
                "xrt.register_kernel."
            )
        outputs = [A.empty(t.shape, t.dtype, lane, f"{self._op.name}") for t in types]
        kernel = self._op.kernel
        if isinstance(kernel, CudaKernel):
            self._launch(kernel, arrays, outputs, lane)
        else:
            self._call(kernel, [*arrays, *outputs], lane)
        if not lane.capturing:
            event = lane.compute.record()
            for output in outputs:
                output.done_at(event)
            lane.keep(event, [a for a in arrays if a is not None and not a.is_at_home(lane)])
        return tuple(outputs)

    def _launch(
        self,
        kernel: CudaKernel,
        inputs: Sequence[DeviceArray | None],
        outputs: Sequence[DeviceArray],
        lane: Lane,
    ) -> None:
        loaded = source.load(kernel.source, kernel.name, macros(inputs, outputs))
        pointers = [0 if each is None else each.pointer for each in (*inputs, *outputs)]
        size = outputs[0].size
        arguments = (*pointers, np.int64(size), *self._numbers)
        source.launch(loaded, size, arguments, lane, block=kernel.block)

    def _call(self, function: Callable[..., Any], arrays: Sequence[Any], lane: Lane) -> None:
        if self._takes_stream:
            function(*arrays, stream=streams.address(lane.compute), **self._attributes)
            return
        default = device.core().LEGACY_DEFAULT_STREAM
        default.wait(lane.compute)
        function(*arrays, **self._attributes)
        lane.compute.wait(default)


def _on_device(value: Any, lane: Lane) -> DeviceArray:
    if A.is_on_device(value):
        array = A.of(value, lane)
        array.wait_on(lane.compute)
        return array
    return staging.upload(np.asarray(value), lane)


def macros(inputs: Sequence[Any], outputs: Sequence[Any]) -> tuple[tuple[str, str], ...]:
    """The types of inputs and outputs, as macros of a source.

    Raises:
        KernelError: If C has no type for one.
    """
    named = [(f"IN{i}", each) for i, each in enumerate(inputs)]
    named += [(f"OUT{i}", each) for i, each in enumerate(outputs)]
    found = []
    for name, array in named:
        dtype = "" if array is None else array.dtype.name
        if array is not None and dtype not in source.TYPES:
            raise KernelError(f"CUDA C++ has no type for dtype {dtype} of {name}.")
        found.append((name, source.TYPES[dtype] if dtype else "void"))
    return tuple(found)


def numbers(kernel: Any, attributes: Mapping[str, Any]) -> list[Any]:
    """The attributes that a source takes, as numbers of the types that it takes.

    Raises:
        KernelError: If one is missing or no number.
    """
    found: list[Any] = []
    for name in kernel.attributes:
        value = attributes.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise KernelError(
                f"The CUDA kernel {kernel.name!r} takes the attribute {name!r} as a number; the "
                f"node has {value!r:.50}."
            )
        found.append(np.int64(value) if isinstance(value, int) else np.float32(value))
    return found
