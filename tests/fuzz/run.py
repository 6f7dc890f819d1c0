"""Runs cases by XLA, by the host's kernel and by onnx.reference, and compares.

XLA's engine compiles several cases as one cluster, which costs little more than one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.compose
import onnx.reference
import onnx_ir as ir

from tests.engines.xla.ops_support import engine_support, run_model
from tests.fuzz.case import Array, Case
from tests.fuzz.known import DISAGREEMENTS
from tests.support import assert_close
from xrt.errors import XrtError
from xrt.graph import OPSET
from xrt.kernels import host


@dataclass
class Outcome:
    """What became of a case.

    Attributes:
        case: The case.
        refused: Why XLA does not take it; empty if it does.
        failure: What went wrong, for a person; empty if nothing did.
        excused: Why a disagreement of onnx.reference does not count; empty if it agrees.
    """

    case: Case
    refused: str = ""
    failure: str = ""
    excused: str = ""


def check(cases: Sequence[Case]) -> list[Outcome]:
    """Run `cases`; raise AssertionError with a snippet for the first that fails."""
    outcomes = run(cases)
    for outcome in outcomes:
        if outcome.failure:
            raise AssertionError(f"{outcome.failure}\n\n{outcome.case.snippet()}")
    return outcomes


def run(cases: Sequence[Case]) -> list[Outcome]:
    """Run `cases` by everything and compare."""
    outcomes = [Outcome(case) for case in cases]
    models = [case.model() for case in cases]
    for outcome, model in zip(outcomes, models, strict=True):
        answer = engine_support(model)
        outcome.refused = "" if answer else str(answer.reason)
    taken = [i for i, outcome in enumerate(outcomes) if not outcome.refused]
    by_xla = dict(zip(taken, _run_xla([(cases[i], models[i]) for i in taken]), strict=True))
    for index, (outcome, model) in enumerate(zip(outcomes, models, strict=True)):
        _judge(outcome, model, by_xla.get(index))
    return outcomes


def _judge(
    outcome: Outcome, model: onnx.ModelProto, by_xla: list[Array] | Exception | None
) -> None:
    case = outcome.case
    on_host, by_reference = _run_host(model, case), _run_reference(model, case)
    if isinstance(by_xla, Exception):
        outcome.failure = f"{case.op}: XLA fails: {by_xla}"
        return
    if by_xla is not None and not isinstance(on_host, Exception):
        difference = _difference(by_xla, on_host, case.scale)
        if difference:
            also = "" if isinstance(by_reference, Exception) else _sides(by_xla, by_reference, case)
            outcome.failure = f"{case.op}: XLA and the host's kernel differ{also}: {difference}"
            return
    if isinstance(on_host, Exception):
        if by_xla is not None or not isinstance(by_reference, Exception):
            outcome.failure = f"{case.op}: the host's kernel fails: {on_host}"
        return
    if isinstance(by_reference, Exception):
        outcome.excused = f"the reference fails: {type(by_reference).__name__}"
        return
    difference = _difference(on_host, by_reference, case.scale)
    if difference:
        outcome.excused = excuse(case)
        if not outcome.excused:
            outcome.failure = f"{case.op}: onnx.reference differs: {difference}"


def excuse(case: Case) -> str:
    """Why the reference may disagree on `case`; empty if it may not."""
    for op, reason, applies in DISAGREEMENTS:
        if op in (case.op, "*") and applies(case):
            return reason
    return ""


def _sides(by_xla: list[Array], by_reference: list[Array], case: Case) -> str:
    agrees = not _difference(by_xla, by_reference, case.scale)
    return f" (the reference agrees with {'XLA' if agrees else 'the host or with neither'})"


def _difference(got: Sequence[Any], want: Sequence[Any], scale: float) -> str:
    if len(got) != len(want):
        return f"{len(got)} outputs, not {len(want)}"
    for index, (one, other) in enumerate(zip(got, want, strict=True)):
        try:
            assert_close(_comparable(one), _comparable(other), scale=scale)
        except AssertionError as error:
            return f"output {index}: {error}"
    return ""


def _comparable(array: Any) -> Any:
    # NumPy does not know the NaN of 8-bit floats.
    narrow = isinstance(array, np.ndarray) and array.dtype.name.startswith(("float8", "float4"))
    return array.astype(np.float32) if narrow else array


def _run_xla(pairs: Sequence[tuple[Case, onnx.ModelProto]]) -> list[list[Array] | Exception]:
    """The outputs of each case, or the error; all at once where that works."""
    if not pairs:
        return []
    try:
        results = iter(
            run_model(_merged([m for _, m in pairs]), [x for c, _ in pairs for x in c.moving])
        )
    except XrtError as error:
        if len(pairs) == 1:
            return [error]
        return [result for pair in pairs for result in _run_xla([pair])]
    return [[next(results) for _ in model.graph.output] for _, model in pairs]


def _merged(models: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    merged = onnx.GraphProto(name="cases")
    for index, model in enumerate(models):
        graph = onnx.compose.add_prefix_graph(model.graph, f"c{index}_")
        for name in ("node", "input", "output", "initializer", "value_info"):
            getattr(merged, name).extend(getattr(graph, name))
    return onnx.helper.make_model(
        merged, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=13
    )


def _run_host(model: onnx.ModelProto, case: Case) -> list[Any] | Exception:
    node = ir.from_proto(model).graph[0]
    try:
        results = host.find(node)(case.inputs)
    except XrtError as error:
        return error
    return [r for r, value in zip(results, node.outputs, strict=False) if value.name]


def _run_reference(model: onnx.ModelProto, case: Case) -> list[Any] | Exception:
    feeds = {info.name: array for info, array in zip(model.graph.input, case.moving, strict=True)}
    try:
        with np.errstate(all="ignore"):
            results = onnx.reference.ReferenceEvaluator(model).run(None, feeds)
    except Exception as error:  # whatever NumPy raises
        return error
    codes = [value.type.tensor_type.elem_type for value in model.graph.output]
    return [_typed(result, code) for result, code in zip(results, codes, strict=True)]


def _typed(result: Any, code: int) -> Array:
    """A result of the reference in the declared type: it lets NumPy promote here and there."""
    array = np.asarray(result)
    return array.astype(onnx.helper.tensor_dtype_to_np_dtype(code)) if code else array
