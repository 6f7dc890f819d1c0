"""Kernels of users on the GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest

import xrt
from tests.support import assert_close
from xrt import custom
from xrt.errors import EngineUnavailableError, KernelError
from xrt.kernels.cuda import device, source
from xrt.kernels.cuda.array import DeviceArray
from xrt.kernels.cuda.custom import macros, numbers

SCALE = xrt.CudaKernel(
    """
    extern "C" __global__ void scale(const IN0* x, OUT0* y, long long size, float factor) {
        long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
        if (i < size) y[i] = (OUT0)(x[i] * factor);
    }
    """,
    "scale",
    attributes=("factor",),
)
X = np.linspace(-2, 2, 3000, dtype=np.float32).reshape(3, 1000)


@pytest.fixture(autouse=True)
def _operators() -> Iterator[None]:
    xrt.register_kernel("com.example", "Scale", SCALE)
    yield
    for name in custom.names():
        custom.unregister_kernel(*name.split("::"))


def parse(body: str, signature: str = "(float[3,1000] x) => (float[3,1000] y)") -> onnx.ModelProto:
    header = '<ir_version: 10, opset_import: ["": 21, "com.example": 1]>'
    return onnx.parser.parse_model(f"{header}\ng {signature} {{ {body} }}")


ONE = "y = com.example.Scale<factor=2.5>(x)"
MIXED = "a = com.example.Scale<factor=2.5>(x) b = Add(a, x) c = Mul(b, b) d = Exp(x) y = Add(c, d)"


class Stub:
    """What is known of an array before there is one."""

    def __init__(self, dtype: str) -> None:
        self.dtype = np.dtype(dtype)


def test_types_become_macros():
    found = macros([Stub("float32"), None, Stub("int64")], [Stub("bool")])
    assert found == (("IN0", "float"), ("IN1", "void"), ("IN2", "long long"), ("OUT0", "bool"))
    with pytest.raises(KernelError, match="no type for dtype complex64 of IN0"):
        macros([Stub("complex64")], [])


def test_attributes_become_numbers():
    kernel = xrt.CudaKernel("f", "f", attributes=("b", "a"))
    found = numbers(kernel, {"a": 1, "b": 0.5, "other": "text"})
    assert [(type(each), each) for each in found] == [(np.float32, 0.5), (np.int64, 1)]
    with pytest.raises(KernelError, match=r"takes the attribute 'b' as a number.*has None"):
        numbers(kernel, {"a": 1})
    with pytest.raises(KernelError, match="has 'text'"):
        numbers(kernel, {"a": "text", "b": 1})


def test_what_follows_is_compiled_for_its_outputs():
    program = xrt.compile(parse(MIXED), engine="xla")
    assert [sorted(n.op_type for n in c.nodes) for c in program.clusters] == [
        ["Add", "Add", "Exp", "Mul"]
    ]


@pytest.mark.skipif(not isinstance(device.present(), str), reason="this machine has a GPU")
def test_without_a_gpu_the_error_says_so():
    program = xrt.compile(parse(ONE), engine="host")
    with pytest.raises(EngineUnavailableError, match="NVIDIA driver"):
        program(X)


# --- with a GPU ----------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["host", "xla"])
def test_a_source_computes(gpu, engine):
    program = xrt.compile(parse(MIXED), engine=engine)
    b = X * np.float32(2.5) + X
    for _ in range(5):
        assert_close(program(X), b * b + np.exp(X))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float", "double", "int64", "int32"])
def test_a_source_is_compiled_for_each_type(gpu, dtype):
    signature = f"({dtype}[4] x) => ({dtype}[4] y)"
    program = xrt.compile(parse("y = com.example.Scale<factor=2.0>(x)", signature), engine="host")
    value = np.arange(4).astype({"float": "float32", "double": "float64"}.get(dtype, dtype))
    assert_close(program(value), value * 2)


@pytest.mark.gpu
def test_torch_in_torch_out_on_the_gpu(gpu, torch_cuda):
    torch = torch_cuda
    program = xrt.compile(parse(ONE), engine="host")
    given = torch.from_numpy(X).cuda()
    result = program(given)
    assert result.is_cuda
    assert_close(result.cpu().numpy(), X * np.float32(2.5))


@pytest.mark.gpu
def test_arrays_of_other_libraries_come_back_as_device_arrays(gpu):
    cupy = pytest.importorskip("cupy")
    program = xrt.compile(parse(ONE), engine="host")
    result = program(cupy.asarray(X))
    assert isinstance(result, DeviceArray)
    assert_close(cupy.asnumpy(cupy.asarray(result)), X * np.float32(2.5))
    again = program(result)
    assert_close(np.asarray(again), X * np.float32(6.25))


@pytest.mark.gpu
def test_a_function_that_takes_a_stream_launches_itself(gpu):
    seen: list[int] = []

    def twice(x: DeviceArray, y: DeviceArray, *, stream: int) -> None:
        from xrt.kernels.cuda import streams

        lane = streams.lane()
        seen.append(stream)
        kernel = source.load(SCALE.source, "scale", macros([x], [y]))
        arguments = (x.pointer, y.pointer, np.int64(y.size), np.float32(2))
        source.launch(kernel, y.size, arguments, lane)

    xrt.register_kernel("com.example", "Twice", twice, device="cuda")
    program = xrt.compile(parse("y = com.example.Twice(x)"), engine="host")
    assert_close(program(X), X * 2)
    assert seen[0] > 2


@pytest.mark.gpu
def test_a_function_on_the_default_stream_is_in_order(gpu):
    cupy = pytest.importorskip("cupy")

    def twice(x: DeviceArray, y: DeviceArray) -> None:
        with cupy.cuda.Stream.null:
            cupy.multiply(cupy.asarray(x), 2, out=cupy.asarray(y))

    xrt.register_kernel("com.example", "Twice", twice, device="cuda")
    body = (
        "a = com.example.Scale<factor=3.0>(x) b = com.example.Twice(a) "
        "y = com.example.Scale<factor=0.5>(b)"
    )
    program = xrt.compile(parse(body), engine="host")
    for _ in range(20):
        assert_close(program(X), X * 3)


@pytest.mark.gpu
def test_a_pycuda_function_is_a_kernel(gpu):
    pytest.importorskip("pycuda.autoprimaryctx")
    from pycuda.compiler import SourceModule

    text = (
        "__global__ void twice(const float* x, float* y) "
        "{ int i = blockIdx.x * blockDim.x + threadIdx.x; y[i] = 2 * x[i]; }"
    )
    function = SourceModule(text).get_function("twice")

    def twice(x: Any, y: Any) -> None:
        function(np.uintp(x.pointer), np.uintp(y.pointer), block=(100, 1, 1), grid=(30, 1))

    xrt.register_kernel("com.example", "Twice", twice, device="cuda")
    program = xrt.compile(parse("y = com.example.Twice(x)"), engine="host")
    assert_close(program(X), X * 2)


@pytest.mark.gpu
def test_a_source_that_does_not_compile_is_quoted_and_the_program_stays(gpu):
    xrt.register_kernel("com.example", "Bad", xrt.CudaKernel("void bad( {", "bad"))
    program = xrt.compile(parse("y = com.example.Bad(x)"), engine="host")
    for _ in range(2):
        with pytest.raises(KernelError, match="'bad' does not compile"):
            program(X)


@pytest.mark.gpu
def test_ten_thousand_calls_take_no_memory(gpu):
    program = xrt.compile(parse(ONE), engine="host")
    for _ in range(100):
        program(X)
    gpu.wait()
    before, _ = device.memory()
    for _ in range(10_000):
        program(X)
    gpu.wait()
    assert before - device.memory()[0] < 1 << 20
