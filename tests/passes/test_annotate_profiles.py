import numpy as np
import onnx_ir as ir

from tests.support import model, run_reference
from xrt.passes import AnnotateProfilesPass
from xrt.passes.annotate_profiles import KEY, Profile

CORNERS = [{"x": (1, 6)}, {"x": (4, 6)}, {"x": (8, 6)}]


def annotated(text, corners=CORNERS):
    made = model(text)
    result = AnnotateProfilesPass(corners)(made)
    return made, result


def profiles(made):
    values = [*made.graph.inputs, *(v for node in made.graph for v in node.outputs)]
    return {str(value.name): Profile.of(value) for value in values}


def test_open_values_get_their_shapes_at_the_corners():
    made, result = annotated("g (float[n,6] x) => (float[n,6] y) { y = Relu (x) }")
    assert result.modified
    want = Profile((1, 6), (4, 6), (8, 6))
    assert profiles(made) == {"x": want, "y": want}
    assert not AnnotateProfilesPass(CORNERS)(made).modified


def test_shapes_computed_by_shape_arithmetic_are_followed():
    made, _ = annotated("""
        g (float[n,6] x) => (float[a,b] y) <int64[1] last = {-1}, int64[1] two = {2}> {
          shape = Shape <start = 0, end = 1> (x)
          rows = Mul (shape, two)
          to = Concat <axis = 0> (rows, last)
          y = Reshape (x, to)
        }""")
    found = profiles(made)
    assert found["y"] == Profile((2, 3), (8, 3), (16, 3))
    assert found["shape"] == Profile((1,), (1,), (1,))  # nobody inferred it yet


def test_values_that_become_constant_have_profiles():
    made, _ = annotated("""
        g (float[n,6] x) => (float[n,6] y) <float[1,6] w = {1.0,2.0,3.0,4.0,5.0,6.0}> {
          to = Shape (x)
          rows = Expand (w, to)
          more = Neg (rows)
          y = Add (x, more)
        }""")
    found = profiles(made)
    assert found["rows"] == found["more"] == Profile((1, 6), (4, 6), (8, 6))


def test_a_value_whose_shape_stays_unknown_gets_none():
    made, _ = annotated("g (float[n,6] x) => (int64[2,k] y) { y = NonZero (x) }")
    assert profiles(made)["y"] is None
    assert profiles(made)["x"] is not None


def test_a_static_graph_is_left_alone():
    made, result = annotated("g (float[2,6] x) => (float[2,6] y) { y = Relu (x) }")
    assert not result.modified
    assert profiles(made) == {"x": None, "y": None}


def test_nothing_but_metadata_changes():
    text = "g (float[n,6] x) => (float[n,6] y) { a = Shape (x) z = Relu (x) y = Reshape (z, a) }"
    before, after = model(text), annotated(text)[0]
    for value in [*after.graph.inputs, *(v for node in after.graph for v in node.outputs)]:
        value.metadata_props.pop(KEY, None)
    assert ir.to_proto(after) == ir.to_proto(before)


def test_the_shapes_are_those_that_running_gives():
    text = """
        g (float[n,6] x) => (float[a,b] y, float[c,d] z) <int64[1] to = {-1}, int64[1] two = {2}> {
          size = Shape <start = 0, end = 1> (x)
          more = Mul (size, two)
          shape = Concat <axis = 0> (more, to)
          y = Reshape (x, shape)
          z = Transpose (y)
        }"""
    made, _ = annotated(text)
    for corner, bound in zip(("least", "usual", "most"), CORNERS, strict=True):
        results = run_reference(made, {"x": np.ones(bound["x"], np.float32)})
        for name, result in zip("yz", results, strict=True):
            assert getattr(profiles(made)[name], corner) == result.shape
