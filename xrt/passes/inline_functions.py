"""Inlines operators that ONNX defines by others, where an engine takes the others only."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, LiftConstantsToInitializersPass

from xrt.graph import OPSET, captured_values, constant
from xrt.passes.annotate_profiles import AnnotateProfilesPass, Profile
from xrt.passes.bind_values import BindValuesPass
from xrt.passes.convert_opset import ConvertOpsetPass
from xrt.passes.evaluate import Evaluate, evaluate
from xrt.passes.fold_constants import FoldConstantsPass
from xrt.passes.rewrite import GRAPHS, Names, all_nodes, splice
from xrt.passes.value_types import set_type, type_of

Supports = Callable[[ir.Node], bool]
"""Whether some engine runs a node."""

_DOMAIN = "xrt.functions"

_MOST_ELEMENTS = 256  # of a constant that decides what the body of a function looks like


class InlineFunctionsPass(FoldConstantsPass):
    """y = SwiGLU(x) => a, b = Split(x); s = Swish(a); y = Mul(s, b), if engines take all of that.

    For operators whose definition in ONNX is a function, of other operators at some opset. One that
    an engine runs itself stays, and so does one whose function holds a node that no engine runs:
    the host has a kernel for the whole.

    Requires inferred types, and static shapes or profiles. Preserves all values.
    """

    def __init__(self, supports: Supports | None = None, evaluate: Evaluate = evaluate) -> None:
        """Create the pass.

        Args:
            supports: Whether some engine runs a node; None inlines nothing.
            evaluate: As for `FoldConstantsPass`, which folds what inlining brings.
        """
        super().__init__(evaluate)
        self.supports = supports

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Inline functions in all graphs of `model`, to any depth."""
        if self.supports is None or not self._expand(model, self.supports):
            return ir.passes.PassResult(model, modified=False)
        super().call(model)
        return ir.passes.PassResult(model, modified=True)

    def _expand(self, model: ir.Model, supports: Supports) -> bool:
        names = Names(model)
        bodies = [
            (node, self._body(node, supports))
            for node in all_nodes(model)
            if is_function(node) and not supports(node)
        ]
        for node, body in bodies:
            if body is not None:
                splice(node, body, names)
        return any(body is not None for _, body in bodies)

    def _body(self, node: ir.Node, supports: Supports) -> ir.Graph | None:
        """What `node` stands for, inlined to any depth, if engines take all of it."""
        expanded = expand(node)
        if expanded is None:
            return None
        FoldConstantsPass(self.evaluate)(expanded)
        self._annotate(expanded, node)
        self._expand(expanded, supports)
        nodes = list(expanded.graph)
        return expanded.graph if nodes and all(map(supports, nodes)) else None

    def _annotate(self, expanded: ir.Model, node: ir.Node) -> None:
        """Give open values in what `node` stands for profiles that follow from its inputs'."""
        pairs = zip(expanded.graph.inputs, node.inputs, strict=True)
        corners = {
            str(inner.name): (profile.least, profile.usual, profile.most)
            for inner, outer in pairs
            if outer is not None and (profile := Profile.of(outer)) is not None
        }
        if corners:
            shapes = [{name: each[i] for name, each in corners.items()} for i in range(3)]
            AnnotateProfilesPass(shapes, self.evaluate)(expanded)


def is_function(node: ir.Node) -> bool:
    """Whether ONNX defines the operator of `node` by a function of others."""
    schema = _schema(node)
    return schema is not None and (schema.has_function or schema.has_context_dependent_function)


def _schema(node: ir.Node) -> onnx.defs.OpSchema | None:
    domain = "" if node.domain == "ai.onnx" else node.domain
    version = OPSET if domain == "" or node.graph is None else _imported(node, domain)
    try:
        return onnx.defs.get_schema(node.op_type, version, domain)
    except onnx.defs.SchemaError:
        return None


def _imported(node: ir.Node, domain: str) -> int:
    graph = node.graph
    return 1 if graph is None else graph.opset_imports.get(domain, 1)


def expand(node: ir.Node) -> ir.Model | None:
    """A model of the nodes that ONNX says `node` is, at `OPSET`; None if it does not say.

    Its inputs stand for those of `node`, by position, and have their types; small constants among
    them are bound.
    """
    schema = _schema(node)
    if schema is None or not is_function(node) or list(captured_values(node)):
        return None
    function = _function(schema, node)
    if function is None:
        return None
    model = _call(node, function, schema)
    arrays = {
        str(value.name): array
        for value, outer in zip(model.graph.inputs, node.inputs, strict=True)
        if (array := constant(outer)) is not None and array.size <= _MOST_ELEMENTS
    }
    lift = LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)
    for pass_ in (InlinePass(), lift, ConvertOpsetPass(), lift, BindValuesPass(arrays)):
        pass_(model)
    return model


def _function(schema: onnx.defs.OpSchema, node: ir.Node) -> ir.Function | None:
    """The body of `schema` for `node`, at the newest opset that it is written for."""
    if schema.has_context_dependent_function:
        types = [
            b"" if value is None else ir.to_proto(value).type.SerializeToString()
            for value in node.inputs
        ]
        made = schema.get_context_dependent_function_with_opset_version(
            max(schema.context_dependent_function_opset_versions),
            ir.to_proto(node).SerializeToString(),
            types,
        )
    else:
        made = schema.get_function_with_opset_version(max(schema.function_opset_versions))
    proto = onnx.FunctionProto.FromString(made)
    if not proto.node:
        return None
    made_names = {name for inner in proto.node for name in inner.output}
    while proto.output and proto.output[-1] not in made_names:
        proto.output.pop()  # an optional output that the node does not ask for
    if not made_names.issuperset(proto.output):
        return None  # it leaves out one before another that it makes
    proto.domain = _DOMAIN  # the body may use operators of the same name, at an older opset
    function: ir.Function = ir.from_proto(proto)
    return function


def _call(node: ir.Node, function: ir.Function, schema: onnx.defs.OpSchema) -> ir.Model:
    """A model of one node like `node`, which calls `function`."""
    inputs = [ir.val(f"input_{position}") for position in range(len(node.inputs))]
    for value, outer in zip(inputs, node.inputs, strict=True):
        if outer is not None:
            set_type(value, type_of(outer))
    outputs = [ir.val(f"output_{index}") for index in range(len(function.outputs))]
    call = ir.Node(
        function.domain,
        function.name,
        [value if outer else None for value, outer in zip(inputs, node.inputs, strict=True)],
        # The builder of a body that depends on its node has put nested graphs where they belong.
        [a for a in {**_defaults(schema), **node.attributes}.values() if a.type not in GRAPHS],
        outputs=outputs,
    )
    imports = {**function.opset_imports, _DOMAIN: 1}
    graph = ir.Graph(inputs, outputs, nodes=[call], opset_imports=imports, name=node.op_type)
    return ir.Model(graph, ir_version=10, functions=[function])


def _defaults(schema: onnx.defs.OpSchema) -> dict[str, ir.Attr]:
    """The attributes that have a default value: a body refers to them, given or not."""
    return {
        name: ir.from_proto(attribute.default_value)
        for name, attribute in schema.attributes.items()
        if attribute.default_value.name
    }
