"""An engine of somebody else: runs Mul by NumPy. Needs nothing of xrt but its public contract."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from xrt.engines import Engine, Executable
from xrt.errors import EngineBuildError
from xrt.graph import Cluster, Support, constant
from xrt.options import CompileOptions


class VendorEngine(Engine):
    """Takes Mul, and fails to build one whose node is called "broken"."""

    name = "vendor"

    def available(self) -> Support:
        """Always."""
        return Support.yes()

    def supports(self, node: ir.Node, context: Any = None) -> Support:
        """Mul of ONNX's own domain."""
        if node.op_type == "Mul" and node.domain in ("", "ai.onnx"):
            return Support.yes()
        return Support.no(f"this vendor has no {node.op_type}")

    def compile(self, cluster: Cluster, options: CompileOptions) -> Executable:
        """Keep the cluster's body; it is interpreted."""
        for node in cluster.nodes:
            if node.name and node.name.startswith("broken"):
                raise EngineBuildError(
                    self.name, "the device said no", op=node.op_type, place=node.name
                )
        return VendorExecutable(cluster)

    def deserialize(self, data: bytes, cluster: Cluster, options: CompileOptions) -> Executable:
        """There is nothing in `data`: the body is the program."""
        return VendorExecutable(cluster)


class VendorExecutable(Executable):
    """Multiplies."""

    def __init__(self, cluster: Cluster) -> None:
        self._body = cluster.body

    def run(self, inputs: Sequence[Any], stream: Any = None) -> Sequence[Any]:
        """The outputs of the body, as NumPy arrays."""
        values = dict(zip(self._body.inputs, map(np.asarray, inputs), strict=True))
        for node in self._body:
            a, b = (values[v] if v in values else constant(v) for v in node.inputs)
            values[node.outputs[0]] = np.multiply(a, b)
        return [values[value] for value in self._body.outputs]

    def serialize(self) -> bytes:
        """Nothing."""
        return b""
