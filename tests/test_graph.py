from __future__ import annotations

import time

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.partition_models import Spec, index_of, specs
from tests.support import model
from xrt import graph as G
from xrt.errors import VerificationError

NESTED = """
    g (float[2] x, bool c) => (float[2] y) <float[2] w = {1, 2}> {
        a = Relu (x)
        b = Neg (a)
        y = If (c) <
            then_branch = t () => (float[2] p) {
                p = If (c) <then_branch = tt () => (float[2] q) { q = Add (a, w) },
                            else_branch = te () => (float[2] r) { r = Abs (x) }>
            },
            else_branch = e () => (float[2] s) { u = Neg (b) s = Abs (u) }>
    }
"""


def names(values: object) -> list[str | None]:
    return [value.name for value in values]  # type: ignore[attr-defined]


def test_captured_values_are_found_at_every_depth_once() -> None:
    a, _, branch = model(NESTED).graph
    assert names(G.captured_values(branch)) == ["c", "a", "w", "x", "b"]
    assert names(G.used_values(branch)) == ["c", "c", "a", "w", "x", "b"]
    assert names(G.used_values(a)) == ["x"]
    assert [n.op_type for n in G.nested_nodes(branch)] == ["If", "Add", "Abs", "Neg", "Abs"]


def test_boundary_counts_uses_in_nested_graphs() -> None:
    a, b, branch = model(NESTED).graph
    outer = G.boundary([a, b])
    assert (names(outer.inputs), names(outer.outputs)) == (["x"], ["a", "b"])
    whole = G.boundary([a, b, branch])  # the nested uses of a and b are inside now
    assert (names(whole.inputs), names(whole.outputs)) == (["x", "c"], ["y"])
    assert names(whole.constants) == ["w"]
    inner = G.boundary([branch])
    assert names(inner.inputs) == ["c", "a", "x", "b"]


def test_boundary_knows_constants_from_inputs_and_results() -> None:
    graph = model("""
        g (float[2] x) => (float[2] a, float[2] b) <float[2] w = {1, 2}> {
            a = Add (x, w) b = Neg (a) d = Abs (a)
        }
    """).graph
    graph[0].outputs[0].const_value = ir.tensor(np.zeros(2, np.float32))  # known, yet produced
    edge = G.boundary([graph[1]])
    assert (names(edge.inputs), names(edge.constants), names(edge.outputs)) == (["a"], [], ["b"])
    assert names(G.boundary([graph[0]]).outputs) == ["a"]
    assert names(G.boundary([graph[2]]).outputs) == []


def test_extract_copies_nodes_and_shares_tensors() -> None:
    graph = model(NESTED).graph
    body = G.extract(list(graph)[2:], name="part")
    assert body.name == "part"
    assert names(body.inputs) == ["c", "a", "x", "b"]
    assert body.initializers["w"].const_value is graph.initializers["w"].const_value
    assert not set(body.all_nodes()) & set(graph.all_nodes())
    assert not list(G.captured_values(ir.Node("", "If", [], [ir.AttrGraph("body", body)])))
    assert body.opset_imports == graph.opset_imports
    assert body.opset_imports is not graph.opset_imports


def test_boundary_costs_as_much_as_the_cluster_not_the_graph() -> None:
    chain = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2]))
    nodes, value = [], chain
    for index in range(20_000):
        nodes.append(ir.Node("", "Relu", [value], name=str(index)))
        value = nodes[-1].outputs[0]
    graph = ir.Graph([chain], [value], nodes=nodes, opset_imports={"": G.OPSET})
    start = time.process_time()
    for index in range(0, 20_000, 2):
        G.boundary(nodes[index : index + 2])
    assert time.process_time() - start < 5  # 0.1 s; a scan of the graph a call takes minutes
    assert len(graph) == 20_000


def test_topological_order_keeps_a_sorted_graph_and_sorts_others() -> None:
    graph = model(NESTED).graph
    a, b, branch = graph
    assert G.topological_order(graph) == [a, b, branch]
    assert G.topological_order([branch, b, a]) == [a, b, branch]
    assert list(graph) == [a, b, branch]


def test_topological_order_names_a_cycle() -> None:
    a, b, branch = model(NESTED).graph
    a.replace_input_with(0, branch.outputs[0])
    with pytest.raises(VerificationError, match="cycle at or before Relu"):
        G.topological_order([a, b, branch])


@settings(max_examples=60, deadline=None)
@given(st.data(), specs())
def test_topological_order_is_stable(data: st.DataObject, spec: Spec) -> None:
    order = data.draw(spec.orders())
    assert [index_of(node) for node in G.topological_order(spec.build(order).graph)] == order
    backwards = G.topological_order(reversed(list(spec.build().graph)))
    position = {index_of(node): place for place, node in enumerate(backwards)}
    assert all(position[source] < position[target] for source, target in spec.edges().edges)


def test_detach_clears_nested_uses() -> None:
    graph = model(NESTED).graph
    a, _, branch = graph
    w = graph.initializers["w"]
    G.detach([branch])
    graph.remove([branch])
    assert [use.node.op_type for use in a.outputs[0].uses()] == ["Neg"]
    assert not w.uses()


@settings(max_examples=60, deadline=None)
@given(specs())
def test_digest_ignores_names_only(spec: Spec) -> None:
    first = spec.build().graph
    assert G.structurally_equal(first, spec.build(rename=lambda name: f"n_{name}").graph)
    _, used, engines = spec.nodes[0]
    changed = Spec((("Sign", used[:1], engines), *spec.nodes[1:]), spec.outputs)
    assert not G.structurally_equal(first, changed.build().graph)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{1, 2}", "{1, 3}"),
        ("Relu (x)", "Abs (x)"),
        ("float[2] x", "double[2] x"),
        ("float[2] x", "float[3] x"),
        ("Add (a, w)", "Add (w, a)"),
        ("Add (a, w)", "Add (b, w)"),
        ("Neg (b)", "Neg (a)"),
    ],
)
def test_digest_sees_what_is_computed(old: str, new: str) -> None:
    assert G.digest(model(NESTED).graph) != G.digest(model(NESTED.replace(old, new, 1)).graph)


def test_digest_tells_an_inner_value_from_a_captured_one() -> None:
    text = """
        g (int64 n, bool k, float[2] x) => (float[2] y) {
            y = Loop (n, k, x) <body = b (int64 i, bool j, float[2] z) => (bool m, float[2] o) {
                m = Identity (j) o = Add (z, VALUE)
            }>
        }
    """
    inner, captured = (model(text.replace("VALUE", name)).graph for name in ("z", "x"))
    assert not G.structurally_equal(inner, captured)


@pytest.mark.parametrize(
    "array",
    [
        np.array(1.5, np.float32),
        np.zeros((0, 3), np.float32),
        np.zeros((3, 0), np.int64),
        np.array([True, False]),
        np.array([1, 2], ml_dtypes.bfloat16),
        np.array([1, -2, 3], ml_dtypes.int4),
        np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
        np.array(["a", "b"], dtype=object),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_tensor_digest_takes_every_dtype_and_shape(array: np.ndarray) -> None:
    tensor = ir.StringTensor(array) if array.dtype == object else ir.tensor(array)
    again = ir.StringTensor(array.copy()) if array.dtype == object else ir.tensor(array.copy())
    assert G.tensor_digest(tensor) == G.tensor_digest(tensor) == G.tensor_digest(again)


def test_tensor_digest_sees_dtype_shape_and_contents() -> None:
    zeros = [
        np.zeros(4, np.float32),
        np.zeros((2, 2), np.float32),
        np.zeros(4, np.int32),
        np.zeros(2, np.float64),
        np.ones(4, np.float32),
    ]
    assert len({G.tensor_digest(ir.tensor(array)) for array in zeros}) == len(zeros)


def test_constants_and_static_shapes() -> None:
    graph = model("""
        g (float[2,N] x, float[2] y) => (float[2] a) <float[2] w = {1, 2}> { a = Add (y, w) }
    """).graph
    np.testing.assert_array_equal(G.constant(graph.initializers["w"]), [1, 2])
    assert G.constant(None) is G.constant(graph.inputs[0]) is G.constant(graph.outputs[0]) is None
    assert G.static_shape(graph.inputs[0]) is G.static_shape(None) is None
    assert G.static_shape(graph.inputs[1]) == (2,)


def test_added_constants_get_fresh_names() -> None:
    graph = model("g (float[2] x) => (float[2] a) <float[2] w = {1, 2}> { a = Add (x, w) }").graph
    added = G.add_constant(graph, "w", np.zeros(3, np.float32))
    assert added.name == "w_1"
    assert graph.initializers["w_1"] is added


def test_snapshots_are_read_only_and_shared_by_equal_contents() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    first = G.snapshot(ir.tensor(array, name="a"))
    second = G.snapshot(ir.tensor(array.copy(), name="b"))
    array[...] = 7
    assert first.numpy().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert first.numpy() is second.numpy()
    assert not first.numpy().flags.writeable
    assert (first.name, second.name) == ("a", "b")
    assert G.tensor_digest(first) == G.tensor_digest(second)
    assert G.snapshot(ir.tensor(array)).numpy().tolist() == array.tolist()


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.int4, np.bool_, np.int64])
def test_snapshots_take_every_dtype(dtype: type) -> None:
    tensor = ir.tensor(np.zeros((0, 2), dtype))
    copy = G.snapshot(tensor)
    assert (copy.dtype, tuple(copy.shape)) == (tensor.dtype, (0, 2))
