"""What onnx_ir lacks: constants, boundary, outline, structural equality and content digest.

The graph IR of xrt is onnx_ir at the opset `OPSET`. After import every constant is an initializer,
so "constant" below means a value with `const_value` that no node produces and that is no graph
input.
"""

from __future__ import annotations

import hashlib
import heapq
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from xrt.errors import VerificationError

OPSET = 28
"""The ONNX opset that every imported model is converted to."""

DOMAIN = "xrt"
"""Domain of the operators that xrt adds to ONNX."""

CLUSTER_OP = "Cluster"
"""Operator of a node that stands for a cluster; its graph attribute `body` holds the nodes."""


def constant(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    """The array of a constant value, or None if `value` is absent or not constant."""
    if value is None or value.const_value is None or value.producer() is not None:
        return None
    if value.is_graph_input():
        return None
    return value.const_value.numpy()


def add_constant(graph: ir.Graph, name: str, array: np.ndarray[Any, Any]) -> ir.Value:
    """Register `array` as an initializer of `graph` under a fresh name that starts with `name`."""
    unique, count = name, 0
    while unique in graph.initializers:
        count += 1
        unique = f"{name}_{count}"
    value = ir.val(unique, const_value=ir.tensor(array, name=unique))
    graph.register_initializer(value)
    return value


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape of `value` if every dimension is a known number, else None."""
    if value is None or value.shape is None:
        return None
    dims = tuple(value.shape)
    if all(isinstance(dim, int) for dim in dims):
        return dims  # type: ignore[return-value]
    return None


def is_standard(node: ir.Node, *op_types: str) -> bool:
    """Whether `node` is one of the given operators of ONNX's own domain."""
    return node.domain in ("", "ai.onnx") and node.op_type in op_types


def is_cluster(node: ir.Node) -> bool:
    """Whether `node` stands for a cluster."""
    return node.domain == DOMAIN and node.op_type == CLUSTER_OP


def op_name(node: ir.Node) -> str:
    """The operator of `node`, with its domain if not ONNX's own: "ai.onnx.ml::Scaler"."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def nested_graphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs in the graph attributes of `node` itself, not those nested deeper."""
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def nested_nodes(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes in the graph attributes of `node`, at every depth."""
    for root in nested_graphs(node):
        yield from root.all_nodes()


def describe(node: ir.Node) -> str:
    """Operator and place of `node`: ``Conv 'stem/conv'``, or its first output if nameless."""
    if node.name:
        return f"{node.op_type} {node.name!r}"
    outputs = [str(value.name) for value in node.outputs if value.name]
    return f"{node.op_type} (which makes {outputs[0]!r})" if outputs else node.op_type


def captured_values(node: ir.Node) -> Iterator[ir.Value]:
    """Values of outer graphs that the graph attributes of `node` use, each once."""
    seen: set[ir.Value] = set()
    for root in nested_graphs(node):
        inner_graphs = {root, *root.subgraphs()}
        uses = [value for inner in root.all_nodes() for value in inner.inputs]
        for value in (*uses, *root.outputs):
            if value is None or value in seen or value.graph in inner_graphs:
                continue
            seen.add(value)
            yield value


def used_values(node: ir.Node) -> Iterator[ir.Value]:
    """Inputs of `node` that are present, then the outer values its graph attributes capture."""
    for value in node.inputs:
        if value is not None:
            yield value
    yield from captured_values(node)


def dependencies(nodes: Sequence[ir.Node]) -> list[list[int]]:
    """For each node, the positions in `nodes` of the nodes whose results it uses or captures."""
    position = {node: index for index, node in enumerate(nodes)}
    result: list[list[int]] = []
    for node in nodes:
        producers = {value.producer(): None for value in used_values(node)}
        result.append([position[p] for p in producers if p is not None and p in position])
    return result


def stable_order(predecessors: Sequence[Sequence[int]]) -> list[int]:
    """A topological order of 0, 1, ...: always the least index that is ready, so it is unique.

    Indices on or behind a cycle are missing from the result.
    """
    waiting = [len(sources) for sources in predecessors]
    successors: list[list[int]] = [[] for _ in predecessors]
    for index, sources in enumerate(predecessors):
        for source in sources:
            successors[source].append(index)
    ready = [index for index, count in enumerate(waiting) if count == 0]  # sorted, so a heap
    order: list[int] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for successor in successors[index]:
            waiting[successor] -= 1
            if waiting[successor] == 0:
                heapq.heappush(ready, successor)
    return order


def topological_order(graph: Iterable[ir.Node]) -> list[ir.Node]:
    """The nodes of one graph after those they use or capture; ties keep the order of `graph`.

    A sorted graph comes back as it is. Unlike `ir.Graph.sort`, nothing is moved.

    Raises:
        VerificationError: If the nodes form a cycle.
    """
    nodes = list(graph)
    order = stable_order(dependencies(nodes))
    if len(order) < len(nodes):
        stuck = nodes[min(set(range(len(nodes))).difference(order))]
        raise VerificationError(
            f"The graph has a cycle at or before {stuck.op_type} {stuck.name!r}; "
            "its nodes cannot be put in order."
        )
    return [nodes[index] for index in order]


def detach(nodes: Iterable[ir.Node]) -> None:
    """Make `nodes`, and the nodes in their graph attributes, users of no value.

    `ir.Graph.remove` leaves captured values with uses by nodes that are gone; call this before.
    """
    for node in nodes:
        for user in (node, *nested_nodes(node)):
            for index in range(len(user.inputs)):
                user.replace_input_with(index, None)


@dataclass(frozen=True)
class Boundary:
    """What crosses the edge of a set of nodes, in order of first use and of production.

    Attributes:
        inputs: Values made outside that the nodes use, constants excluded.
        constants: Initializers of the outer graph that the nodes use.
        outputs: Values made inside that are used outside or are outputs of the graph.
    """

    inputs: tuple[ir.Value, ...]
    constants: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]


def boundary(nodes: Sequence[ir.Node]) -> Boundary:
    """The boundary of `nodes`, which are of one graph and in topological order.

    Costs time proportional to the nodes, the nodes nested in them, and the uses of their results.
    """
    members = set(nodes)
    # A use may sit in a graph attribute, and a nested graph does not know its node: so look down.
    users = members.union(inner for node in nodes for inner in nested_nodes(node))
    inputs: dict[ir.Value, None] = {}
    constants: dict[ir.Value, None] = {}
    outputs: list[ir.Value] = []
    for node in nodes:
        for value in used_values(node):
            if value.producer() in members:
                continue
            (constants if constant(value) is not None else inputs)[value] = None
        for value in node.outputs:
            if value.is_graph_output() or any(use.node not in users for use in value.uses()):
                outputs.append(value)
    return Boundary(tuple(inputs), tuple(constants), tuple(outputs))


def extract(
    nodes: Sequence[ir.Node], *, name: str = "body", edge: Boundary | None = None
) -> ir.Graph:
    """A copy of `nodes` as a graph of its own; tensors are shared, nodes and values are new.

    The graph's inputs, outputs and initializers are those of `boundary(nodes)`, with their names.
    """
    edge = edge or boundary(nodes)
    # A nested graph that was read from a file imports nothing of its own.
    imports = (nodes[0].graph.opset_imports if nodes and nodes[0].graph else {}) or {"": OPSET}
    view = ir.GraphView(
        inputs=edge.inputs,
        outputs=edge.outputs,
        nodes=nodes,
        initializers=edge.constants,
        opset_imports=imports,
        name=name,
    )
    return view.clone()


def tensor_digest(tensor: ir.TensorProtocol) -> str:
    """Hexadecimal BLAKE2b digest of a tensor's dtype, shape and contents (memoized by tensor)."""
    known = _TENSOR_DIGESTS.get(tensor) or getattr(tensor, "content_digest", None)
    if known is None:
        digest = hashlib.blake2b(f"{tensor.dtype}{tuple(tensor.shape)}".encode(), digest_size=16)
        if tensor.dtype == ir.DataType.STRING:
            digest.update(repr(tensor.numpy().tolist()).encode())
        else:
            digest.update(np.ascontiguousarray(tensor.numpy()).view(np.uint8).data)
        known = _TENSOR_DIGESTS[tensor] = digest.hexdigest()
    return known


_TENSOR_DIGESTS: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


def snapshot(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """`tensor` in read-only memory that nobody else writes; equal contents share it.

    A tensor that views a model's own memory must not outlive a change there: its digest, which
    names clusters and keys caches, would speak of other numbers.
    """
    array = np.array(tensor.numpy(), order="C")
    array.flags.writeable = False
    copy: ir.TensorProtocol = ir.Tensor(array, dtype=tensor.dtype, name=tensor.name)
    key = tensor_digest(copy)
    shared = _SNAPSHOTS.setdefault(key, array)
    if shared is not array:
        copy = ir.Tensor(shared, dtype=tensor.dtype, name=tensor.name)
        _TENSOR_DIGESTS[copy] = key
    return copy


_SNAPSHOTS: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()


def digest(graph: ir.Graph | ir.GraphView) -> str:
    """Hexadecimal digest of what `graph` computes: operators, attributes, edges, types, weights.

    Names do not count, so two graphs that differ only in names have one digest.
    """
    return _digest(graph, {}, 0)


def _digest(graph: ir.Graph | ir.GraphView, outer: dict[ir.Value, str], depth: int) -> str:
    numbers = dict(outer)
    state = hashlib.blake2b(digest_size=16)

    def put(*parts: object) -> None:
        state.update("\x1f".join(map(str, parts)).encode())
        state.update(b"\x1e")

    for index, value in enumerate(graph.inputs):
        # The depth keeps what a nested graph makes apart from what it captures.
        numbers[value] = f"{depth}i{index}"
        put("input", value.type, value.shape)

    def reference(value: ir.Value | None) -> str:
        if value is None:
            return "-"
        if value not in numbers:
            if value.const_value is None:
                numbers[value] = f"free:{value.name}"
            else:
                numbers[value] = f"c:{tensor_digest(value.const_value)}"
        return numbers[value]

    for index, node in enumerate(graph):
        put("node", node.domain, node.op_type, node.overload, *map(reference, node.inputs))
        for name in sorted(node.attributes):
            put("attribute", name, _attribute_key(node.attributes[name], numbers, depth))
        for position, value in enumerate(node.outputs):
            numbers[value] = f"{depth}n{index}.{position}"
            put("output", value.type, value.shape)
    put("outputs", *map(reference, graph.outputs))
    return state.hexdigest()


def _attribute_key(attribute: ir.Attr, numbers: dict[ir.Value, str], depth: int) -> object:
    kind = attribute.type
    if attribute.is_ref():
        return (kind, "ref", attribute.ref_attr_name)
    if kind == ir.AttributeType.GRAPH:
        return _digest(attribute.as_graph(), numbers, depth + 1)
    if kind == ir.AttributeType.GRAPHS:
        return [_digest(graph, numbers, depth + 1) for graph in attribute.as_graphs()]
    if kind == ir.AttributeType.TENSOR:
        return tensor_digest(attribute.as_tensor())
    if kind == ir.AttributeType.TENSORS:
        return [tensor_digest(tensor) for tensor in attribute.as_tensors()]
    return (kind, attribute.value)


def structurally_equal(left: ir.Graph, right: ir.Graph) -> bool:
    """Whether two graphs differ at most in names."""
    return digest(left) == digest(right)


@dataclass(frozen=True)
class Support:
    """An engine's answer about a node: yes, or no with a reason that a user understands.

    Attributes:
        ok: Whether the node is supported.
        reason: Why it is not; empty if it is.
        remedy: What the user can do about it, where something can be done.
    """

    ok: bool
    reason: str = ""
    remedy: str = ""

    def __bool__(self) -> bool:
        return self.ok

    @classmethod
    def yes(cls) -> Support:
        """Supported."""
        return cls(True)

    @classmethod
    def no(cls, reason: str, remedy: str = "") -> Support:
        """Not supported, because of `reason`."""
        return cls(False, reason, remedy)


@dataclass(frozen=True, eq=False)
class Cluster:
    """A part of a graph that one engine runs.

    Attributes:
        name: Engine and content digest, unique in its program: "xla_3f2a9c01d4e5".
        engine: Name of the engine that runs it.
        body: The nodes as a graph of its own, with the outer names; weights are shared.
        digest: Digest of `body`, weights included.
    """

    name: str
    engine: str
    body: ir.Graph
    digest: str

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The nodes, in topological order."""
        return tuple(self.body)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the values that enter."""
        return tuple(str(value.name) for value in self.body.inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the values that leave."""
        return tuple(str(value.name) for value in self.body.outputs)
