"""`xrt.kernels.jax.attention` at the sizes of nine networks, against ONNX Runtime and torch.

    python -m benchmarks.ops.attention [--cores 1] [--json out.json]

Three forms run interleaved with ONNX Runtime's MatMul, Softmax, MatMul and torch's
scaled_dot_product_attention: the kernel as it chooses, everything at once, and in slices.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.ops.measure import compiled, keep_memory, medians, onnxruntime_call, use_cores

# (batch, heads, queries, keys, head width)
SIZES: dict[str, tuple[int, int, int, int, int]] = {
    "BERT-base": (1, 12, 128, 128, 64),
    "BERT-base batch 8": (8, 12, 128, 128, 64),
    "ViT-B/16": (1, 12, 197, 197, 64),
    "Segformer stage 1": (1, 1, 16384, 256, 32),
    "Segformer stage 2": (1, 2, 4096, 256, 32),
    "DETR encoder": (1, 8, 950, 950, 32),
    "DETR decoder": (1, 8, 100, 950, 32),
    "Swin stage 1": (64, 3, 49, 49, 32),
    "Swin stage 4": (4, 24, 49, 49, 32),
}


def measure(size: tuple[int, int, int, int, int], threads: int, seconds: float) -> dict[str, float]:
    """Return each form's and each peer's median milliseconds."""
    import torch
    from onnx import helper

    from xrt.kernels.jax import attention as kernel

    b, h, s, t, d = size
    rng = np.random.default_rng(0)
    shapes = {"q": (b, h, s, d), "k": (b, h, t, d), "v": (b, h, t, d)}
    arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Mul", ["q", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["scaled", "kt"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "v"], ["y"]),
    ]
    scale = np.asarray(d**-0.5, np.float32)
    runs: dict[str, Any] = {}
    limit = kernel._SCORES_AT_ONCE
    forms = {"kernel": limit, "at once": 1 << 62, "slices": 0}
    for name, at_once in forms.items():
        kernel._SCORES_AT_ONCE = at_once  # read while tracing, that is within `compiled`
        try:
            runs[name] = compiled(lambda q, k, v: kernel.attention(q, k, v), *arrays.values())
        finally:
            kernel._SCORES_AT_ONCE = limit
    runs["onnxruntime"] = onnxruntime_call(nodes, arrays, {"scale": scale}, "y", threads=threads)
    torch.set_num_threads(threads)
    tensors = [torch.from_numpy(a) for a in arrays.values()]
    runs["torch"] = lambda: torch.nn.functional.scaled_dot_product_attention(*tensors)
    with torch.inference_mode():
        return medians(runs, seconds=seconds)


def main(argv: Sequence[str] | None = None) -> None:
    """Print one line a network: milliseconds, and the kernel's time relative to ONNX Runtime."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.2, help="per form and size")
    parser.add_argument("--keep-memory", action="store_true", help="see benchmarks/ops/README.md")
    parser.add_argument("--json", help="also write the rows here")
    arguments = parser.parse_args(argv)
    use_cores(arguments.cores)
    if arguments.keep_memory:
        keep_memory()
    rows = []
    for network, size in SIZES.items():
        times = measure(size, arguments.cores, arguments.seconds)
        rows.append({"network": network, "size": size, "ms": times})
        ratio = times["kernel"] / times["onnxruntime"]
        cells = "  ".join(f"{name} {ms:.2f}" for name, ms in times.items())
        print(f"{network:18} {size!s:26} ratio {ratio:.2f} | {cells}", flush=True)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
