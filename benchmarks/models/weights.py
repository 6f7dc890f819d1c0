"""Weights: loading a checkpoint, or making a freshly initialised network look trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.models.inputs import Inputs

__all__ = ["load_checkpoint", "randomize"]


def load_checkpoint(module: nn.Module, path: Path) -> None:
    """Load a checkpoint into ``module``, which must take every tensor and miss none.

    ``path`` is a file holding a state dict (``.safetensors``, or whatever ``torch.load`` reads
    with ``weights_only=True``), or a folder that transformers' ``save_pretrained`` wrote.
    """
    if path.is_dir():
        state = _read_pretrained(module, path)
    elif path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    module.load_state_dict(state, strict=True)


def _read_pretrained(module: nn.Module, folder: Path) -> dict[str, Tensor]:
    """The folder's weights under this transformers version's names."""
    network: Any = type(module)
    if not hasattr(network, "from_pretrained"):
        raise ValueError(
            f"{folder} is a folder, and {network.__name__} is no transformers network. "
            "Give the file that holds its state dict."
        )
    loaded, report = network.from_pretrained(
        folder,
        config=getattr(module, "config", None),
        local_files_only=True,
        output_loading_info=True,
    )
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise ValueError(
            f"{folder} lacks {len(report['missing_keys'])} weights that {network.__name__} "
            f"needs, {missing} among them."
        )
    state: dict[str, Tensor] = loaded.state_dict()
    return state


def randomize(module: nn.Module, inputs: Inputs, seed: int) -> None:
    """Give an initialised network the statistics of a trained one, in place.

    Fresh networks hide mistakes: biases and position tables are zeros, scales are ones, layer
    scales are 1e-6, and BatchNorm is the identity, while without working BatchNorm statistics
    activations grow from layer to layer. So:

    - each parameter that is one constant c becomes noise: N(0, 0.02) for zero, U(0.05, 0.25) for
      layer scales (0 < |c| < 1e-3), else c * U(0.8, 1.2);
    - each BatchNorm (also a frozen one) gets gamma ~ U(0.8, 1.2), beta ~ N(0.5, 0.1), and running
      statistics near those that ``inputs`` produce: mean + N(0, 0.1) * std, var * U(0.5, 1.5).

    Outputs in fp32 and fp64 then differ by less than 1e-5 of their peak; only Mask2Former, whose
    attention masks are thresholds, may flip one and differ by 2e-4.

    ``module`` must be in eval mode. The result depends on ``seed`` and ``inputs`` alone.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad(), _single_thread():
        for parameter in module.parameters():
            _randomize_constant(parameter, generator)
        _calibrate_batch_norms(module, inputs, generator)


@contextmanager
def _single_thread() -> Iterator[None]:
    """Sums split over threads differ in the last bit; one thread makes weights reproducible."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _uniform(like: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.empty_like(like).uniform_(low, high, generator=generator)


def _normal(like: Tensor, std: float, generator: torch.Generator) -> Tensor:
    return torch.empty_like(like).normal_(0.0, std, generator=generator)


def _randomize_constant(parameter: Tensor, generator: torch.Generator) -> None:
    if not parameter.is_floating_point() or parameter.numel() == 0:
        return
    constant = parameter.reshape(-1)[0]
    if not bool((parameter == constant).all()):
        return
    if constant == 0:
        parameter.copy_(_normal(parameter, 0.02, generator))
    elif constant.abs() < 1e-3:
        parameter.copy_(_uniform(parameter, 0.05, 0.25, generator))
    else:
        parameter.mul_(_uniform(parameter, 0.8, 1.2, generator))


def _is_batch_norm(module: nn.Module) -> bool:
    """By its buffers, because detectors have a frozen BatchNorm class of their own."""
    return all(
        isinstance(getattr(module, name, None), Tensor)
        for name in ("running_mean", "running_var", "weight", "bias")
    )


def _calibrate_batch_norms(module: nn.Module, inputs: Inputs, generator: torch.Generator) -> None:
    """One forward pass in which each BatchNorm takes its statistics just before it runs."""
    pending = {layer for layer in module.modules() if _is_batch_norm(layer)}
    if not pending:
        return

    def calibrate(layer: nn.Module, args: tuple[Any, ...]) -> None:
        if layer in pending:
            pending.remove(layer)
            _set_batch_norm(layer, args[0], generator)

    handles = [layer.register_forward_pre_hook(calibrate) for layer in pending]
    try:
        module(**inputs) if isinstance(inputs, dict) else module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    # Layers that only training runs (an auxiliary head) saw nothing: the standard normal will do.
    for layer in [layer for layer in module.modules() if layer in pending]:
        standard = torch.randn(64, len(layer.get_buffer("running_mean")), generator=generator)
        _set_batch_norm(layer, standard, generator)


def _set_batch_norm(layer: Any, x: Tensor, generator: torch.Generator) -> None:
    """``x``: float ``[N, C, ...]``, what the layer is about to normalise."""
    over = [axis for axis in range(x.dim()) if axis != 1]
    mean = x.mean(over)
    # A channel seen at one point only (global pooling, batch 1) has no variance of its own.
    variance = x.var(over, correction=0).clamp_min(0.01 * float(x.var(correction=0)))
    layer.weight.copy_(_uniform(mean, 0.8, 1.2, generator))
    # With beta around 0, random ReLU networks are chaotic: ResNet-50 would magnify a relative
    # change of its input 35 times, and so every rounding on the way. With 0.5 it is 2 times.
    layer.bias.copy_(0.5 + _normal(mean, 0.1, generator))
    layer.running_mean.copy_(mean + variance.sqrt() * _normal(mean, 0.1, generator))
    layer.running_var.copy_(variance * _uniform(mean, 0.5, 1.5, generator))
