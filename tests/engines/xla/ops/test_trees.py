"""Tree ensembles of ai.onnx.ml on the host and in XLA, against a walk from node to node."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from tests.engines.xla.ops.classical_support import check, on_host

F32, F64, I64 = np.float32, np.float64, np.int64
NAN = float("nan")
COMPARE: dict[str, Any] = {
    "BRANCH_LEQ": lambda x, t: x <= t,
    "BRANCH_LT": lambda x, t: x < t,
    "BRANCH_GTE": lambda x, t: x >= t,
    "BRANCH_GT": lambda x, t: x > t,
    "BRANCH_EQ": lambda x, t: x == t,
    "BRANCH_NEQ": lambda x, t: x != t,
}
MODES = list(COMPARE)


def forest(rng: Any, trees: int, features: int, modes: list[str], depth: int = 4) -> Any:
    """Random trees as the attributes of the older operators, and their leaves."""
    names = ("treeids", "nodeids", "featureids", "modes", "values", "truenodeids", "falsenodeids")
    nodes: dict[str, list[Any]] = {name: [] for name in (*names, "missing_value_tracks_true")}
    leaves: list[tuple[int, int]] = []

    def grow(tree: int, level: int, number: list[int]) -> int:
        own, place = number[0], len(nodes["treeids"])
        number[0] += 1
        leaf = level == depth or (level > 0 and rng.random() < 0.2)
        row = (tree, own, int(rng.integers(features)), "LEAF", 0.0, 0, 0, int(rng.integers(2)))
        for name, value in zip(nodes, row, strict=True):
            nodes[name].append(value)
        if leaf:
            leaves.append((tree, own))
            return own
        nodes["modes"][place] = str(rng.choice(modes))
        nodes["values"][place] = float(rng.integers(-4, 5)) / 2
        nodes["truenodeids"][place] = grow(tree, level + 1, number)
        nodes["falsenodeids"][place] = grow(tree, level + 1, number)
        return own

    for tree in range(trees):
        grow(tree, 0, [0])
    return {f"nodes_{name}": values for name, values in nodes.items()}, leaves


def walk(nodes: dict[str, list[Any]], row: Any) -> list[tuple[int, int]]:
    """The leaf that `row` reaches in each tree."""
    place = {
        name: i
        for i, name in enumerate(zip(nodes["nodes_treeids"], nodes["nodes_nodeids"], strict=True))
    }
    reached = []
    for tree in sorted(set(nodes["nodes_treeids"])):
        at = place[tree, 0]
        while nodes["nodes_modes"][at] != "LEAF":
            x = row[nodes["nodes_featureids"][at]]
            true = COMPARE[nodes["nodes_modes"][at]](x, nodes["nodes_values"][at])
            if x != x:
                true = nodes["nodes_missing_value_tracks_true"][at]
            at = place[tree, nodes["nodes_truenodeids" if true else "nodes_falsenodeids"][at]]
        reached.append((tree, nodes["nodes_nodeids"][at]))
    return reached


def data(rng: Any, dtype: Any, rows: int = 40) -> Any:
    x = rng.integers(-4, 5, (rows, 5)) / 2
    if np.dtype(dtype).kind == "f":
        x[rng.random(x.shape) < 0.1] = NAN
    return x.astype(dtype)


@pytest.mark.parametrize("dtype", [F32, F64, I64])
@pytest.mark.parametrize("aggregate", ["SUM", "AVERAGE", "MIN", "MAX"])
def test_regressor(aggregate: str, dtype: Any) -> None:
    rng = np.random.default_rng(1)
    nodes, leaves = forest(rng, 5, 5, MODES)
    x = data(rng, dtype)
    weights = rng.normal(size=(len(leaves), 2)).astype(F32)
    given = dict(zip(leaves, weights, strict=True))
    function: Any = {"SUM": np.sum, "AVERAGE": np.mean, "MIN": np.min, "MAX": np.max}[aggregate]
    want = [function([given[leaf] for leaf in walk(nodes, row)], axis=0) for row in x]
    wanted = np.add(want, [0.5, -1]).astype(F32)
    check(
        "TreeEnsembleRegressor", [x], wanted, n_targets=2,
        aggregate_function=aggregate, base_values=[0.5, -1.0],
        target_treeids=[tree for tree, _ in leaves for _ in range(2)],
        target_nodeids=[node for _, node in leaves for _ in range(2)],
        target_ids=[0, 1] * len(leaves), target_weights=weights.reshape(-1).tolist(), **nodes,
    )  # fmt: skip


def test_thresholds_of_double_stay_double() -> None:
    split = 0.1
    x = np.array([[0.1], [np.nextafter(0.1, 1)], [float(F32(0.1))]])
    check(
        "TreeEnsembleRegressor", [x], np.array([[1], [2], [2]], F32), n_targets=1,
        nodes_treeids=[0, 0, 0], nodes_nodeids=[0, 1, 2], nodes_featureids=[0, 0, 0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"], nodes_truenodeids=[1, 0, 0],
        nodes_falsenodeids=[2, 0, 0],
        nodes_values_as_tensor=onnx.numpy_helper.from_array(np.array([split, 0, 0])),
        target_treeids=[0, 0], target_nodeids=[1, 2], target_ids=[0, 0],
        target_weights_as_tensor=onnx.numpy_helper.from_array(np.array([1.0, 2.0])),
    )  # fmt: skip


def softmax(scores: Any) -> Any:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("post", ["NONE", "SOFTMAX"])
def test_classifier_of_three_classes(post: str) -> None:
    rng = np.random.default_rng(2)
    nodes, leaves = forest(rng, 6, 5, ["BRANCH_LEQ"])
    x = data(rng, F32)
    weights = rng.normal(size=(len(leaves), 3)).astype(F32)
    given = dict(zip(leaves, weights.astype(F64), strict=True))
    raw = np.array([sum(given[leaf] for leaf in walk(nodes, row)) for row in x])
    raw += [0.5, 0, -0.5]
    scores = raw if post == "NONE" else softmax(raw)
    labels = np.array([7, 0, -3])
    check(
        "TreeEnsembleClassifier", [x], labels[raw.argmax(axis=1)], scores.astype(F32),
        class_treeids=[tree for tree, _ in leaves for _ in range(3)],
        class_nodeids=[node for _, node in leaves for _ in range(3)],
        class_ids=[0, 1, 2] * len(leaves), class_weights=weights.reshape(-1).tolist(),
        classlabels_int64s=labels.tolist(), base_values=[0.5, 0.0, -0.5], post_transform=post,
        **nodes,
    )  # fmt: skip


@pytest.mark.parametrize(("post", "positive"), [("LOGISTIC", False), ("NONE", True)])
def test_classifier_of_two_classes_with_one_score(post: str, positive: bool) -> None:
    rng = np.random.default_rng(3)
    nodes, leaves = forest(rng, 4, 5, ["BRANCH_LT"])
    x = data(rng, F32)
    weights = (rng.random(len(leaves)) / 4 if positive else rng.normal(size=len(leaves))).astype(
        F32
    )
    given = dict(zip(leaves, weights.astype(F64), strict=True))
    raw = np.array([sum(given[leaf] for leaf in walk(nodes, row)) for row in x])[:, None]
    if positive:
        scores, second = np.concatenate([1 - raw, raw], axis=1), raw[:, 0] > 0.5
    else:
        scores = 1 / (1 + np.exp(np.concatenate([raw, -raw], axis=1)))
        second = raw[:, 0] > 0
    check(
        "TreeEnsembleClassifier", [x], np.where(second, 4, 2), scores.astype(F32),
        class_treeids=[tree for tree, _ in leaves], class_nodeids=[node for _, node in leaves],
        class_ids=[0] * len(leaves), class_weights=weights.tolist(), classlabels_int64s=[2, 4],
        post_transform=post, **nodes,
    )  # fmt: skip


def tensor(values: Any, dtype: Any) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.asarray(values, dtype))


def ensemble(dtype: Any, **changed: Any) -> dict[str, Any]:
    """Two trees of TreeEnsemble: x0 in {0, 2, 5} ? 1 : (x1 < 3 ? 2 : 3), and x1 > 7 ? 10 : 20."""
    return {
        "n_targets": 2,
        "tree_roots": [0, 2],
        "nodes_featureids": [0, 1, 1],
        "nodes_modes": tensor([6, 1, 3], np.uint8),
        "nodes_splits": tensor([0, 3, 7], dtype),
        "nodes_truenodeids": [0, 1, 3],
        "nodes_falsenodeids": [1, 2, 4],
        "nodes_trueleafs": [1, 1, 1],
        "nodes_falseleafs": [0, 1, 1],
        "nodes_missing_value_tracks_true": [1, 0, 1],
        "membership_values": tensor([0, 2, 5, NAN], dtype),
        "leaf_targetids": [0, 0, 0, 1, 1],
        "leaf_weights": tensor([1, 2, 3, 10, 20], dtype),
        **changed,
    }


@pytest.mark.parametrize("dtype", [F32, F64, np.float16])
def test_ensemble_with_sets_and_missing_values(dtype: Any) -> None:
    x = np.array([[0, 9], [2, 1], [3, 1], [3, 3], [NAN, 7], [1, NAN]], dtype)
    want = np.array([[1, 10], [1, 20], [2, 20], [3, 20], [1, 20], [3, 10]], dtype)
    check("TreeEnsemble", [x], want, **ensemble(dtype))
    for number, share in ((0, 0.5), (2, 1), (3, 1)):  # AVERAGE, MIN, MAX: one leaf a target
        got = on_host("TreeEnsemble", [x], aggregate_function=number, **ensemble(dtype))
        np.testing.assert_array_equal(got[0], want * np.asarray(share, dtype))
    powers = 1 / (1 + np.exp(-want.astype(F64)))
    check("TreeEnsemble", [x], powers.astype(dtype), post_transform=2, **ensemble(dtype))


def test_a_tree_that_is_one_leaf() -> None:
    single = {
        "n_targets": 1, "tree_roots": [0], "nodes_featureids": [0], "nodes_truenodeids": [0],
        "nodes_modes": tensor([0], np.uint8), "nodes_splits": tensor([0], F32),
        "nodes_falsenodeids": [0], "nodes_trueleafs": [1], "nodes_falseleafs": [1],
        "leaf_targetids": [0], "leaf_weights": tensor([4], F32),
    }  # fmt: skip
    x = np.array([[1], [-1], [NAN]], F32)
    check("TreeEnsemble", [x], np.full((3, 1), 4, F32), **single)


def test_nodes_that_form_a_cycle_fail() -> None:
    broken = ensemble(F32, nodes_falsenodeids=[0, 2, 4])
    with pytest.raises(Exception, match="cycle"):
        on_host("TreeEnsemble", [np.zeros((1, 2), F32)], **broken)
