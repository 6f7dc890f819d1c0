"""Linear algebra beyond products."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from xrt.engines.xla.lowering import Context, lowering
from xrt.engines.xla.ops.numerics import wide


@lowering("Det")
def det(ctx: Context, x: Any) -> Any:
    """Determinants of the last two dimensions, by LU decomposition."""
    return jnp.linalg.det(wide(x)).astype(x.dtype)
