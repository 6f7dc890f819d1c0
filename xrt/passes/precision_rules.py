"""What mixed precision knows of ONNX's operators: which keep float32, and why, as tables.

`compute_types` applies them. A table that is silent about an operator means the low type, if ONNX
defines the operator for it.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

from xrt.graph import constant, nested_graphs, static_shape

Array = np.ndarray[Any, Any]

LOW_TYPES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
"""The types of half the width of float32."""

MANY = 256
"""Most numbers that a sum in the low type may add up."""

LOSS = 0.01
"""Most of its Euclidean norm that a constant may lose to rounding and underflow."""


def largest(dtype: ir.DataType) -> float:
    """The largest finite number of `dtype`: 65504 in float16."""
    return float(ml_dtypes.finfo(dtype.numpy()).max)


def _table(*rows: tuple[str, str]) -> dict[str, str]:
    return {op: reason for reason, ops in rows for op in ops.split()}


def _names(*rows: str) -> frozenset[str]:
    return frozenset(op for row in rows for op in row.split())


KEPT = _table(
    ("sums exponentials", "Softmax LogSoftmax ReduceLogSum ReduceLogSumExp"),
    ("exceeds float16 from an input of 11.1 on", "Exp Sinh Cosh"),
    ("amplifies rounding errors of its input", "Log Pow Tan Acosh Atanh"),
    ("sums squares", "ReduceL2 ReduceSumSquare LpPool GlobalLpPool LpNormalization LRN"),
    ("multiplies many numbers", "ReduceProd CumProd Det"),
    ("sums over a whole axis", "CumSum DFT STFT MelWeightMatrix"),
    ("computes statistics in its own type", "InstanceNormalization MeanVarianceNormalization"),
    ("is a loss", "SoftmaxCrossEntropyLoss NegativeLogLikelihoodLoss"),
    ("computes positions", "Range AffineGrid RoiAlign MaxRoiPool DeformConv NonMaxSuppression"),
    ("draws random numbers", "Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform"),
    ("draws random numbers", "RandomUniformLike"),
    ("scales by float32", "QuantizeLinear DequantizeLinear DynamicQuantizeLinear"),
    ("scales by float32", "QLinearConv QLinearMatMul"),
    ("makes the type that an attribute names", "Constant ConstantOfShape EyeLike"),
    ("makes the type that an attribute names", "HannWindow HammingWindow BlackmanWindow"),
    ("reads the bits of float32", "BitCast"),
    ("takes the type of another value", "CastLike"),
)
"""Operator -> why it computes in float32."""

MOVES = _names(
    "Clip CenterCropPad Compress Concat DepthToSpace Dropout Expand Flatten Gather",
    "GatherElements GatherND GlobalMaxPool Hardmax Identity Max MaxPool MaxUnpool Min",
    "OneHot Pad ReduceMax ReduceMin Relu Reshape ReverseSequence Scatter",
    "ScatterElements ScatterND Slice SpaceToDepth Split Squeeze TensorScatter Tile",
    "TopK Transpose Trilu Unique Unsqueeze Where",
)
"""Operators whose results are elements of their inputs, or bounds of them."""

LIGHT = _names("Abs Add Ceil Div Floor Mean Mul Neg Reciprocal Round Sign Sqrt Sub Sum")
"""Arithmetic that costs less than a Cast before and after it."""

COMPARES = _names("Equal Greater GreaterOrEqual Less LessOrEqual Mod")
"""Operators whose results jump where their inputs change a little."""

SUMS = _names("ReduceSum ReduceMean ReduceL1 GlobalAveragePool")
"""Operators that sum over as many numbers as their input's shape says."""

NORMALIZATIONS = _names("LayerNormalization GroupNormalization RMSNormalization")
"""Operators whose attribute stash_type lets them keep statistics in float32."""

ANY_INPUTS = _names("ArgMax ArgMin Cast IsInf IsNaN NonZero Shape Size")
"""Operators whose results have a type of their own, and which take whatever comes."""

MIXED: Mapping[str, frozenset[str]] = {
    "BatchNormalization": frozenset({"T1", "T2"}),
    "Dropout": frozenset({"T1"}),
    "GridSample": frozenset({"T2"}),  # coordinates
    "LayerNormalization": frozenset({"U"}),  # mean and deviation, float32 by stash_type
    "LinearAttention": frozenset({"S"}),  # a state that sums over all steps
    "OneHot": frozenset({"T1", "T2"}),
    "Resize": frozenset({"T2"}),
}
"""Operator -> type variables of its schema that stay float32."""

FREE: Mapping[str, frozenset[str]] = {"Attention": frozenset({"U"})}
"""Operator -> type variables of its schema that may be anything: Attention's mask."""

# Bounds beyond the low type become infinite, and bound nothing that the low type holds.
OPEN_BOUNDS = {"Clip": (1, 2)}

# Sources of a Cast to float32 whose numbers the low types hold exactly.
SMALL = frozenset({ir.DataType.BOOL, ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4})


def is_float(value: ir.Value | None) -> bool:
    """Whether `value` is a tensor of type float32."""
    return value is not None and value.type == ir.TensorType(ir.DataType.FLOAT)


def holds_floats(value: ir.Value) -> bool:
    """Whether `value` holds float32 at all: a tensor, or a sequence or an optional of them."""
    return value.dtype == ir.DataType.FLOAT


def foreign(node: ir.Node) -> str | None:
    """Why nothing is known of `node` that would let it compute in the low type."""
    if node.domain not in ("", "ai.onnx"):
        return f"is of the domain {node.domain!r}, not of ONNX's own"
    if next(nested_graphs(node), None) is not None:
        return "has nested graphs, which compute in float32"
    values = [value for value in (*node.inputs, *node.outputs) if value is not None]
    if any(holds_floats(value) and not is_float(value) for value in values):
        return "reads or makes a sequence or an optional"
    if any(value.dtype is None for value in node.outputs if value.name):
        return "has results of unknown type"
    return None


def by_operator(node: ir.Node) -> str | None:
    """Why the operator of `node` computes in float32 whatever feeds it, or None."""
    if node.op_type in KEPT:
        return KEPT[node.op_type]
    if node.op_type in SUMS:
        return _long_sum(node)
    stash = node.attributes.get_int("stash_type", 1)
    if node.op_type in NORMALIZATIONS and stash != ir.DataType.FLOAT:
        return f"has statistics of the type {ir.DataType(stash).name}, which would become narrower"
    return None


def _long_sum(node: ir.Node) -> str | None:
    """Why the sum of `node` is too long, or None if it is short enough."""
    count = _summands(node)
    if count is None:
        return "sums unknown how many numbers"
    return f"sums {count} numbers" if count > MANY else None


def _summands(node: ir.Node) -> int | None:
    """How many numbers make one result of a reduction; None where it is not known."""
    shape = static_shape(node.inputs[0])
    if shape is None:
        return None
    if node.op_type == "GlobalAveragePool":
        return int(np.prod(shape[2:], dtype=np.int64))
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if axes is None:
        idle = node.attributes.get_int("noop_with_empty_axes", 0)
        return 1 if idle else int(np.prod(shape, dtype=np.int64))
    array = constant(axes)
    if array is None:
        return None
    chosen = [int(axis) for axis in array.reshape(-1)] or range(len(shape))
    return int(np.prod([shape[axis] for axis in chosen], dtype=np.int64))


@functools.cache
def _schema(op_type: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None


@functools.cache
def type_variables(op_type: str, opset: int, *, outputs: bool) -> tuple[str, ...]:
    """The type variable, or fixed type, of each input or output; the last one may repeat.

    Empty for an operator that ONNX does not know.
    """
    schema = _schema(op_type, opset)
    if schema is None:
        return ()
    return tuple(formal.type_str for formal in (schema.outputs if outputs else schema.inputs))


@functools.cache
def variables_for(op_type: str, opset: int, dtype: ir.DataType) -> frozenset[str]:
    """The type variables of an operator that stand for float32 and for `dtype` alike."""
    schema = _schema(op_type, opset)
    wanted = {f"tensor({name})" for name in ("float", dtype.name.lower())}
    constraints = () if schema is None else schema.type_constraints
    return frozenset(c.type_param_str for c in constraints if wanted <= set(c.allowed_type_strs))


@dataclass(frozen=True)
class LowConstant:
    """A float32 constant in a low type.

    Attributes:
        array: Its numbers in the low type.
        reason: Why it must stay in float32; None if it need not.
        exceeds: Whether that is because finite numbers exceed the range of the low type.
    """

    array: Array
    reason: str | None = None
    exceeds: bool = False


def low_constant(value: ir.Value, dtype: ir.DataType) -> LowConstant:
    """A float32 constant in `dtype`, computed once for a tensor, however many models share it."""
    tensor = value.const_value
    assert tensor is not None
    known = _LOW_CONSTANTS.setdefault(tensor, {})
    if dtype not in known:
        known[dtype] = _lowered(tensor.numpy(), dtype)
    return known[dtype]


_LOW_CONSTANTS: weakref.WeakKeyDictionary[Any, dict[ir.DataType, LowConstant]] = (
    weakref.WeakKeyDictionary()
)


def _lowered(array: Array, dtype: ir.DataType) -> LowConstant:
    with np.errstate(over="ignore", under="ignore"):
        low = array.astype(dtype.numpy())
    low.flags.writeable = False
    if _surely_fits(array, dtype):
        return LowConstant(low)
    finite = np.isfinite(array)
    numbers, name = array[finite], dtype.numpy().name
    top = float(np.abs(numbers).max(initial=0.0))
    if not np.isfinite(low[finite].astype(np.float32)).all():
        what = f"holds {top:.4g}; {name} holds {largest(dtype):.4g} at most"
        return LowConstant(low, what, exceeds=True)
    if top == 0.0:
        return LowConstant(low)
    # Squares of tiny numbers would vanish.
    error, numbers = (numbers - low[finite].astype(np.float32)) / top, numbers / top
    loss = float(np.sqrt(np.vdot(error, error) / np.vdot(numbers, numbers)))
    if loss <= LOSS:
        return LowConstant(low)
    return LowConstant(low, f"loses {loss:.0%} of its magnitude in {name}")


def _surely_fits(array: Array, dtype: ir.DataType) -> bool:
    """Whether a bound on the errors suffices: NumPy widens float16 slowly."""
    info = ml_dtypes.finfo(dtype.numpy())
    flat = array.reshape(-1)
    if not flat.size or not max(flat.max(), -flat.min()) <= float(info.max):
        return False
    norm = float(np.sqrt(np.vdot(flat, flat)))
    underflow = math.sqrt(flat.size) * float(info.smallest_subnormal) / 2
    return float(info.eps) / 2 * norm + underflow <= LOSS * norm
