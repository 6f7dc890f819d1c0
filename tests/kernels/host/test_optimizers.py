"""Optimizers resolve to the host's own kernels and agree with onnx.reference.

The pseudo code itself is checked in tests/engines/xla/ops/test_optimizers.py, for both engines.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from tests.kernels.host.support import assert_close
from xrt.kernels.host import find

DOMAIN = "ai.onnx.preview.training"


@pytest.mark.parametrize("tensors", [1, 3])
@pytest.mark.parametrize(
    ("op", "kinds", "attributes"),
    [
        ("Adagrad", 3, {"decay_factor": 0.1, "norm_coefficient": 0.01}),
        ("Adam", 4, {"alpha": 0.95, "norm_coefficient": 0.01, "norm_coefficient_post": 0.1}),
        ("Momentum", 3, {"alpha": 0.9, "beta": 0.1, "norm_coefficient": 0.1, "mode": "standard"}),
        ("Momentum", 3, {"alpha": 0.9, "beta": 0.1, "norm_coefficient": 0.1, "mode": "nesterov"}),
    ],
)
def test_agrees_with_the_reference(
    op: str, kinds: int, attributes: dict[str, Any], tensors: int
) -> None:
    rng = np.random.default_rng(0)
    count = kinds * tensors
    given = [np.array(0.1, np.float32), np.array(2, np.int64)]
    given += [rng.random((3, 2), np.float32) for _ in range(count)]
    names = [f"x{i}" for i in range(len(given))]
    results = [f"y{i}" for i in range(count - tensors)]
    proto = onnx.helper.make_node(op, names, results, domain=DOMAIN, **attributes)
    graph = onnx.helper.make_graph(
        [proto],
        "g",
        [onnx.ValueInfoProto(name=name) for name in names],
        [onnx.ValueInfoProto(name=name) for name in results],
    )
    imports = [onnx.helper.make_opsetid(DOMAIN, 1), onnx.helper.make_opsetid("", 28)]
    made = onnx.helper.make_model(graph, opset_imports=imports)
    want = ReferenceEvaluator(made).run(None, dict(zip(names, given, strict=True)))
    kernel = find(ir.from_proto(made).graph[0])
    assert kernel.native
    for got, wanted in zip(kernel(given), want, strict=True):
        assert_close(got, np.asarray(wanted, np.float32))
