"""ai.onnx.ml on tensors of numbers: features, linear models, support vectors, trees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx_ir as ir

from xrt.engines.xla.lowering import Context, attributes, lowering
from xrt.graph import Support
from xrt.kernels.portable import features, linear, trees
from xrt.kernels.portable.numeric import NUMERIC

_DOMAIN = "ai.onnx.ml"


def _no_strings(node: ir.Node) -> Support:
    for name, attribute in node.attributes.items():
        if name in ("classlabels_strings", "cats_strings") and attribute.value:
            return Support.no(f"{node.op_type} with strings in {name!r}: XLA has no strings")
    return Support.yes()


_NUMERIC: dict[str, Callable[..., Any]] = {
    "ArrayFeatureExtractor": features.array_feature_extractor,
    **NUMERIC,
}


def _register_table() -> None:
    for op_type, function in _NUMERIC.items():
        lowering(op_type, domain=_DOMAIN)(
            lambda ctx, *inputs, _f=function, **keywords: _f(jnp, *inputs, **keywords)
        )


_register_table()


def _repeat(count: int, step: Callable[[Any], Any], state: Any) -> Any:
    return jax.lax.fori_loop(0, count, lambda _, each: step(each), state)


def _register_classifiers() -> None:
    classifiers: tuple[tuple[str, Callable[..., Any], str, tuple[Any, ...]], ...] = (
        ("LinearClassifier", linear.linear_classifier, "classlabels_ints", ()),
        ("SVMClassifier", linear.svm_classifier, "classlabels_ints", (_repeat,)),
        ("TreeEnsembleClassifier", trees.tree_classifier, "classlabels_int64s", ()),
    )
    for op_type, function, ints, before in classifiers:

        def classify(
            ctx: Context,
            x: Any,
            *,
            _f: Any = function,
            _ints: str = ints,
            _before: tuple[Any, ...] = before,
            **given: Any,
        ) -> tuple[Any, Any]:
            numbers = given.pop(_ints, None)
            labels = np.asarray(numbers, np.int64) if numbers else None
            chosen, scores = _f(jnp, *_before, x, labels, **given)
            return jnp.asarray(chosen), scores

        lowering(op_type, domain=_DOMAIN, supports=_no_strings)(classify)


_register_classifiers()


def _supports_labels(node: ir.Node) -> Support:
    keys, values, _ = features.label_table(**attributes(node))
    if "O" in (keys.dtype.kind, values.dtype.kind):
        return Support.no("LabelEncoder from or to strings: XLA has no strings")
    return Support.yes()


@lowering("LabelEncoder", domain=_DOMAIN, supports=_supports_labels)
def label_encoder(ctx: Context, x: Any, **given: Any) -> Any:
    """The number that each element is mapped to, or the default."""
    return features.lookup(jnp, x, *features.label_table(**given))


def _supports_categories(node: ir.Node) -> Support:
    if not node.attributes.get_int("zeros", 1):
        return Support.no("OneHotEncoder with zeros=0 fails on other categories, which XLA cannot")
    return _no_strings(node)


@lowering("OneHotEncoder", domain=_DOMAIN, supports=_supports_categories)
def one_hot_encoder(ctx: Context, x: Any, *, cats_int64s: Any, zeros: int = 1) -> Any:
    """1 at the category of each element."""
    return features.one_hot(jnp, x, cats_int64s=cats_int64s)
