"""Ask engines which nodes they run."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import onnx_ir as ir

from xrt.graph import Support, dependencies, topological_order
from xrt.options import CompileOptions
from xrt.passes.quantization_groups import quantization_groups

HOST = "host"
"""Name of the engine that runs what no other engine takes; it claims nothing."""

OUT_OF_FUEL = "optimization fuel spent"


class Claimant(Protocol):
    """What this pass needs of an engine.

    An engine may also have ``signature(node, context) -> Hashable | None``: nodes of one signature
    then share one answer. None means that the answer holds for this node alone. And it may have
    ``channels_last: bool``: see `xrt.passes.exchange_layouts`.
    """

    name: str

    def supports(self, node: ir.Node, context: Any = None) -> Support:
        """Whether the engine runs `node`, or why not."""
        ...


@dataclass(frozen=True, eq=False)
class Claim:
    """Who runs a node.

    Attributes:
        node: The node.
        engine: Name of the engine that runs it; None leaves it to the host.
        reason: Why it is left to the host; empty if an engine runs it.
        refusals: The engines that said no before one said yes, each with its answer.
    """

    node: ir.Node
    engine: str | None
    reason: str = ""
    refusals: tuple[tuple[str, Support], ...] = ()


@dataclass(frozen=True, eq=False)
class Assignment:
    """The claims on the nodes of a graph.

    Attributes:
        claims: One claim a node, in topological order.
        engines: Names of the engines, in order of preference, without the host.
    """

    claims: tuple[Claim, ...]
    engines: tuple[str, ...]


def assign_engines(
    graph: ir.Graph,
    engines: Sequence[Claimant],
    options: CompileOptions | None = None,
    *,
    context: Any = None,
) -> Assignment:
    """Ask `engines`, in order of preference, about each node of `graph`; the first yes counts.

    Requires inferred types and shapes; changes nothing. Nodes are asked about in topological order,
    ties in the order of the graph. Quantization groups go to the first engine that takes all their
    nodes. `options.fuel` bounds how many nodes are claimed, in that order, so that claims only grow
    with it. An engine that raises says no with the error as the reason, unless `options.strict`.

    Args:
        graph: The graph; nested graphs belong to the node that holds them.
        engines: The engines; one named "host" is skipped.
        options: `fuel` and `strict` count.
        context: Passed on to the engines.
    """
    options = options or CompileOptions()
    asks = [_asker(engine, context, options) for engine in engines if engine.name != HOST]
    nodes = topological_order(graph)
    claims = [_first_yes(node, asks) for node in nodes]
    groups = quantization_groups(nodes, dependencies(nodes))
    for group in groups:
        _agree(group, claims, asks)
    _spend_fuel(claims, groups, options.fuel)
    return Assignment(tuple(claims), tuple(name for name, _ in asks))


_Asker = tuple[str, Callable[[ir.Node], Support]]


def _asker(engine: Claimant, context: Any, options: CompileOptions) -> _Asker:
    """The engine's name and its `supports`, guarded and cached by signature and by node."""
    signature: Callable[[ir.Node, Any], Hashable | None] | None
    signature = getattr(engine, "signature", None)
    answers: dict[Hashable, Support] = {}

    def ask(node: ir.Node) -> Support:
        try:
            key = signature(node, context) if signature is not None else None
            if key is None:
                key = node
            if key not in answers:
                answers[key] = engine.supports(node, context)
            return answers[key]
        except Exception as error:
            if options.strict:
                raise
            return Support.no(f"the engine failed on being asked: {type(error).__name__}: {error}")

    return engine.name, ask


def _first_yes(node: ir.Node, asks: Sequence[_Asker]) -> Claim:
    refusals: list[tuple[str, Support]] = []
    for name, ask in asks:
        answer = ask(node)
        if answer:
            return Claim(node, name, refusals=tuple(refusals))
        refusals.append((name, answer))
    reason = "; ".join(f"{name}: {answer.reason}" for name, answer in refusals)
    return Claim(node, None, reason or "no engine was asked", tuple(refusals))


def _agree(group: Sequence[int], claims: list[Claim], asks: Sequence[_Asker]) -> None:
    """Give all nodes of a quantization group to the first engine that takes them all."""
    if len({claims[index].engine for index in group}) == 1:
        return
    for name, ask in asks:
        if all(ask(claims[index].node) for index in group):
            for index in group:
                claims[index] = replace(claims[index], engine=name, reason="")
            return
    _leave_group(group, claims)


def _leave_group(group: Sequence[int], claims: list[Claim]) -> None:
    """Leave a quantization group to the host, because of the first node that must go there."""
    culprit = next((claims[index] for index in group if claims[index].engine is None), None)
    why = "no engine takes all of it"
    if culprit is not None:
        why = f"{culprit.node.op_type} {culprit.node.name!r} cannot follow: {culprit.reason}"
    for index in group:
        if claims[index].engine is not None:
            reason = f"its quantization group stays together, and {why}"
            claims[index] = replace(claims[index], engine=None, reason=reason)


def _spend_fuel(claims: list[Claim], groups: Sequence[Sequence[int]], fuel: int | None) -> None:
    """Take back all claims but the first `fuel`, and those of groups that this splits."""
    if fuel is None:
        return
    claimed = [index for index, claim in enumerate(claims) if claim.engine is not None]
    for index in claimed[fuel:]:
        claims[index] = replace(claims[index], engine=None, reason=OUT_OF_FUEL)
    for group in groups:
        if any(claims[index].reason == OUT_OF_FUEL for index in group):
            _leave_group(group, claims)
