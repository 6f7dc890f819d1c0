"""Interleaved timing of small functions, and the peers' side of a single-operator comparison."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

# Without it jaxlib 0.10.2 fuses reductions into YNNPACK and computes wrong results (jax 39103).
COMPILER_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": (
        "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
    ),
}


def use_cores(count: int) -> None:
    """Confine this process to its last `count` cores; call before jax, torch or ORT are loaded.

    On a shared machine one core each is the fair comparison: a thread pool that waits for a core
    taken by someone else measures the someone else.
    """
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, allowed[-count:])


def keep_memory() -> None:
    """Tell glibc to keep freed memory instead of unmapping it; see the README beside this file."""
    import ctypes

    m_trim_threshold, m_mmap_threshold, most = -1, -3, (1 << 31) - 1
    library = ctypes.CDLL(None)
    library.mallopt(m_mmap_threshold, most)
    library.mallopt(m_trim_threshold, most)


def medians(
    functions: Mapping[str, Callable[[], Any]], *, seconds: float = 0.1, rounds: int = 5
) -> dict[str, float]:
    """Run the functions in turn, at least `rounds` times; return each one's median in ms."""
    for function in functions.values():
        function()
    taken: dict[str, list[float]] = {name: [] for name in functions}
    end = time.perf_counter() + seconds * len(functions)
    while len(next(iter(taken.values()))) < rounds or time.perf_counter() < end:
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            taken[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(times) for name, times in taken.items()}


def compiled(
    function: Callable[..., Any],
    *arguments: Any,
    options: Mapping[str, Any] | None = None,
) -> Callable[[], Any]:
    """Compile `function` for the arguments' values; the result runs it and waits for the answer."""
    import jax

    device = _client_device()
    placed = [jax.tree.map(lambda leaf: jax.device_put(leaf, device), a) for a in arguments]
    chosen = dict(COMPILER_OPTIONS if options is None else options)
    program = jax.jit(function).lower(*placed).compile(compiler_options=chosen)
    return lambda: jax.block_until_ready(program(*placed))


_DEVICES: list[Any] = []


def _client_device() -> Any:
    """Return the device of a client of our own that runs in the calling thread, as xrt's does."""
    if not _DEVICES:
        from jaxlib import xla_client

        _DEVICES.append(xla_client.make_cpu_client(asynchronous=False).devices()[0])
    return _DEVICES[0]


def onnxruntime_call(
    nodes: Sequence[Any],
    inputs: Mapping[str, np.ndarray],
    weights: Mapping[str, np.ndarray],
    output: str,
    *,
    threads: int,
) -> Callable[[], np.ndarray]:
    """Build a session over `nodes`; the result runs it on bound buffers and returns the output."""
    import onnx
    import onnxruntime as ort
    from onnx import helper

    kinds = {name: helper.np_dtype_to_tensor_dtype(a.dtype) for name, a in inputs.items()}
    graph = helper.make_graph(
        list(nodes),
        "op",
        [helper.make_tensor_value_info(k, kinds[k], a.shape) for k, a in inputs.items()],
        [helper.make_tensor_value_info(output, next(iter(kinds.values())), None)],
        [onnx.numpy_helper.from_array(a, k) for k, a in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # A spinning pool takes the core from whoever is measured next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    result = ort.OrtValue.ortvalue_from_numpy(session.run(None, dict(inputs))[0])
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
    binding.bind_ortvalue_output(output, result)

    def run() -> np.ndarray:
        session.run_with_iobinding(binding)
        return result.numpy()

    return run
