"""What the fuzzer knows: where onnx.reference is wrong, and which operators are not fuzzed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.fuzz.case import Case

Applies = Callable[[Case], bool]


def _dtype(*names: str) -> Applies:
    """Whether the first input is of one of these dtypes."""

    def applies(case: Case) -> bool:
        return case.inputs[0] is not None and case.inputs[0].dtype.name in names

    return applies


def _attribute(name: str, *values: object) -> Applies:
    """Whether an attribute has one of these values."""
    return lambda case: case.attributes.get(name) in values


def _has(name: str) -> Applies:
    """Whether an attribute is given."""
    return lambda case: case.attributes.get(name) is not None


def _raw_scores_of_capped(case: Case) -> bool:
    given = case.attributes
    return bool(given["softcap"]) and given.get("qk_matmul_output_mode") in (0, None)


def _narrow_grid(case: Case) -> bool:
    return case.inputs[1] is not None and case.inputs[1].dtype.itemsize < 4


def _second(case: Case) -> Any:
    assert case.inputs[1] is not None
    return case.inputs[1].tolist()


def _valid_and_dilated(case: Case) -> bool:
    dilations = case.attributes.get("dilations") or ()
    return case.attributes.get("auto_pad") == "VALID" and any(step > 1 for step in dilations)


def _valid_and_ceiled(case: Case) -> bool:
    given = case.attributes
    return given.get("auto_pad") == "VALID" and given.get("ceil_mode") == 1


def _cancels(case: Case) -> bool:
    """Whether a mean is so far from zero that float32 has few digits of a difference of squares.

    All are lost where nothing varies.
    """
    x = case.inputs[0]
    assert x is not None
    axes, wide = tuple(case.attributes.get("axes", (0, 2, 3))), x.astype(np.float64)
    return bool((abs(wide.mean(axes)) > 30 * wide.std(axes)).any())


def _same_and_dilated(case: Case) -> bool:
    dilations = case.attributes.get("dilations") or ()
    return str(case.attributes.get("auto_pad")).startswith("SAME") and any(d > 1 for d in dilations)


def _same_and_far(case: Case) -> bool:
    """A stride beyond the kernel, padded for the same size."""
    given, weight = case.attributes, case.inputs[1] if len(case.inputs) > 1 else None
    kernel = given["kernel_shape"] if weight is None else weight.shape[2:]
    ones = [1] * len(kernel)
    steps, spread = (given.get(name) or ones for name in ("strides", "dilations"))
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, spread, strict=True)]
    far = any(step > span for step, span in zip(steps, spans, strict=True))
    return far and str(given.get("auto_pad")).startswith("SAME")


def _uneven_pads(case: Case) -> bool:
    """Pads that are not the same on all sides, where nothing is strided or dilated."""
    given = case.attributes
    steps = (*(given.get("strides") or ()), *(given.get("dilations") or ()))
    pads = set(given.get("pads") or ())
    return set(steps) <= {1} and (len(pads) > 1 or (_rank(case) != 4 and any(pads)))


def _infinite(case: Case) -> bool:
    x = case.inputs[0]
    return x is not None and bool(np.isinf(x.astype(np.float64)).any())


def _values_not_finite(case: Case) -> bool:
    values = case.inputs[2]
    return values is not None and not np.isfinite(values.astype(np.float64)).all()


def _empty(case: Case) -> bool:
    return case.inputs[0] is not None and not case.inputs[0].size


def _rank(case: Case) -> int:
    return np.ndim(case.inputs[0])  # type: ignore[arg-type]


def _has_nan(case: Case) -> bool:
    x = case.inputs[0]
    return x is not None and bool(np.isnan(x.astype(np.float64)).any())


def _batch_is_not_channels(case: Case) -> bool:
    x = case.inputs[0]
    return x is not None and x.shape[0] != x.shape[1]


def _from_before_the_first(case: Case) -> bool:
    x, starts, _, axes, steps = case.inputs
    assert x is not None
    assert starts is not None
    assert steps is not None
    chosen = range(len(starts)) if axes is None else axes
    return any(
        step < 0 and start < -x.shape[axis]
        for start, axis, step in zip(starts, chosen, steps, strict=True)
    )


DISAGREEMENTS: tuple[tuple[str, str, Applies], ...] = (
    ("Erf", "an approximation for float32 stands in for float64", _dtype("float64")),
    ("Gelu", "an approximation for float32 stands in for float64", _dtype("float64")),
    ("ConvTranspose", "groups share an output", lambda case: case.attributes.get("group", 1) > 1),
    ("ConvTranspose", "SAME moves a kernel below the stride; TensorFlow's does not", _same_and_far),
    ("Attention", "raw scores come out capped", _raw_scores_of_capped),
    (
        "Attention",
        "the root of a given scale is rounded to float32 for float64",
        lambda case: _dtype("float64")(case) and case.attributes["scale"] is not None,
    ),
    ("AveragePool", "ceil_mode pads the beginning", _attribute("ceil_mode", 1)),
    ("AffineGrid", "the regular grid is rounded to float32", _dtype("float64")),
    (
        "AffineGrid",
        "the one place of a size of 1 is -1, not the centre",
        lambda case: case.attributes["align_corners"] == 1 and 1 in _second(case)[2:],
    ),
    ("DeformConv", "offsets are rounded to float32", _dtype("float64")),
    ("DeformConv", "sums are rounded to half precision", _dtype("float16", "bfloat16")),
    *(
        (op, "auto_pad VALID forgets dilations", _valid_and_dilated)
        for op in ("AveragePool", "LpPool", "MaxPool")
    ),
    *(
        (op, "a stride beyond the kernel crops under auto_pad SAME", _same_and_far)
        for op in ("AveragePool", "LpPool", "MaxPool")
    ),
    *(
        (op, "the result of an empty batch has another shape", _empty)
        for op in (
            *("AveragePool", "GlobalAveragePool", "GlobalLpPool"),
            *("GlobalMaxPool", "LpPool", "MaxPool"),
        )
    ),
    (
        "GridSample",
        "cubic clamps the place before it takes the taps",
        lambda case: (
            case.attributes["mode"] == "cubic"
            and case.attributes["padding_mode"] in ("border", "reflection")
        ),
    ),
    ("GridSample", "places are computed in half precision", _narrow_grid),
    ("GridSample", "weights are rounded to float32 for float64", _dtype("float64")),
    ("MaxPool", "NaN does not always win", _has_nan),
    ("MaxPool", "pads are taken in another order, or not at all, by unit strides", _uneven_pads),
    ("MaxPool", "ceil_mode is forgotten under auto_pad VALID", _valid_and_ceiled),
    ("MaxPool", "indices of the wrong rows", lambda case: case.outputs == 2),
    *((op, "clip is ignored", _has("clip")) for op in ("GRU", "LSTM", "RNN")),
    ("LogSoftmax", "computed in half precision", _dtype("float16", "bfloat16")),
    ("QLinearConv", "one spatial dimension becomes two", lambda case: _rank(case) != 4),
    ("MeanVarianceNormalization", "the variance is a difference of squares", _cancels),
    ("ReduceLogSumExp", "the difference of infinities is NaN", _infinite),
    ("OneHot", "a value that is not finite is multiplied by zero", _values_not_finite),
    ("ReduceMean", "sums of integers wrap", _dtype("int32", "int64", "uint32", "uint64")),
    *(
        (op, "statistics are rounded to float32 for float64", _dtype("float64"))
        for op in ("GroupNormalization", "LayerNormalization", "RMSNormalization")
    ),
    ("GlobalMaxPool", "other axes unless the rank is 4", lambda case: _rank(case) != 4),
    *(
        (op, "the mean is rounded to half precision", _dtype("float16", "bfloat16"))
        for op in ("InstanceNormalization", "LayerNormalization")
    ),
    ("LpNormalization", "p = 1 adds up signed values", _attribute("p", 1)),
    ("LSTM", "input_forget is ignored", _attribute("input_forget", 1)),
    (
        "DynamicQuantizeLinear",
        "zeros get the scale 1 / 255 instead of 0",
        lambda case: case.inputs[0] is not None and not case.inputs[0].any(),
    ),
    *(
        (op, "auto_pad SAME forgets dilations", _same_and_dilated)
        for op in ("AveragePool", "LpPool")
    ),
    ("Mean", "sums are rounded to half precision", _dtype("float16", "bfloat16")),
    ("LpPool", "windows that ceil_mode cuts off are scaled up", _attribute("ceil_mode", 1)),
    (
        "Shape",
        "an end before the first dimension counts from the last again",
        lambda case: (case.attributes["end"] or 0) < -_rank(case),
    ),
    ("Slice", "backwards from before the first element gives nothing", _from_before_the_first),
    (
        "TopK",
        "NaN of bfloat16 has no place in the order",
        lambda c: _dtype("bfloat16")(c) and _has_nan(c),
    ),
    ("LRN", "alpha / size is rounded to float32 for float64", _dtype("float64")),
    ("LRN", "channels are counted by the batch size", _batch_is_not_channels),
    ("HardSwish", "1 / 6 is rounded to float32 for float64", _dtype("float64")),
)
"""(operator, what the reference does wrong, the cases where it does)."""

_RANDOM = "draws random numbers"
_NESTED = "holds a graph; tests of its own"

NOT_FUZZED: dict[str, str] = {
    **dict.fromkeys(("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike"), _RANDOM),
    **dict.fromkeys(("RandomUniform", "RandomUniformLike"), _RANDOM),
    **dict.fromkeys(("If", "Loop", "Scan", "xrt::Gradient"), _NESTED),
    "xrt::StopGradient": "training registers it, and tests it",
}
"""Lowered operators without a strategy: why. Besides those of `OTHER_DOMAINS`."""

OTHER_DOMAINS: dict[str, str] = {
    "ai.onnx.ml": "classical models: tests of their own",
    "ai.onnx.preview.training": "optimizers: tests of their own",
}
"""Domains without strategies: why."""
