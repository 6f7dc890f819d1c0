"""From a node to the function that runs it on the host.

    @kernel("Gemm")
    def gemm(a, b, c=None, *, alpha=1.0, beta=1.0, transA=0, transB=0): ...

declares a kernel: inputs are positional (None where an optional one is absent), attributes are
keywords with ONNX's names and defaults at `xrt.graph.OPSET`. A kernel returns one array, or a tuple
of outputs. One that must know how many outputs the node has declares the keyword `output_count`.
Sequences are lists, an empty optional is None.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from xrt import custom
from xrt.errors import KernelError, UnsupportedOpError, XrtError
from xrt.graph import captured_values, op_name
from xrt.kernels.host import custom as custom_kernels
from xrt.kernels.host import reference
from xrt.kernels.host.common import Array

Kernel: TypeAlias = Callable[..., Any]
Builder: TypeAlias = Callable[..., Kernel]

KERNELS: dict[str, Kernel] = {}
"""NumPy kernels by operator, as `xrt.graph.op_name` names it."""

BUILDERS: dict[str, Builder] = {}
"""Operators with nested graphs: node -> function of the node's inputs and its captured values.
By operator, like `KERNELS`. Those of `control` take `find` besides; see `find`."""

PROVIDERS: dict[str, str] = {"xrt::Gradient": "xrt.engines.xla.ops.gradient"}
"""Modules outside this room that register a kernel or builder, imported when a node needs it: the
host knows no derivatives of its own."""

_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
_SCALARS = frozenset(
    getattr(ir.AttributeType, name)
    for name in ("INT", "INTS", "FLOAT", "FLOATS", "STRING", "STRINGS")
)


def kernel(*op_types: str) -> Callable[[Kernel], Kernel]:
    """Register a function as the kernel of operators of ONNX's own domain."""

    def register(function: Kernel) -> Kernel:
        for op_type in op_types:
            KERNELS[op_type] = function
        return function

    return register


def builder(*op_types: str) -> Callable[[Builder], Builder]:
    """Register a function that turns a node with nested graphs into its kernel."""

    def register(function: Builder) -> Builder:
        for op_type in op_types:
            BUILDERS[op_type] = function
        return function

    return register


@dataclass(frozen=True, slots=True)
class HostKernel:
    """A node, ready to run on arrays.

    Attributes:
        op_type: The operator.
        place: Name of the node, for messages.
        function: The kernel with its attributes bound.
        output_count: Number of outputs of the node.
        native: False if `onnx.reference` runs the node.
    """

    op_type: str
    place: str
    function: Kernel
    output_count: int
    native: bool

    @property
    def on_device(self) -> bool:
        """Whether it takes and gives arrays on a GPU."""
        return getattr(self.function, "on_device", False)

    @property
    def capturable(self) -> bool:
        """Whether it can be captured into a CUDA graph."""
        return getattr(self.function, "capturable", False)

    def __call__(self, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """Run on `inputs`: those of the node (None if absent), then its captured values."""
        results = self.launch(inputs)
        return tuple(map(np.asarray, results)) if self.on_device else results

    def launch(self, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """As a call, but results stay where they are computed."""
        try:
            with np.errstate(all="ignore"):
                result = self.function(*inputs)
        except XrtError:
            raise
        except Exception as cause:
            raise KernelError(
                f"Host kernel {self.op_type} failed at node {self.place!r} on inputs "
                f"({', '.join(map(_describe, inputs))}): {type(cause).__name__}: {cause}"
            ) from cause
        if not isinstance(result, tuple):
            return (np.asarray(result) if isinstance(result, np.generic) else result,)
        return tuple(
            np.asarray(r) if isinstance(r, np.generic) else r for r in result[: self.output_count]
        )


def find(
    node: ir.Node,
    inner: Callable[[ir.Node], Callable[[Sequence[Any]], Sequence[Any]]] | None = None,
) -> HostKernel:
    """The function that runs `node`: takes a sequence of arrays, returns a tuple of arrays.

    Its argument holds the node's own inputs, None for an absent one, followed by the values that
    the node's nested graphs capture, in the order of `xrt.graph.captured_values(node)`. Attributes
    are resolved here, once; an operator without a NumPy kernel runs through `onnx.reference`.

    Args:
        node: The node.
        inner: Resolves the nodes of nested graphs, in place of this function; for If, Loop, Scan
            and SequenceMap only.

    Raises:
        UnsupportedOpError: Nothing on the host can run the node.
    """
    if inner is not None:
        function = BUILDERS[op_name(node)](node, find=inner)
        return HostKernel(node.op_type, node.name or "", function, len(node.outputs), True)
    key = _signature(node)
    resolved = _RESOLVED.get(key) if key is not None else None
    if resolved is None:
        resolved = _resolve(node)
        if key is not None:
            if len(_RESOLVED) >= _MOST_RESOLVED:
                _RESOLVED.clear()
            _RESOLVED[key] = resolved
    function, native = resolved
    return HostKernel(node.op_type, node.name or "", function, len(node.outputs), native)


def evaluate(node: ir.Node, inputs: Sequence[Any]) -> tuple[Any, ...]:
    """The outputs of `node` for `inputs`; see `find` for their order. Used to fold constants."""
    return find(node)(inputs)


def is_native(node: ir.Node) -> bool:
    """Whether a kernel of xrt runs `node`, rather than `onnx.reference`."""
    name = op_name(node)
    registered = name in KERNELS or name in BUILDERS or name in PROVIDERS
    return registered or custom.find(node) is not None


_RESOLVED: dict[Hashable, tuple[Kernel, bool]] = {}
_MOST_RESOLVED = 4096


def _signature(node: ir.Node) -> Hashable | None:
    """All that the resolved function depends on, or None if that is too much to compare."""
    if any(a.type not in _SCALARS or a.is_ref() for a in node.attributes.values()):
        return None
    attributes = tuple(
        sorted((a.name, a.type, _hashable(a.value)) for a in node.attributes.values())
    )
    present = tuple(value is not None for value in node.inputs)
    place = node.domain, node.op_type, node.overload
    return *place, attributes, present, len(node.outputs), custom.find(node)


def _hashable(value: Any) -> Hashable:
    return value if isinstance(value, str | int | float) else tuple(value)


def _resolve(node: ir.Node) -> tuple[Kernel, bool]:
    if not is_native(node):
        return _reference(node), False
    operator = op_name(node)
    own = custom.find(node)
    if own is not None:
        return custom_kernels.build(own, node), True
    if operator in PROVIDERS:
        importlib.import_module(PROVIDERS[operator])
    if operator in BUILDERS:
        return BUILDERS[operator](node), True
    function = KERNELS[operator]
    known = _keywords(function)
    attributes = {name: _value(node, a) for name, a in node.attributes.items()}
    for name in attributes:
        if name not in known or name == "output_count":
            raise UnsupportedOpError(
                f"Attribute {name!r} of {node.op_type} at node {node.name!r} is unknown. "
                f"Known attributes: {', '.join(sorted(known - {'output_count'})) or 'none'}."
            )
    if missing := _required(function) - attributes.keys() - {"output_count"}:
        raise UnsupportedOpError(
            f"{node.op_type} at node {node.name!r} lacks the attribute "
            f"{', '.join(map(repr, sorted(missing)))}, which ONNX requires."
        )
    if "output_count" in known:
        attributes["output_count"] = len(node.outputs)
    return functools.partial(function, **attributes), True


def _reference(node: ir.Node) -> Kernel:
    if node.domain not in (*custom.ONNX_DOMAINS, "xrt"):
        raise UnsupportedOpError(
            f"{op_name(node)} at node {node.name!r} is an operator of its model's own, and no "
            f"kernel is registered for it. Call xrt.register_kernel({node.domain!r}, "
            f"{node.op_type!r}, kernel) first."
        )
    return reference.build(node, tuple(captured_values(node)) if _has_graph(node) else ())


def _has_graph(node: ir.Node) -> bool:
    return any(a.type in _GRAPHS for a in node.attributes.values())


@functools.cache
def _keywords(function: Kernel) -> frozenset[str]:
    """Names of the attributes that a kernel takes."""
    return frozenset(p.name for p in parameters(function).values())


@functools.cache
def _required(function: Kernel) -> frozenset[str]:
    return frozenset(p.name for p in parameters(function).values() if p.default is p.empty)


def parameters(function: Kernel) -> Mapping[str, inspect.Parameter]:
    """The keyword-only parameters of a kernel: its attributes."""
    if isinstance(function, np.ufunc):
        return {}
    found = inspect.signature(function).parameters
    return {n: p for n, p in found.items() if p.kind is p.KEYWORD_ONLY}


def _value(node: ir.Node, attribute: ir.Attr) -> Any:
    """An attribute as kernels take it: numbers, strings, tuples, arrays."""
    if attribute.is_ref():
        raise UnsupportedOpError(
            f"Attribute {attribute.name!r} of {node.op_type} at node {node.name!r} refers to an "
            f"attribute of a function. Inline functions first (xrt.passes)."
        )
    if attribute.type == ir.AttributeType.TENSOR:
        return attribute.as_tensor().numpy()
    if attribute.type in (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS):
        return tuple(attribute.value)
    return attribute.value


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        array: Array = value
        return f"{array.dtype}{list(array.shape)}"
    if value is None:
        return "absent"
    return f"sequence of {len(value)}" if isinstance(value, list) else type(value).__name__
