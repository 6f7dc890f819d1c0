"""Kernels written once for NumPy and for JAX.

Each function takes the array module first: `numpy` for the host's kernels, `jax.numpy` for the
lowerings of XLA. What attributes alone decide is computed by NumPy, before the data is looked at.
"""
