"""Every wrong input ends in an xrt error that says who, what was got and what to do."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import onnx_ir as ir
import pytest
import torch

import xrt
from tests.support import model
from xrt.errors import (
    InputError,
    ModelImportError,
    ModelNotFoundError,
    OptionError,
    XrtError,
)
from xrt.errors import UnsupportedOpError as Unsupported

TEXT = "g (float[n,3] x, int64[n] k) => (float[n,3] y) { a = Relu (x) y = Abs (a) }"
X = np.arange(6, dtype=np.float32).reshape(2, 3)
K = np.ones(2, np.int64)
OPTIONS = xrt.CompileOptions(cache=False)


def proto_bytes() -> bytes:
    return bytes(ir.to_proto(model(TEXT)).SerializeToString())


# Models


def test_a_missing_file(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"no file .*absent\.onnx.* Check the path"):
        xrt.compile(tmp_path / "absent.onnx")


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n and more", b"PK\x03\x04", b"{}"])
def test_a_foreign_file(tmp_path, content):
    path = tmp_path / "foreign.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelImportError, match=r"foreign\.onnx .*[Ee]xport or copy"):
        xrt.compile(str(path))


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_truncated_bytes(part):
    content = proto_bytes()
    with pytest.raises(ModelImportError, match=r"ONNX bytes .*(Export or copy|no valid|lacks)"):
        xrt.compile(content[: int(len(content) * part)])


@pytest.mark.parametrize("thing", [None, object(), [], torch.nn.Linear])
def test_what_is_no_model(thing):
    with pytest.raises(ModelImportError, match=r"Cannot import a .* Known models: torch"):
        xrt.compile(thing)


@pytest.mark.parametrize(
    ("header", "node", "message"),
    [
        ('"": 21', "Rleu (x)", r"Rleu \(which makes 'y'\) is unknown.*Export the model"),
        ('"": 21, "acme": 1', "acme.Zap (x)", "Domain 'acme' is unknown. Known domains: ''"),
        ('"": 99', "Relu (x)", "imports opset 99. Known opsets: 1 to 28. Export"),
        ('"": 0', "Relu (x)", "imports opset 0. Known opsets: 1 to 28. Export"),
    ],
)
def test_an_unknown_operator_domain_or_opset(header, node, message):
    text = f"""<ir_version: 10, opset_import: [{header}]>
        g (float[2] x) => (float[2] y) {{ y = {node} }}"""
    with pytest.raises(Unsupported, match=message):
        xrt.compile(model(text))


def test_a_cycle():
    made = model("g (float[2] x) => (float[2] y) { y = Add (x, z) z = Relu (y) }")
    with pytest.raises(ModelImportError, match=r"cycle of 2 nodes: .*Add.* must have an order"):
        xrt.compile(ir.to_proto(made))


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers(number):
    weights = np.ones((3, 3))
    weights[1, 2] = number
    made = model(
        "g (float[n,3] x) => (float[n,3] y) <float[3,3] w> { y = MatMul (x, w) }", w=weights
    )
    with pytest.raises(ModelImportError, match=r"1 of 9 numbers of initializer 'w'.* Check the"):
        xrt.compile(made)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_weights_of_a_torch_model_that_are_no_numbers(number):
    linear = torch.nn.Linear(3, 2).eval()
    linear.weight.data[1, 2] = number
    with pytest.raises(ModelImportError, match=r"1 of 6 numbers of .*weight"):
        xrt.compile(linear, (torch.ones(1, 3),))


# Arguments of xrt.compile


@pytest.mark.parametrize("engine", ["tpu", ["xla", "tpu"]])
def test_an_unknown_engine(engine):
    with pytest.raises(
        OptionError, match=r"Engine 'tpu' is unknown\. Known engines: host, tensorrt, .*xla\."
    ):
        xrt.compile(model(TEXT), engine=engine)


@pytest.mark.parametrize("precision", ["fp8", None, 16, ["fp32"]])
def test_an_unknown_precision(precision):
    with pytest.raises(OptionError, match=r"is unknown\. Known precisions: bf16, fp16, fp32, int8"):
        xrt.compile(model(TEXT), precision=precision)


def test_arguments_are_checked_before_the_model_is_read():
    with pytest.raises(OptionError, match="Engine 'tpu'"):
        xrt.compile("absent.onnx", engine="tpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"calibration": [X]}, "calibration is for precision 'int8'; the precision .*'fp32'"),
        ({"target": "sm_0", "engine": "xla"}, "target='sm_0'"),
        ({"options": {"strict": True}}, "options must be an xrt.CompileOptions; got"),
    ],
)
def test_arguments_that_do_not_fit_together(arguments, message):
    with pytest.raises(OptionError, match=message):
        xrt.compile(model(TEXT), **arguments)


@pytest.mark.parametrize(
    "wrong",
    [
        {"fuel": -1},
        {"fuel": 1.5},
        {"min_cluster_weight": "2"},
        {"max_clusters": -3},
        {"max_cluster_nodes": 0},
        {"max_specializations": 0},
    ],
)
def test_option_values_are_checked(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(OptionError, match=rf"CompileOptions\.{name} must be .* got {value!r}"):
        xrt.CompileOptions(**wrong)


def test_example_inputs_that_do_not_fit():
    with pytest.raises(InputError, match=r"Input 'x' has 4 at dimension 1 .*expected 3"):
        xrt.compile(model(TEXT), (np.ones((2, 4), np.float32), K))
    with pytest.raises(InputError, match=r"Input 'q' is unknown\. This model takes 2: x, k"):
        xrt.compile(model(TEXT), {"x": X, "q": K})


# Calls


@pytest.fixture(scope="module")
def program():
    return xrt.compile(model(TEXT), options=OPTIONS)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, "Input 'x', 'k' is missing. This model takes 2: x, k."),
        ((X,), {}, "Input 'k' is missing"),
        ((X, K, K), {}, "Got 3 inputs by position. This model takes 2: x, k."),
        ((X, K), {"q": 1}, "Input 'q' is unknown. This model takes 2: x, k."),
        ((X, K), {"x": X}, "Input 'x' was given by position and by name"),
        ((X[0], K), {}, r"Input 'x' has rank 1, shape \[3\]; the model takes rank 2"),
        ((X.astype("f8"), K), {}, "'x' has dtype float64; the model takes float32. Convert it"),
        ((X, K.astype("i4")), {}, "'k' has dtype int32; the model takes int64"),
        ((X[:, :2], K), {}, r"'x' has 2 at dimension 1 .*expected 3"),
        ((X[:1], K), {}, "'k' has 2 at dimension 0 .*expected 1, since 'n' is 1"),
        (([[1.0, 2.0, 3.0]], [1]), {}, "'x' has dtype float64; the model takes float32"),
        (("hello", K), {}, "'x' has dtype"),
        ((None, K), {}, "'x' "),
        ((torch.ones(2, 3, dtype=torch.float16), K), {}, "'x' has dtype float16"),
    ],
)
def test_a_call_that_does_not_fit_leaves_the_program_usable(program, args, kwargs, message):
    np.testing.assert_array_equal(program(X, K), X)
    clusters = program.clusters
    with pytest.raises(InputError, match=message):
        program(*args, **kwargs)
    assert program.clusters == clusters
    np.testing.assert_array_equal(program(x=X, k=K), X)


def test_a_ragged_list_is_refused_by_name(program):
    with pytest.raises(InputError, match="'x'"):
        program([[1.0], [1.0, 2.0]], K)
    np.testing.assert_array_equal(program(X, K), X)


def test_nothing_runs_before_the_check():
    made = model(TEXT)
    program = xrt.compile(made, options=OPTIONS)
    with pytest.raises(InputError):
        program(X.astype("f8"), K)
    with pytest.raises(xrt.XrtError, match="compiled at its first call"):
        program.explain()  # nothing was compiled for the wrong call


def test_profile_needs_a_batch(program):
    with pytest.raises(InputError, match="got no batches; pass at least one"):
        program.profile([])


# Torch


def test_a_torch_model_called_with_nothing():
    program = xrt.compile(torch.nn.Linear(3, 2).eval(), options=OPTIONS)
    with pytest.raises(InputError, match=r"forward\(input.* missing a required argument: 'input'"):
        program()
    with pytest.raises(xrt.XrtError, match=r"compiled at its first call.*pass example_inputs"):
        program.explain()
    assert program(torch.ones(1, 3)).shape == (1, 2)


def test_a_torch_model_without_tensors():
    class Constant(torch.nn.Module):
        def forward(self, n=1):
            return torch.ones(2) * n

    with pytest.raises(InputError, match=r"inputs hold no tensor\. Pass example_inputs"):
        xrt.compile(Constant())()


def test_a_torch_call_that_does_not_fit_leaves_the_program_usable():
    program = xrt.compile(torch.nn.Linear(3, 2).eval(), (torch.ones(1, 3),), options=OPTIONS)
    for wrong in [(), (torch.ones(1, 3), torch.ones(1))]:
        with pytest.raises(InputError, match="cannot be called like this"):
            program(*wrong)
    with pytest.raises(InputError, match="has dtype float64; the model takes float32"):
        program(torch.ones(1, 3, dtype=torch.float64))
    with pytest.raises(ModelImportError, match="could not export Linear"):
        program(torch.ones(1, 7))
    assert program(torch.ones(1, 3)).shape == (1, 2)


def test_a_torch_model_in_training_mode():
    with pytest.raises(ModelImportError, match=r"training mode.*model\.eval\(\)"):
        xrt.compile(torch.nn.BatchNorm1d(3), (torch.ones(4, 3),))


def test_tensors_without_dense_memory():
    program = xrt.compile(torch.nn.Linear(3, 2).eval(), (torch.ones(1, 3),), options=OPTIONS)
    for wrong, what in [
        (torch.ones(1, 3).to_sparse(), "sparse"),
        (torch.ones(1, 3).to("meta"), "meta"),
    ]:
        with pytest.raises(InputError, match=f"{what}.*dense tensors"):
            program(wrong)
    assert program(torch.ones(1, 3)).shape == (1, 2)


def test_a_program_cannot_be_pickled(program):
    for copier in (pickle.dumps, copy.deepcopy):
        with pytest.raises(XrtError, match="cannot be pickled or copied"):
            copier(program)
