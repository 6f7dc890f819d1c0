"""Upgrade a model to the opset that xrt compiles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from xrt.errors import UnsupportedOpError
from xrt.graph import OPSET, describe
from xrt.passes.opset import RETIRED, RETIRED_TO, RULES, Names, Site
from xrt.passes.opset.rules import Rule, rank

_ALIAS = "ai.onnx"
_IR_VERSION = 10  # the least in which all that a converted model uses can be stored
_TYPED = {
    "BatchNormalization": 9,
    "Clip": 11,
    "GroupNormalization": 21,
    "Hardmax": 13,
    "LogSoftmax": 13,
    "Pad": 11,
    "PRelu": 7,
    "Softmax": 13,
}
"""Operators whose rule makes simpler graphs when it knows types -> the opset of that rule."""


class ConvertOpsetPass(ir.passes.InPlacePass):
    """A model at any opset from 1 on => the same model at opset `graph.OPSET`.

    Before: nodes of ONNX's own domain mean what they meant at the model's opset.
    After: they mean what they mean at `OPSET`, which is the model's import of the domain "" (the
    alias "ai.onnx" is gone), in nested graphs too. Other domains keep their version. The IR version
    is at least 10, since initializers of IR version 3 had to be inputs.

    Requires: no functions in the model (inline them before).
    Preserves: names and types of inputs and outputs, and of the values that remain; weights, which
    are neither copied nor serialized. Arguments that became inputs are new initializers of the
    graph that holds the node.

    Raises:
        UnsupportedOpError: The opset is not known, or an operator has no equivalent at `OPSET`.
            The model is then partly converted and must not be used.
    """

    def requires(self, model: ir.Model) -> None:
        """There are no functions, whose nodes may mean another opset."""
        if model.functions:
            listed = ", ".join("::".join(key[:2]) for key in model.functions)
            raise ir.passes.PreconditionError(
                f"Inline the functions of the model before its opset is converted: {listed}."
            )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Upgrade `model`, one opset after the other."""
        imports = model.opset_imports
        start = imports.get("", imports.get(_ALIAS, OPSET))
        if not 1 <= start <= OPSET:
            raise UnsupportedOpError(
                f"Opset {start} is unknown. Known opsets: 1 to {OPSET}. "
                "Export the model with one of these."
            )
        modified = _set_imports(model)
        steps = [to for to in sorted(RULES) if to > start]
        retired = start >= RETIRED_TO and any(
            node.op_type in RETIRED and node.domain == "" for node in model.graph.all_nodes()
        )
        if steps or retired:
            modified = _upgrade(model, start, steps, retired) or modified
        _check_known(model.graph.all_nodes(), start)
        return ir.passes.PassResult(model, modified)


def _set_imports(model: ir.Model) -> bool:
    """Import opset `OPSET`, and that only, for ONNX's own domain; whether that is a change."""
    changed = model.opset_imports.get("") != OPSET or model.ir_version < _IR_VERSION
    model.ir_version = max(model.ir_version, _IR_VERSION)
    for graph in model.graphs():
        if graph is model.graph or "" in graph.opset_imports or _ALIAS in graph.opset_imports:
            changed = graph.opset_imports.pop(_ALIAS, None) is not None or changed
            graph.opset_imports[""] = OPSET
    return changed


def _upgrade(model: ir.Model, start: int, steps: list[int], retired: bool) -> bool:
    """Apply the rules of every opset in `steps`, in order; whether one applied."""
    if _needs_types(model, start):
        _infer_types(model, start)
    names = Names.of(model)
    affected = {op_type for to in steps for op_type in RULES[to]}.union(RETIRED if retired else ())
    nodes = [n for n in model.graph.all_nodes() if n.domain == "" and n.op_type in affected]
    modified = False
    if retired:
        modified = _apply(nodes, start, names, {name: RULES[RETIRED_TO][name] for name in RETIRED})
    for to in steps:
        modified = _apply(nodes, start, names, RULES[to]) or modified
    return modified


def _apply(
    nodes: list[ir.Node], start: int, names: Names, rules: Mapping[str, Sequence[Rule]]
) -> bool:
    """Bring `nodes` to the next opset by `rules`; the nodes that these add join `nodes`."""
    added: list[ir.Node] = []
    modified = False
    for node in nodes:
        for rule in rules.get(node.op_type, ()):
            rule(Site(node, start, names, added))
            modified = True
    nodes += added
    return modified


def _needs_types(model: ir.Model, start: int) -> bool:
    """Whether a rule that is simpler when it knows type and rank meets an input without them."""
    return any(
        node.domain == ""
        and start < _TYPED.get(node.op_type, 7 if "broadcast" in node.attributes else 0)
        and node.inputs
        and (node.inputs[0] is None or node.inputs[0].dtype is None or rank(node.inputs[0]) is None)
        for node in model.graph.all_nodes()
    )


def _infer_types(model: ir.Model, start: int) -> None:
    """Infer types at the opset the model still has; what stays unknown is handled by the rules."""
    model.opset_imports[""] = start
    try:
        ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    finally:
        model.opset_imports[""] = OPSET


def _check_known(nodes: Iterable[ir.Node], start: int) -> None:
    """Every operator exists at `OPSET`."""
    for node in nodes:
        if node.domain == "" and not _exists(node.op_type):
            raise UnsupportedOpError(
                f"{describe(node)} of opset {start} does not exist in opset {OPSET}, to which xrt "
                "converts models. Export the model again with a newer opset."
            )


@cache
def _exists(op_type: str) -> bool:
    if not onnx.defs.has(op_type, OPSET, ""):
        return False
    return not onnx.defs.get_schema(op_type, OPSET, "").deprecated
