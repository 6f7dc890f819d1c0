"""Code that runs: NumPy kernels (`host`), algorithms in JAX (`jax`), CUDA sources (`cuda`)."""
