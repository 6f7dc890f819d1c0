"""What tests share: models from text, running by onnx.reference, comparing, checking passes.

A model in a test is ONNX text without its header, which `model` adds::

    before = model('''
        g (float[1,3,8,8] x) => (float[1,4,8,8] y) <float[4,3,1,1] w> { y = Conv (x, w) }
    ''', w=rng.normal(size=(4, 3, 1, 1)))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir

from xrt import graph
from xrt.passes import InferShapesPass, verify

Array = np.ndarray[Any, Any]

# Relative to the largest magnitude of the expected array: (relative, absolute) of np.allclose.
_TOLERANCES: dict[str, tuple[float, float]] = {
    "float64": (1e-10, 1e-12),
    "float32": (1e-4, 1e-5),
    "float16": (1e-2, 1e-3),
    "bfloat16": (5e-2, 1e-2),
    "complex64": (1e-4, 1e-5),
    "complex128": (1e-10, 1e-12),
}


def model(text: str, **constants: Any) -> ir.Model:
    """The model that ONNX text describes, at the opset of xrt.

    Args:
        text: `name (inputs) => (outputs) <types of initializers and values> { nodes }`, with local
            functions after it. A header `<ir_version: ..., opset_import: [...]>` is put before it
            unless the text starts with one.
        **constants: Arrays, by name, of initializers that `text` declares without a value. Each
            takes the dtype that the text declares for it.
    """
    if not text.lstrip().startswith("<"):
        text = f'<ir_version: 13, opset_import: ["": {graph.OPSET}]>\n{text}'
    proto = onnx.parser.parse_model(text)
    declared = {info.name: info.type.tensor_type.elem_type for info in proto.graph.value_info}
    # The parser writes `<float[2] w>` as a value_info; an initializer must not have one besides.
    kept = [info for info in proto.graph.value_info if info.name not in constants]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(kept)
    for name, array in constants.items():
        array = np.asarray(array)
        if name in declared:
            array = array.astype(onnx.helper.tensor_dtype_to_np_dtype(declared[name]))
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(proto)


def run_reference(model: ir.Model, inputs: Mapping[str, Any] | Sequence[Any] = ()) -> list[Array]:
    """The outputs of `model` by onnx.reference, from inputs by name or in order."""
    proto = ir.to_proto(model)
    if not isinstance(inputs, Mapping):
        names = [str(value.name) for value in model.graph.inputs]
        inputs = dict(zip(names, inputs, strict=True))
    evaluator = onnx.reference.ReferenceEvaluator(proto)
    with np.errstate(all="ignore"):
        return list(evaluator.run(None, dict(inputs)))  # type: ignore[arg-type]


def assert_close(got: Any, want: Any, *, scale: float = 1.0) -> None:
    """Fail unless arrays, or nested sequences of them, agree in dtype, shape and value.

    Floating-point values agree within a tolerance by dtype (times `scale`), relative to the largest
    magnitude expected; all others agree exactly. NaN equals NaN.
    """
    if isinstance(want, (list, tuple)):
        assert isinstance(got, (list, tuple)), f"got {type(got).__name__}, want a sequence"
        assert len(got) == len(want), f"got {len(got)} values, want {len(want)}"
        for one, other in zip(got, want, strict=True):
            assert_close(one, other, scale=scale)
        return
    got, want = np.asarray(got), np.asarray(want)
    assert got.dtype == want.dtype, f"got dtype {got.dtype}, want {want.dtype}"
    assert got.shape == want.shape, f"got shape {got.shape}, want {want.shape}"
    if want.dtype.name not in _TOLERANCES:
        np.testing.assert_array_equal(got, want)
        return
    relative, absolute = (tolerance * scale for tolerance in _TOLERANCES[want.dtype.name])
    wide = np.complex128 if want.dtype.kind == "c" else np.float64
    left, right = got.astype(wide), want.astype(wide)
    finite = np.abs(right[np.isfinite(right)])
    absolute = max(absolute, relative * float(finite.max(initial=0.0)) * 0.1)
    np.testing.assert_allclose(left, right, rtol=relative, atol=absolute, equal_nan=True)


def ops(model: ir.Model) -> list[str]:
    """Operators of the main graph, in order."""
    return [node.op_type for node in model.graph]


def check_pass(
    pass_: Callable[[ir.Model], Any],
    before: str | ir.Model,
    after: str | ir.Model | None,
    inputs: Mapping[str, Any] | Sequence[Any] = (),
    *,
    constants: Mapping[str, Any] | None = None,
    scale: float = 1.0,
) -> ir.Model:
    """Check a pass by structure, by value and by the verifier; return the model it made.

    Args:
        pass_: The pass, which edits a clone of `before`.
        before: The model to transform; its types are inferred first, as in the pipelines.
        after: What to expect: operators, attributes and edges. What constants hold does not count,
            so a name that the text uses and does not declare stands for any constant. None expects
            `before`: the pass must not fire.
        inputs: Inputs on which both must agree.
        constants: Arrays of initializers declared in the texts without a value.
        scale: Factor on the tolerances.
    """
    constants = dict(constants or {})
    original = model(before, **constants) if isinstance(before, str) else before.clone()
    InferShapesPass()(original)
    untouched = ir.to_proto(original).SerializeToString(deterministic=True)
    changed = original.clone()
    result = pass_(changed)
    verify(changed)
    assert ir.to_proto(original).SerializeToString(deterministic=True) == untouched, (
        "the pass edited what the clone shares with its original"
    )
    expected = original if after is None else after
    if isinstance(expected, str):
        names = {key: value for key, value in constants.items() if key in expected}
        expected = model(expected, **names)
    got_text, want_text = skeleton(changed.graph), skeleton(expected.graph)
    assert got_text == want_text, f"got:\n{got_text}\nwant:\n{want_text}"
    assert result.modified or got_text == skeleton(original.graph), "the pass hides its changes"
    if after is None:
        assert not result.modified, "the pass says that it changed the model"
        return changed
    assert [v.name for v in changed.graph.outputs] == [v.name for v in original.graph.outputs]
    assert_close(run_reference(changed, inputs), run_reference(original, inputs), scale=scale)
    return changed


def skeleton(main: ir.Graph) -> str:
    """Operators, attributes and edges of a graph as text, without names and constants' contents."""
    lines: list[str] = []
    _skeleton(main, {}, lines, "")
    return "\n".join(lines)


def _skeleton(main: ir.Graph, outer: dict[ir.Value, str], lines: list[str], indent: str) -> None:
    numbers = dict(outer)
    for index, value in enumerate(main.inputs):
        numbers[value] = f"{indent}in{index}"

    def reference(value: ir.Value | None) -> str:
        if value is None:
            return "-"
        return numbers.get(value, "const")

    for index, node in enumerate(main):
        edges = ", ".join(map(reference, node.inputs))
        attributes = " ".join(_attributes(node))
        lines.append(f"{indent}{index}: {node.op_type}({edges}) {attributes}".rstrip())
        for name in sorted(node.attributes):
            if node.attributes[name].type == ir.AttributeType.GRAPH:
                lines.append(f"{indent}  {name}:")
                _skeleton(node.attributes[name].as_graph(), numbers, lines, indent + "    ")
        for position, value in enumerate(node.outputs):
            numbers[value] = f"{indent}{index}.{position}"
    lines.append(f"{indent}=> {', '.join(map(reference, main.outputs))}")


def _attributes(node: ir.Node) -> list[str]:
    texts = []
    for name in sorted(node.attributes):
        attribute = node.attributes[name]
        if attribute.type == ir.AttributeType.TENSOR:
            texts.append(f"{name}={attribute.as_tensor().numpy().tolist()}")
        elif attribute.type == ir.AttributeType.FLOAT:
            texts.append(f"{name}={attribute.as_float():.6g}")
        elif attribute.type in (ir.AttributeType.INTS, ir.AttributeType.FLOATS):
            texts.append(f"{name}={list(attribute.value)}")
        elif attribute.type != ir.AttributeType.GRAPH:
            texts.append(f"{name}={attribute.value}")
    return texts
