"""Normalizations and softmax against onnx.reference, in every layout and precision."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tests.engines.xla.ops_support import check, run_node
from tests.support import assert_close

F32, F64, F16 = np.float32, np.float64, np.float16
SHAPES = [(2, 6, 4, 5), (2, 6, 5), (2, 6, 2, 3, 4)]


def normal(*shape: int, dtype: type = F32, seed: int = 0) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).normal(size=shape)).astype(dtype)


def positive(*shape: int, dtype: type = F32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.5, 2, size=shape).astype(dtype)


def statistics(channels: int, dtype: type = F32) -> list[np.ndarray]:
    return [normal(channels, dtype=dtype, seed=i) for i in (1, 2, 3)] + [
        positive(channels, dtype=dtype)
    ]


@pytest.mark.parametrize("shape", [*SHAPES, (2, 6), (0, 6, 4)])
def test_batch_normalization(shape: tuple[int, ...]) -> None:
    check("BatchNormalization", [normal(*shape), *statistics(6)], epsilon=0.01)


@pytest.mark.parametrize("dtype", [F64, F16])
def test_batch_normalization_dtypes(dtype: type) -> None:
    check("BatchNormalization", [normal(2, 3, 4, dtype=dtype), *statistics(3, dtype)])


def test_batch_normalization_is_exact_for_a_large_mean() -> None:
    x, mean = normal(2, 3, 4) + F32(10000), np.full(3, 10000, F32)
    one, zero = np.ones(3, F32), np.zeros(3, F32)
    check("BatchNormalization", [x, one, zero, mean, one], epsilon=0.0)


def test_batch_normalization_in_training_mode() -> None:
    inputs = [normal(4, 3, 5), *statistics(3)]
    check("BatchNormalization", inputs, outputs=3, training_mode=1, momentum=0.7)


@pytest.mark.parametrize("shape", SHAPES)
def test_instance_normalization(shape: tuple[int, ...]) -> None:
    check("InstanceNormalization", [normal(*shape), normal(6, seed=1), normal(6, seed=2)])


def group_reference(x: np.ndarray, scale: np.ndarray, bias: np.ndarray, groups: int) -> np.ndarray:
    wide = x.astype(F64).reshape(x.shape[0], groups, -1)
    wide = wide - wide.mean(-1, keepdims=True)
    wide = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5)
    shape = (1, -1, *[1] * (x.ndim - 2))
    return (wide.reshape(x.shape) * scale.reshape(shape) + bias.reshape(shape)).astype(x.dtype)


@pytest.mark.parametrize("shape", [*SHAPES, (2, 6)])
@pytest.mark.parametrize("groups", [1, 2])
def test_group_normalization(shape: tuple[int, ...], groups: int) -> None:
    inputs = [normal(*shape), normal(6, seed=1), normal(6, seed=2)]
    want = group_reference(*inputs, groups)
    # ONNX infers no type for its output.
    check("GroupNormalization", inputs, want=[want], declared=[want], num_groups=groups)


@pytest.mark.parametrize("axis", [-1, 1, 2, 0, -2])
def test_layer_normalization(axis: int) -> None:
    x = normal(2, 3, 4, 5)
    shape = x.shape[axis:]
    inputs = [x, normal(*shape, seed=1), normal(*shape, seed=2)]
    check("LayerNormalization", inputs, outputs=3, axis=axis)
    check("LayerNormalization", inputs[:2], axis=axis, epsilon=0.1)


def test_layer_normalization_broadcasts_its_scale() -> None:
    check("LayerNormalization", [normal(2, 3, 4, 5), normal(5, seed=1)], axis=1)
    check("LayerNormalization", [normal(2, 3, 4, 5), normal(3, 1, 1, seed=1)], axis=1)


@pytest.mark.parametrize("dtype", [F16, ml_dtypes.bfloat16])
def test_half_precision_normalizes_in_float32(dtype: type) -> None:
    x = (normal(4, 256) * 30 + 300).astype(dtype)  # the squares exceed float16
    one, zero = np.ones(256, dtype), np.zeros(256, dtype)
    wide = x.astype(F64)
    want = (wide - wide.mean(1, keepdims=True)) / wide.std(1, keepdims=True)
    got, mean, _ = run_node("LayerNormalization", [x, one, zero], outputs=3)
    assert_close(got, want.astype(dtype))
    assert mean.dtype == F32
    (rms,) = run_node("RMSNormalization", [x, one])
    assert_close(rms, (wide / np.sqrt((wide**2).mean(1, keepdims=True))).astype(dtype))


@pytest.mark.parametrize("axis", [-1, 1, 0])
def test_rms_normalization(axis: int) -> None:
    x = normal(2, 3, 4)
    check("RMSNormalization", [x, normal(*x.shape[axis:], seed=1)], axis=axis)


def test_float64_stays() -> None:
    x = normal(2, 3, 4, dtype=F64)
    check("LayerNormalization", [x, normal(4, dtype=F64)])
    check("InstanceNormalization", [x, normal(3, dtype=F64), normal(3, dtype=F64)])


@pytest.mark.parametrize("axis", [-1, 1, 0])
@pytest.mark.parametrize("p", [1, 2])
def test_lp_normalization(axis: int, p: int) -> None:
    x = normal(2, 3, 4)
    x[0] = 0
    norm = np.linalg.norm(x, ord=p, axis=axis, keepdims=True)
    want = np.divide(x, norm, out=np.zeros_like(x), where=norm != 0)
    check("LpNormalization", [x], want=[want], axis=axis, p=p)


def test_mean_variance_normalization() -> None:
    x = normal(2, 3, 4, 5)
    for axes in ((0, 2, 3), (1, -1)):
        want = (x - x.mean(axes, keepdims=True)) / x.std(axes, keepdims=True)
        check("MeanVarianceNormalization", [x], want=[want], axes=axes)


@pytest.mark.parametrize("size", [1, 3, 4])
def test_local_response_normalization(size: int) -> None:
    x = normal(2, 7, 3, 4)
    # onnx.reference counts the batch where it should count the channels.
    low, high = (size - 1) // 2, size // 2
    squares = np.pad(x**2, [(0, 0), (low, high), (0, 0), (0, 0)])
    total = sum(squares[:, i : i + 7] for i in range(size))
    want = x / (1.5 + 0.5 / size * total) ** 0.6
    options = {"alpha": 0.5, "beta": 0.6, "bias": 1.5}
    check("LRN", [x], want=[want.astype(F32)], size=size, **options)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("axis", [-1, 1, 2])
def test_softmax(op: str, axis: int) -> None:
    check(op, [normal(2, 3, 4, 5)], axis=axis)


def test_softmax_over_the_batch() -> None:
    x = normal(2, 3, 4)  # onnx.reference takes axis 0 for the default
    e = np.exp(x)
    check("Softmax", [x], want=[e / e.sum(0, keepdims=True)], axis=0)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_softmax_dtypes_and_extremes(op: str) -> None:
    check(op, [normal(2, 30, dtype=F16)])
    check(op, [normal(2, 30, dtype=F64)])
    check(op, [np.array([[1000, 1001, 999], [-np.inf, 0, 0]], F32)])
    check(op, [np.zeros((0, 3), F32)], want=[np.zeros((0, 3), F32)])
    check(op, [np.zeros((2, 0), F32)], want=[np.zeros((2, 0), F32)])


def test_log_softmax_does_not_underflow() -> None:
    want = np.array([[0, -1000]], F32)
    check("LogSoftmax", [np.array([[1000, 0]], F32)], want=[want])


def test_hardmax_takes_the_first_maximum() -> None:
    x = np.array([[3, 1, 3], [0, 2, 2]], F32)
    check("Hardmax", [x], want=[np.array([[1, 0, 0], [0, 1, 0]], F32)])


def test_softmax_of_nan_is_nan_along_its_row_only() -> None:
    x = normal(3, 40)
    x[0, 0] = x[1, 20] = np.nan
    (got,) = run_node("Softmax", [x])
    assert np.isnan(got[:2]).all()
    assert np.isfinite(got[2]).all()
