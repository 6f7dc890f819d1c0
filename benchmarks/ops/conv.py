"""Every convolution algorithm on the distinct layers of five networks, against ONNX Runtime.

    python -m benchmarks.ops.conv [--network resnet50] [--batch 1 8] [--cores 1] [--json out.json]

Each layer runs with a bias and a ReLU behind, as in a network whose BatchNorm is folded, all
algorithms interleaved with ONNX Runtime's Conv + Relu; medians. The error is the largest absolute
difference from ONNX Runtime, relative to the largest output.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.ops.measure import compiled, keep_memory, medians, onnxruntime_call, use_cores

# (height = width, channels in, channels out, kernel, stride, dilation, groups), padded to "same".
Layer = tuple[int, int, int, int, int, int, int]
LAYERS: dict[str, list[Layer]] = {
    "resnet50": [
        (224, 3, 64, 7, 2, 1, 1),
        (56, 64, 64, 1, 1, 1, 1),
        (56, 64, 64, 3, 1, 1, 1),
        (56, 64, 256, 1, 1, 1, 1),
        (56, 256, 64, 1, 1, 1, 1),
        (56, 128, 128, 3, 2, 1, 1),
        (56, 256, 512, 1, 2, 1, 1),
        (28, 128, 128, 3, 1, 1, 1),
        (28, 128, 512, 1, 1, 1, 1),
        (28, 512, 128, 1, 1, 1, 1),
        (28, 256, 256, 3, 2, 1, 1),
        (14, 256, 256, 3, 1, 1, 1),
        (14, 256, 1024, 1, 1, 1, 1),
        (14, 1024, 256, 1, 1, 1, 1),
        (14, 512, 512, 3, 2, 1, 1),
        (14, 1024, 2048, 1, 2, 1, 1),
        (7, 512, 512, 3, 1, 1, 1),
        (7, 512, 2048, 1, 1, 1, 1),
        (7, 2048, 512, 1, 1, 1, 1),
    ],
    "vgg16": [
        (224, 3, 64, 3, 1, 1, 1),
        (224, 64, 64, 3, 1, 1, 1),
        (112, 64, 128, 3, 1, 1, 1),
        (112, 128, 128, 3, 1, 1, 1),
        (56, 256, 256, 3, 1, 1, 1),
        (28, 512, 512, 3, 1, 1, 1),
        (14, 512, 512, 3, 1, 1, 1),
    ],
    "inception": [
        (299, 3, 32, 3, 2, 1, 1),
        (149, 32, 32, 3, 1, 1, 1),
        (147, 32, 64, 3, 1, 1, 1),
        (73, 80, 192, 3, 1, 1, 1),
        (35, 48, 64, 5, 1, 1, 1),
        (35, 288, 384, 3, 2, 1, 1),
    ],
    "convnext_large": [
        (224, 3, 192, 4, 4, 1, 1),
        (56, 192, 192, 7, 1, 1, 192),
        (28, 384, 384, 7, 1, 1, 384),
        (14, 768, 768, 7, 1, 1, 768),
        (7, 1536, 1536, 7, 1, 1, 1536),
        (56, 192, 384, 2, 2, 1, 1),
    ],
    "mobilenet_v2": [
        (224, 3, 32, 3, 2, 1, 1),
        (112, 32, 32, 3, 1, 1, 32),
        (112, 96, 96, 3, 2, 1, 96),
        (56, 144, 144, 3, 1, 1, 144),
        (28, 192, 192, 3, 1, 1, 192),
        (14, 576, 576, 3, 1, 1, 576),
        (33, 960, 960, 3, 1, 2, 960),  # dilated, as in DeepLab
        (112, 16, 96, 1, 1, 1, 1),
    ],
    "resnext50": [
        (56, 128, 128, 3, 1, 1, 32),
        (28, 256, 256, 3, 1, 1, 32),
        (14, 512, 512, 3, 1, 1, 32),
        (7, 1024, 1024, 3, 1, 1, 32),
    ],
    "vit": [(224, 3, 768, 16, 16, 1, 1)],
}


def _spec(layer: Layer, batch: int) -> Any:
    from xrt.kernels.jax.conv import ConvSpec

    size, c_in, c_out, k, stride, dilation, groups = layer
    pad = 0 if stride == k else dilation * (k - 1) // 2
    return ConvSpec(
        n=batch,
        h=size,
        w=size,
        c_in=c_in,
        c_out=c_out,
        kernel=(k, k),
        strides=(stride, stride),
        pads=(pad, pad, pad, pad),
        dilations=(dilation, dilation),
        groups=groups,
    )


def measure(layer: Layer, batch: int, *, threads: int, seconds: float = 0.1) -> dict[str, Any]:
    """Time every algorithm on one layer; return milliseconds, GFLOP/s, ratios and errors."""
    import jax
    from onnx import helper

    from xrt.kernels.jax import conv

    spec = _spec(layer, batch)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((spec.n, spec.h, spec.w, spec.c_in), np.float32)
    w = rng.standard_normal((spec.c_out, spec.c_in // spec.groups, *spec.kernel), np.float32)
    bias = rng.standard_normal(spec.c_out, np.float32)
    nodes = [
        helper.make_node(
            "Conv",
            ["x", "w", "b"],
            ["c"],
            strides=spec.strides,
            pads=spec.pads,
            dilations=spec.dilations,
            group=spec.groups,
        ),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    nchw = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    peer = onnxruntime_call(nodes, {"x": nchw}, {"w": w, "b": bias}, "y", threads=threads)
    expected = peer().transpose(0, 2, 3, 1)
    runs: dict[str, Any] = {}
    for algorithm in conv.candidates(spec):
        if algorithm.name == "direct" and spec.groups > 64 and spec.macs > 3e7:
            continue  # XLA's naive grouped loop: seconds

        def layer_of(x: Any, w: Any, b: Any, algorithm: Any = algorithm) -> Any:
            return jax.nn.relu(conv.convolve(x, w, spec, algorithm) + b)

        runs[algorithm.name] = compiled(layer_of, x, algorithm.prepare_weight(w, spec), bias)
    errors = {k: float(np.abs(f() - expected).max() / expected.max()) for k, f in runs.items()}
    times = medians({**runs, "onnxruntime": peer}, seconds=seconds)
    return {
        "layer": layer,
        "batch": batch,
        "chosen": conv.choose(spec).name,
        "ms": times,
        "gflops": {k: 2e-6 * spec.macs / ms for k, ms in times.items()},
        "ratio": {k: ms / times["onnxruntime"] for k, ms in times.items()},
        "error": errors,
    }


def _line(row: dict[str, Any]) -> str:
    cells = [
        f"{name} {row['ratio'][name]:.2f}" + ("*" if name == row["chosen"] else "")
        for name in row["error"]
    ]
    size, c_in, c_out, k, stride, dilation, groups = row["layer"]
    shape = f"{row['batch']}x{size}x{size}x{c_in}->{c_out} {k}x{k}/{stride}"
    extra = (f" d{dilation}" if dilation > 1 else "") + (f" g{groups}" if groups > 1 else "")
    best = row["gflops"]["onnxruntime"]
    return f"{shape + extra:38} ort {best:5.0f} GF/s | " + "  ".join(cells)


def main(argv: Sequence[str] | None = None) -> None:
    """Print one line a layer: time relative to ONNX Runtime; `choose`'s pick has a star."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", nargs="*", choices=sorted(LAYERS), default=list(LAYERS))
    parser.add_argument("--batch", nargs="*", type=int, default=[1, 8])
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.1, help="per algorithm and layer")
    parser.add_argument("--keep-memory", action="store_true", help="see benchmarks/ops/README.md")
    parser.add_argument("--json", help="also write the rows here")
    arguments = parser.parse_args(argv)
    use_cores(arguments.cores)
    if arguments.keep_memory:
        keep_memory()
    rows = []
    for network in arguments.network:
        for batch in arguments.batch:
            print(f"{network}, batch {batch}")
            for layer in LAYERS[network]:
                row = measure(layer, batch, threads=arguments.cores, seconds=arguments.seconds)
                rows.append({"network": network, **row})
                print("  " + _line(row), flush=True)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
