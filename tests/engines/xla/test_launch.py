"""What a program does first: huge pages for its temporaries, where the system has them."""

from __future__ import annotations

import mmap
import platform
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xrt
from tests.support import model
from xrt.engines.xla import device as D
from xrt.engines.xla import launch
from xrt.engines.xla import trace as T

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MIB = 1 << 20
STRICT = xrt.CompileOptions(min_cluster_weight=0, strict=True, cache=False)

on_x86_linux = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64") or D.device().platform != "cpu",
    reason="programs start with a custom call on x86-64 Linux only",
)
with_huge_pages = pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[madvise]" not in HUGE_PAGES.read_text(),
    reason="the system does not give huge pages to those who ask for them, and to no others",
)

# y = softmax(x w) r, whose product of 64 MiB the softmax reads more than once.
ROWS, INNER, COLUMNS = 2048, 64, 8192
PRODUCTS = (
    f"g (float[{ROWS},{INNER}] x) => (float[{ROWS},4] y)"
    f"<float[{INNER},{COLUMNS}] w, float[{COLUMNS},4] r>"
    "{ scores = MatMul (x, w)  share = Softmax (scores)  y = MatMul (share, r) }"
)


def weights(seed: int = 0) -> dict[str, Any]:
    draw = np.random.default_rng(seed).normal
    return {
        "w": draw(size=(INNER, COLUMNS)).astype(np.float32) / 8,
        "r": draw(size=(COLUMNS, 4)).astype(np.float32),
    }


def faults(call: Callable[[], object], calls: int = 4) -> float:
    """How often a call met a page that the system had to give first."""
    call()  # which may come after a pause
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(calls):
        call()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / calls


@on_x86_linux
@with_huge_pages
def test_large_temporaries_lie_in_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    program = xrt.compile(model(PRODUCTS, **weights()), engine="xla", options=STRICT)
    x = np.random.default_rng(1).normal(size=(ROWS, INNER)).astype(np.float32)
    for _ in range(2):
        got = np.asarray(program(x))
    given = weights()
    scores = (x @ given["w"]).astype(np.float64)
    powers = np.exp(scores - scores.max(1, keepdims=True))
    want = powers / powers.sum(1, keepdims=True) @ given["r"]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    (executable,) = program.specialization.executables.values()
    pages = executable.memory()["temporaries"] / mmap.PAGESIZE
    assert pages > 32 * MIB / mmap.PAGESIZE
    assert faults(lambda: program(x)) < pages / 4
    monkeypatch.setattr(launch, "_PAUSE", -1.0)  # as if each call came after a pause
    assert faults(lambda: program(x)) > pages / 2


@on_x86_linux
@with_huge_pages
def test_training_does_it_too() -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(
        torch.nn.Linear(INNER, COLUMNS), torch.nn.Tanh(), torch.nn.Linear(COLUMNS, 4)
    )
    draw = torch.Generator().manual_seed(0)
    batch = (torch.randn(ROWS, INNER, generator=draw), torch.zeros(ROWS, dtype=torch.int64))
    trainer = xrt.compile_training(
        module,
        batch,
        loss="cross_entropy",
        optimizer=torch.optim.SGD(module.parameters(), lr=0.01),
        engine="xla",
    )
    for _ in range(2):
        trainer.step(batch)
    pages = ROWS * COLUMNS * 4 / mmap.PAGESIZE  # of the activations alone
    assert faults(lambda: trainer.step(batch)) < pages / 2


@on_x86_linux
def test_denormals_are_kept_beside_large_temporaries() -> None:
    rows, width = 1024, 2048
    program = xrt.compile(
        model(
            f"g (float[{rows},1] x) => (float[{rows},1] y) <float[1,{width}] w, float[{width},1] r>"
            "{ wide = MatMul (x, w)  y = MatMul (wide, r) }",
            w=np.ones((1, width), np.float32),
            r=np.ones((width, 1), np.float32),
        ),
        engine="xla",
        options=STRICT,
    )
    x = np.full((rows, 1), 1e-42, np.float32)
    np.testing.assert_array_equal(np.asarray(program(x)), x * np.float32(width))


def test_the_largest_temporary() -> None:
    graph = model(
        """g (float[8,16] x) => (float[8,64] y, float[64,8] z)
        <float[16,32] w, float[32,64] r, float[8,32] a, float[8,32] b> {
            a = MatMul (x, w)  b = Relu (a)  y = MatMul (b, r)  z = Transpose <perm = [1, 0]> (y)
        }""",
        w=np.zeros((16, 32), np.float32),
        r=np.zeros((32, 64), np.float32),
    ).graph
    assert T.largest_temporary(graph, T.plan(graph)) == 8 * 32 * 4  # y and z are results


def test_what_xla_computes_where_it_is_read_is_no_temporary() -> None:
    graph = model(
        """g (float[4,8] x) => (float[4,64] y)
        <int8[8,64] q, float s, float[8,64] w, float[4,8] a> {
            w = DequantizeLinear (q, s)  a = Exp (x)  y = MatMul (a, w)
        }""",
        q=np.zeros((8, 64), np.int8),
        s=np.float32(0.5),
    ).graph
    assert T.largest_temporary(graph, T.plan(graph)) == 0


@on_x86_linux
@pytest.mark.parametrize(("columns", "hinted"), [(2, True), (64, False)])
def test_a_result_that_is_far_larger_prevents_the_hint(columns: int, hinted: bool) -> None:
    # The piece of memory would grow to its size.
    rows = 2 * MIB
    program = xrt.compile(
        model(
            f"g (float[{rows},1] x) => (float[{rows // 8},{columns}] y)"
            f"<float[1,1] w, int64[2] s, float[8,{columns}] r>"
            "{ wide = MatMul (x, w)  cut = Reshape (wide, s)  y = MatMul (cut, r) }",
            w=np.ones((1, 1), np.float32),
            s=np.array([rows // 8, 8]),
            r=np.ones((8, columns), np.float32),
        ),
        np.zeros((rows, 1), np.float32),
        engine="xla",
        options=STRICT,
    )
    (executable,) = program.specialization.executables.values()
    kept, result = 4 * rows, rows // 8 * columns * 4
    planned = executable.memory()["temporaries"]
    assert planned < max(kept, result if hinted else 0) + MIB


@on_x86_linux
def test_what_xla_fuses_takes_no_memory() -> None:
    # Reserved for values that nobody stores, it would only be reported.
    text = f"g (float[{4 * MIB}] x) => (float[{4 * MIB}] y) {{ a = Exp (x)  y = Neg (a) }}"
    program = xrt.compile(model(text), engine="xla", options=STRICT)
    program(np.zeros(4 * MIB, np.float32))
    (executable,) = program.specialization.executables.values()
    assert executable.memory()["temporaries"] < MIB
