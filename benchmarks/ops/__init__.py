"""Single operators against their peers: what the choices in `xrt.kernels.jax` were made by."""
