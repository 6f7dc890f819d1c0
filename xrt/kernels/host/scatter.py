"""Writing a run of steps into a cache."""

from __future__ import annotations

import numpy as np

from xrt.kernels.host.common import Array, normalize_axes
from xrt.kernels.host.registry import kernel


@kernel("TensorScatter")
def tensor_scatter(
    cache: Array,
    update: Array,
    write_indices: Array | None = None,
    *,
    axis: int = -2,
    mode: str = "linear",
) -> Array:
    """`cache` with `update` from each sample's index on along an axis.

    In circular mode the steps go on at the beginning of the axis where they pass its end.
    """
    (axis,) = normalize_axes((axis,), cache.ndim)
    size, length = cache.shape[axis], update.shape[axis]
    starts = [0] * len(cache) if write_indices is None else write_indices.reshape(-1).tolist()
    if mode == "linear" and any(not 0 <= start <= size - length for start in starts):
        raise ValueError(
            f"{length} steps from index {min(starts)} to {max(starts)} on do not fit into {size}; "
            "mode 'circular' would go around"
        )
    result = cache.copy()
    for sample, start in enumerate(starts):
        rows = np.moveaxis(result[sample], axis - 1, 0)
        rows[(start + np.arange(length)) % size] = np.moveaxis(update[sample], axis - 1, 0)
    return result
