from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.partition_models import ENGINES, ByOp, Spec, index_of, specs
from tests.support import model
from xrt.graph import Support
from xrt.options import CompileOptions
from xrt.passes.assign_engines import OUT_OF_FUEL, assign_engines
from xrt.passes.quantization_groups import unshare_dequantize

CHAIN = "g (float[2] x) => (float[2] y) { a = Relu (x) b = Neg (a) y = Abs (b) }"
QDQ = """
    g (int8[2] x, float s) => (int8[2] y) {
        a = DequantizeLinear (x, s)
        b = Relu (a)
        y = QuantizeLinear (b, s)
    }
"""


def engines_of(assignment: Any) -> list[str | None]:
    return [claim.engine for claim in assignment.claims]


def test_the_first_yes_counts() -> None:
    engines = [ByOp("one", only=["Relu"]), ByOp("two", only=["Relu", "Neg"])]
    result = assign_engines(model(CHAIN).graph, engines)
    assert engines_of(result) == ["one", "two", None]
    assert result.engines == ("one", "two")
    assert result.claims[0].refusals == ()
    assert result.claims[1].refusals == (("one", Support.no("Neg is unknown")),)
    assert result.claims[2].reason == "one: Abs is unknown; two: Abs is unknown"


def test_no_engine_or_the_host_alone_claims_nothing() -> None:
    for engines in ([], [ByOp("host")]):
        result = assign_engines(model(CHAIN).graph, engines)
        assert engines_of(result) == [None] * 3
        assert {claim.reason for claim in result.claims} == {"no engine was asked"}
        assert result.engines == ()


def test_the_graph_does_not_change() -> None:
    graph = model(QDQ).graph
    before = str(graph)
    assign_engines(graph, [ByOp()], CompileOptions(fuel=1))
    assert str(graph) == before


def test_nodes_are_asked_about_in_topological_order() -> None:
    graph = model(CHAIN).graph
    graph.extend([graph[2], graph[0]])  # b, y, a
    claims = assign_engines(graph, [ByOp()], CompileOptions(fuel=1)).claims
    assert [claim.node.op_type for claim in claims] == ["Relu", "Neg", "Abs"]
    assert [claim.engine for claim in claims] == ["xla", None, None]
    assert claims[1].reason == OUT_OF_FUEL


@pytest.mark.parametrize("missing", ["DequantizeLinear", "Relu", "QuantizeLinear"])
def test_a_quantization_group_goes_to_the_host_whole(missing: str) -> None:
    claims = assign_engines(model(QDQ).graph, [ByOp(but=[missing])]).claims
    assert [claim.engine for claim in claims] == [None] * 3
    for claim in claims:
        assert f"{missing} is unknown" in claim.reason
        if claim.node.op_type != missing:
            assert "its quantization group stays together" in claim.reason


def test_a_quantization_group_goes_to_the_engine_that_takes_all_of_it() -> None:
    engines = [ByOp("one", but=["Relu"]), ByOp("two")]
    assert engines_of(assign_engines(model(QDQ).graph, engines)) == ["two"] * 3


def test_engines_that_take_a_quantization_group_in_part_leave_it_to_the_host() -> None:
    engines = [ByOp("one", but=["Relu"]), ByOp("two", only=["Relu"])]
    claims = assign_engines(model(QDQ).graph, engines).claims
    assert [claim.engine for claim in claims] == [None] * 3
    assert "no engine takes all of it" in claims[0].reason


def test_fuel_does_not_split_a_quantization_group() -> None:
    graph = model(QDQ).graph
    for fuel, engine in ((0, None), (2, None), (3, "xla")):
        result = assign_engines(graph, [ByOp()], CompileOptions(fuel=fuel))
        assert engines_of(result) == [engine] * 3


def test_an_engine_that_raises_refuses() -> None:
    class Broken(ByOp):
        def supports(self, node: ir.Node, context: Any = None) -> Support:
            raise ZeroDivisionError("oops")

    graph = model(CHAIN).graph
    claims = assign_engines(graph, [Broken("bad"), ByOp("good", only=["Abs"])]).claims
    assert "ZeroDivisionError: oops" in claims[0].reason
    assert claims[2].engine == "good"
    with pytest.raises(ZeroDivisionError):
        assign_engines(graph, [Broken("bad")], CompileOptions(strict=True))


def test_answers_are_shared_by_signature_only_where_there_is_one() -> None:
    class Signed(ByOp):
        def signature(self, node: ir.Node, context: Any) -> str | None:
            return None if node.op_type == "Neg" else node.op_type

    text = "g (float[2] x) => (float[2] y) { a=Relu(x) b=Relu(a) c=Neg(b) d=Neg(c) y=Relu(d) }"
    signed, plain = Signed(), ByOp()
    for engine, asked in ((signed, 3), (plain, 5)):
        assert engines_of(assign_engines(model(text).graph, [engine])) == ["xla"] * 5
        assert engine.asked == asked


def test_the_context_reaches_the_engine() -> None:
    class Curious(ByOp):
        def supports(self, node: ir.Node, context: Any = None) -> Support:
            return Support.no(str(context))

    claims = assign_engines(model(CHAIN).graph, [Curious()], context="here").claims
    assert claims[0].reason == "xla: here"


@settings(max_examples=60, deadline=None)
@given(specs(), st.integers(0, 30))
def test_more_fuel_only_adds_claims(spec: Spec, fuel: int) -> None:
    graph = spec.build().graph
    claimed = []
    for amount in (fuel, fuel + 1, None):
        claims = assign_engines(graph, ENGINES, CompileOptions(fuel=amount)).claims
        claimed.append({(index_of(c.node), c.engine) for c in claims if c.engine})
    assert claimed[0] <= claimed[1] <= claimed[2]
    assert len(claimed[0]) == min(fuel, len(claimed[2]))


def test_unsharing_gives_each_user_its_own_dequantize_linear() -> None:
    changed = model("""
        g (int8[2] x, float s, bool c) => (float[2] y, float[2] z, float[2] d) {
            d = DequantizeLinear <axis = 0> (x, s)
            y = Add (d, d)
            e = Relu (d)
            z = If (c) <then_branch = t () => (float[2] p) { p = Abs (d) },
                        else_branch = f () => (float[2] q) { q = Neg (e) }>
        }
    """)
    assert unshare_dequantize(changed.graph) == 2
    d = changed.graph.outputs[2]
    add, relu = (next(n for n in changed.graph if n.op_type == op) for op in ("Add", "Relu"))
    assert add.inputs[0] is add.inputs[1] is not d
    assert relu.inputs[0] is not d
    assert relu.inputs[0].producer().attributes["axis"].as_int() == 0  # type: ignore[union-attr]
    assert relu.inputs[0].producer().inputs[0].name == "x"  # type: ignore[union-attr]
    changed.graph.sort()  # raises on a cycle
    assert unshare_dequantize(changed.graph) == 0


def test_unsharing_leaves_alone_what_is_not_shared() -> None:
    unchanged = model(QDQ)
    assert unshare_dequantize(unchanged.graph) == 0
    assert len(unchanged.graph) == 3
