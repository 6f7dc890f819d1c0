"""What an imported model must satisfy; each check raises an error that names the place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache

import networkx as nx
import onnx
import onnx_ir as ir

from xrt import custom
from xrt.errors import ModelImportError, UnsupportedOpError, unknown
from xrt.graph import OPSET, describe, used_values
from xrt.importers.tensors import check_external, check_values

DOMAINS = frozenset(schema.domain for schema in onnx.defs.get_all_schemas())
"""Domains whose operators onnx itself defines."""

_MOST_NAMES = 5


def tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Every tensor of `model`: initializers and attributes, in nested graphs and functions too."""
    for graph in _graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.is_ref():
                    continue
                if attribute.type == ir.AttributeType.TENSOR:
                    yield attribute.as_tensor()
                elif attribute.type == ir.AttributeType.TENSORS:
                    yield from attribute.as_tensors()


def _graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """All graphs: the main one, the bodies of functions, and those nested in them."""
    for root, _ in _bodies(model):
        yield root
        yield from root.subgraphs()


def _bodies(model: ir.Model) -> Iterator[tuple[ir.Graph, Mapping[str, int]]]:
    """The main graph and the bodies of functions, each with its opset imports."""
    yield model.graph, model.opset_imports
    for function in model.functions.values():
        yield function.graph, function.opset_imports


def check_proto(proto: onnx.ModelProto, who: str) -> None:
    """Nothing in `proto` would get lost or mistaken for something else on the way to the IR."""
    if not proto.opset_import:
        raise UnsupportedOpError(
            f"{who} imports no opset, so its operators have no meaning. "
            "Set ModelProto.opset_import, or export it again."
        )
    _check_names(proto.graph, who)


def _check_names(graph: onnx.GraphProto, who: str) -> None:
    """Every value of `graph` has one definition, and nothing in it is sparse."""
    if graph.sparse_initializer:
        name = graph.sparse_initializer[0].values.name
        raise ModelImportError(
            f"{who} has the sparse initializer {name!r}; xrt reads dense ones only. "
            "Store it as a dense tensor."
        )
    inputs = {value.name for value in graph.input}
    # An initializer may share the name of an input: it is the input's default value.
    extra = [tensor.name for tensor in graph.initializer if tensor.name not in inputs]
    made = [name for node in graph.node for name in node.output if name]
    duplicates = _duplicates([value.name for value in graph.input] + extra + made)
    duplicates |= _duplicates(tensor.name for tensor in graph.initializer)
    if duplicates:
        raise _defined_twice(who, duplicates)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _check_names(attribute.g, who)
            for nested in attribute.graphs:
                _check_names(nested, who)


def _defined_twice(who: str, names: set[str]) -> ModelImportError:
    return ModelImportError(
        f"{who} defines the {_listed('value', names)} more than once. "
        "Names of inputs, initializers and node outputs must be unique."
    )


def _duplicates(names: Iterable[str]) -> set[str]:
    seen: set[str] = set()
    return {name for name in names if name in seen or seen.add(name)}  # type: ignore[func-returns-value]


def _listed(kind: str, names: Iterable[str]) -> str:
    """``value 'a'`` or ``values 'a', 'b' and 3 more``."""
    ordered = sorted(names)
    text = ", ".join(map(repr, ordered[:_MOST_NAMES]))
    more = f" and {len(ordered) - _MOST_NAMES} more" if len(ordered) > _MOST_NAMES else ""
    return f"{kind}{'s' if len(ordered) > 1 else ''} {text}{more}"


def check_names(model: ir.Model, who: str) -> None:
    """Values of one graph have different names; for a model that was not read from a proto."""
    for graph in _graphs(model):
        given = {*graph.inputs, *graph.initializers.values()}
        made = [value for node in graph for value in node.outputs]
        duplicates = _duplicates(str(value.name) for value in (*given, *made) if value.name)
        if duplicates:
            raise _defined_twice(who, duplicates)


def check_opsets(model: ir.Model, who: str) -> None:
    """Domains are known, and the version of ONNX's own one is."""
    functions = {key[0] for key in model.functions}
    for _, imports in _bodies(model):
        for domain, version in imports.items():
            if domain in ("", "ai.onnx") and not 1 <= version <= OPSET:
                raise UnsupportedOpError(
                    f"{who} imports opset {version}. Known opsets: 1 to {OPSET}. "
                    "Export the model with one of these."
                )
    expected = _opset(model.opset_imports)
    for function in _called_functions(model):
        own = _opset(function.opset_imports)
        if own is not None and expected is not None and own != expected:
            raise UnsupportedOpError(
                f"{who} has opset {expected}, but its function {function.name!r} has opset "
                f"{own}. Export the model with one opset."
            )
    _check_domains(model, functions, who)


def _called_functions(model: ir.Model) -> list[ir.Function]:
    called = {node.op_identifier() for graph in _graphs(model) for node in graph}
    return [function for key, function in model.functions.items() if key in called]


def _opset(imports: Mapping[str, int]) -> int | None:
    return imports.get("", imports.get("ai.onnx"))


def _check_domains(model: ir.Model, functions: set[str], who: str) -> None:
    """Every node is of a domain that onnx defines, or has a function body."""
    for graph in _graphs(model):
        for node in graph:
            if node.domain in DOMAINS or node.op_identifier() in model.functions:
                continue
            if custom.find(node) is not None:
                continue
            what = "is only used inside xrt" if node.domain == "xrt" else "has no function body"
            known = {repr(name) for name in DOMAINS | functions}
            raise UnsupportedOpError(
                f"{who}: {describe(node)} of domain {node.domain!r} {what}, and no kernel is "
                f"registered for it. {unknown('Domain', node.domain, known)} An operator of your "
                f"own needs xrt.register_kernel({node.domain!r}, {node.op_type!r}, kernel) before."
                + (f" Registered: {', '.join(custom.names())}." if custom.names() else "")
            )


def check_nodes(model: ir.Model, who: str) -> None:
    """Every node of a domain of onnx has an operator of its opset, with the inputs it takes."""
    for graph, imports in _bodies(model):
        versions = {**imports, "": _opset(imports) or 0}
        for node in graph.all_nodes():
            if node.op_identifier() not in model.functions and custom.find(node) is None:
                _check_node(node, versions.get(node.domain, 0), who)


def _check_node(node: ir.Node, opset: int, who: str) -> None:
    domain = node.domain or "ai.onnx"
    if not opset:
        raise UnsupportedOpError(
            f"{who}: {describe(node)} is of domain {domain!r}, of which the model imports no "
            "opset. Add it to the opset imports."
        )
    schema = _schema(node.op_type, opset, node.domain)
    if schema is None:
        raise UnsupportedOpError(
            f"{who}: {describe(node)} is unknown: opset {opset} of domain {domain!r} has no "
            f"operator {node.op_type!r}. Export the model with another opset, or with a function "
            "body for it."
        )
    if not schema.min_input <= len(node.inputs) <= schema.max_input:
        raise ModelImportError(
            f"{who}: {describe(node)} has {len(node.inputs)} inputs; in opset {opset} it takes "
            f"{_range(schema.min_input, schema.max_input)}."
        )
    required = onnx.defs.OpSchema.FormalParameterOption.Single
    for formal, value in zip(schema.inputs, node.inputs, strict=False):
        if value is None and formal.option == required:
            raise ModelImportError(f"{who}: {describe(node)} lacks its input {formal.name!r}.")
    for name, attribute in schema.attributes.items():
        if attribute.required and name not in node.attributes:
            raise ModelImportError(f"{who}: {describe(node)} lacks its attribute {name!r}.")


@cache
def _schema(op_type: str, opset: int, domain: str) -> onnx.defs.OpSchema | None:
    # An operator that is deprecated at this opset counts: one with a successor is converted, and
    # the conversion refuses the others.
    if not onnx.defs.has(op_type, opset, domain):
        return None
    return onnx.defs.get_schema(op_type, opset, domain)


def _range(least: int, most: int) -> str:
    if least == most:
        return str(least)
    return f"at least {least}" if most > 1 << 20 else f"{least} to {most}"


def check_edges(model: ir.Model, who: str) -> None:
    """Every value that is read is an input, an initializer or the output of a node."""
    for graph, _ in _bodies(model):
        _check_edges(graph, set(), who)


def _check_edges(graph: ir.Graph, outer: set[ir.Value], who: str) -> None:
    scope = outer | set(graph.inputs) | set(graph.initializers.values())
    for node in graph:
        scope.update(node.outputs)
    for node in graph:
        for value in node.inputs:
            if value is not None and value not in scope:
                raise ModelImportError(
                    f"{who}: {describe(node)} reads {value.name!r}, which is no input, no "
                    "initializer and no output of a node."
                )
        for nested in _nested(node):
            _check_edges(nested, scope, who)
    for value in graph.outputs:
        if value not in scope:
            raise ModelImportError(
                f"{who}: the output {value.name!r} is made by no node. Remove it from the outputs "
                "or add the node."
            )


def _nested(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def check_order(model: ir.Model, who: str) -> bool:
    """No graph has a cycle; whether all are in topological order already."""
    ordered = [_check_acyclic(graph, who) for graph in _graphs(model)]
    return all(ordered)


def _check_acyclic(graph: ir.Graph, who: str) -> bool:
    seen: set[ir.Node] = set()
    ordered = True
    for node in graph:
        ordered = ordered and all(producer in seen for producer in _producers(node))
        seen.add(node)
    if ordered:
        return True
    edges = nx.DiGraph((producer, node) for node in graph for producer in _producers(node))
    try:
        cycle = nx.find_cycle(edges)
    except nx.NetworkXNoCycle:
        return False
    path = [edge[0] for edge in cycle]
    shown = " -> ".join(describe(node) for node in (*path[:_MOST_NAMES], path[0]))
    raise ModelImportError(
        f"{who} has a cycle of {len(path)} nodes: {shown}. A graph must have an order in which "
        "every node follows those it reads from."
    )


def _producers(node: ir.Node) -> Iterator[ir.Node]:
    """Nodes of the same graph that `node`, or a graph inside it, reads from."""
    for value in used_values(node):
        producer = value.producer()
        if producer is not None and producer.graph is node.graph:
            yield producer


def check_tensors(model: ir.Model, who: str) -> None:
    """Tensors are complete, and hold neither NaN nor an Inf that is a weight."""
    for tensor in tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            check_external(tensor, who)
    check_values(_graphs(model), who)
