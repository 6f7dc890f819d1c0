"""Networks as ONNX files, with batches that calibrate them and others to try them on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import models

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]
"""A batch: arrays by name of input."""

DIGITS = "digits"
"""The trained network of examples/digits_precision.py, beside the seventeen of `models`."""

BATCHES = 4
"""Batches that calibrate, and that are compared."""

_CALIBRATION_SEED, _INPUT_SEED = 1, 101


@dataclass(frozen=True)
class Case:
    """A network as a file, batches that calibrate it, and batches to compare it on."""

    path: Path
    calibration: list[Feeds]
    inputs: list[Feeds]


def load(name: str, batch: int, folder: Path, exports: Path | None) -> Case:
    """A network by name; its file is exported to `folder`, or taken from `exports`."""
    if name == DIGITS:
        return _digits(folder)
    from onnx import load_model

    known = (exports or folder) / f"{name}_batch{batch}.onnx"
    if not known.exists():
        module, inputs = models.load(name, batch=batch)
        known = export(module, inputs, known)
    names = [value.name for value in load_model(known, load_external_data=False).graph.input]
    network = models.NETWORKS[name]

    def batches(seed: int, count: int) -> list[Feeds]:
        given = (network.example_inputs(batch, seed + number) for number in range(count))
        return [feeds_of(each, names) for each in given]

    return Case(known, batches(_CALIBRATION_SEED, BATCHES), batches(_INPUT_SEED, BATCHES))


def _digits(folder: Path) -> Case:
    from examples import digits_precision as example

    data = example.digits()
    batches = [{"x": part.numpy()} for part in data.train.split(example.BATCH)]
    path = export(
        example.trained(data), (data.test[: example.BATCH],), folder / "digits.onnx", ["x"]
    )
    held_out = [{"x": part.numpy()} for part in data.test.split(example.BATCH)]
    return Case(path, batches[:BATCHES], held_out)


def export(module: Any, inputs: Any, path: Path, names: list[str] | None = None) -> Path:
    """Write a module, optimized by the exporter, as an ONNX file."""
    import torch

    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    with torch.no_grad():
        exported = torch.onnx.export(
            module, args, kwargs=kwargs, input_names=names, dynamo=True, verbose=False
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    exported.save(path, external_data=True)
    return path


def feeds_of(inputs: Any, names: list[str]) -> Feeds:
    if isinstance(inputs, dict):
        return {name: inputs[name].numpy() for name in names}
    return {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}


def batch_of(name: str, chosen: int | None) -> int:
    """The batch size at which a network is measured; "digits" has but one."""
    if name == DIGITS:
        from examples.digits_precision import BATCH

        return BATCH
    return chosen or (8 if models.NETWORKS[name].family == "cnn" else 1)


def difference(wanted: Sequence[Sequence[Any]], got: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Predictions that differ, and the mean relative error: the mean magnitude of the main output's
    error over the mean magnitude of the main output."""
    from xrt.quantization.accuracy import compare, main_output

    found = compare(wanted, got)
    error, size = 0.0, 0.0
    for theirs, ours in zip(wanted, got, strict=True):
        want, mine = main_output(theirs), main_output(ours)
        if want is not None and mine is not None:
            error += float(np.abs(want.astype(np.float64) - mine.astype(np.float64)).sum())
            size += float(np.abs(want.astype(np.float64)).sum())
    return {
        "predictions": found.predictions,
        "mismatches": found.mismatches,
        "mean_relative_error": error / size if size else 0.0,
    }
