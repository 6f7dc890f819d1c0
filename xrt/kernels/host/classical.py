"""ai.onnx.ml: features, linear models, support vector machines and trees; strings and maps too.

What computes with numbers alone is in `xrt.kernels.portable`, which XLA uses as well.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from xrt.kernels.host.common import Array
from xrt.kernels.host.registry import kernel
from xrt.kernels.portable import features, linear, trees
from xrt.kernels.portable.numeric import NUMERIC

_DOMAIN = "ai.onnx.ml"


def _register_table() -> None:
    for op_type, function in NUMERIC.items():
        kernel(f"{_DOMAIN}::{op_type}")(functools.partial(function, np))


_register_table()


def repeat(count: int, step: Callable[[Any], Any], state: Any) -> Any:
    """`state` after `count` steps."""
    for _ in range(count):
        state = step(state)
    return state


def _classifier(function: Callable[..., tuple[Any, Any]], ints: str, *before: Any) -> Any:
    """A kernel of a classifier, whose labels are its attribute `ints`, or strings."""

    def classify(x: Array, **attributes: Any) -> tuple[Any, Any]:
        numbers, names = attributes.pop(ints, None), attributes.pop("classlabels_strings", None)
        labels = None
        if numbers:
            labels = np.asarray(numbers, np.int64)
        elif names:
            labels = np.array(names, object)
        return function(np, *before, x, labels, **attributes)

    parameters = [
        each
        for each in inspect.signature(function).parameters.values()
        if each.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
        for name in (ints, "classlabels_strings")
    ]
    # The registry reads which attributes there are.
    classify.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return classify


kernel(f"{_DOMAIN}::LinearClassifier")(_classifier(linear.linear_classifier, "classlabels_ints"))
kernel(f"{_DOMAIN}::SVMClassifier")(_classifier(linear.svm_classifier, "classlabels_ints", repeat))
kernel(f"{_DOMAIN}::TreeEnsembleClassifier")(
    _classifier(trees.tree_classifier, "classlabels_int64s")
)


@kernel(f"{_DOMAIN}::ArrayFeatureExtractor")
def array_feature_extractor(x: Array, indices: Array) -> Array:
    """The elements at `indices` of the last axis, of any dtype; a vector gives one row."""
    result: Array = features.array_feature_extractor(np, x, indices)
    return result


@kernel(f"{_DOMAIN}::OneHotEncoder")
def one_hot_encoder(
    x: Array,
    *,
    cats_int64s: Sequence[int] | None = None,
    cats_strings: Sequence[str] | None = None,
    zeros: int = 1,
) -> Array:
    """float32 [*, categories]: 1 at the category of each element; without `zeros` it has one."""
    if cats_strings:
        found = features.texts(x)[..., None] == np.array(cats_strings, object)
        result: Array = np.asarray(found, np.float32)
    else:
        result = features.one_hot(np, x, cats_int64s=cats_int64s or ())
    if not zeros and not result.any(axis=-1).all():
        unknown = x[~result.any(axis=-1)].reshape(-1)[0]
        raise ValueError(f"{unknown!r} is none of the categories, and zeros=0 demands that it is")
    return result


def _label_encoder(x: Array, **attributes: Any) -> Array:
    """The value that each element of `x` is mapped to, or the default."""
    keys, values, default = features.label_table(**attributes)
    if "O" not in (keys.dtype.kind, values.dtype.kind):
        result: Array = features.lookup(np, x, keys, values, default)
        return result
    table = dict(zip(map(_key, keys.tolist()), values.tolist(), strict=True))
    mapped = [table.get(_key(each), default) for each in features.texts(x).reshape(-1).tolist()]
    return np.array(mapped, values.dtype).reshape(x.shape)


def _key(value: Any) -> Any:
    """`value` as a key of a table, in which NaN equals NaN."""
    return "nan" if isinstance(value, float) and value != value else (value,)


_label_encoder.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    list(inspect.signature(features.label_table).parameters.values())
)
kernel(f"{_DOMAIN}::LabelEncoder")(_label_encoder)


@kernel(f"{_DOMAIN}::CategoryMapper")
def category_mapper(
    x: Array,
    *,
    cats_int64s: Sequence[int] | None = None,
    cats_strings: Sequence[str] | None = None,
    default_int64: int = -1,
    default_string: str = "_Unused",
) -> Array:
    """Strings as integers, or integers as strings."""
    numbers, names = cats_int64s or (), cats_strings or ()
    if x.dtype.kind in "iu":
        named = dict(zip(numbers, names, strict=True))
        flat = [named.get(each, default_string) for each in x.reshape(-1).tolist()]
        return np.array(flat, object).reshape(x.shape)
    numbered = dict(zip(names, numbers, strict=True))
    codes = [numbered.get(each, default_int64) for each in features.texts(x).reshape(-1)]
    return np.array(codes, np.int64).reshape(x.shape)


@kernel(f"{_DOMAIN}::DictVectorizer")
def dict_vectorizer(
    x: Mapping[Any, Any],
    *,
    int64_vocabulary: Sequence[int] | None = None,
    string_vocabulary: Sequence[str] | None = None,
) -> Array:
    """The values of a map, in the order of the vocabulary; zero for a key that it lacks."""
    keys = list(string_vocabulary or int64_vocabulary or ())
    if unknown := [key for key in x if key not in keys]:
        raise ValueError(f"The key {unknown[0]!r} is not in the vocabulary")
    given = np.array(list(x.values()))
    if given.dtype.kind in "OUS":
        return np.array([x.get(key, "") for key in keys], object)
    return np.array([x.get(key, 0) for key in keys], given.dtype)


@kernel(f"{_DOMAIN}::ZipMap")
def zip_map(
    x: Array,
    *,
    classlabels_int64s: Sequence[int] | None = None,
    classlabels_strings: Sequence[str] | None = None,
) -> list[dict[Any, float]]:
    """For each row of `x` [N, C] (a vector is one row) a map from its C labels to its numbers."""
    labels = list(classlabels_strings or classlabels_int64s or ())
    return [dict(zip(labels, row, strict=True)) for row in np.atleast_2d(x).tolist()]


@kernel(f"{_DOMAIN}::CastMap")
def cast_map(
    x: Mapping[int, Any], *, cast_to: str = "TO_FLOAT", map_form: str = "DENSE", max_map: int = 1
) -> Array:
    """The values [1, C] of a map in the order of its keys, or ("SPARSE") each at its key."""
    dtypes: dict[str, Any] = {"TO_FLOAT": np.float32, "TO_INT64": np.int64, "TO_STRING": object}
    convert: dict[str, Any] = {"TO_FLOAT": float, "TO_INT64": lambda v: int(float(v))}
    values = {key: convert.get(cast_to, str)(value) for key, value in sorted(x.items())}
    if map_form == "DENSE":
        return np.array([list(values.values())], dtypes[cast_to])
    result = np.full((1, max_map), "" if cast_to == "TO_STRING" else 0, dtypes[cast_to])
    for key, value in values.items():
        result[0, key] = value
    return result
