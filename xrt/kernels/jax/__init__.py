"""Pure JAX kernels, traced inside the one jit of a cluster: channels-last, fp32 accumulation.

Nothing here holds state, touches JAX's global configuration or closes over a weight: a weight is an
argument, put into an algorithm's own layout once at compile time (`conv.Algorithm.prepare_weight`).
The choices between algorithms were measured on XLA's CPU backend; ``benchmarks/ops`` repeats the
measurements.

- `conv`: convolution algorithms (direct, pointwise, depthwise, grouped, patchify, ...) and `choose`
- `winograd`: F(2x2,3x3) and F(4x4,3x3)
- `attention`: scaled dot-product attention on [B, H, S, D]
- `integer`: exact products of bytes, and rounding to them; `integer_conv` convolves, `mixed`
  multiplies uint8 by int8
- `elementwise`: softmax in the form that XLA:CPU vectorises
"""
