"""Optimizers of ai.onnx.preview.training, on the host and in XLA, against the pseudo code."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.engines.xla.ops_support import engine_support, run_model
from tests.support import assert_close
from xrt.kernels.host import find

DOMAIN = "ai.onnx.preview.training"
F32 = np.float32


def optimizer_model(op: str, inputs: list[Any], outputs: int, **attributes: Any) -> Any:
    names = [f"x{i}" for i in range(len(inputs))]
    results = [f"y{i}" for i in range(outputs)]
    node = onnx.helper.make_node(op, names, results, domain=DOMAIN, **attributes)
    infos = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(x.dtype), x.shape
        )
        for name, x in zip(names, inputs, strict=True)
    ]
    empty = [onnx.ValueInfoProto(name=name) for name in results]
    graph = onnx.helper.make_graph([node], "g", infos, empty)
    imports = [onnx.helper.make_opsetid("", 28), onnx.helper.make_opsetid(DOMAIN, 1)]
    made = onnx.helper.make_model(graph, opset_imports=imports, ir_version=13)
    return onnx.shape_inference.infer_shapes(made, strict_mode=True)


def check(op: str, inputs: list[Any], want: list[Any], **attributes: Any) -> None:
    """Fail unless the host's kernel and the lowering give `want`."""
    made = optimizer_model(op, inputs, len(want), **attributes)
    assert engine_support(made)
    kernel = find(ir.from_proto(made).graph[0])
    assert kernel.native
    assert_close(list(kernel(inputs)), want)
    assert_close(run_model(made, inputs), want)


def arrays(dtype: Any, count: int, seed: int) -> list[Any]:
    """`count` arrays of each of two shapes, in turn."""
    rng = np.random.default_rng(seed)
    shapes = ((3, 4), (2,))
    return [np.abs(rng.normal(size=shape)).astype(dtype) for _ in range(count) for shape in shapes]


@pytest.mark.parametrize("dtype", [F32, np.float64])
@pytest.mark.parametrize("step", [0, 3])
def test_adagrad(dtype: Any, step: int) -> None:
    tensors = arrays(dtype, 3, 0)
    rate, count = np.array(0.1, F32), np.array(step, np.int64)
    decay, norm, epsilon = 0.25, 0.5, 0.125
    new_x, new_h = [], []
    for x, g, h in zip(tensors[:2], tensors[2:4], tensors[4:], strict=True):
        slope = norm * x + g
        new_h.append(h + slope**2)
        r = float(rate) / (1 + step * decay)
        new_x.append((x - r * slope / (np.sqrt(new_h[-1]) + epsilon)).astype(dtype))
    attributes = {"decay_factor": decay, "norm_coefficient": norm, "epsilon": epsilon}
    check("Adagrad", [rate, count, *tensors], [*new_x, *new_h], **attributes)


@pytest.mark.parametrize("mode", ["standard", "nesterov"])
@pytest.mark.parametrize("step", [0, 3])
def test_momentum(mode: str, step: int) -> None:
    tensors = arrays(F32, 3, 1)
    rate, count = np.array([0.1], F32), np.array([step], np.int64)
    alpha, beta, norm = 0.75, 0.5, 0.25
    new_x, new_v = [], []
    for x, g, v in zip(tensors[:2], tensors[2:4], tensors[4:], strict=True):
        slope = norm * x + g
        moved = alpha * v + (beta if step > 0 else 1) * slope
        ahead = slope + alpha * moved if mode == "nesterov" else moved
        new_x.append((x - F32(0.1) * ahead).astype(F32))
        new_v.append(moved.astype(F32))
    attributes = {"alpha": alpha, "beta": beta, "norm_coefficient": norm, "mode": mode}
    check("Momentum", [rate, count, *tensors], [*new_x, *new_v], **attributes)


@pytest.mark.parametrize("dtype", [F32, np.float64])
@pytest.mark.parametrize("step", [0, 3])
def test_adam(dtype: Any, step: int) -> None:
    tensors = arrays(dtype, 4, 2)
    rate, count = np.array(0.1, dtype), np.array(step, np.int64)
    alpha, beta, norm, post, epsilon = 0.75, 0.875, 0.25, 0.125, 0.0625
    groups = zip(tensors[:2], tensors[2:4], tensors[4:6], tensors[6:], strict=True)
    new_x, new_v, new_h = [], [], []
    for x, g, v, h in groups:
        slope = norm * x + g
        new_v.append(alpha * v + (1 - alpha) * slope)
        new_h.append(beta * h + (1 - beta) * slope**2)
        r = float(rate)
        if step > 0:
            r *= np.sqrt(1 - beta**step) / (1 - alpha**step)
        moved = x - r * new_v[-1] / (np.sqrt(new_h[-1]) + epsilon)
        new_x.append(((1 - post) * moved).astype(dtype))
    attributes = {
        "alpha": alpha,
        "beta": beta,
        "norm_coefficient": norm,
        "norm_coefficient_post": post,
        "epsilon": epsilon,
    }
    check("Adam", [rate, count, *tensors], [*new_x, *new_v, *new_h], **attributes)


def test_adam_by_its_defaults_follows_the_gradient() -> None:
    x, g = np.array([1.0, -1.0], F32), np.array([0.5, -3.0], F32)
    zeros = np.zeros(2, F32)
    rate, count = np.array(0.01, F32), np.array(1, np.int64)
    want = [x - F32(0.01) * np.sign(g), F32(0.1) * g, F32(0.001) * g**2]
    # At the first step the corrected direction is the sign of the gradient, but for epsilon.
    check("Adam", [rate, count, x, g, zeros, zeros], want)


def test_tensors_that_do_not_make_groups_fail_with_a_reason() -> None:
    given = [np.array(0.1, F32), np.array(1), *[np.ones(2, F32)] * 4]
    node = ir.Node(DOMAIN, "Adagrad", [ir.val(f"x{i}") for i in range(6)], num_outputs=2)
    with pytest.raises(Exception, match="4 tensors do not make groups of 3"):
        find(node)(given)
