import onnx_ir as ir
import pytest

from tests.support import model
from xrt.errors import InputError
from xrt.passes import BindShapesPass
from xrt.passes.bind_shapes import OPEN

TEXT = """
g (float[batch,3] x, float[batch,k] y, float[twice] z) => (float[batch,3] out)
<float[batch,3] mid> { mid = Relu (x) out = Abs (mid) }
"""


def bind(**shapes):
    made = model(TEXT)
    made.graph.inputs[2].shape = ir.Shape(["2*batch"])  # text cannot say it
    result = BindShapesPass(shapes)(made)
    return made, result


def test_symbols_are_bound_in_every_value():
    made, result = bind(x=(4, 3), y=(4, 7))
    assert result.modified
    assert [list(v.shape) for v in made.graph.inputs[:2]] == [[4, 3], [4, 7]]
    assert list(made.graph.outputs[0].shape) == [4, 3]
    assert list(made.graph.node(0).outputs[0].shape) == [4, 3]


def test_expressions_are_computed():
    made, _ = bind(x=(4, 3))
    assert list(made.graph.inputs[2].shape) == [8]
    assert made.graph.inputs[1].shape[0] == 4


def test_open_dimensions_stay_symbolic():
    made, result = bind(x=(OPEN, 3), y=(OPEN, 7))
    assert result.modified
    assert [list(v.shape) for v in made.graph.inputs] == [["batch", 3], ["batch", 7], ["2*batch"]]
    assert list(made.graph.outputs[0].shape) == ["batch", 3]
    assert not BindShapesPass({"x": (OPEN, 3)})(made).modified


def test_bodies_are_bound():
    made = model("""
        g (bool c, float[n] x) => (float[n] y) {
          y = If (c) <then_branch = t () => (float[n] a) { a = Relu (x) },
                      else_branch = e () => (float[n] b) { b = Abs (x) }>
        }""")
    BindShapesPass({"x": (5,)})(made)
    branch = made.graph.node(0).attributes["then_branch"].as_graph()
    assert list(branch.outputs[0].shape) == [5]


def test_nothing_to_bind_leaves_the_model():
    made = model("g (float[2] x) => (float[2] y) { y = Relu (x) }")
    assert not BindShapesPass({"x": (2,)})(made).modified


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"q": (1,)}, "Input 'q' is unknown. Known inputs: x, y, z."),
        ({"x": (4,)}, r"Input 'x' has rank 1 \(shape \[4\]\); expected rank 2 .*\[batch, 3\]"),
        ({"x": (4, 5)}, "Input 'x' has 5 at dimension 1 .* expected 3"),
        ({"x": (4, 3), "y": (5, 2)}, "'y' has 5 at dimension 0 .*expected 4, since 'batch' is 4"),
        ({"x": (-2, 3)}, "negative"),
        ({"x": (4, OPEN)}, "Dimension 1 of input 'x' is 3, and never open"),
    ],
)
def test_a_wrong_shape_is_named(shapes, message):
    with pytest.raises(InputError, match=message):
        bind(**shapes)


def test_an_input_that_contradicts_leaves_the_model():
    made = model(TEXT)
    with pytest.raises(InputError):
        BindShapesPass({"x": (4, 3), "y": (5, 2)})(made)
    assert made.graph.inputs[0].shape[1] == 3
    assert made.graph.inputs[0].shape[0] == "batch"
