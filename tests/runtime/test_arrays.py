"""Arrays at the door: the caller's library in and out, without copies, and never shared."""

from __future__ import annotations

import gc
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

import xrt
from tests.support import model
from xrt.errors import EngineUnavailableError, InputError
from xrt.kernels.cuda import device, staging
from xrt.runtime import arrays

OPTIONS = xrt.CompileOptions(cache=False, min_cluster_weight=0)
DTYPES = {
    "float": np.float32,
    "double": np.float64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "int64": np.int64,
    "int32": np.int32,
    "int8": np.int8,
    "uint8": np.uint8,
    "bool": np.bool_,
}
SHAPES = [(), (0,), (3,), (2, 0, 3), (2, 3)]
ENGINES = ["xla", "host"]


def identity_like(onnx_type: str, shape: tuple[int, ...], engine: str) -> xrt.Program:
    """x unchanged, by an operator that an engine runs."""
    node = "And (x, x)" if onnx_type == "bool" else "Max (x, x)"
    dims = f"[{','.join(map(str, shape))}]" if shape else ""
    made = model(f"g ({onnx_type}{dims} x) => ({onnx_type}{dims} y) {{ y = {node} }}")
    return xrt.compile(made, engine=engine, options=OPTIONS)


def data(dtype, shape) -> np.ndarray:
    return np.arange(-1, int(np.prod(shape)) - 1).reshape(shape).astype(dtype)


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy at an address that XLA can use as it is."""
    room = np.empty(array.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def to_torch(array: np.ndarray) -> torch.Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def to_numpy(array) -> np.ndarray:
    if isinstance(array, torch.Tensor) and array.dtype == torch.bfloat16:
        return array.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return np.asarray(array)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("onnx_type", DTYPES)
def test_every_library_gets_back_what_it_gave(onnx_type, engine):
    dtype = DTYPES[onnx_type]
    for shape in SHAPES if onnx_type in ("float", "bfloat16", "int64") else SHAPES[-1:]:
        program = identity_like(onnx_type, shape, engine)
        assert len(program.clusters) == (engine == "xla")
        x = data(dtype, shape)
        with jax.enable_x64(True):
            given = {np.ndarray: x, torch.Tensor: to_torch(x), jax.Array: jnp.asarray(x)}
        for kind, array in given.items():
            y = program(array)
            assert isinstance(y, kind), (kind, type(y))
            assert y.dtype == array.dtype
            assert tuple(y.shape) == shape
            assert to_numpy(y).tobytes() == x.tobytes()


@pytest.mark.parametrize("engine", ENGINES)
def test_numpy_and_torch_outputs_can_be_written(engine):
    for onnx_type in ("float", "bfloat16", "bool"):
        program = identity_like(onnx_type, (2, 3), engine)
        x = data(DTYPES[onnx_type], (2, 3))
        y = program(x)
        assert y.flags.writeable
        y[...] = 0
        z = program(to_torch(x))
        z.zero_()
        assert not np.asarray(y, np.float32).any()
        assert not z.any()
        assert to_numpy(program(x)).tobytes() == x.tobytes()


def test_numbers_and_lists_go_in_as_numpy():
    program = identity_like("double", (2,), "host")
    assert program([1.0, 2.0]).tolist() == [1.0, 2.0]
    scalar = identity_like("double", (), "host")
    y = scalar(2.5)
    assert isinstance(y, np.ndarray)
    assert (y.shape, y.item()) == ((), 2.5)


def test_a_tensor_among_arrays_makes_it_a_torch_call():
    made = model("g (float[2] a, float[2] b) => (float[2] y) { y = Add (a, b) }")
    program = xrt.compile(made, options=OPTIONS)
    a, b = np.ones(2, np.float32), torch.ones(2)
    assert isinstance(program(a, b), torch.Tensor)
    assert isinstance(program(a, jnp.asarray(a)), jax.Array)
    assert isinstance(program(jnp.asarray(a), b), torch.Tensor)
    assert arrays.kind_of([1, [2]]) == "numpy"


def test_inputs_that_are_views_of_all_kinds():
    program = identity_like("float", (3, 2), "xla")
    base = np.arange(6, dtype=np.float32).reshape(2, 3)
    want = base.T.copy()
    frozen = want.copy()
    frozen.flags.writeable = False
    strided = np.repeat(want, 2, axis=0)[::2]
    flipped = want[::-1].copy()[::-1]
    swapped = torch.from_numpy(base).T
    needs_grad = torch.from_numpy(want.copy()).requires_grad_()
    negative = torch.view_as_real(torch.complex(torch.from_numpy(want), torch.from_numpy(want)))
    for x in (base.T, frozen, strided, flipped, swapped, needs_grad, negative[..., 0]):
        np.testing.assert_array_equal(to_numpy(program(x)), want)
    assert not program(needs_grad).requires_grad


def test_inputs_go_in_without_a_copy():
    seen = []
    program = identity_like("float", (64, 64), "xla")
    schedule = program.specialization.schedule
    run = schedule.run
    object.__setattr__(
        schedule, "run", lambda inputs, record=None: seen.append(inputs) or run(inputs, record)
    )
    x = np.ones((64, 64), np.float32)
    t = torch.ones(64, 64)
    j = jnp.ones((64, 64))
    b = torch.ones(64, 64, dtype=torch.bfloat16)
    for array in (x, t, j):
        program(array)
    assert seen[0][0] is x
    assert seen[1][0].ctypes.data == t.data_ptr()
    assert np.asarray(seen[2][0]).ctypes.data == j.unsafe_buffer_pointer()
    assert arrays.take(b).ctypes.data == b.data_ptr()


def test_outputs_come_out_without_a_copy():
    program = identity_like("float", (64, 64), "xla")
    made = []
    (executable,) = program.specialization.executables.values()
    run = executable.run

    def keep(inputs, stream=None):
        results = run(inputs, stream)
        made.append([r.unsafe_buffer_pointer() for r in results])
        return results

    steps = program.specialization.schedule.steps
    object.__setattr__(steps[0], "run", keep)
    y = program(np.ones((64, 64), np.float32))
    t = program(torch.ones(64, 64))
    j = program(jnp.ones((64, 64)))
    assert y.ctypes.data == made[0][0]
    assert t.data_ptr() == made[1][0]
    assert j.unsafe_buffer_pointer() == made[2][0]


def test_outputs_outlive_the_program():
    program = identity_like("float", (256, 256), "xla")
    x = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
    y, t, j = program(x), program(torch.from_numpy(x)), program(jnp.asarray(x))
    del program
    gc.collect()
    for _ in range(8):
        np.ones((256, 256), np.float32)
    for output in (y, t, j):
        np.testing.assert_array_equal(np.asarray(output), x)


ALIASING = {
    "an input as output": "y = Identity (x)",
    "a view of an input": "y = Reshape (x, shape)",
    "a view of a view": "t = Transpose (x) u = Reshape (t, shape) y = Transpose <perm=[1,0]> (u)",
    "a slice of an input": "y = Slice (x, zeros, shape)",
    "a weight as output": "z = Neg (x) y = Identity (w)",
    "a view of a weight": "z = Neg (x) t = Transpose (w) y = Transpose (t)",
    "a computed value": "y = Add (x, w)",
    "what XLA simplifies to its input": "y = Max (x, x)",
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("body", ALIASING.values(), ids=ALIASING)
def test_outputs_never_alias_inputs_or_weights(body, engine):
    w = np.arange(4.0).reshape(2, 2)
    made = model(
        f"""g (float[2,2] x) => (float[2,2] y)
        <float[2,2] w, int64[2] shape = {{2, 2}}, int64[2] zeros = {{0, 0}}> {{ {body} }}""",
        w=w,
    )
    program = xrt.compile(made, engine=engine, options=OPTIONS)
    x = np.arange(4, dtype=np.float32).reshape(2, 2) + 10
    for convert in (aligned, lambda a: torch.from_numpy(aligned(a)), jnp.asarray):
        given = convert(x)
        want = np.array(program(given))
        got = program(given)
        if isinstance(got, jax.Array):
            continue  # cannot be written
        got[...] = -1
        np.testing.assert_array_equal(np.asarray(given), x)
        np.testing.assert_array_equal(np.asarray(program(given)), want)
        given[...] = 0
        assert (np.asarray(got) == -1).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_two_outputs_of_one_value_do_not_alias(engine):
    made = model("""
        g (float[2] x) => (float[2] y, float[2] z) {
            a = Neg (x)  y = Identity (a)  z = Identity (a)
        }""")
    program = xrt.compile(made, engine=engine, options=OPTIONS)
    y, z = program(np.ones(2, np.float32))
    y[...] = 7
    assert z.tolist() == [-1, -1]


def test_a_program_keeps_its_weights_when_the_model_changes():
    linear = torch.nn.Linear(3, 2).eval()
    program = xrt.compile(linear, (torch.ones(1, 3),), options=OPTIONS)
    with torch.no_grad():
        want = linear(torch.ones(1, 3))
        linear.weight.zero_()
        linear.bias.fill_(100)
    torch.testing.assert_close(program(torch.ones(1, 3)), want)


@pytest.mark.parametrize("x64", [False, True])
def test_the_users_jax_settings_stay(x64):
    with jax.enable_x64(x64):
        before = dict(jax.config.values)
        program = identity_like("int64", (3,), "xla")
        y = program(np.arange(3))
        assert y.dtype == np.int64
        assert jnp.arange(3).dtype == (jnp.int64 if x64 else jnp.int32)
        assert dict(jax.config.values) == before


def test_a_jax_call_gives_int64_without_the_users_x64():
    program = identity_like("int64", (3,), "xla")
    y = program(np.array([1, 2, 1 << 40]))
    assert y.tolist() == [1, 2, 1 << 40]
    with jax.enable_x64(True):
        x = jnp.asarray([1, 2, 1 << 40])
    assert x.dtype == jnp.int64
    z = program(x)
    assert isinstance(z, jax.Array)
    assert z.dtype == jnp.int64
    assert np.asarray(z).tolist() == [1, 2, 1 << 40]
    assert not jax.config.jax_enable_x64


def test_jax_outputs_live_on_the_users_device():
    program = identity_like("float", (3,), "xla")
    y = program(jnp.ones(3))
    assert y.devices() == jnp.ones(3).devices()
    assert jax.jit(lambda a: a + 1)(y).tolist() == [2, 2, 2]


def test_kinds_do_not_import_other_libraries(monkeypatch):
    for name in ("torch", "jax"):
        monkeypatch.setitem(sys.modules, name, None)
    assert arrays.kind_of([np.ones(1)]) == "numpy"
    x = np.ones(2)
    assert arrays.take(x) is x
    assert arrays.give(x, "numpy") is x


def test_a_writable_view_keeps_its_owner_alive():
    for dtype in (np.float32, ml_dtypes.bfloat16):
        with jax.enable_x64(True):
            owner = jnp.arange(1000).astype(dtype)
        view = arrays.to_numpy(owner)
        want = np.asarray(owner).tobytes()
        assert view.flags.writeable
        assert view.dtype == dtype
        del owner
        gc.collect()
        assert view.tobytes() == want


def test_jax_arrays_are_widened_where_jax_has_no_wider(tmp_path):
    """jax.numpy.array([1]) is int32 unless jax_enable_x64 is set."""
    jax = pytest.importorskip("jax")
    made = model("g (int64[2] i, float[2] x) => (int64[2] j, float[2] y) { j = Neg(i) y = Neg(x) }")
    program = xrt.compile(made, engine="host", options=xrt.CompileOptions(cache_dir=tmp_path))
    i, x = jax.numpy.array([1, 2]), jax.numpy.array([1.0, 2.0])
    assert i.dtype == np.int32
    j, _ = program(i, x)
    assert isinstance(j, jax.Array)
    assert j.dtype == np.int64
    np.testing.assert_array_equal(np.asarray(j), [-1, -2])
    with pytest.raises(InputError, match="float32"):
        program(i, i)  # an int32 is no float32, and not every int32 would fit
    with pytest.raises(InputError, match="int32"):
        program(np.array([1, 2], np.int32), np.array([1, 2], np.float32))  # NumPy has int64


class OnGpu:
    """An object with a CUDA array interface."""

    shape, dtype = (2,), np.dtype(np.float32)
    __cuda_array_interface__ = {  # noqa: RUF012
        "shape": (2,),
        "typestr": "<f4",
        "data": (4096, False),
        "version": 3,
    }


def test_arrays_on_a_gpu_decide_the_kind():
    assert arrays.kind_of([np.ones(2), OnGpu()]) == "cuda"
    assert arrays.kind_of([[OnGpu()]]) == "cuda"
    assert arrays.kind_of([jnp.ones(2), OnGpu()]) == "jax"
    assert arrays.kind_of([np.ones(2), None]) == "numpy"


@pytest.mark.skipif(not isinstance(device.present(), str), reason="this machine has a GPU")
def test_an_array_on_a_gpu_needs_one():
    with pytest.raises(EngineUnavailableError, match="NVIDIA driver"):
        arrays.take(OnGpu())


@pytest.mark.gpu
def test_arrays_on_a_gpu_come_and_go(gpu):
    there = staging.upload(np.arange(6, dtype=np.float32), gpu)
    assert arrays.take(there) is there
    assert arrays.give(there, "cuda") is there
    np.testing.assert_array_equal(arrays.give(there, "numpy"), np.arange(6))
    np.testing.assert_array_equal(arrays.on_host(there), np.arange(6))
    given = arrays.give(np.ones(3, np.float32), "cuda")
    np.testing.assert_array_equal(np.asarray(given), np.ones(3))
    assert arrays.give(None, "cuda") is None


@pytest.mark.gpu
def test_torch_tensors_on_a_gpu_come_and_go(gpu, torch_cuda):
    tensor = torch_cuda.arange(6.0, device="cuda").reshape(2, 3)
    taken = arrays.take(tensor.T)
    assert taken.shape == (3, 2)
    given = arrays.give(taken, arrays.kind_of([tensor]))
    assert given.is_cuda
    assert given.tolist() == tensor.T.tolist()
    assert arrays.give(taken, "torch").device.type == "cpu"


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["host", "xla"])
def test_programs_take_arrays_on_a_gpu(gpu, engine):
    made = model("g (float[4] x) => (float[4] y) { a = Exp(x) y = Tanh(a) }")
    program = xrt.compile(made, engine=engine)
    x = np.linspace(-1, 1, 4, dtype=np.float32)
    result = program(staging.upload(x, gpu))
    np.testing.assert_allclose(np.asarray(result), np.tanh(np.exp(x)), rtol=1e-5)
