"""onnx's own backend suite through `xrt.onnx_backend`: every case, by XLA and by the host."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest
from onnx.backend.base import Backend

import xrt
from benchmarks.conformance import RANDOM, Suite
from xrt import onnx_backend


class XlaBackend(onnx_backend.XrtBackend):
    """Every node that XLA takes is built by it, alone too: most cases are one node."""

    @classmethod
    def prepare(cls, model, device="CPU", **kwargs):
        kwargs["options"] = xrt.CompileOptions(min_cluster_weight=0)
        return super().prepare(model, device, **kwargs)


class HostBackend(onnx_backend.XrtBackend):
    @classmethod
    def prepare(cls, model, device="CPU", **kwargs):
        return super().prepare(model, device, engine="host", **kwargs)


@pytest.fixture(autouse=True, scope="module")
def models_of_onnx(tmp_path_factory):
    """onnx writes the inputs that it makes up for its larger models under ONNX_HOME."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONNX_HOME", str(tmp_path_factory.mktemp("onnx")))
        yield


for _backend in (XlaBackend, HostBackend):
    for _name, _cases in Suite(_backend, __name__, RANDOM).test_cases.items():
        _label = _name.replace("OnnxBackend", f"Test{_backend.__name__}")
        globals()[_label] = type(_label, (_cases,), {})
del _cases  # or pytest would collect it once more


def parse(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 22]> {text}')


def test_it_is_an_attribute_of_the_package_and_a_backend():
    assert xrt.onnx_backend is onnx_backend
    assert issubclass(onnx_backend.XrtBackend, Backend)
    assert xrt.onnx_backend.supports_device("CPU")
    assert not xrt.onnx_backend.supports_device("TPU")


def test_prepare_takes_inputs_by_position_and_by_name_and_always_gives_a_tuple():
    x = np.arange(3, dtype=np.float32)
    rep = onnx_backend.prepare(parse("g (float[3] x) => (float[3] y) { y = Add (x, x) }"))
    for inputs in ([x], (x,), {"x": x}, x):
        (y,) = rep.run(inputs)
        np.testing.assert_array_equal(y, x + x)
    assert rep.run([x])["y"] is not None


def test_unknown_devices_are_refused():
    with pytest.raises(xrt.XrtError, match="Device 'TPU'"):
        onnx_backend.prepare(parse("g (float x) => (float y) { y = Neg (x) }"), "TPU")


def test_run_node_and_run_model():
    x = np.array([1.5, -2], ml_dtypes.bfloat16)
    node = onnx.helper.make_node("Neg", ["x"], ["y"])
    (y,) = onnx_backend.run_node(node, [x], opset_version=20)
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, -x)
    model = parse("g (float[N] x) => (float[N] y) { y = Neg (x) }")
    (y,) = onnx_backend.run_model(model, [np.ones(4, np.float32)])
    np.testing.assert_array_equal(y, -np.ones(4))
