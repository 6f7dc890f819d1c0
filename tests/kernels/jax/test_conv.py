"""Every convolution algorithm against torch, in float64 there."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from xrt.kernels.jax import conv
from xrt.kernels.jax.conv import ConvSpec

TOLERANCE = {"float32": 3e-6, "float16": 2e-3, "bfloat16": 2e-2, "float64": 1e-13}
SPECS = {
    "plain": ConvSpec(2, 9, 11, 5, 7, (3, 3)),
    "same": ConvSpec(1, 8, 8, 16, 24, (3, 3), pads=(1, 1, 1, 1)),
    "asymmetric": ConvSpec(2, 9, 7, 4, 6, (3, 3), pads=(0, 2, 1, 0)),
    "strided": ConvSpec(1, 15, 13, 3, 8, (7, 7), strides=(2, 2), pads=(3, 3, 3, 3)),
    "strided 3x3": ConvSpec(2, 11, 12, 3, 8, (3, 3), strides=(2, 2), pads=(0, 1, 1, 0)),
    "uneven strides": ConvSpec(1, 15, 16, 3, 4, (3, 5), strides=(3, 2), pads=(1, 2, 0, 1)),
    "dilated": ConvSpec(1, 13, 14, 6, 5, (3, 3), pads=(2, 3, 2, 3), dilations=(2, 3)),
    "pointwise": ConvSpec(2, 7, 5, 9, 4, (1, 1)),
    "pointwise strided": ConvSpec(2, 7, 6, 9, 4, (1, 1), strides=(2, 3)),
    "pointwise padded": ConvSpec(1, 4, 4, 3, 2, (1, 1), pads=(1, 0, 1, 2)),
    "patches": ConvSpec(2, 18, 17, 3, 12, (4, 4), strides=(4, 4)),
    "uneven kernel": ConvSpec(1, 9, 9, 4, 4, (1, 7), pads=(0, 3, 0, 3)),
    "depthwise": ConvSpec(2, 9, 8, 6, 6, (3, 3), pads=(1, 1, 1, 1), groups=6),
    "depthwise strided": ConvSpec(1, 9, 8, 6, 6, (3, 3), (2, 2), (0, 1, 1, 0), groups=6),
    "depthwise 7x7": ConvSpec(1, 7, 7, 8, 8, (7, 7), pads=(3, 3, 3, 3), groups=8),
    "depthwise dilated": ConvSpec(1, 9, 9, 4, 4, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2), 4),
    "multiplier": ConvSpec(1, 6, 7, 4, 12, (3, 3), pads=(1, 1, 1, 1), groups=4),
    "grouped": ConvSpec(2, 6, 7, 12, 18, (3, 3), (1, 2), (1, 0, 1, 2), groups=3),
    "many groups": ConvSpec(1, 8, 8, 128, 64, (3, 3), pads=(1, 1, 1, 1), groups=32),
    "one row": ConvSpec(2, 1, 20, 4, 6, (1, 5), strides=(1, 2), pads=(0, 2, 0, 1)),
    "one output": ConvSpec(1, 3, 3, 4, 2, (3, 3)),
}
CASES = [
    pytest.param(spec, algorithm, id=f"{name}-{algorithm.name}")
    for name, spec in SPECS.items()
    for algorithm in conv.candidates(spec)
]


def values(spec: ConvSpec) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((spec.n, spec.h, spec.w, spec.c_in))
    w = rng.standard_normal((spec.c_out, spec.c_in // spec.groups, *spec.kernel))
    kind = jnp.dtype(spec.dtype)
    return x.astype(kind), w.astype(kind)


def reference(x: np.ndarray, w: np.ndarray, spec: ConvSpec) -> np.ndarray:
    nchw = torch.from_numpy(x.astype(np.float64)).permute(0, 3, 1, 2)
    top, left, bottom, right = spec.pads
    y = torch.nn.functional.conv2d(
        torch.nn.functional.pad(nchw, (left, right, top, bottom)),
        torch.from_numpy(w.astype(np.float64)),
        stride=spec.strides,
        dilation=spec.dilations,
        groups=spec.groups,
    )
    return y.permute(0, 2, 3, 1).numpy()


def run(x: np.ndarray, w: np.ndarray, spec: ConvSpec, algorithm: conv.Algorithm) -> np.ndarray:
    prepared = algorithm.prepare_weight(w, spec)
    assert prepared.dtype == w.dtype
    return np.asarray(
        jax.jit(lambda x, w: conv.convolve(x, w, spec, algorithm))(jnp.asarray(x), prepared)
    )


def error(got: np.ndarray, expected: np.ndarray) -> float:
    assert got.shape == expected.shape
    return float(np.abs(got.astype(np.float64) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(("spec", "algorithm"), CASES)
def test_algorithm_agrees_with_torch(spec: ConvSpec, algorithm: conv.Algorithm) -> None:
    x, w = values(spec)
    expected = reference(x, w, spec)
    assert expected.shape == spec.out_shape
    limit = TOLERANCE["float32"] * (1 if algorithm.exact else 10)
    assert error(run(x, w, spec, algorithm), expected) < limit


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    "name", ["same", "strided", "patches", "pointwise", "depthwise", "grouped"]
)
def test_narrow_types_accumulate_in_fp32(name: str, dtype: str) -> None:
    spec = ConvSpec(**{**SPECS[name].__dict__, "dtype": dtype})
    x, w = values(spec)
    for algorithm in conv.candidates(spec):
        if algorithm.exact and "winograd" not in algorithm.name:
            got = run(x, w, spec, algorithm)
            assert got.dtype == jnp.dtype(dtype)
            assert error(got, reference(x, w, spec)) < TOLERANCE[dtype], algorithm.name


def test_float64_keeps_its_precision() -> None:
    with jax.enable_x64(True):
        spec = ConvSpec(**{**SPECS["same"].__dict__, "dtype": "float64"})
        x, w = values(spec)
        for algorithm in conv.candidates(spec):
            got = run(x, w, spec, algorithm)
            assert error(got, reference(x, w, spec)) < TOLERANCE["float64"], algorithm.name


@pytest.mark.parametrize("change", [{"n": 0}, {"c_out": 0}, {"h": 2, "pads": (0, 0, 0, 0)}])
def test_an_empty_output_is_answered(change: dict[str, object]) -> None:
    spec = ConvSpec(**{**SPECS["same"].__dict__, **change})
    x, w = values(spec)
    assert run(x, w, spec, conv.DIRECT).shape == spec.out_shape


@pytest.mark.parametrize("rank", [1, 3])
def test_direct_serves_other_ranks(rank: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 6, *(7, 8, 9)[:rank])).astype(np.float32)
    w = rng.standard_normal((4, 3, *(3, 2, 3)[:rank])).astype(np.float32)
    function = {1: torch.nn.functional.conv1d, 3: torch.nn.functional.conv3d}[rank]
    expected = function(torch.from_numpy(x), torch.from_numpy(w), stride=2, padding=1, groups=2)
    got = conv.direct(
        jnp.moveaxis(x, 1, -1),
        jnp.moveaxis(w, (0, 1), (-1, -2)),
        strides=(2,) * rank,
        pads=(1,) * (2 * rank),
        dilations=(1,) * rank,
        groups=2,
    )
    np.testing.assert_allclose(np.moveaxis(got, -1, 1), expected, rtol=1e-5, atol=1e-5)


def test_choice_is_applicable_and_exact() -> None:
    for spec in SPECS.values():
        chosen = conv.choose(spec)
        assert chosen.exact
        assert chosen in conv.candidates(spec)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (ConvSpec(1, 56, 56, 48, 48, (3, 3), pads=(1, 1, 1, 1)), "direct"),
        (ConvSpec(1, 56, 56, 64, 64, (3, 3), pads=(1, 1, 1, 1)), "winograd_f2"),
        (ConvSpec(1, 112, 112, 128, 128, (3, 3), pads=(1, 1, 1, 1)), "direct"),
        (ConvSpec(8, 28, 28, 256, 256, (3, 3), pads=(1, 1, 1, 1)), "winograd_f2"),
        (ConvSpec(8, 28, 28, 512, 512, (3, 3), pads=(1, 1, 1, 1)), "winograd_f2"),
        (ConvSpec(4, 56, 56, 192, 192, (3, 3), pads=(1, 1, 1, 1)), "winograd_f2"),
        (ConvSpec(8, 56, 56, 128, 128, (3, 3), pads=(1, 1, 1, 1)), "direct"),
        (ConvSpec(1, 8, 8, 448, 384, (3, 3), pads=(1, 1, 1, 1)), "winograd_f2"),
        (ConvSpec(1, 28, 28, 256, 256, (3, 3), pads=(1, 1, 1, 1)), "winograd_f2"),
        (
            ConvSpec(1, 28, 28, 256, 256, (3, 3), pads=(1, 1, 1, 1), dtype="bfloat16"),
            "direct",
        ),
        (ConvSpec(1, 7, 7, 512, 512, (3, 3), pads=(1, 1, 1, 1)), "im2col"),
        (ConvSpec(1, 224, 224, 3, 768, (16, 16), strides=(16, 16)), "patchify"),
        (ConvSpec(8, 56, 56, 256, 64, (1, 1)), "pointwise"),
        (ConvSpec(1, 56, 56, 192, 192, (7, 7), pads=(3, 3, 3, 3), groups=192), "depthwise"),
        (ConvSpec(1, 7, 7, 1024, 1024, (3, 3), pads=(1, 1, 1, 1), groups=32), "grouped_dot"),
    ],
)
def test_choice_follows_the_table(spec: ConvSpec, name: str) -> None:
    assert conv.choose(spec).name == name


def test_large_temporaries_in_small_pages_cost_more() -> None:
    spec = ConvSpec(8, 28, 28, 256, 256, (3, 3), pads=(1, 1, 1, 1))
    assert conv.choose(spec).name == "winograd_f2"
    assert conv.choose(spec, huge_pages=False).name == "direct"


@pytest.mark.parametrize(
    ("algorithm", "limit"), [(conv.WINOGRAD_F2, 2e-6), (conv.WINOGRAD_F4, 4e-5)]
)
def test_winograd_error_at_a_real_width(algorithm: conv.Algorithm, limit: float) -> None:
    spec = ConvSpec(1, 15, 14, 256, 256, (3, 3), pads=(1, 1, 1, 1))
    x, w = values(spec)
    assert error(run(x, w, spec, algorithm), reference(x, w, spec)) < limit


def test_depthwise_has_a_gradient() -> None:
    spec = SPECS["depthwise"]
    x, w = values(spec)
    prepared = jnp.asarray(conv.DEPTHWISE.prepare_weight(w, spec))
    got = jax.grad(lambda x: conv.depthwise(x, prepared, spec).sum())(jnp.asarray(x))
    want = jax.grad(
        lambda x: conv.DIRECT.apply(x, conv.DIRECT.prepare_weight(w, spec), spec).sum()
    )(jnp.asarray(x))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
