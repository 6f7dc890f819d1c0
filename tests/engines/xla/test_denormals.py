"""Denormal floats in XLA clusters, where `xrt.engines.xla.denormals` can keep them."""

from __future__ import annotations

import platform
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx_ir as ir
import pytest

import xrt
from tests.support import model
from xrt.engines.xla import denormals
from xrt.engines.xla import device as D

Array = np.ndarray[Any, Any]
NAMES = {"float32": "float", "float64": "double"}

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64") or D.device().platform != "cpu",
    reason="XLA flushes denormals on this machine",
)


def compiled(text: str, **constants: Any) -> xrt.Program:
    options = xrt.CompileOptions(min_cluster_weight=0, strict=True, cache=False)
    return xrt.compile(model(text, **constants), engine="xla", options=options)


def denormal(shape: tuple[int, ...], dtype: str = "float32") -> Array:
    """Denormal numbers of up to 2^14 units."""
    units = np.random.default_rng(len(shape)).integers(1, 2**14, shape)
    numbers: Array = units.astype(dtype) * np.finfo(np.dtype(dtype)).smallest_subnormal
    return numbers


def test_this_jax_keeps_them() -> None:
    assert denormals.kept(D.device())


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize("size", [8, 2**21])  # on the launching thread, and on those of the pool
def test_arithmetic(dtype: str, size: int) -> None:
    t, x = NAMES[dtype], denormal((size,), dtype)
    normal = np.full(size, np.finfo(np.dtype(dtype)).smallest_normal, dtype)
    program = compiled(
        f"g ({t}[{size}] x, {t}[{size}] n, {t} h) => "
        f"({t}[{size}] sum, {t}[{size}] less, {t}[{size}] half, {t}[{size}] root)"
        "{ sum = Add (x, x)  less = Sub (n, x)  half = Mul (n, h)  root = Sqrt (x) }"
    )
    got = program(x, normal, np.asarray(0.5, dtype))
    wanted = (x + x, normal - x, normal * np.asarray(0.5, dtype), np.sqrt(x))
    for array, want in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(np.asarray(array), want)


@pytest.mark.parametrize("size", [8, 2**21])
@pytest.mark.parametrize("source", NAMES)
def test_casts(source: str, size: int) -> None:
    (target,) = set(NAMES) - {source}
    x = np.full(size, 1e-40, source)
    program = compiled(
        f"g ({NAMES[source]}[{size}] x) => ({NAMES[target]}[{size}] y)"
        f"{{ y = Cast <to={int(ir.DataType[NAMES[target].upper()])}> (x) }}"
    )
    np.testing.assert_array_equal(np.asarray(program(x)), x.astype(target))


@pytest.mark.parametrize("size", [8, 512])
def test_sums(size: int) -> None:
    x = denormal((size, size))  # whose sums are exact in any order
    program = compiled(
        f"g (float[{size},{size}] x) => (float[{size},1] y) <int64[1] axes>"
        "{ y = ReduceSum (x, axes) }",
        axes=[1],
    )
    np.testing.assert_array_equal(np.asarray(program(x)), x.sum(1, keepdims=True))


@pytest.mark.parametrize("size", [4, 64, 768])
def test_matrix_products(size: int) -> None:
    x = denormal((size, size))
    weight = np.random.default_rng(0).integers(0, 2, (size, size)).astype(np.float32)
    program = compiled(
        f"g (float[{size},{size}] x) => (float[{size},{size}] y) <float[{size},{size}] w>"
        "{ y = MatMul (x, w) }",
        w=weight,
    )
    want = (x.astype(np.float64) @ weight).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(program(x)), want)


@pytest.mark.parametrize(("size", "channels"), [(6, 3), (64, 48)])
def test_convolutions(size: int, channels: int) -> None:
    x = denormal((1, channels, size, size))
    program = compiled(
        f"g (float[1,{channels},{size},{size}] x) => "
        f"(float[1,{channels},{size - 1},{size - 1}] y) <float[{channels},{channels},2,2] w>"
        "{ y = Conv (x, w) }",
        w=np.ones((channels, channels, 2, 2), np.float32),
    )
    summed = x.astype(np.float64).sum(1, keepdims=True)
    rows = summed[:, :, 1:] + summed[:, :, :-1]
    want = (rows[..., 1:] + rows[..., :-1]).astype(np.float32)
    got = np.asarray(program(x))
    np.testing.assert_array_equal(got, np.broadcast_to(want, got.shape))


def test_what_runs_concurrently() -> None:
    # More programs than threads, none of which needs another's result.
    size, width = 128, 24
    rows = " ".join(f"m{i} = MatMul (x, w{i})  y{i} = Mul (m{i}, s)" for i in range(width))
    outputs = ", ".join(f"float[{size},{size}] y{i}" for i in range(width))
    weights = {f"w{i}": np.eye(size, k=i, dtype=np.float32) for i in range(width)}
    types = ", ".join(f"float[{size},{size}] {name}" for name in weights)
    program = compiled(
        f"g (float[{size},{size}] x, float s) => ({outputs}) <{types}> {{ {rows} }}", **weights
    )
    x, s = denormal((size, size)), np.float32(3)
    want = [x @ weight * s for weight in weights.values()]
    for _ in range(50):
        for array, expected in zip(program(x, s), want, strict=True):
            np.testing.assert_array_equal(np.asarray(array), expected)


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize("size", [8, 2**12])  # by XLA's scalar and by its vector code
def test_exponentials_and_logarithms(dtype: str, size: int) -> None:
    t, limits = NAMES[dtype], np.finfo(np.dtype(dtype))
    bottom = np.log(limits.smallest_subnormal)
    x = np.linspace(bottom * 1.1, bottom * 0.9, size).astype(dtype)  # zero, denormal, normal
    program = compiled(
        f"g ({t}[{size}] x, {t}[{size}] d) => ({t}[{size}] y, {t}[{size}] z)"
        "{ y = Exp (x)  z = Log (d) }"
    )
    powers, logarithms = map(np.asarray, program(x, denormal((size,), dtype)))
    want = np.exp(x.astype(np.longdouble)).astype(dtype)
    assert np.count_nonzero((want > 0) & (want < limits.smallest_normal)) > size // 40
    np.testing.assert_allclose(powers, want, rtol=4 * limits.eps, atol=limits.smallest_subnormal)
    np.testing.assert_allclose(
        logarithms, np.log(denormal((size,), dtype).astype(np.longdouble)), rtol=4 * limits.eps
    )


# What each is of x where e to the power x is next to nothing.
EXPONENTIALS: dict[str, Any] = {
    "Sigmoid": np.exp,
    "Softplus": np.exp,
    "Mish": lambda x: x * np.exp(x),
    "Swish": lambda x: x * np.exp(x),
    "Softmax": lambda x: np.exp(x),  # beside a zero
}


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize("size", [8, 2**12])  # by XLA's scalar and by its vector code
@pytest.mark.parametrize("op", EXPONENTIALS)
def test_what_is_made_of_exponentials(op: str, size: int, dtype: str) -> None:
    limits = np.finfo(np.dtype(dtype))
    bottom = np.log(limits.smallest_subnormal)
    x = np.linspace(bottom * 1.1, bottom * 0.9, size).astype(dtype)  # zero, denormal, normal
    x[-1] = 0
    got = compiled(
        f"g ({NAMES[dtype]}[{size}] x) => ({NAMES[dtype]}[{size}] y) {{ y = {op} (x) }}"
    )(x)
    power = np.exp(x.astype(np.longdouble))
    want = EXPONENTIALS[op](x.astype(np.longdouble)).astype(dtype)[:-1]
    assert np.count_nonzero((want != 0) & (abs(want) < limits.smallest_normal)) > size // 40
    # A factor that is denormal itself has few digits.
    units = limits.smallest_subnormal * np.maximum(1, abs(want) / power[:-1]).astype(dtype)
    off = abs(np.asarray(got)[:-1] - want)
    assert np.all(off <= 8 * limits.eps * abs(want) + 2 * units)


@pytest.mark.parametrize("op", ["Exp", "Sigmoid", "Softplus", "Mish", "Swish"])
def test_exponentials_of_the_rest(op: str) -> None:
    x = np.array([-np.inf, np.inf, np.nan, -88, -86.5, -20, -1, 0, 1, 20, 88], np.float32)
    got = compiled(f"g (float[11] x) => (float[11] y) {{ y = {op} (x) }}")(x)
    wide = x.astype(np.float64)
    with np.errstate(invalid="ignore"):
        want = {
            "Exp": np.exp(wide),
            "Sigmoid": 1 / (1 + np.exp(-wide)),
            "Softplus": np.logaddexp(wide, 0),
            "Mish": wide * np.tanh(np.logaddexp(wide, 0)),
            "Swish": wide / (1 + np.exp(-wide)),
        }[op].astype(np.float32)
    np.testing.assert_allclose(np.asarray(got), want, rtol=1e-6)


@pytest.mark.parametrize("dtype", NAMES)
def test_logarithms_of_sums(dtype: str) -> None:
    t, x = NAMES[dtype], denormal((4, 64), dtype)
    program = compiled(
        f"g ({t}[4,64] x) => ({t}[4,1] y) <int64[1] axes> {{ y = ReduceLogSum (x, axes) }}",
        axes=[1],
    )
    want = np.log(x.astype(np.longdouble).sum(1, keepdims=True))
    np.testing.assert_allclose(np.asarray(program(x)), want, rtol=1e-6)


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize("shape", ["", "1,64", "8,1", "8,64"])  # XLA inverts what is broadcast
def test_divisors(shape: str, dtype: str) -> None:
    t, x = NAMES[dtype], denormal((8, 64), dtype)
    sizes = tuple(int(size) for size in shape.split(",") if size)
    by = denormal((8, 64), dtype)[::-1][tuple(slice(size) for size in sizes) or (0, 0)]
    program = compiled(
        f"g ({t}[8,64] x, {t}[{shape}] d) => ({t}[8,64] y) {{ y = Div (x, d) }}".replace("[]", "")
    )
    np.testing.assert_array_equal(np.asarray(program(x, by)), x / by)


def test_norms() -> None:
    x = denormal((8, 64))
    program = compiled("g (float[8,64] x) => (float[8,64] y) { y = LpNormalization <p = 1> (x) }")
    want = x / x.astype(np.float64).sum(1, keepdims=True)
    np.testing.assert_allclose(np.asarray(program(x)), want, rtol=1e-6)


@pytest.mark.parametrize("keys", [64, 1200])  # all heads at once, and head by head
def test_attention_weights(keys: int) -> None:
    # A value reaches the result by its weight alone: the heavier keys have none.
    scores = np.linspace(-103, -80, keys, dtype=np.float32)
    scores[0] = 0
    rows, values = 1000, np.eye(keys, dtype=np.float32)[:, 1:]
    program = compiled(
        f"g (float[1,1,{rows},1] q, float[1,1,{keys},1] k, float[1,1,{keys},{keys - 1}] v) =>"
        f"(float[1,1,{rows},{keys - 1}] y) {{ y = Attention <scale = 1.0> (q, k, v) }}"
    )
    q = np.ones((1, 1, rows, 1), np.float32)
    got = np.asarray(program(q, scores.reshape(1, 1, keys, 1), values[None, None]))[0, 0]
    want = np.exp(scores[1:].astype(np.float64)).astype(np.float32)
    limits = np.finfo(np.float32)
    assert np.count_nonzero((want > 0) & (want < limits.smallest_normal)) > keys // 2
    np.testing.assert_allclose(
        got, np.broadcast_to(want, got.shape), rtol=1e-6, atol=2 * limits.smallest_subnormal
    )


@pytest.mark.parametrize("activation", ["Sigmoid", "Softplus"])
def test_gates_of_recurrent_networks(activation: str) -> None:
    x = np.linspace(-103, -80, 64, dtype=np.float32).reshape(1, 64, 1)
    program = compiled(
        "g (float[1,64,1] x) => (float[1,1,64,1] y) <float[1,1,1] w, float[1,1,1] r>"
        f'{{ y = RNN <hidden_size = 1, activations = ["{activation}"]> (x, w, r) }}',
        w=np.ones((1, 1, 1), np.float32),
        r=np.zeros((1, 1, 1), np.float32),
    )
    want = np.exp(x.astype(np.float64)).astype(np.float32).reshape(1, 1, 64, 1)
    unit = np.finfo(np.float32).smallest_subnormal
    np.testing.assert_allclose(np.asarray(program(x)), want, rtol=1e-6, atol=2 * unit)


def test_loops() -> None:
    program = compiled(
        """g (float[4] x, int64 n) => (float[4] y) {
            y = Loop (n, , x) <body = b (int64 i, bool go, float[4] a) => (bool on, float[4] c)
            { on = Identity (go)  c = Add (a, a) }>
        }"""
    )
    x = denormal((4,))
    np.testing.assert_array_equal(np.asarray(program(x, np.int64(3))), x * 8)


def test_threads_of_another_number() -> None:
    options = xrt.CompileOptions(min_cluster_weight=0, strict=True, cache=False, threads=1)
    text = "g (float[1048576] x) => (float[1048576] y) { y = Add (x, x) }"
    program = xrt.compile(model(text), engine="xla", options=options)
    x = denormal((2**20,))
    np.testing.assert_array_equal(np.asarray(program(x)), x + x)


def test_callers_on_other_threads() -> None:
    program, x = compiled("g (float[64] x) => (float[64] y) { y = Add (x, x) }"), denormal((64,))
    right: list[bool] = []

    def call() -> None:
        right.extend(np.array_equal(np.asarray(program(x)), x + x) for _ in range(100))

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert right == [True] * 400


@pytest.mark.parametrize("flush", [False, True])
def test_the_caller_has_its_own_setting_back(flush: bool) -> None:
    torch = pytest.importorskip("torch")
    program, x = compiled("g (float[64] x) => (float[64] y) { y = Add (x, x) }"), denormal((64,))
    seen: list[Any] = []

    def call() -> None:  # the setting is the thread's
        torch.set_flush_denormal(flush)
        seen.append(np.asarray(program(x)))
        seen.append((torch.from_numpy(x) * 2).count_nonzero().item())

    caller = threading.Thread(target=call)
    caller.start()
    caller.join()
    np.testing.assert_array_equal(seen[0], np.frombuffer(x.view(np.int32) * 2, np.float32))
    assert seen[1] == (0 if flush else 64)


@pytest.mark.parametrize("size", [8, 2**21])
def test_the_users_jax_does_what_it_did(size: int) -> None:
    code = """if True:
        import sys
        import jax.numpy as jnp, numpy as np
        print(np.count_nonzero(jnp.full(int(sys.argv[1]), 1e-40, jnp.float32) * 2))"""
    command = [sys.executable, "-c", code, str(size)]
    alone = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert denormals.kept(D.device())
    with jax.default_device(jax.devices("cpu")[0]):
        assert np.count_nonzero(jnp.full(size, 1e-40, jnp.float32) * 2) == alone


def test_a_process_that_ends_at_once_ends() -> None:
    # XLA waits for the threads of its pool; those must not wait for an interpreter that is gone.
    code = "from xrt.engines.xla import device, denormals; print(denormals.kept(device.device()))"
    command = [sys.executable, "-c", code]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(6)]
    try:
        assert [each.communicate(timeout=120)[0] for each in running] == [b"True\n"] * 6
    finally:
        for each in running:
            each.kill()


CACHED = """if True:
    import sys
    import numpy as np
    import xrt
    from tests.support import model
    options = xrt.CompileOptions(min_cluster_weight=0, strict=True, cache_dir=sys.argv[1])
    text = "g (float[64] x) => (float[64] y) { y = Add (x, x) }"
    program = xrt.compile(model(text), engine="xla", options=options)
    print(np.count_nonzero(program(np.full(64, 1e-40, np.float32))))
"""


def test_a_program_from_the_cache_keeps_them_in_a_new_process(tmp_path: Path) -> None:
    for _ in range(2):
        command = [sys.executable, "-c", CACHED, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.stdout.split() == ["64"], done.stderr


FORKED = """if True:
    import os
    import numpy as np
    import xrt
    from tests.support import model
    options = xrt.CompileOptions(min_cluster_weight=0, strict=True, cache=False)
    text = "g (float[2097152] x) => (float[2097152] y) { y = Add (x, x) }"
    program = xrt.compile(model(text), engine="xla", options=options)
    x = np.full(2097152, 1e-40, np.float32)
    def count():
        print(np.count_nonzero(program(x)), flush=True)
    count()
    if child := os.fork():
        print(os.waitpid(child, 0)[1])
    else:
        count()
        os._exit(0)
"""


def test_a_forked_process_keeps_them() -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == [str(2**21), str(2**21), "0"], done.stderr
