"""Running and checking one operator through the XLA engine's trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir

from tests.support import assert_close
from xrt import graph as G
from xrt.engines.xla import XlaEngine
from xrt.engines.xla import device as D
from xrt.engines.xla import lowering as L
from xrt.engines.xla import trace as T
from xrt.graph import Cluster, Support
from xrt.options import CompileOptions

Array = np.ndarray[Any, Any]


def node_model(
    op: str,
    inputs: Sequence[Any],
    *,
    outputs: int | Sequence[int] = 1,
    constants: Sequence[int] = (),
    declared: Sequence[Any] = (),
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one node at xrt's opset, with types and shapes inferred.

    Args:
        op: The operator.
        inputs: Arrays; None for an absent optional input.
        outputs: How many outputs the node has, or the positions of those it has.
        constants: Positions of inputs that are initializers.
        declared: Arrays like the outputs, for operators whose types ONNX does not infer.
        **attributes: The node's attributes; those that are None are left out.
    """
    names = ["" if array is None else f"x{i}" for i, array in enumerate(inputs)]
    positions = range(outputs) if isinstance(outputs, int) else outputs
    results = [f"y{i}" if i in positions else "" for i in range(max(positions) + 1)]
    kept = {key: value for key, value in attributes.items() if value is not None}
    node = onnx.helper.make_node(op, names, results, **kept)
    present = [(i, np.asarray(a)) for i, a in enumerate(inputs) if a is not None]
    graph = onnx.helper.make_graph(
        [node],
        "test",
        [_info(names[i], a) for i, a in present if i not in constants],
        [_info(name, array) for name, array in zip_longest(filter(None, results), declared)],
        [onnx.numpy_helper.from_array(a, names[i]) for i, a in present if i in constants],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", G.OPSET)], ir_version=13
    )
    return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def _info(name: str, array: Any) -> onnx.ValueInfoProto:
    if array is None:
        return onnx.ValueInfoProto(name=name)
    code = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnx.helper.make_tensor_value_info(name, code, array.shape)


def support(op: str, inputs: Sequence[Any], **keywords: Any) -> Support:
    """What the engine says about the node."""
    return engine_support(node_model(op, inputs, **keywords))


def engine_support(model: onnx.ModelProto) -> Support:
    """What the engine says about the first node of `model` that it refuses, or yes."""
    graph = ir.from_proto(model).graph
    answers = [XlaEngine().supports(node) for node in graph]
    return next((answer for answer in answers if not answer), Support.yes())


def run_model(model: onnx.ModelProto, inputs: Sequence[Any]) -> list[Array]:
    """The outputs of `model`, compiled and run by the engine as one cluster."""
    body = ir.from_proto(model).graph
    cluster = Cluster("xla_test", "xla", body, G.digest(body))
    executable = XlaEngine().compile(cluster, CompileOptions(cache=False))
    return [np.array(array) for array in executable.run([np.asarray(a) for a in inputs])]


def run_node(op: str, inputs: Sequence[Any], **keywords: Any) -> list[Array]:
    """The outputs of one node; for keywords see `node_model`."""
    model = node_model(op, inputs, **keywords)
    answer = engine_support(model)
    assert answer, answer.reason
    constants = keywords.get("constants", ())
    moving = [a for i, a in enumerate(inputs) if a is not None and i not in constants]
    return run_model(model, moving)


def run_reference(op: str, inputs: Sequence[Any], **keywords: Any) -> list[Array]:
    """The outputs of one node by onnx.reference."""
    model = node_model(op, inputs, **keywords)
    constants = keywords.get("constants", ())
    feeds = {
        f"x{i}": np.asarray(a) for i, a in enumerate(inputs) if a is not None and i not in constants
    }
    with np.errstate(all="ignore"):
        results = onnx.reference.ReferenceEvaluator(model).run(None, feeds)
    # The reference lets NumPy promote here and there; the declared type is what counts.
    types = [value.type.tensor_type.elem_type for value in model.graph.output]
    dtypes = [onnx.helper.tensor_dtype_to_np_dtype(one) for one in types]
    return [np.asarray(r).astype(d) for r, d in zip(results, dtypes, strict=True)]  # type: ignore[arg-type]


def check(
    op: str,
    inputs: Sequence[Any],
    *,
    want: Sequence[Any] | None = None,
    scale: float = 1.0,
    layouts: bool = True,
    which: Sequence[int] = (0,),
    **keywords: Any,
) -> None:
    """Fail unless one node gives what onnx.reference does (or `want`), in every layout.

    Args:
        op: The operator.
        inputs: Arrays; None for an absent optional input.
        want: The outputs to expect instead of the reference's.
        scale: Factor on the tolerances.
        layouts: Also run with channels-last operands, if one of `which` has rank 3 or more.
        which: The inputs that arrive channels-last then.
        **keywords: See `node_model`.
    """
    expected = run_reference(op, inputs, **keywords) if want is None else list(want)
    _assert_close(run_node(op, inputs, **keywords), expected, scale)
    if layouts and any(np.ndim(inputs[i]) >= 3 for i in which):
        got = run_channels_last(op, inputs, which=which, **keywords)
        _assert_close(got, expected, scale)


def _assert_close(got: Sequence[Array], want: Sequence[Array], scale: float) -> None:
    if any(array.dtype.name.startswith("float8") for array in want):  # NumPy misses their NaN
        assert [array.dtype for array in got] == [array.dtype for array in want]
        got, want = ([array.astype(np.float32) for array in arrays] for arrays in (got, want))
    assert_close(list(got), list(want), scale=scale)


def run_channels_last(
    op: str, inputs: Sequence[Any], *, which: Sequence[int] = (0,), **keywords: Any
) -> list[Array]:
    """The outputs of one node whose inputs `which` arrive as channels-last operands."""
    graph = ir.from_proto(node_model(op, inputs, **keywords)).graph
    node = graph[0]
    rule = L.find(node)
    assert rule is not None
    operands: list[Any] = [
        None if array is None else _operand(np.asarray(array), position in which)
        for position, array in enumerate(inputs)
    ]
    static = {i: o for i, o in enumerate(operands) if i in rule.static}
    moving: Mapping[int, Any] = {
        i: o for i, o in enumerate(operands) if o is not None and i not in static
    }

    def function(arrays: dict[int, Any]) -> list[Any]:
        given = [
            L.Operand(arrays[i], o.channels_last) if i in arrays else o
            for i, o in enumerate(operands)
        ]
        results = T._lower(node, given)
        pairs = zip(results, node.outputs, strict=False)
        return [jnp.zeros(()) if not value.name else r.plain() for r, value in pairs]

    with D.isolated():
        arrays = {i: jax.device_put(o.array, D.device()) for i, o in moving.items()}
        # What the layout changes is the program, not the machine code: compile that quickly.
        lowered = jax.jit(function).lower(arrays)
        compiled = lowered.compile(compiler_options={"xla_backend_optimization_level": 0})
        results = [np.asarray(array) for array in compiled(arrays)]
    return [r for r, value in zip(results, node.outputs, strict=True) if value.name]


def _operand(array: Array, channels_last: bool) -> L.Operand:
    if not channels_last or array.ndim < 3:
        return L.Operand(array)
    return L.Operand(np.moveaxis(array, 1, -1), True)
