"""The passes of xrt, one a file, and the pipelines as plain tuples.

`PREPARE` runs once for a model, with symbolic dimensions; `SPECIALIZE` runs for each signature::

    run(PREPARE, model)
    run((BindShapesPass({"x": (8, 3, 224, 224)}), *SPECIALIZE), copy := model.clone())
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, LiftConstantsToInitializersPass

from xrt.errors import XrtError
from xrt.passes.annotate_profiles import AnnotateProfilesPass
from xrt.passes.bind_shapes import BindShapesPass
from xrt.passes.bind_values import BindValuesPass, shape_inputs
from xrt.passes.cast_precision import CastPrecisionPass
from xrt.passes.clean import (
    EliminateCommonSubexpressionsPass,
    EliminateDeadCodePass,
    EliminateIdentityPass,
)
from xrt.passes.convert_opset import ConvertOpsetPass
from xrt.passes.correct_bias import CorrectBiasPass
from xrt.passes.equalize_weights import EqualizeWeightsPass
from xrt.passes.fold_batchnorm import FoldBatchNormPass
from xrt.passes.fold_constants import FoldConstantsPass
from xrt.passes.fold_normalization import FoldNormalizationPass
from xrt.passes.fold_pad import FoldPadPass
from xrt.passes.fold_sequence import FoldSequencePass
from xrt.passes.fuse_attention import FuseAttentionPass
from xrt.passes.fuse_conv_bias import FuseConvBiasPass
from xrt.passes.infer_shapes import InferShapesPass
from xrt.passes.inline_functions import InlineFunctionsPass
from xrt.passes.normalize_input import NormalizeInputPass
from xrt.passes.outline_gradient import OutlineGradientPass
from xrt.passes.quantize import QuantizePass
from xrt.passes.verify import VerifyPass, verify

if TYPE_CHECKING:
    from xrt.passes.evaluate import Evaluate

__all__ = [
    "CLEAN",
    "PREPARE",
    "PREPARE_TRAINING",
    "SPECIALIZE",
    "AnnotateProfilesPass",
    "BindShapesPass",
    "BindValuesPass",
    "CastPrecisionPass",
    "ConvertOpsetPass",
    "CorrectBiasPass",
    "EliminateCommonSubexpressionsPass",
    "EliminateDeadCodePass",
    "EliminateIdentityPass",
    "EqualizeWeightsPass",
    "FoldBatchNormPass",
    "FoldConstantsPass",
    "FoldNormalizationPass",
    "FoldPadPass",
    "FoldSequencePass",
    "FuseAttentionPass",
    "FuseConvBiasPass",
    "InferShapesPass",
    "InlineFunctionsPass",
    "NormalizeInputPass",
    "OutlineGradientPass",
    "PassFactory",
    "QuantizePass",
    "VerifyPass",
    "run",
    "shape_inputs",
    "verify",
]

PassFactory = Callable[[], ir.passes.PassBase]
"""Makes a pass for one run: a class, or a partial of one."""


PREPARE: tuple[PassFactory, ...] = (
    InlinePass,
    OutlineGradientPass,
    partial(LiftConstantsToInitializersPass, lift_all_constants=True, size_limit=0),
    ConvertOpsetPass,
    partial(LiftConstantsToInitializersPass, lift_all_constants=True, size_limit=0),
    EliminateCommonSubexpressionsPass,  # layers that compute one constant each evaluate it once
    FoldSequencePass,
    FoldConstantsPass,
    EliminateIdentityPass,
    FoldBatchNormPass,
    FuseConvBiasPass,
    FoldPadPass,
    EliminateCommonSubexpressionsPass,
    EliminateDeadCodePass,
)
"""Once for a model: what does not depend on the shapes of a call."""

SPECIALIZE: tuple[PassFactory, ...] = (
    FoldConstantsPass,
    InlineFunctionsPass,
    EliminateIdentityPass,
    FoldBatchNormPass,
    FuseConvBiasPass,
    FoldPadPass,
    FoldNormalizationPass,
    EliminateCommonSubexpressionsPass,
    FuseAttentionPass,
    EliminateDeadCodePass,
)
"""For each signature, after BindShapesPass and BindValuesPass: what these make constant."""


PREPARE_TRAINING: tuple[PassFactory, ...] = (
    InlinePass,
    partial(LiftConstantsToInitializersPass, lift_all_constants=True, size_limit=0),
    ConvertOpsetPass,
    partial(LiftConstantsToInitializersPass, lift_all_constants=True, size_limit=0),
    EliminateCommonSubexpressionsPass,
    FoldSequencePass,
    FoldConstantsPass,
    InlineFunctionsPass,
    EliminateIdentityPass,
    FoldConstantsPass,
    FoldPadPass,
    EliminateCommonSubexpressionsPass,
    EliminateDeadCodePass,
)
"""Once for a training graph, after BindShapesPass. Its weights are inputs, so nothing folds them;
BatchNorm stays, since its statistics are those of the batch."""


CLEAN: tuple[PassFactory, ...] = (
    FoldConstantsPass,
    EliminateIdentityPass,
    EliminateCommonSubexpressionsPass,
    EliminateDeadCodePass,
)
"""After a pass that changes precision: infers the types anew and tidies up."""


def run(
    passes: Iterable[ir.passes.PassBase | PassFactory],
    model: ir.Model,
    *,
    evaluate: Evaluate | None = None,
    supports: Callable[[ir.Node], bool] | None = None,
    verifying: bool = False,
) -> None:
    """Run passes over `model`, in place.

    Args:
        passes: Passes, or what makes them.
        model: The model; other models may share its tensors, but not its graphs.
        evaluate: Runs a node on arrays, for constant folding, in place of the reference.
        supports: Whether an engine runs a node; functions are inlined for engines that run their
            parts only.
        verifying: Check the model before the first and after every pass.

    Raises:
        XrtError: A pass failed; errors of xrt come as they are, others are named with their pass.
    """
    if verifying:
        verify(model)
    for item in passes:
        pass_ = item if isinstance(item, ir.passes.PassBase) else item()
        if evaluate is not None and isinstance(pass_, FoldConstantsPass):
            pass_.evaluate = evaluate
        if isinstance(pass_, InlineFunctionsPass):
            pass_.supports = supports
        try:
            pass_(model)
            if verifying:
                verify(model)
        except Exception as error:
            _reraise(type(pass_).__name__, error)


def _reraise(name: str, error: Exception) -> None:
    """Raise the error of xrt in the chain of causes of `error`, or one that names the pass."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, XrtError):
            cause.add_note(f"In the pass {name}.")
            raise cause
        cause = cause.__cause__
    raise XrtError(f"The pass {name} failed: {type(error).__name__}: {error}") from error
