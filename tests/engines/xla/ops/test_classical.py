"""ai.onnx.ml on the host and in XLA: features, linear models, support vector machines."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest

from tests.engines.xla.ops.classical_support import answer, check

F32, F64, I64 = np.float32, np.float64, np.int64
NAN = float("nan")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(7, 4)).astype(F32)


@pytest.mark.parametrize("dtype", [F32, F64, np.int32, I64])
def test_scaler_gives_float32_for_every_input(dtype: Any) -> None:
    x = np.array([[1, 2, 3], [-4, 5, 600]], dtype)
    want = (x.astype(F64) - [1, 0.5, 0]) * [2, 4, 0.25]
    check("Scaler", [x], want.astype(F32), offset=[1.0, 0.5, 0.0], scale=[2.0, 4.0, 0.25])
    check("Scaler", [x], ((x.astype(F64) - 3) * 2).astype(F32), offset=[3.0], scale=[2.0])


def test_imputer_replaces_nan_or_a_number() -> None:
    x = np.array([[1, NAN, 3], [NAN, 5, -1]], F32)
    want = np.array([[1, 20, 3], [10, 5, -1]], F32)
    values = [10.0, 20.0, 30.0]
    check("Imputer", [x], want, imputed_value_floats=values, replaced_value_float=NAN)
    whole = np.array([[1, -1, 3], [-1, 5, 2**40]], I64)
    want = np.array([[1, 7, 3], [7, 5, 2**40]], I64)
    check("Imputer", [whole], want, imputed_value_int64s=[7], replaced_value_int64=-1)


def test_normalizer_leaves_rows_whose_divisor_is_zero() -> None:
    x = np.array([[3, -4, 0], [0, 0, 0], [1e30, 1e30, 1e30], [-2, -8, -4]], F32)
    top = np.array([[1, -4 / 3, 0], [0, 0, 0], [1, 1, 1], [1, 4, 2]], F32)
    check("Normalizer", [x], top, norm="MAX")
    sums = np.array([[3 / 7, -4 / 7, 0], [0, 0, 0], [1 / 3] * 3, [-1 / 7, -4 / 7, -2 / 7]], F32)
    check("Normalizer", [x], sums, norm="L1")
    root = np.array([[0.6, -0.8, 0], [0] * 3, [3**-0.5] * 3, x[3] / math.sqrt(84)], F32)
    check("Normalizer", [x], root, norm="L2")
    check("Normalizer", [np.array([3, 4], I64)], np.array([0.6, 0.8], F32), norm="L2")


@pytest.mark.parametrize("dtype", [F32, I64])
def test_binarizer_compares_with_the_threshold(dtype: Any) -> None:
    x = np.array([[0, 1, 2], [-1, 3, 1]], dtype)
    check("Binarizer", [x], np.array([[0, 0, 1], [0, 1, 0]], dtype), threshold=1.5)


def test_array_feature_extractor_takes_from_the_last_axis() -> None:
    x = np.arange(24, dtype=I64).reshape(2, 3, 4)
    check("ArrayFeatureExtractor", [x, np.array([[3, 0]])], x[..., [3, 0]])
    check("ArrayFeatureExtractor", [x[0, 0], np.array([2, 1])], np.array([[2, 1]]))


def test_feature_vectorizer_cuts_and_pads() -> None:
    one, two = np.array([[1, 2, 3], [4, 5, 6]], I64), np.array([[7], [8]], I64)
    want = np.array([[1, 2, 7, 0], [4, 5, 8, 0]], F32)
    check("FeatureVectorizer", [one, two], want, inputdimensions=[2, 2])
    row = np.array([1, 2], F32)
    check("FeatureVectorizer", [row], np.array([[1, 2]], F32), inputdimensions=[2])


@pytest.mark.parametrize("dtype", [F32, I64])
def test_one_hot_encoder_knows_integer_categories(dtype: Any) -> None:
    x = np.array([[2, 9], [-1, 5]], dtype)
    want = np.array([[[0, 1, 0], [0, 0, 0]], [[0, 0, 1], [1, 0, 0]]], F32)
    check("OneHotEncoder", [x], want, cats_int64s=[5, 2, -1])


def test_label_encoder_maps_numbers_of_all_kinds() -> None:
    x = np.array([[1, 2.5, NAN], [7, -0.0, 2.5]], F32)
    keys = [1.0, 2.5, NAN, 0.0, 1.0]  # the last of equal keys counts
    want = np.array([[50, 20, 30], [-7, 40, 20]])
    values = [10, 20, 30, 40, 50]
    check("LabelEncoder", [x], want, keys_floats=keys, values_int64s=values, default_int64=-7)
    whole = np.array([3, 1, 2, 2**40])
    decimals = np.array([0.5, 1.5, -1, 9], F32)
    check(
        "LabelEncoder", [whole], decimals, keys_int64s=[1, 2, 3], values_floats=[1.5, -1.0, 0.5],
        default_float=9.0,
    )  # fmt: skip


def test_label_encoder_takes_tensors() -> None:
    def tensor(*numbers: float, dtype: Any) -> onnx.TensorProto:
        return onnx.numpy_helper.from_array(np.array(numbers, dtype))

    x = np.array([1, 5, -3, 0], np.int16)
    check(
        "LabelEncoder", [x], np.array([0.25, 8, 1 / 3, 8], F64),
        keys_tensor=tensor(1, -3, dtype=np.int16), values_tensor=tensor(0.25, 1 / 3, dtype=F64),
        default_tensor=tensor(8, dtype=F64),
    )  # fmt: skip
    check(
        "LabelEncoder", [x.astype(F64)], np.array([4, -1, -1, -1], np.int32),
        keys_tensor=tensor(1, dtype=F64), values_tensor=tensor(4, dtype=np.int32),
    )  # fmt: skip


def softmax(scores: Any) -> Any:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def logistic(scores: Any) -> Any:
    return 1 / (1 + np.exp(-scores))


@pytest.mark.parametrize("dtype", [F32, F64, I64])
def test_linear_regressor(dtype: Any) -> None:
    x = (X * 3).astype(dtype)
    w = RNG.normal(size=(2, 4)).astype(F32)
    want = x.astype(F64) @ w.T.astype(F64) + [0.5, -1]
    given: dict[str, Any] = {
        "coefficients": w.reshape(-1).tolist(),
        "intercepts": [0.5, -1.0],
        "targets": 2,
    }
    check("LinearRegressor", [x], want.astype(F32), **given)


def test_post_transforms_of_a_regressor() -> None:
    x = np.array([[0.25, 0.0, -3.0], [0.75, 2.0, 90.0]], F32)
    given: dict[str, Any] = {"coefficients": np.eye(3).reshape(-1).tolist(), "targets": 3}
    wide = x.astype(F64)
    zero = np.exp(wide - wide.max(axis=1, keepdims=True))
    zero[x == 0] = 0
    zero /= zero.sum(axis=1, keepdims=True)
    for name, want in (
        ("SOFTMAX", softmax(wide)),
        ("LOGISTIC", logistic(wide)),
        ("SOFTMAX_ZERO", zero),
    ):
        check("LinearRegressor", [x], want.astype(F32), post_transform=name, **given)
    p = np.array([[0.1, 0.5, 0.975]], F32)
    quantiles = np.array([[-1.28155, 0, 1.95996]], F32)  # Winitzki's formula is right to 0.002
    check("LinearRegressor", [p], quantiles, post_transform="PROBIT", slack=100, **given)


@pytest.mark.parametrize("post", ["NONE", "SOFTMAX", "LOGISTIC"])
def test_linear_classifier(post: str) -> None:
    w = RNG.normal(size=(3, 4)).astype(F32)
    raw = X.astype(F64) @ w.T.astype(F64) + [0.5, -0.5, 0]
    want = {"NONE": raw, "SOFTMAX": softmax(raw), "LOGISTIC": logistic(raw)}[post]
    labels = np.array([5, -7, 9])
    check(
        "LinearClassifier", [X], labels[raw.argmax(axis=1)], want.astype(F32),
        coefficients=w.reshape(-1).tolist(), intercepts=[0.5, -0.5, 0.0],
        classlabels_ints=labels.tolist(), post_transform=post,
    )  # fmt: skip


def test_one_linear_score_decides_between_two_labels() -> None:
    raw = X.astype(F64) @ np.array([[1.0], [-1], [2], [0]]) + 0.25
    both = np.concatenate([-raw, raw], axis=1)
    given: dict[str, Any] = {"coefficients": [1.0, -1.0, 2.0, 0.0], "intercepts": [0.25]}
    chosen = np.array([3, 8])[(raw[:, 0] > 0).astype(int)]
    check("LinearClassifier", [X], chosen, both.astype(F32), classlabels_ints=[3, 8], **given)
    one = np.where(raw[:, 0] >= 0, 6, 0)
    check("LinearClassifier", [X], one, raw.astype(F32), classlabels_ints=[6], **given)


VECTORS = RNG.normal(size=(7, 4)).astype(F32)
KERNELS: dict[str, tuple[list[float], Any]] = {
    "LINEAR": ([0.0, 0.0, 0.0], lambda a, b: a @ b),
    "POLY": ([0.5, 0.25, 3.0], lambda a, b: (0.5 * (a @ b) + 0.25) ** 3),
    "RBF": ([0.5, 0.0, 0.0], lambda a, b: np.exp(-0.5 * ((a - b) ** 2).sum())),
    "SIGMOID": ([0.5, 0.25, 0.0], lambda a, b: np.tanh(0.5 * (a @ b) + 0.25)),
}


def kernels(kind: str) -> Any:
    function = KERNELS[kind][1]
    return np.array([[function(a, b) for b in VECTORS.astype(F64)] for a in X.astype(F64)])


@pytest.mark.parametrize("kind", sorted(KERNELS))
def test_svm_regressor(kind: str) -> None:
    coefficients = RNG.normal(size=7).astype(F32)
    want = kernels(kind) @ coefficients.astype(F64) + 0.5
    given: dict[str, Any] = {
        "coefficients": coefficients.tolist(),
        "support_vectors": VECTORS.reshape(-1).tolist(),
        "n_supports": 7,
        "rho": [0.5],
        "kernel_type": kind,
        "kernel_params": KERNELS[kind][0],
    }
    check("SVMRegressor", [X], want[:, None].astype(F32), **given)
    inside = np.where(want > 0, 1, -1)[:, None].astype(F32)
    check("SVMRegressor", [X], inside, one_class=1, **given)


def svc(kind: str, per_class: list[int], coefficients: Any, rho: list[float]) -> Any:
    """libsvm's decision values by pair of classes, one row and one pair at a time."""
    matrix, ends = kernels(kind), np.cumsum(per_class)
    parts = [range(end - count, end) for end, count in zip(ends, per_class, strict=True)]
    scores, votes = [], []
    for row in matrix:
        values: list[Any] = []
        wins = [0] * len(per_class)
        for i in range(len(per_class)):
            for j in range(i + 1, len(per_class)):
                value = rho[len(values)]
                value += sum(coefficients[j - 1, v] * row[v] for v in parts[i])
                value += sum(coefficients[i, v] * row[v] for v in parts[j])
                values.append(value)
                wins[i if value > 0 else j] += 1
        scores.append(values)
        votes.append(wins)
    return np.array(scores), np.array(votes)


@pytest.mark.parametrize("kind", ["RBF", "LINEAR"])
def test_svm_classifier_votes_by_pairs(kind: str) -> None:
    coefficients = RNG.normal(size=(2, 7)).astype(F32)
    rho, per_class = [0.5, -0.25, 0.125], [2, 3, 2]
    scores, votes = svc(kind, per_class, coefficients.astype(F64), rho)
    labels = np.array([4, 6, -8])
    check(
        "SVMClassifier", [X], labels[votes.argmax(axis=1)], scores.astype(F32),
        coefficients=coefficients.reshape(-1).tolist(), rho=rho, kernel_type=kind,
        kernel_params=KERNELS[kind][0], support_vectors=VECTORS.reshape(-1).tolist(),
        vectors_per_class=per_class, classlabels_ints=labels.tolist(),
    )  # fmt: skip


def test_svm_probabilities_solve_the_coupling_problem() -> None:
    """The minimum of sum over i < j of (r_ji p_i - r_ij p_j)^2 for p on the simplex."""
    coefficients = RNG.normal(size=(2, 7)).astype(F32)
    rho, per_class = [0.5, -0.25, 0.125], [2, 3, 2]
    a, b = [-1.0, -1.5, -0.5], [0.25, 0.0, -0.25]
    scores, votes = svc("RBF", per_class, coefficients.astype(F64), rho)
    pair = logistic(-(scores * a + b))
    want = []
    for row in pair:
        r = np.zeros((3, 3))
        for value, (i, j) in zip(row, ((0, 1), (0, 2), (1, 2)), strict=True):
            r[i, j], r[j, i] = value, 1 - value
        q = -r.T * r
        np.fill_diagonal(q, (r**2).sum(axis=0))
        system = np.block([[q, np.ones((3, 1))], [np.ones((1, 3)), np.zeros((1, 1))]])
        want.append(np.linalg.solve(system, [0, 0, 0, 1])[:3])
    labels = np.array([4, 6, -8])
    check(  # libsvm stops within 0.005 / 3 of the solution
        "SVMClassifier", [X], labels[votes.argmax(axis=1)], np.array(want, F32), slack=50,
        coefficients=coefficients.reshape(-1).tolist(), rho=rho, kernel_type="RBF",
        kernel_params=KERNELS["RBF"][0], support_vectors=VECTORS.reshape(-1).tolist(),
        vectors_per_class=per_class, classlabels_ints=labels.tolist(), prob_a=a, prob_b=b,
    )  # fmt: skip


def test_svm_classifier_of_two_classes_and_without_vectors() -> None:
    coefficients = RNG.normal(size=(1, 7)).astype(F32)
    scores, votes = svc("LINEAR", [3, 4], coefficients.astype(F64), [0.25])
    check(
        "SVMClassifier", [X], np.array([4, 6])[votes.argmax(axis=1)],
        logistic(np.concatenate([-scores, scores], axis=1)).astype(F32),
        coefficients=coefficients.reshape(-1).tolist(), rho=[0.25], post_transform="LOGISTIC",
        support_vectors=VECTORS.reshape(-1).tolist(), vectors_per_class=[3, 4],
        classlabels_ints=[4, 6],
    )  # fmt: skip
    w = RNG.normal(size=(3, 4)).astype(F32)
    raw = X.astype(F64) @ w.T + 0.5
    check(
        "SVMClassifier", [X], np.array([1, 2, 3])[raw.argmax(axis=1)], raw.astype(F32),
        coefficients=w.reshape(-1).tolist(), rho=[0.5, 0.0], classlabels_ints=[1, 2, 3],
    )  # fmt: skip


def test_strings_are_refused_with_a_reason() -> None:
    x, labels = X, np.zeros(7, I64)
    names = ["a", "b", "c"]
    given: dict[str, Any] = {"coefficients": [0.0] * 12}
    said = answer("LinearClassifier", [x], labels, X[:, :3], classlabels_strings=names, **given)
    assert "strings" in said.reason
    words = np.array(["a", "b"], object)
    said = answer("LabelEncoder", [words], labels, keys_strings=names, values_int64s=[1, 2, 3])
    assert "STRING" in said.reason
    said = answer("OneHotEncoder", [labels], np.zeros((7, 1), F32), cats_int64s=[1], zeros=0)
    assert "zeros=0" in said.reason
