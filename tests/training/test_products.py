"""Products in half precision: numbers, derivatives, and what XLA is asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xrt.training.products import product

RNG = np.random.default_rng(0)

SHAPES = {
    "matrices": ((6, 5), (5, 7)),
    "rows by a matrix": ((2, 3, 5), (5, 7)),
    "batches": ((2, 3, 4, 5), (2, 3, 5, 6)),
    "batches that broadcast": ((3, 4, 5), (2, 1, 5, 6)),
    "a batch by one": ((64, 3, 5), (1, 5, 7)),
    "one by a batch": ((1, 3, 5), (4, 5, 6)),
    "fewer dimensions": ((3, 5), (2, 5, 6)),
    "a vector": ((5,), (5, 7)),
    "no rows": ((0, 5), (5, 7)),
}


def loss(multiply, a, b, weights):
    return (multiply(a, b).astype(jnp.float32) * weights).sum()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", SHAPES)
def test_it_is_a_product_and_so_is_its_derivative(name, dtype):
    a, b = (RNG.normal(size=shape).astype(np.float32) for shape in SHAPES[name])
    a, b = (np.asarray(jnp.asarray(each, dtype)) for each in (a, b))
    wide = [each.astype(np.float32) for each in (a, b)]
    weights = RNG.normal(size=np.matmul(*wide).shape).astype(np.float32)
    got = jax.jit(product)(a, b)
    assert got.dtype == dtype
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(got.astype(np.float32), np.matmul(*wide), rtol=eps, atol=eps)
    gradient = jax.jit(jax.grad(loss, argnums=(1, 2)), static_argnums=0)
    want = gradient(jnp.matmul, *wide, weights)
    for found, expected in zip(gradient(product, a, b, weights), want, strict=True):
        assert found.dtype == dtype
        size = 1 + np.abs(expected).max(initial=0)
        np.testing.assert_allclose(found.astype(np.float32), expected, atol=4 * eps * size)


@pytest.mark.parametrize("name", ["matrices", "rows by a matrix", "batches", "a batch by one"])
def test_all_factors_are_in_half_precision_and_all_sums_in_float32(name):
    a, b = (jnp.zeros(shape, jnp.bfloat16) for shape in SHAPES[name])
    weights = jnp.ones(jnp.matmul(a, b).shape, jnp.float32)
    step = jax.jit(jax.value_and_grad(loss, argnums=(1, 2)), static_argnums=0)
    text = step.lower(product, a, b, weights).as_text()
    kinds = [line[line.rindex(" : ") :] for line in text.splitlines() if "dot_general" in line]
    assert len(kinds) == 3
    for kind in kinds:
        factors, _, result = kind.partition("->")
        assert (factors.count("xbf16>"), result.count("xf32>")) == (2, 1), kind
        assert name != "a batch by one" or "<64x" not in kind  # its gradient is one product
