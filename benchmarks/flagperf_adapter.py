"""xrt as an inference engine of FlagPerf: its harness imports `InferModel` from this file.

Put it into FlagPerf's tree as ``inference/inference_engine/<vendor>/xrt.py``, or a file there that
says ``from benchmarks.flagperf_adapter import InferModel``, and name "xrt" as the engine. FlagPerf
synchronizes before and after each call and takes the time in between, less the time that the call
declares foreign. That is zero here: all that happens in a call counts, copies included.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xrt


class InferModel:
    """A compiled network behind FlagPerf's interface.

    Args:
        config: FlagPerf's: `fp16` and `batch_size` are read, and, where they are set, `xrt_engine`
            (as `xrt.compile(engine=...)`) and `threads`.
        onnx_path: The network, exported by FlagPerf.
        model: The same as a torch module, compiled if there is no file.
    """

    def __init__(self, config: Any, onnx_path: str | Path | None, model: Any) -> None:
        self.config = config
        given = onnx_path is not None and Path(onnx_path).exists()
        self.program = xrt.compile(
            Path(onnx_path) if given and onnx_path is not None else model,
            _examples(Path(onnx_path), config.batch_size) if given and onnx_path else None,
            engine=getattr(config, "xrt_engine", "auto"),
            precision="fp16" if config.fp16 else "fp32",
            options=xrt.CompileOptions(threads=getattr(config, "threads", None)),
        )

    def __call__(self, model_inputs: list[Any]) -> tuple[list[Any], float]:
        """The outputs for tensors in the memory of the host, and the foreign seconds."""
        outputs = self.program(*(_single(tensor) for tensor in model_inputs))
        flat = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
        return flat, 0.0


def _single(tensor: Any) -> Any:
    """FlagPerf halves inputs for engines that take fp16; a program takes what its model took."""
    return tensor.float() if tensor.is_floating_point() else tensor


def _examples(path: Path, batch: int) -> tuple[Any, ...]:
    """Inputs of zeros, so that building is over before the clock starts: open dimensions hold the
    batch."""
    import numpy as np
    from onnx import helper, load_model

    graph = load_model(path, load_external_data=False).graph
    stored = {each.name for each in graph.initializer}
    examples = []
    for value in graph.input:
        if value.name in stored:
            continue
        kind = value.type.tensor_type
        shape = [dim.dim_value or batch for dim in kind.shape.dim]
        examples.append(np.zeros(shape, helper.tensor_dtype_to_np_dtype(kind.elem_type)))
    return tuple(examples)
