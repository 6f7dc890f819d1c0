"""Running models of several nodes, nested graphs included, as one cluster of the XLA engine."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import onnx_ir as ir

from tests.support import assert_close, model, run_reference
from xrt import graph as G
from xrt.engines.xla import XlaEngine
from xrt.engines.xla import lowering as L
from xrt.engines.xla import trace as T
from xrt.options import CompileOptions
from xrt.passes import InferShapesPass

RNG = np.random.default_rng(0)


def normal(*shape: int) -> Any:
    """Random float32 numbers."""
    return RNG.standard_normal(shape).astype(np.float32)


def inferred(text: str, **constants: Any) -> ir.Model:
    """The model of a text, with types inferred."""
    result = model(text, **constants)
    InferShapesPass()(result)
    return result


def run(made: ir.Model, inputs: Any) -> list[Any]:
    """The outputs of a model, compiled as one cluster."""
    for node in made.graph:
        answer = L.supports_node(node)
        assert answer, answer.reason
    cluster = G.Cluster("xla_test", "xla", made.graph, G.digest(made.graph))
    executable = XlaEngine().compile(cluster, CompileOptions(cache=False))
    return [np.asarray(array) for array in executable.run(list(inputs))]


def refusal(text: str, **constants: Any) -> str:
    """Why the engine refuses the first node that it refuses."""
    nodes = inferred(text, **constants).graph
    answers = [XlaEngine().supports(node) for node in nodes]
    return next((answer.reason for answer in answers if not answer), "")


def check(text: str, *cases: Any, want: Any = None, **constants: Any) -> ir.Model:
    """Fail unless XLA gives, for each case of inputs, what the reference (or `want`) gives."""
    for inputs in cases:
        made = inferred(text, **constants)
        expected = run_reference(made, inputs) if want is None else want(*inputs)
        assert_close(run(made, inputs), list(expected))
    return made


def jaxpr(made: ir.Model) -> str:
    """The cluster's program as JAX writes it."""
    types = [(G.static_shape(v) or (), v.dtype) for v in made.graph.inputs]
    inputs = [np.zeros(shape, dtype.numpy()) for shape, dtype in types if dtype is not None]
    with jax.enable_x64(True):
        chosen = T.plan(made.graph)
        parameters = [parameter.array() for parameter in chosen.parameters]
        return str(jax.make_jaxpr(T.function(made.graph, chosen))(*inputs, *parameters))
