"""A program and the contents of inputs that shapes depend on; see also tests/test_compile.py."""

import jax.numpy as jnp
import numpy as np
import onnx_ir as ir
import pytest
import torch

import xrt
from tests.support import assert_close, model

TEXT = "g (float[2,3] x, int64[n] axes) => (float[a,b] y) { s = ReduceSum (x, axes) y = Relu (s) }"
X = np.arange(6, dtype=np.float32).reshape(2, 3)


def compiled(text=TEXT, **options):
    given = xrt.CompileOptions(min_cluster_weight=0, cache=False, **options)
    return xrt.compile(ir.to_proto(model(text)), engine="xla", options=given)


def on_host(program):
    return set(program.explain().reasons())


def test_contents_that_shapes_depend_on_are_part_of_the_signature():
    program = compiled()
    for axes in ([0], [1], [0, 1], [0]):
        assert_close(program(X, np.array(axes)), X.sum(tuple(axes), keepdims=True))
        assert on_host(program) == set()
    assert len(program._specializations) == 3
    assert "axes: int64[1] = [0]" in str(program.explain())
    assert program.explain().to_dict()["inputs"][1]["value"] == [0]


def test_after_too_many_contents_it_is_compiled_for_any():
    program = compiled(max_bound_values=1)
    assert_close(program(X, np.array([0])), X.sum(0, keepdims=True))
    assert on_host(program) == set()
    assert_close(program(X, np.array([1])), X.sum(1, keepdims=True))
    assert on_host(program) == {"ReduceSum", "Relu"}
    assert_close(program(X, np.array([-1])), X.sum(1, keepdims=True))
    assert len(program._specializations) == 2
    assert_close(program(X, np.array([0])), X.sum(0, keepdims=True))
    assert on_host(program) == set()  # the contents that it knows keep their clusters


def test_contents_need_not_be_bound():
    program = compiled(max_bound_values=0)
    assert_close(program(X, np.array([1])), X.sum(1, keepdims=True))
    assert "ReduceSum" in on_host(program)


def test_without_an_engine_nothing_is_bound():
    program = xrt.compile(ir.to_proto(model(TEXT)), engine="host")
    for axes in ([0], [1]):
        assert_close(program(X, np.array(axes)), X.sum(tuple(axes), keepdims=True))
    assert len(program._specializations) == 1


def test_a_large_input_is_data():
    text = "g (float[n] x, int64[m] s) => (float[k] y) { e = Expand (x, s) y = Relu (e) }"
    program = compiled(text)
    shape = np.ones(65, np.int64)
    with pytest.raises(xrt.XrtError):  # NumPy has at most 64 dimensions
        program(np.ones(1, np.float32), shape)
    assert on_host(program) == {"Expand", "Relu"}


@pytest.mark.parametrize("array", [torch.tensor, jnp.asarray])
def test_of_any_library(array):
    got = compiled()(array(X), array([1]))
    assert type(got) is type(array(X))
    assert_close(np.asarray(got), X.sum(1, keepdims=True))


def test_an_input_changed_in_place_is_seen():
    program, axes = compiled(), np.array([0])
    assert_close(program(X, axes), X.sum(0, keepdims=True))
    axes[0] = 1
    assert_close(program(X, axes), X.sum(1, keepdims=True))


def test_a_graph_with_shape_inputs_of_fixed_shape_waits_for_the_first_call():
    program = compiled(TEXT.replace("int64[n]", "int64[1]"))
    assert repr(program) == "<xrt.Program, not compiled yet>"
    assert_close(program(X, np.array([1])), X.sum(1, keepdims=True))
    assert on_host(program) == set()
