"""ONNX graphs with marked trainable initializers."""

import numpy as np
import onnx
import onnx_ir as ir
import optax
import pytest

import xrt
from tests.support import model

TEXT = """g (float[batch,3] x, float[batch,2] t) => (float loss) <float[3,2] w, float[2] b> {
    p = Gemm (x, w, b)
    d = Sub (p, t)
    s = Mul (d, d)
    loss = ReduceMean <keepdims = 0> (s)
}"""
W, B = np.arange(6).reshape(3, 2) / 10, np.zeros(2)
OPTIONS = {"progress": False}


def given(text=TEXT, **constants):
    return ir.to_proto(model(text, **{"w": W, "b": B, **constants}))


def batch():
    rng = np.random.default_rng(0)
    return rng.normal(size=(5, 3)).astype(np.float32), rng.normal(size=(5, 2)).astype(np.float32)


def gradient(w, b, x, t):
    error = 2 * (x @ w + b - t) / t.size
    return x.T @ error, error.sum(0)


@pytest.mark.parametrize("engine", ["xla", "host"])
def test_initializers_named_by_a_pattern_are_trained(engine):
    x, t = batch()
    trainer = xrt.compile_training(
        given(),
        (x, t),
        optimizer=optax.sgd(1.0),
        engine=engine,
        options=xrt.TrainingOptions(trainable=("w",), **OPTIONS),
    )
    assert trainer.step({"x": x, "t": t}) == pytest.approx(np.mean((x @ W + B - t) ** 2), rel=1e-6)
    state = trainer.state_dict()
    np.testing.assert_allclose(state["w"], W - gradient(W, B, x, t)[0], rtol=1e-5)
    np.testing.assert_array_equal(state["b"], B)
    program = trainer.program((x, t), options=xrt.CompileOptions(cache=False))
    assert float(program(x, t)) == pytest.approx(trainer.step((x, t)), rel=1e-5)
    assert trainer.evaluate([(x, t)]) < float(program(x, t))


def test_marks_in_the_file_do_the_same():
    proto = given()
    for tensor in proto.graph.initializer:
        if tensor.name == "b":
            tensor.metadata_props.add(key="xrt.trainable", value="true")
    x, t = batch()
    trainer = xrt.compile_training(
        onnx.load_from_string(proto.SerializeToString()),
        (x, t),
        optimizer=optax.sgd(1.0),
        options=xrt.TrainingOptions(**OPTIONS),
    )
    trainer.step((x, t))
    state = trainer.state_dict()
    np.testing.assert_allclose(state["b"], B - gradient(W, B, x, t)[1], rtol=1e-5)
    np.testing.assert_allclose(state["w"], W, rtol=1e-6)


def test_without_marks_the_remedy_is_told():
    with pytest.raises(xrt.XrtError, match="marks no initializer as trainable"):
        xrt.compile_training(given(), batch(), optimizer=optax.sgd(1.0))
    with pytest.raises(xrt.XrtError, match=r"no initializer is named 'x\*'.*w, b"):
        xrt.compile_training(
            given(),
            batch(),
            optimizer=optax.sgd(1.0),
            options=xrt.TrainingOptions(trainable=("x*",)),
        )


STATEFUL = """g (float[6,4] x) => (float loss) <float[4] s, float[4] m, float[4] v, float[4] w,
    float ratio = {0.5}, bool on = {1}> {
    y, rm, rv = BatchNormalization <training_mode = 1> (x, s, w, m, v)
    d = Dropout (y, ratio, on)
    q = Mul (d, d)
    loss = ReduceMean <keepdims = 0> (q)
}"""


def test_dropout_and_batch_norm_evaluate_without_chance():
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    trainer = xrt.compile_training(
        ir.to_proto(model(STATEFUL, s=np.ones(4), m=np.zeros(4), v=np.ones(4), w=np.zeros(4))),
        (x,),
        optimizer=optax.sgd(0.0),
        options=xrt.TrainingOptions(trainable=("s", "w"), **OPTIONS),
    )
    first, second = trainer.step((x,)), trainer.step((x,))
    assert first != second
    want = np.mean((x / np.sqrt(1 + 1e-5)) ** 2)
    assert trainer.evaluate([(x,)]) == pytest.approx(want, rel=1e-5)
