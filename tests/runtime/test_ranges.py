"""Open dimensions: decided by `Ranges`, served by an engine that takes ranges."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

import xrt
from tests.support import model
from xrt.compile import specialize
from xrt.engines.engine import Engine, Executable
from xrt.errors import InputError, OptionError
from xrt.graph import OPSET, Support
from xrt.importers import import_model
from xrt.passes.annotate_profiles import Profile
from xrt.runtime.precision import Full
from xrt.runtime.program import Program
from xrt.runtime.ranges import Range, Ranges
from xrt.runtime.source import Source

TEXT = """
g (float[n,6] x) => (float[m,3] y) <int64[1] last = {3}, int64[1] two = {2}> {
  size = Shape <start = 0, end = 1> (x)
  more = Mul (size, two)
  to = Concat <axis = 0> (more, last)
  flat = Reshape (x, to)
  z = Sin (flat)
  y = Exp (z)
}"""


class OrtExecutable(Executable):
    """A cluster run by ONNX Runtime, which takes any shape, within the profiles it was given."""

    def __init__(self, cluster):
        self.profiles = [Profile.of(value) for value in cluster.body.inputs]
        graph = cluster.body.clone()
        graph.opset_imports[""] = OPSET
        proto = ir.to_proto(ir.Model(graph, ir_version=11))
        del proto.opset_import[:]
        proto.opset_import.extend([onnx.helper.make_opsetid("", 22)])
        self.names = [value.name for value in cluster.body.inputs]
        self.session = onnxruntime.InferenceSession(proto.SerializeToString())

    def run(self, inputs, stream=None):
        for array, profile in zip(inputs, self.profiles, strict=True):
            if profile is not None:
                for least, size, most in zip(profile.least, array.shape, profile.most, strict=True):
                    assert least <= size <= most
        return self.session.run(None, dict(zip(self.names, inputs, strict=True)))

    def serialize(self):
        raise NotImplementedError


class RangedEngine(Engine):
    name = "ranged"
    takes_ranges = True

    def __init__(self):
        self.built = []

    def available(self, *_):
        return Support.yes()

    def supports(self, node, context=None):
        return Support.yes()

    def compile(self, cluster, options):
        self.built.append(OrtExecutable(cluster))
        return self.built[-1]

    def deserialize(self, data, cluster, options):
        raise NotImplementedError


def program(engine, **options):
    settings = xrt.CompileOptions(min_cluster_weight=0, **options)
    source = Source(ir.to_proto(model(TEXT)), None, settings)

    def build(imported, signature, leaves, ranges):
        return specialize(imported, signature, [engine], settings, Full(), leaves, ranges)

    return Program(source, build, [engine], settings, Full())


def batch(rows):
    return np.random.default_rng(rows).normal(size=(rows, 6)).astype(np.float32)


def check(made, rows):
    np.testing.assert_allclose(
        made(batch(rows)), np.exp(np.sin(batch(rows).reshape(-1, 3))), rtol=1e-5
    )


def test_a_declared_range_is_served_by_one_executable():
    engine = RangedEngine()
    made = program(engine, ranges={"n": (1, 4, 8)})
    for rows in (3, 1, 8, 5):
        check(made, rows)
    assert len(engine.built) == 1
    assert engine.built[0].profiles == [Profile((1, 6), (4, 6), (8, 6))]
    assert made.specialization.ranges == (("n", Range(1, 4, 8)),)


def test_outside_a_declared_range_is_an_error_that_quotes_it():
    made = program(RangedEngine(), ranges={"n": (2, 8)})
    check(made, 2)
    with pytest.raises(
        InputError, match=r"Dimension 0 of input 'x' is 9; the range of 'n' is 2 to"
    ):
        made(batch(9))
    check(made, 8)


def test_a_declared_range_widens_where_that_is_asked_for():
    engine = RangedEngine()
    made = program(engine, ranges={"n": (2, 4)}, widen_ranges=True)
    for rows in (2, 9, 3):
        check(made, rows)
    assert [executable.profiles[0].most for executable in engine.built] == [(4, 6), (9, 6)]


def test_without_a_range_what_was_seen_decides():
    engine = RangedEngine()
    made = program(engine)
    for rows in (4, 4, 2, 3, 4, 6, 5):
        check(made, rows)
    assert [executable.profiles for executable in engine.built] == [
        [None],  # one size: bound
        [Profile((2, 6), (4, 6), (4, 6))],
        [Profile((2, 6), (4, 6), (6, 6))],
    ]


@pytest.mark.parametrize(
    ("options", "least", "usual"), [({}, 4, 8), ({"ranges": {"n": (0, 8)}}, 1, 4)]
)
def test_an_empty_call_is_bound_and_no_part_of_a_range(options, least, usual):
    engine = RangedEngine()
    made = program(engine, **options)
    for rows in (4, 0, 8, 5):
        check(made, rows)
        assert (made.specialization.signature[0][0][0] == 0) == (rows == 0)
    (ranged,) = [made.profiles for made in engine.built if made.profiles != [None]]
    assert ranged == [Profile((least, 6), (usual, 6), (8, 6))]


def test_an_empty_call_outside_a_declared_range_is_an_error():
    with pytest.raises(InputError, match="is 0; the range of 'n' is 2 to 8"):
        program(RangedEngine(), ranges={"n": (2, 8)})(batch(0))


def test_an_engine_without_ranges_gets_static_shapes():
    made = xrt.compile(ir.to_proto(model(TEXT)), engine="xla")
    for rows in (2, 5):
        check(made, rows)
        assert made.specialization.ranges == ()
        assert made.specialization.signature[0][0] == (rows, 6)


def test_a_call_that_is_refused_teaches_nothing():
    made = program(RangedEngine())
    for rows in (2, 3):
        check(made, rows)
    for wrong in (np.ones((5000, 5), np.float32), np.ones((5000, 6), np.float64)):
        with pytest.raises(InputError):
            made(wrong)
    check(made, 2)
    assert made.specialization.ranges == (("n", Range(2, 3, 3)),)


def test_a_range_of_an_unknown_symbol_is_refused():
    made = program(RangedEngine(), ranges={"batch": (1, 4)})
    with pytest.raises(OptionError, match="Symbolic dimension 'batch' is unknown"):
        made(batch(2))


@pytest.mark.parametrize("bounds", [(3, 2), (1,), (1, 5, 4), (-1, 2), (1.0, 2), 4])
def test_bad_ranges_are_refused(bounds):
    with pytest.raises(OptionError, match=r"CompileOptions\.ranges must be a mapping"):
        xrt.CompileOptions(ranges={"n": bounds})


def imported(text, ranges):
    from dataclasses import replace

    return replace(import_model(ir.to_proto(model(text)), (), {}), ranges=ranges)


TWO = "g (float[n,k] x, float[n] y) => (float[n,k] z) { z = Relu (x) }"


def signature(*shapes):
    return tuple((shape, "float32", None) for shape in shapes)


def test_sizes_of_one_symbol_must_agree():
    made = imported(TWO, {"n": (1, 9)})
    with pytest.raises(InputError, match="Input 'y' has 5 at dimension 0; expected 4, since 'n'"):
        Ranges({}, widen=False).open(made, signature((4, 2), (5,)))


def test_symbols_open_one_by_one():
    made, ranges = imported(TWO, {"n": (1, 9)}), Ranges({}, widen=False)
    assert ranges.open(made, signature((4, 2), (4,)))[0] == signature((-1, 2), (-1,))
    opened, found = ranges.open(made, signature((4, 3), (4,)))
    assert opened == signature((-1, -1), (-1,))
    assert found == (("n", Range(1, 4, 9)), ("k", Range(2, 3, 3)))


def test_the_usual_size_is_the_most_frequent():
    made, ranges = imported(TWO, {}), Ranges({}, widen=False)
    for rows in (2, 7, 7, 5):
        found = ranges.open(made, signature((rows, 2), (rows,)))[1]
    assert found == (("n", Range(2, 7, 7)),)


def test_torch_modules_bring_their_ranges():
    torch = pytest.importorskip("torch")
    module = torch.nn.Linear(4, 2).eval()
    rows = torch.export.Dim("rows", min=2, max=16)
    made = xrt.compile(module, (torch.ones(3, 4),), engine="host", dynamic_shapes=({0: rows},))
    assert list(made.specialization.imported.ranges.values()) == [(2, 16)]
