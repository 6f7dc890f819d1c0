"""Types of the operators of ai.onnx.ml for which ONNX has no rule, or an incomplete one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from xrt.passes.value_types import Dims, ValueType, type_of

_FLOAT = ir.TensorType(ir.DataType.FLOAT)
_INT64 = ir.TensorType(ir.DataType.INT64)
_STRING = ir.TensorType(ir.DataType.STRING)

Size = int | str | None


def _attribute(node: ir.Node, name: str, default: Any = ()) -> Any:
    found = node.attributes.get(name)
    return default if found is None else found.value


def _rows(node: ir.Node) -> Size:
    """How many rows the first input [N, F] has; a vector is one row."""
    dims = type_of(node.inputs[0])[1]
    if dims is None:
        return None
    return dims[0] if len(dims) > 1 else 1


def _float_like_input(node: ir.Node) -> list[ValueType]:
    return [(_FLOAT, type_of(node.inputs[0])[1])]


def _like_input(node: ir.Node) -> list[ValueType]:
    return [type_of(node.inputs[0])]


def _features(node: ir.Node) -> list[ValueType]:
    widths: list[Size] = list(_attribute(node, "inputdimensions"))
    if not widths:
        shapes = [type_of(value)[1] for value in node.inputs]
        widths = [None if dims is None else dims[-1] for dims in shapes]
    total = sum(w for w in widths if isinstance(w, int))
    known = all(isinstance(width, int) for width in widths)
    return [(_FLOAT, (_rows(node), total if known else None))]


def _regression(count: Callable[[ir.Node], int]) -> Callable[[ir.Node], list[ValueType]]:
    return lambda node: [(_FLOAT, (_rows(node), count(node)))]


def _classification(node: ir.Node, scores: Size) -> list[ValueType]:
    labels = _STRING if _attribute(node, "classlabels_strings") else _INT64
    sizes: tuple[ValueType, ValueType] = (labels, (_rows(node),)), (_FLOAT, (_rows(node), scores))
    return list(sizes[: len(node.outputs)])


def _labels(node: ir.Node) -> int:
    return len(_attribute(node, "classlabels_ints") or _attribute(node, "classlabels_strings"))


def _linear_classifier(node: ir.Node) -> list[ValueType]:
    dims: Dims | None = type_of(node.inputs[0])[1]
    width = dims[-1] if dims else None
    if not isinstance(width, int) or not width:
        return _classification(node, None)
    scores = len(_attribute(node, "coefficients")) // width
    return _classification(node, 2 if scores == 1 and _labels(node) == 2 else scores)


def _svm_classifier(node: ir.Node) -> list[ValueType]:
    classes = len(_attribute(node, "vectors_per_class"))
    if not sum(_attribute(node, "vectors_per_class")):
        return _classification(node, max(1, _labels(node)))
    if _attribute(node, "prob_a"):
        return _classification(node, classes)
    pairs = classes * (classes - 1) // 2
    both = pairs == 1 and _attribute(node, "post_transform", "NONE") != "PROBIT"
    return _classification(node, 2 if both else pairs)


RULES: dict[str, Callable[[ir.Node], list[ValueType]]] = {
    "ai.onnx.ml::FeatureVectorizer": _features,
    "ai.onnx.ml::Imputer": _like_input,
    "ai.onnx.ml::LinearClassifier": _linear_classifier,
    "ai.onnx.ml::LinearRegressor": _regression(lambda node: int(_attribute(node, "targets", 1))),
    "ai.onnx.ml::Normalizer": _float_like_input,
    "ai.onnx.ml::SVMClassifier": _svm_classifier,
    "ai.onnx.ml::SVMRegressor": _regression(lambda node: 1),
    "ai.onnx.ml::Scaler": _float_like_input,
    "ai.onnx.ml::TreeEnsembleRegressor": _regression(
        lambda node: int(_attribute(node, "n_targets", 1))
    ),
    "xrt::StopGradient": _like_input,  # of training graphs, see importers.torch_training
}
"""Operator -> the types of its outputs."""
