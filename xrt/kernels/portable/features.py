"""The operators of ai.onnx.ml that prepare features, on tensors of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xrt.kernels.portable.scores import real

Numbers = Sequence[float]
Ints = Sequence[int]


def array_feature_extractor(xp: Any, x: Any, indices: Any) -> Any:
    """The elements at `indices` of the last axis; a vector `x` gives one row."""
    taken = xp.take(x, xp.reshape(indices, -1), axis=-1)
    return xp.reshape(taken, (1, -1)) if len(x.shape) == 1 else taken


def binarizer(xp: Any, x: Any, *, threshold: float = 0.0) -> Any:
    """1 where `x` is above `threshold`, else 0."""
    return (real(xp, x) > threshold).astype(x.dtype)


def feature_vectorizer(xp: Any, *inputs: Any, inputdimensions: Ints | None = None) -> Any:
    """The inputs [N, C] side by side as float32, each cut or padded with zeros to its dimension."""
    columns = []
    for x, width in zip(inputs, inputdimensions or (None,) * len(inputs), strict=True):
        part = xp.reshape(x, (1, -1)) if len(x.shape) == 1 else xp.asarray(x)
        if width is not None:
            part = part[:, :width]
            part = xp.pad(part, ((0, 0), (0, width - part.shape[1])))
        columns.append(part.astype(np.float32))
    return xp.concatenate(columns, axis=1)


def imputer(
    xp: Any,
    x: Any,
    *,
    imputed_value_floats: Numbers | None = None,
    imputed_value_int64s: Ints | None = None,
    replaced_value_float: float = 0.0,
    replaced_value_int64: int = 0,
) -> Any:
    """`x` [*, F] with one value replaced by another, or by one for each feature."""
    if np.dtype(x.dtype).kind == "f":
        wanted: Any = np.asarray(imputed_value_floats or (), x.dtype)
        found = xp.isnan(x) if np.isnan(replaced_value_float) else x == replaced_value_float
    else:
        wanted = np.asarray(imputed_value_int64s or (), np.int64).astype(x.dtype)
        found = xp.asarray(x).astype(np.int64) == replaced_value_int64
    if wanted.size not in (1, x.shape[-1]):
        raise ValueError(
            f"Imputer has {wanted.size} values for {x.shape[-1]} features of {x.dtype}"
        )
    return xp.where(found, wanted, x)


def normalizer(xp: Any, x: Any, *, norm: str = "MAX") -> Any:
    """`x` [N, C] or [C] over its maximum, L1 or L2 norm, by row; unchanged where that is 0."""
    numbers = real(xp, x)
    axis = min(1, len(x.shape) - 1)
    if norm == "MAX":
        size = xp.max(numbers, axis=axis, keepdims=True)
    elif norm == "L1":
        size = xp.sum(xp.abs(numbers), axis=axis, keepdims=True)
    elif norm == "L2":
        # Scaled by the largest, so that squares neither overflow nor vanish.
        top = xp.max(xp.abs(numbers), axis=axis, keepdims=True)
        unit = xp.where(top == 0, 1, top)
        size = top * xp.sqrt(xp.sum(xp.square(numbers / unit), axis=axis, keepdims=True))
    else:
        raise ValueError(f"Normalizer has norm {norm!r}. Known norms: MAX, L1, L2.")
    return (numbers / xp.where(size == 0, 1, size)).astype(np.float32)


def one_hot(xp: Any, x: Any, *, cats_int64s: Ints) -> Any:
    """float32 [*, categories]: 1 at the category that an element of `x`, as an integer, is."""
    categories = np.asarray(cats_int64s, np.int64)
    return (xp.asarray(x).astype(np.int64)[..., None] == categories).astype(np.float32)


def scaler(xp: Any, x: Any, *, offset: Numbers | None = None, scale: Numbers | None = None) -> Any:
    """(x - offset) * scale as float32; both hold one number, or one for each feature."""
    numbers = real(xp, x)
    shift = np.asarray(offset or (0.0,), numbers.dtype)
    factor = np.asarray(scale or (1.0,), numbers.dtype)
    return ((numbers - shift) * factor).astype(np.float32)


def lookup(xp: Any, x: Any, keys: np.ndarray[Any, Any], values: Any, default: Any) -> Any:
    """For each element of `x` the value of its key, else `default`; NaN is a key like others.

    Of keys that are repeated the last counts.
    """
    keys = keys.astype(x.dtype)
    missing = np.isnan(keys) if keys.dtype.kind == "f" else np.zeros(keys.shape, bool)
    result = xp.full(x.shape, default, values.dtype)
    known, first = np.unique(keys[~missing][::-1], return_index=True)
    if known.size:
        ordered = values[~missing][::-1][first]
        place = xp.clip(xp.searchsorted(known, x), 0, known.size - 1)
        result = xp.where(xp.take(known, place) == x, xp.take(ordered, place), result)
    if missing.any():
        result = xp.where(xp.isnan(x), values[missing][-1], result)
    return result


def label_table(
    *,
    keys_floats: Numbers | None = None,
    keys_int64s: Ints | None = None,
    keys_strings: Sequence[str] | None = None,
    keys_tensor: Any = None,
    values_floats: Numbers | None = None,
    values_int64s: Ints | None = None,
    values_strings: Sequence[str] | None = None,
    values_tensor: Any = None,
    default_float: float = -0.0,
    default_int64: int = -1,
    default_string: str = "_Unused",
    default_tensor: Any = None,
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], Any]:
    """Keys, values and default of a LabelEncoder; strings are Python's, in arrays of objects."""
    keys = _list(keys_floats, keys_int64s, keys_strings, keys_tensor)
    values = _list(values_floats, values_int64s, values_strings, values_tensor)
    if keys.shape != values.shape:
        raise ValueError(f"LabelEncoder has {keys.size} keys for {values.size} values")
    default: Any = {"f": default_float, "O": default_string}.get(values.dtype.kind, default_int64)
    if values_tensor is not None:
        default = {"f": -0.0, "O": "_Unused"}.get(values.dtype.kind, -1)
        if default_tensor is not None:
            default = texts(default_tensor).reshape(-1)[0]
    return keys, values, default


def _list(floats: Any, ints: Any, strings: Any, tensor: Any) -> np.ndarray[Any, Any]:
    if tensor is not None:
        return texts(tensor).reshape(-1)
    if strings is not None:
        return np.array(strings, object)
    if ints is not None:
        return np.asarray(ints, np.int64)
    return np.asarray(() if floats is None else floats, np.float32)


def texts(array: Any) -> np.ndarray[Any, Any]:
    """`array`; if it holds strings, however they are stored, an array of Python's."""
    given: np.ndarray[Any, Any] = np.asarray(array)
    if given.dtype.kind not in "OUS":
        return given
    plain = [each.decode() if isinstance(each, bytes) else str(each) for each in given.reshape(-1)]
    result: np.ndarray[Any, Any] = np.array(plain, dtype=object)
    return result.reshape(given.shape)
