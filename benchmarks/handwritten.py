"""ResNet-50 and BERT-base written by hand in JAX: the baseline that xrt must not be slower than.

What a careful author writes for XLA's CPU backend, and no more: channels-last, BatchNorm folded
into the convolutions, weights as arguments, one jit. Weights are random, scaled to keep the
activations near one.

    python -m benchmarks.handwritten [--model resnet50 bert] [--batch 8] [--cores 2]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.ops.measure import compiled, medians, use_cores

Params = dict[str, Any]
_STAGES = ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2))  # blocks, width, stride
_HEADS = 12


def resnet50_params(seed: int) -> Params:
    """Return ResNet-50's weights (HWIO) and biases, BatchNorm folded: {"stem", "blocks", "fc"}."""
    rng = np.random.default_rng(seed)

    def conv(k: int, c_in: int, c_out: int, gain: float = 2.0) -> Params:
        w = rng.standard_normal((k, k, c_in, c_out), np.float32) * (gain / (k * k * c_in)) ** 0.5
        return {"w": w.astype(np.float32), "b": np.zeros(c_out, np.float32)}

    blocks, c_in = [], 64
    for count, width, _ in _STAGES:
        for index in range(count):
            block = {
                "a": conv(1, c_in, width),
                "b": conv(3, width, width),
                "c": conv(1, width, 4 * width, gain=0.2),
            }
            if index == 0:
                block["down"] = conv(1, c_in, 4 * width, gain=1.0)
            blocks.append(block)
            c_in = 4 * width
    fc = {
        "w": rng.standard_normal((2048, 1000), np.float32) * np.float32(2048**-0.5),
        "b": np.zeros(1000, np.float32),
    }
    return {"stem": conv(7, 3, 64), "blocks": blocks, "fc": fc}


def resnet50(params: Params, x: Any) -> Any:
    """Return logits [N, 1000] of images x [N, 224, 224, 3] (torchvision's ResNet-50 v1.5)."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    def conv(p: Params, x: Any, stride: int = 1) -> Any:
        pad = (p["w"].shape[0] - 1) // 2
        y = lax.conv_general_dilated(
            x,
            p["w"],
            (stride, stride),
            ((pad, pad), (pad, pad)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + p["b"]

    x = jax.nn.relu(conv(params["stem"], x, 2))
    window, steps = (1, 3, 3, 1), (1, 2, 2, 1)
    margin = ((0, 0), (1, 1), (1, 1), (0, 0))
    x = lax.reduce_window(x, -jnp.inf, lax.max, window, steps, margin)
    firsts = np.cumsum([0] + [count for count, _, _ in _STAGES])[:-1].tolist()
    strides = {first: stride for first, (_, _, stride) in zip(firsts, _STAGES, strict=True)}
    for index, block in enumerate(params["blocks"]):
        stride = strides.get(index, 1)
        y = jax.nn.relu(conv(block["a"], x))
        y = jax.nn.relu(conv(block["b"], y, stride))
        y = conv(block["c"], y)
        x = jax.nn.relu(y + (conv(block["down"], x, stride) if "down" in block else x))
    return x.mean((1, 2)) @ params["fc"]["w"] + params["fc"]["b"]


def bert_params(
    seed: int, *, layers: int = 12, hidden: int = 768, vocabulary: int = 30522
) -> Params:
    """Return BERT-base's weights, dense ones as [in, out]."""
    rng = np.random.default_rng(seed)

    def dense(c_in: int, c_out: int) -> Params:
        w = rng.standard_normal((c_in, c_out), np.float32) * np.float32(0.02)
        return {"w": w, "b": np.zeros(c_out, np.float32)}

    def norm() -> Params:
        return {"g": np.ones(hidden, np.float32), "b": np.zeros(hidden, np.float32)}

    def table(rows: int) -> np.ndarray:
        return rng.standard_normal((rows, hidden), np.float32) * np.float32(0.02)

    layer = [
        {
            "qkv": dense(hidden, 3 * hidden),
            "out": dense(hidden, hidden),
            "norm1": norm(),
            "up": dense(hidden, 4 * hidden),
            "down": dense(4 * hidden, hidden),
            "norm2": norm(),
        }
        for _ in range(layers)
    ]
    embedding = {"word": table(vocabulary), "position": table(512), "type": table(2)}
    return {**embedding, "norm": norm(), "layers": layer, "pooler": dense(hidden, hidden)}


def bert(params: Params, ids: Any) -> tuple[Any, Any]:
    """Return the last hidden state [N, S, 768] and the pooled [N, 768] of token ids [N, S]."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    def norm(p: Params, x: Any) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred * centred).mean(-1, keepdims=True)
        return centred * lax.rsqrt(variance + 1e-12) * p["g"] + p["b"]

    def dense(p: Params, x: Any) -> Any:
        return x @ p["w"] + p["b"]

    def gelu(x: Any) -> Any:
        return 0.5 * x * (1 + lax.erf(x * np.float32(0.5**0.5)))

    n, s = ids.shape
    x = params["word"][ids] + params["position"][:s] + params["type"][0]
    x = norm(params["norm"], x)
    for p in params["layers"]:
        q, k, v = (t.reshape(n, s, _HEADS, -1) for t in jnp.split(dense(p["qkv"], x), 3, axis=-1))
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) * np.float32(q.shape[-1] ** -0.5)
        mixed = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores, axis=-1), v)
        x = norm(p["norm1"], x + dense(p["out"], mixed.reshape(n, s, -1)))
        x = norm(p["norm2"], x + dense(p["down"], gelu(dense(p["up"], x))))
    return x, jnp.tanh(dense(params["pooler"], x[:, 0]))


def case(model: str, batch: int, seed: int = 0) -> tuple[Callable[..., Any], Params, np.ndarray]:
    """Return a model's function, its weights and one input; BERT at sequence length 128."""
    rng = np.random.default_rng(seed)
    if model == "resnet50":
        x = rng.standard_normal((batch, 224, 224, 3), np.float32)
        return resnet50, resnet50_params(seed), x
    return bert, bert_params(seed), rng.integers(0, 30522, (batch, 128), dtype=np.int32)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the median milliseconds of a call."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="*", choices=("resnet50", "bert"))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args(argv)
    use_cores(arguments.cores)
    for model in arguments.model or ("resnet50", "bert"):
        run = compiled(*case(model, arguments.batch))
        ms = medians({model: run}, seconds=arguments.seconds)[model]
        print(f"{model}, batch {arguments.batch}, {arguments.cores} cores: {ms:.1f} ms")


if __name__ == "__main__":
    main()
