"""Tree ensembles: all trees are walked at once, level by level, by gathers over arrays of nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xrt.kernels.portable.scores import POST_TRANSFORMS, binary, real, rows, transform

Array = np.ndarray[Any, Any]
Ints = Sequence[int]
Numbers = Sequence[float]

MODES = ("LEQ", "LT", "GTE", "GT", "EQ", "NEQ", "MEMBER")
"""In the order of TreeEnsemble's numbers; the older operators write BRANCH_LEQ and so on."""

AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")
"""In the order of TreeEnsemble's numbers."""

_MEMBER = MODES.index("MEMBER")


@dataclass(frozen=True, eq=False)
class Forest:
    """Trees as arrays over all their nodes; a leaf is its own child.

    Attributes:
        feature: The column that a node looks at.
        split: What it compares with.
        mode: How, as a position in `MODES`.
        nan_is_true: Whether NaN takes the true branch.
        children: [nodes, 2], the nodes after false and true.
        members: [sets, most members], what nodes of mode MEMBER look for; NaN where there is none.
        member_set: The row of `members` for each node.
        weights: [nodes, targets], what a leaf gives.
        votes: [nodes, targets], whether it gives anything.
        roots: The root of each tree.
        depth: The most steps from a root to a leaf.
    """

    feature: Array
    split: Array
    mode: Array
    nan_is_true: Array
    children: Array
    members: Array
    member_set: Array
    weights: Array
    votes: Array
    roots: Array
    depth: int


def _depth(children: Array, roots: Array) -> int:
    level, depth = np.unique(roots), 0
    while True:
        inner = level[(children[level] != level[:, None]).any(axis=1)]
        if not inner.size:
            return depth
        if depth > len(children):
            raise ValueError("the nodes of a tree form a cycle")
        level, depth = np.unique(children[inner]), depth + 1


def _member_sets(mode: Array, values: Array) -> tuple[Array, Array]:
    """The members of every set, padded with NaN, and the set of each node."""
    ends = np.flatnonzero(np.isnan(values))
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)
    wanted = int((mode == _MEMBER).sum())
    if len(ends) != wanted:
        raise ValueError(f"membership_values holds {len(ends)} sets for {wanted} nodes")
    width = int(max(ends - starts, default=0))
    members = np.full((max(wanted, 1), width), np.nan, values.dtype)
    for row, (start, end) in enumerate(zip(starts, ends, strict=False)):
        members[row, : end - start] = values[start:end]
    return members, np.maximum(np.cumsum(mode == _MEMBER) - 1, 0)


def from_interior_nodes(
    *,
    n_targets: int,
    tree_roots: Ints,
    nodes_featureids: Ints,
    nodes_splits: Array,
    nodes_modes: Array,
    nodes_truenodeids: Ints,
    nodes_falsenodeids: Ints,
    nodes_trueleafs: Ints,
    nodes_falseleafs: Ints,
    nodes_missing_value_tracks_true: Ints | None,
    membership_values: Array | None,
    leaf_targetids: Ints,
    leaf_weights: Array,
) -> Forest:
    """The forest of TreeEnsemble, which lists interior nodes and leaves apart."""
    inner, leaves = len(nodes_featureids), len(leaf_targetids)
    children = np.stack(
        [
            np.asarray(ids, np.int64) + inner * np.asarray(is_leaf, np.int64)
            for ids, is_leaf in (
                (nodes_falsenodeids, nodes_falseleafs),
                (nodes_truenodeids, nodes_trueleafs),
            )
        ],
        axis=1,
    )
    own = np.arange(inner, inner + leaves)
    mode = np.asarray(nodes_modes, np.int64)
    splits = np.asarray(nodes_splits)
    empty = np.zeros(0, splits.dtype)
    members, sets = _member_sets(mode, empty if membership_values is None else membership_values)
    missing = nodes_missing_value_tracks_true or (0,) * inner
    children = np.concatenate([children, np.stack([own, own], axis=1)])
    roots = np.asarray(tree_roots, np.int64)
    weights = np.zeros((inner + leaves, n_targets), np.asarray(leaf_weights).dtype)
    votes = np.zeros(weights.shape, bool)
    weights[own, leaf_targetids], votes[own, leaf_targetids] = leaf_weights, True
    return Forest(
        feature=_padded(nodes_featureids, leaves, np.int64),
        split=_padded(splits, leaves, splits.dtype),
        mode=_padded(mode, leaves, np.int64),
        nan_is_true=_padded(missing, leaves, bool),
        children=children,
        members=members,
        member_set=_padded(sets, leaves, np.int64),
        weights=weights,
        votes=votes,
        roots=roots,
        depth=_depth(children, roots),
    )


def _padded(values: Any, count: int, dtype: Any) -> Array:
    return np.concatenate([np.asarray(values, dtype), np.zeros(count, dtype)])


def from_labelled_nodes(
    *,
    n_targets: int,
    nodes_treeids: Ints,
    nodes_nodeids: Ints,
    nodes_featureids: Ints,
    nodes_modes: Sequence[str],
    nodes_values: Array,
    nodes_truenodeids: Ints,
    nodes_falsenodeids: Ints,
    nodes_missing_value_tracks_true: Ints | None,
    vote_treeids: Ints,
    vote_nodeids: Ints,
    vote_ids: Ints,
    vote_weights: Array,
) -> Forest:
    """The forest of TreeEnsembleRegressor and -Classifier: (tree id, node id) names a node."""
    names = list(zip(nodes_treeids, nodes_nodeids, strict=True))
    place = {name: index for index, name in enumerate(names)}
    leaf = np.array([mode == "LEAF" for mode in nodes_modes])
    children = np.array(
        [
            (index, index) if leaf[index] else (place[tree, no], place[tree, yes])
            for index, (tree, no, yes) in enumerate(
                zip(nodes_treeids, nodes_falsenodeids, nodes_truenodeids, strict=True)
            )
        ]
    ).reshape(-1, 2)
    first: dict[int, int] = {}
    for index, tree in enumerate(nodes_treeids):
        first.setdefault(tree, index)
    roots = np.array(list(first.values()), np.int64)
    known = {f"BRANCH_{mode}": number for number, mode in enumerate(MODES)}
    weights = np.zeros((len(names), n_targets), vote_weights.dtype)
    votes = np.zeros(weights.shape, bool)
    voters = [place[name] for name in zip(vote_treeids, vote_nodeids, strict=True)]
    np.add.at(weights, (voters, list(vote_ids)), vote_weights)
    votes[voters, list(vote_ids)] = True
    return Forest(
        feature=np.asarray(nodes_featureids, np.int64),
        split=nodes_values,
        mode=np.array([known.get(mode, 0) for mode in nodes_modes]),
        nan_is_true=np.asarray(nodes_missing_value_tracks_true or (0,) * len(names), bool),
        children=children,
        members=np.full((1, 0), np.nan),
        member_set=np.zeros(len(names), np.int64),
        weights=weights,
        votes=votes,
        roots=roots,
        depth=_depth(children, roots),
    )


def leaves(xp: Any, forest: Forest, x: Any) -> Any:
    """The leaf that each row of `x` [N, F] reaches in each tree: [N, trees]."""
    count, width = x.shape
    # Every index is in range: "clip" spares the checks that the default makes.
    flat = xp.reshape(x, -1)
    start = np.arange(count)[:, None] * width
    children = forest.children.reshape(-1)
    at = xp.broadcast_to(xp.asarray(forest.roots), (count, len(forest.roots)))
    for _ in range(forest.depth):
        feature = xp.take(forest.feature, at, mode="clip")
        value = xp.take(flat, start + feature, mode="clip")
        true = _is_true(xp, forest, at, value)
        true = xp.where(xp.isnan(value), xp.take(forest.nan_is_true, at, mode="clip"), true)
        at = xp.take(children, 2 * at + true, mode="clip")
    return at


def _is_true(xp: Any, forest: Forest, at: Any, value: Any) -> Any:
    """What the nodes `at` say about `value`."""
    is_leaf = (forest.children == np.arange(len(forest.children))[:, None]).all(axis=1)
    present = sorted(set(forest.mode[~is_leaf].tolist()))
    split = xp.take(forest.split.astype(value.dtype), at, mode="clip")
    comparisons = {
        "LEQ": lambda: value <= split,
        "LT": lambda: value < split,
        "GTE": lambda: value >= split,
        "GT": lambda: value > split,
        "EQ": lambda: value == split,
        "NEQ": lambda: value != split,
        "MEMBER": lambda: _is_member(xp, forest, at, value),
    }
    result = comparisons[MODES[present[0]]]()
    mode = xp.take(forest.mode, at, mode="clip") if len(present) > 1 else None
    for number in present[1:]:
        result = xp.where(mode == number, comparisons[MODES[number]](), result)
    return result


def _is_member(xp: Any, forest: Forest, at: Any, value: Any) -> Any:
    sets = xp.take(forest.members, xp.take(forest.member_set, at), axis=0).astype(value.dtype)
    return xp.any(sets == value[..., None], axis=-1)


def scores(xp: Any, forest: Forest, x: Any, aggregate: str) -> Any:
    """What the leaves that are reached give, aggregated: [N, targets]; 0 where none gives any."""
    reached = leaves(xp, forest, x)
    given = xp.take(forest.weights.astype(x.dtype), reached, axis=0, mode="clip")
    if aggregate == "SUM":
        return xp.sum(given, axis=1)
    if aggregate == "AVERAGE":
        return xp.sum(given, axis=1) / max(1, len(forest.roots))
    voted = xp.take(forest.votes, reached, axis=0)
    neutral = np.inf if aggregate == "MIN" else -np.inf
    reduce = xp.min if aggregate == "MIN" else xp.max
    best = reduce(xp.where(voted, given, neutral), axis=1)
    return xp.where(xp.any(voted, axis=1), best, 0).astype(x.dtype)


def tree_ensemble(
    xp: Any,
    x: Any,
    *,
    aggregate_function: int = 1,
    post_transform: int = 0,
    n_targets: int = 1,
    tree_roots: Ints,
    nodes_featureids: Ints,
    nodes_splits: Array,
    nodes_modes: Array,
    nodes_truenodeids: Ints,
    nodes_falsenodeids: Ints,
    nodes_trueleafs: Ints,
    nodes_falseleafs: Ints,
    nodes_hitrates: Any = None,
    nodes_missing_value_tracks_true: Ints | None = None,
    membership_values: Array | None = None,
    leaf_targetids: Ints,
    leaf_weights: Array,
) -> Any:
    """TreeEnsemble: X [N, F] -> [N, targets] of the dtype of X."""
    forest = from_interior_nodes(
        n_targets=n_targets,
        tree_roots=tree_roots,
        nodes_featureids=nodes_featureids,
        nodes_splits=nodes_splits,
        nodes_modes=nodes_modes,
        nodes_truenodeids=nodes_truenodeids,
        nodes_falsenodeids=nodes_falsenodeids,
        nodes_trueleafs=nodes_trueleafs,
        nodes_falseleafs=nodes_falseleafs,
        nodes_missing_value_tracks_true=nodes_missing_value_tracks_true,
        membership_values=membership_values,
        leaf_targetids=leaf_targetids,
        leaf_weights=leaf_weights,
    )
    result = scores(xp, forest, real(xp, x), AGGREGATES[aggregate_function])
    return transform(xp, result, POST_TRANSFORMS[post_transform]).astype(x.dtype)


def _array(numbers: Numbers | None, tensor: Any) -> Array:
    """An attribute that is a list of float32, or a tensor where it is double."""
    return np.asarray(numbers or (), np.float32) if tensor is None else np.asarray(tensor)


def tree_regressor(
    xp: Any,
    x: Any,
    *,
    aggregate_function: str = "SUM",
    post_transform: str = "NONE",
    n_targets: int = 1,
    base_values: Numbers | None = None,
    base_values_as_tensor: Any = None,
    target_treeids: Ints = (),
    target_nodeids: Ints = (),
    target_ids: Ints = (),
    target_weights: Numbers | None = None,
    target_weights_as_tensor: Any = None,
    nodes_treeids: Ints | None = None,
    nodes_nodeids: Ints | None = None,
    nodes_featureids: Ints | None = None,
    nodes_modes: Sequence[str] | None = None,
    nodes_values: Numbers | None = None,
    nodes_values_as_tensor: Any = None,
    nodes_truenodeids: Ints | None = None,
    nodes_falsenodeids: Ints | None = None,
    nodes_missing_value_tracks_true: Ints | None = None,
    nodes_hitrates: Any = None,
    nodes_hitrates_as_tensor: Any = None,
) -> Any:
    """TreeEnsembleRegressor: X [N, F] -> float32 [N, targets]; base values are added at the end."""
    forest = from_labelled_nodes(
        n_targets=n_targets,
        vote_treeids=target_treeids,
        vote_nodeids=target_nodeids,
        vote_ids=target_ids,
        vote_weights=_array(target_weights, target_weights_as_tensor),
        nodes_treeids=nodes_treeids or (),
        nodes_nodeids=nodes_nodeids or (),
        nodes_featureids=nodes_featureids or (),
        nodes_modes=nodes_modes or (),
        nodes_values=_array(nodes_values, nodes_values_as_tensor),
        nodes_truenodeids=nodes_truenodeids or (),
        nodes_falsenodeids=nodes_falsenodeids or (),
        nodes_missing_value_tracks_true=nodes_missing_value_tracks_true,
    )
    result = scores(xp, forest, rows(xp, real(xp, x)), aggregate_function)
    base = _array(base_values, base_values_as_tensor)
    if base.size:
        result = result + base.astype(result.dtype)
    return transform(xp, result, post_transform).astype(np.float32)


def tree_classifier(
    xp: Any,
    x: Any,
    labels: Array,
    *,
    post_transform: str = "NONE",
    base_values: Numbers | None = None,
    base_values_as_tensor: Any = None,
    class_treeids: Ints = (),
    class_nodeids: Ints = (),
    class_ids: Ints = (),
    class_weights: Numbers | None = None,
    class_weights_as_tensor: Any = None,
    nodes_treeids: Ints | None = None,
    nodes_nodeids: Ints | None = None,
    nodes_featureids: Ints | None = None,
    nodes_modes: Sequence[str] | None = None,
    nodes_values: Numbers | None = None,
    nodes_values_as_tensor: Any = None,
    nodes_truenodeids: Ints | None = None,
    nodes_falsenodeids: Ints | None = None,
    nodes_missing_value_tracks_true: Ints | None = None,
    nodes_hitrates: Any = None,
    nodes_hitrates_as_tensor: Any = None,
) -> tuple[Any, Any]:
    """TreeEnsembleClassifier: X [N, F] -> labels [N], scores float32 [N, classes].

    Where all leaves of a two-class ensemble vote for one class, their sum s is the score of the
    second label. Without a post transform and with positive weights only it is a probability, and
    the first label has 1 - s; else the first label has -s.
    """
    weights = _array(class_weights, class_weights_as_tensor)
    is_binary = len(labels) <= 2 and len(set(class_ids)) == 1
    forest = from_labelled_nodes(
        n_targets=1 if is_binary else len(labels),
        vote_treeids=class_treeids,
        vote_nodeids=class_nodeids,
        vote_ids=[0] * len(class_ids) if is_binary else class_ids,
        vote_weights=weights,
        nodes_treeids=nodes_treeids or (),
        nodes_nodeids=nodes_nodeids or (),
        nodes_featureids=nodes_featureids or (),
        nodes_modes=nodes_modes or (),
        nodes_values=_array(nodes_values, nodes_values_as_tensor),
        nodes_truenodeids=nodes_truenodeids or (),
        nodes_falsenodeids=nodes_falsenodeids or (),
        nodes_missing_value_tracks_true=nodes_missing_value_tracks_true,
    )
    result = scores(xp, forest, rows(xp, real(xp, x)), "SUM")
    base = _array(base_values, base_values_as_tensor).astype(result.dtype)
    if not is_binary:
        result = result + base if base.size else result
        best = xp.argmax(result, axis=1)
        return xp.take(labels, best), transform(xp, result, post_transform).astype(np.float32)
    result = result + base[-1] if base.size else result
    is_probability = post_transform == "NONE" and bool((weights >= 0).all())
    best = (result[:, 0] > (0.5 if is_probability else 0)).astype(np.int64)
    chosen = xp.take(labels, best) if len(labels) == 2 else best
    if is_probability:
        result = xp.concatenate([1 - result, result], axis=1)
    else:
        result = binary(xp, result, post_transform)
    return chosen, result.astype(np.float32)
