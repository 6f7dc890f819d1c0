"""The long tail: operators that `onnx.reference` runs, one node at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from xrt.errors import UnsupportedOpError
from xrt.graph import OPSET

if TYPE_CHECKING:
    import onnx


def build(node: ir.Node, captured: Sequence[ir.Value] = ()) -> Callable[..., tuple[Any, ...]]:
    """A function of the node's inputs, then of its captured values, that runs `onnx.reference`.

    Operator classes and function bodies are looked up here, once.

    Raises:
        UnsupportedOpError: `onnx.reference` does not know the operator.
    """
    # onnx.reference takes 0.2 s to import, and most programs never need it.
    import onnx
    from onnx.reference import ReferenceEvaluator

    model = _one_node_model(node, captured)
    try:
        evaluator = ReferenceEvaluator(model)
    except Exception as cause:
        domain = node.domain or "ai.onnx"
        raise UnsupportedOpError(
            f"Operator {domain}::{node.op_type} at node {node.name!r} has neither a host kernel "
            f"nor a reference implementation at opset {onnx.defs.onnx_opset_version()}: {cause}"
        ) from cause
    names = [str(name) for name in evaluator.input_names]
    wanted = [index for index, value in enumerate((*node.inputs, *captured)) if value is not None]
    count = len(node.outputs)

    def run(*inputs: Any) -> tuple[Any, ...]:
        feeds = {name: inputs[index] for name, index in zip(names, wanted, strict=True)}
        results = evaluator.run(None, feeds)
        return tuple(results)[:count]

    return run


def _one_node_model(node: ir.Node, captured: Sequence[ir.Value]) -> onnx.ModelProto:
    import onnx

    proto = ir.to_proto(node)
    _load_external(node, proto)
    # Names of the node's own: one value may feed several inputs, and "" stays absent.
    feeds = [f"xrt.in{i}" if v is not None else "" for i, v in enumerate(node.inputs)]
    while feeds and not feeds[-1]:
        feeds.pop()  # some classes of onnx.reference fail on an absent input that is spelled out
    results = [f"xrt.out{i}" for i in range(len(node.outputs))]
    del proto.input[:], proto.output[:]
    proto.input.extend(feeds)
    proto.output.extend(results)
    outer = [str(value.name) for value in captured]
    value_infos = [onnx.ValueInfoProto(name=name) for name in (*filter(None, feeds), *outer)]
    graph = onnx.GraphProto(
        name="node",
        node=[proto],
        input=value_infos,
        output=[onnx.ValueInfoProto(name=name) for name in results],
    )
    domains = {node.domain if node.domain != "ai.onnx" else "", *_inner_domains(node), ""}
    if proto.domain == "ai.onnx":
        proto.domain = ""
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid(d, _version(d)) for d in sorted(domains)]
    )


def _version(domain: str) -> int:
    import onnx

    if domain == "":
        return OPSET
    versions = [s.since_version for s in onnx.defs.get_all_schemas() if s.domain == domain]
    return max(versions, default=1)


def _inner_domains(node: ir.Node) -> Iterator[str]:
    for graph in _graphs(node):
        for inner in graph.all_nodes():
            yield "" if inner.domain == "ai.onnx" else inner.domain


def _graphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _load_external(node: ir.Node, proto: onnx.NodeProto) -> None:
    """Put the contents of external weights of nested graphs into `proto`."""
    import onnx

    protos = [g for a in proto.attribute for g in ((a.g,) if a.HasField("g") else tuple(a.graphs))]
    for graph, graph_proto in zip(_graphs(node), protos, strict=True):
        for index, tensor in enumerate(graph_proto.initializer):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                value = graph.initializers[tensor.name].const_value
                assert value is not None
                array = np.asarray(value.numpy())
                loaded = onnx.numpy_helper.from_array(array, tensor.name)
                graph_proto.initializer[index].CopyFrom(loaded)
        for inner, inner_proto in zip(graph, graph_proto.node, strict=True):
            _load_external(inner, inner_proto)
