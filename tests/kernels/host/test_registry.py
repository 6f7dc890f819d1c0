"""How a node resolves to a kernel: attributes, absent inputs, errors, the reference."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.kernels.host.support import node, run
from xrt.errors import KernelError, UnsupportedOpError
from xrt.graph import OPSET, captured_values
from xrt.kernels.host import evaluate, find, is_native, registry
from xrt.kernels.host.registry import BUILDERS, KERNELS, parameters


def _schema(operator: str) -> onnx.defs.OpSchema:
    """The newest definition of an operator, as `xrt.graph.op_name` names it."""
    domain, _, op_type = operator.rpartition("::")
    return onnx.defs.get_schema(op_type, domain) if domain else onnx.defs.get_schema(op_type, OPSET)


@pytest.mark.parametrize("op_type", sorted(KERNELS))
def test_attributes_and_defaults_are_those_of_onnx(op_type: str) -> None:
    schema = _schema(op_type)
    taken = {n: p for n, p in parameters(KERNELS[op_type]).items() if n != "output_count"}
    assert taken.keys() == schema.attributes.keys()
    for name, attribute in schema.attributes.items():
        default = taken[name].default
        assert (default is taken[name].empty) == attribute.required
        if attribute.default_value.type and not attribute.required:
            wanted = onnx.helper.get_attribute_value(attribute.default_value)
            wanted = wanted.decode() if isinstance(wanted, bytes) else wanted
            if isinstance(wanted, list):
                wanted = [w.decode() if isinstance(w, bytes) else w for w in wanted]
            if isinstance(wanted, float):
                assert np.float32(default) == np.float32(wanted)
            else:
                assert (tuple(default) if isinstance(wanted, list) else default) == (
                    tuple(wanted) if isinstance(wanted, list) else wanted
                )


def test_names_are_current_operators() -> None:
    # Most models with trees are older than the operator that replaces these two.
    older = {f"ai.onnx.ml::TreeEnsemble{kind}" for kind in ("Classifier", "Regressor")}
    for op_type in {*KERNELS, *BUILDERS} - {"xrt::Gradient"} - older:
        assert not _schema(op_type).deprecated


def test_results_are_arrays_even_of_rank_zero() -> None:
    (y,) = run("Add", np.float32(1).reshape(()), np.float32(2).reshape(()))
    assert isinstance(y, np.ndarray)
    assert y.shape == ()
    assert y.dtype == np.float32


def test_unknown_operator_is_refused_when_found() -> None:
    custom = ir.Node("acme", "Frobnicate", [ir.val("x")], name="here")
    with pytest.raises(UnsupportedOpError, match=r"acme::Frobnicate.*'here'"):
        find(custom)


def test_unknown_attribute_is_refused_when_found() -> None:
    with pytest.raises(UnsupportedOpError, match=r"'axes' of ReduceSum.*keepdims"):
        find(node("ReduceSum", [0], axes=[1]))


def test_missing_attribute_is_refused_when_found() -> None:
    with pytest.raises(UnsupportedOpError, match=r"Concat.*'axis'"):
        find(node("Concat", [0, 0]))


def test_reference_to_a_function_attribute_is_refused() -> None:
    linked = ir.Node(
        "", "Softmax", [ir.val("x")], [ir.RefAttr("axis", "outer", ir.AttributeType.INT)]
    )
    with pytest.raises(UnsupportedOpError, match="Inline functions"):
        find(linked)


def test_failure_names_operator_node_inputs_and_cause() -> None:
    run_ = find(node("MatMul", [0, 0]))
    with pytest.raises(KernelError) as caught:
        run_([np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float16)])
    text = str(caught.value)
    for part in ("MatMul", "'under_test'", "float32[2, 3]", "float16[2, 3]", "ValueError"):
        assert part in text


def _forget(monkeypatch: pytest.MonkeyPatch, operator: str) -> None:
    """Take away the kernel of an operator, as if xrt had none."""
    monkeypatch.delitem(KERNELS, operator)
    monkeypatch.setattr(registry, "_RESOLVED", {})


def test_long_tail_runs_through_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    _forget(monkeypatch, "Unique")
    x = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    unique = find(node("Unique", [x], output_count=4))
    assert not unique.native
    values, *_ = unique([np.array([3, 1, 3], np.int64)])
    assert values.tolist() == [1, 3]


def test_other_domains_run_through_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    _forget(monkeypatch, "ai.onnx.ml::Binarizer")
    binarizer = ir.Node(
        "ai.onnx.ml", "Binarizer", [ir.val("x")], [ir.AttrFloat32("threshold", 0.5)]
    )
    assert not is_native(binarizer)
    (y,) = evaluate(binarizer, [np.array([0.2, 0.7], np.float32)])
    assert y.tolist() == [0, 1]


def test_equal_signatures_share_what_is_resolved_but_not_the_name() -> None:
    first, second = (node("Softmax", [0], axis=1) for _ in range(2))
    second.name = "other"
    assert find(first).function is find(second).function
    assert find(second).place == "other"


def test_absent_inputs_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    _forget(monkeypatch, "RNN")
    x, w, r, h = (
        np.ones(shape, np.float32) for shape in ((2, 1, 3), (1, 4, 3), (1, 4, 4), (1, 1, 4))
    )
    inputs = [x, w, r, None, None, h]
    _, last = find(node("RNN", inputs, output_count=2, hidden_size=4))(inputs)
    assert last.shape == (1, 1, 4)
    _, last = find(node("RNN", [x, w, r, None], output_count=2, hidden_size=4))([x, w, r, None])
    assert last.shape == (1, 1, 4)


def _if_node() -> ir.Node:
    proto = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": {OPSET}]>
        g (bool c, float[N] x, float[N] y) => (float[N] z) {{
            z = If (c) <
                then_branch = t () => (float[N] a) {{ a = Add (x, y) }},
                else_branch = e () => (float[N] b) {{ b = Sub (x, y) }}
            >
        }}"""
    )
    (found,) = ir.from_proto(proto).graph
    return found


def test_captured_values_follow_the_inputs() -> None:
    branch = _if_node()
    values = {"x": np.array([1, 2], np.float32), "y": np.array([3, 4], np.float32)}
    captured = [values[str(value.name)] for value in captured_values(branch)]
    for condition, wanted in ((True, [4, 6]), (False, [-2, -2])):
        (z,) = find(branch)([np.array(condition), *captured])
        assert z.tolist() == wanted


def test_loop_without_iterations_gives_an_empty_scan() -> None:
    proto = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": {OPSET}]>
        g (int64 m, bool c, float[2] x) => (float[2] y, float[N,2] all) {{
            y, all = Loop (m, c, x) <
                body = b (int64 i, bool k, float[2] s) => (bool k2, float[2] t, float[2] u) {{
                    k2 = Identity (k)
                    t = Add (s, s)
                    u = Identity (t)
                }}
            >
        }}"""
    )
    (loop,) = ir.from_proto(proto).graph
    x = np.array([1, 2], np.float32)
    y, everything = find(loop)([np.array(0, np.int64), np.array(True), x])
    assert y.tolist() == [1, 2]
    assert everything.shape == (0, 2)
    y, everything = find(loop)([np.array(3, np.int64), np.array(True), x])
    assert y.tolist() == [8, 16]
    assert everything.shape == (3, 2)
