"""What the tests of TensorRT's build half share: clusters of text, and their exports by another
runtime. No GPU is needed: TensorRT-RTX builds for one that is elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

import xrt
from tests.support import assert_close, model, run_reference
from xrt.engines.tensorrt.export import export
from xrt.engines.tensorrt.library import Library, load
from xrt.graph import Cluster, digest
from xrt.passes import AnnotateProfilesPass, InferShapesPass

pytest.importorskip("tensorrt_rtx", reason="pip install 'xrt[tensorrt]'")
onnxruntime.set_default_logger_severity(3)

RTX = load("tensorrt_rtx")
assert isinstance(RTX, Library), RTX

OPTIONS = xrt.CompileOptions(cache=False, min_cluster_weight=0, progress=False)

RNG = np.random.default_rng(0)

CONV = """
    g (float[1,3,16,16] x) => (float[1,8,16,16] y)
    <float[8,3,3,3] w, float[8] s, float[8] b, float[8] m, float[8] v> {
        c = Conv <pads=[1,1,1,1]> (x, w)
        n = BatchNormalization (c, s, b, m, v)
        y = Relu (n)
    }
"""


def conv_bn_relu() -> ir.Model:
    """A convolution, its BatchNorm and a Relu."""
    return model(
        CONV,
        w=RNG.normal(size=(8, 3, 3, 3)),
        s=RNG.uniform(0.5, 2, 8),
        b=RNG.normal(size=8),
        m=RNG.normal(size=8),
        v=RNG.uniform(0.5, 2, 8),
    )


def mlp() -> ir.Model:
    """Two products with a Gelu between."""
    return model(
        """
        g (float[4,16] x) => (float[4,8] y)
        <float[16,32] a, float[32] b, float[32,8] c> {
            p = MatMul (x, a)  h = Add (p, b)  t = Gelu (h)  y = MatMul (t, c)
        }
        """,
        a=RNG.normal(size=(16, 32)),
        b=RNG.normal(size=32),
        c=RNG.normal(size=(32, 8)),
    )


def attention() -> ir.Model:
    """An attention with a mask that comes with the call."""
    return model("""
        g (float[1,2,6,8] q, float[1,2,6,8] k, float[1,2,6,8] v, bool[1,1,6,6] mask)
        => (float[1,2,6,8] y) { y = Attention (q, k, v, mask) }
    """)


def quantized() -> ir.Model:
    """A convolution in int8, as xrt's quantization writes it: with an int32 bias."""
    return model(
        """
        g (float[1,4,8,8] x) => (float[1,4,8,8] y)
        <float sx = {0.05}, int8 zx = {0}, int8[4,4,3,3] w, float[4] sw, int8[4] zw,
         int32[4] b, float[4] sb, int32[4] zb> {
            q = QuantizeLinear (x, sx, zx)
            d = DequantizeLinear (q, sx, zx)
            dw = DequantizeLinear <axis=0> (w, sw, zw)
            db = DequantizeLinear <axis=0> (b, sb, zb)
            y = Conv <pads=[1,1,1,1]> (d, dw, db)
        }
        """,
        w=RNG.integers(-127, 128, (4, 4, 3, 3)),
        sw=RNG.uniform(0.01, 0.1, 4),
        zw=np.zeros(4),
        b=RNG.integers(-1000, 1000, 4),
        sb=RNG.uniform(0.001, 0.01, 4),
        zb=np.zeros(4),
    )


NETWORKS = {"conv": conv_bn_relu, "mlp": mlp, "attention": attention, "int8": quantized}


def cluster_of(given: ir.Model | str, engine: str = "tensorrt") -> Cluster:
    """All of a model as one cluster."""
    made = model(given) if isinstance(given, str) else given.clone()
    InferShapesPass()(made)
    content = digest(made.graph)
    return Cluster(f"{engine}_{content[:12]}", engine, made.graph, content)


def inputs_for(given: ir.Model, seed: int = 0) -> list[Any]:
    """Random inputs of a model of static shapes."""
    rng = np.random.default_rng(seed)
    arrays = []
    for value in given.graph.inputs:
        assert value.dtype is not None
        assert value.shape is not None
        shape, dtype = tuple(int(dim) for dim in value.shape), value.dtype.numpy()
        if dtype == np.bool_:
            arrays.append(rng.random(shape) < 0.6)
        else:
            arrays.append((rng.normal(size=shape) * 3).astype(dtype))
    return arrays


def exported(given: ir.Model | str) -> ir.Model:
    """What the parser gets for a model."""
    return export(cluster_of(given).body)


def run_exported(changed: ir.Model, inputs: Sequence[Any]) -> list[Any]:
    """The results of an exported model by ONNX Runtime."""
    for node in changed.graph.all_nodes():
        for name in [name for name in node.attributes if name.startswith("TRT_")]:
            del node.attributes[name]  # NVIDIA's, which says how to build and not what to compute
    options = onnxruntime.SessionOptions()
    # As the graph says: its optimizer makes nodes of Q/DQ graphs that it refuses itself.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        ir.to_proto(changed).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_inputs()]
    kept = {str(value.name): array for value, array in zip(changed.graph.inputs, inputs)}  # noqa: B905
    return list(session.run(None, {name: kept[name] for name in names}))


def check_export(given: ir.Model | str, inputs: Sequence[Any] | None = None) -> list[str]:
    """Check that what the parser gets computes what the model does; return its operators."""
    original = model(given) if isinstance(given, str) else given
    arrays = inputs_for(original) if inputs is None else list(inputs)
    changed = exported(original)
    assert [v.name for v in changed.graph.inputs] == [v.name for v in original.graph.inputs]
    assert [v.name for v in changed.graph.outputs] == [v.name for v in original.graph.outputs]
    program = xrt.compile(original.clone(), engine="host")
    wanted = program(*arrays)
    wanted = list(wanted) if isinstance(wanted, list | tuple) else [wanted]
    assert_close(wanted, run_reference(original, arrays))
    for got, want in zip(run_exported(changed, arrays), wanted, strict=True):
        assert_close(np.asarray(got), np.asarray(want))
    return [node.op_type for node in changed.graph]


def numbers(*shape: int) -> Any:
    """Random numbers of a shape."""
    return RNG.normal(size=shape).astype(np.float32)


def annotated(text: str, *corners: dict[str, tuple[int, ...]]) -> Cluster:
    """A model as one cluster whose values have profiles."""
    made = model(text)
    InferShapesPass()(made)
    if corners:
        AnnotateProfilesPass(corners)(made)
    content = digest(made.graph)
    return Cluster(f"tensorrt_{content[:12]}", "tensorrt", made.graph, content)
