"""What an export loses of a torch module's own gradients and state: refused by name."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from xrt.errors import ModelImportError
from xrt.process import new_lock

_WATCHING = new_lock()

_HOOKS_OF_MODULES = ("_backward_hooks", "_backward_pre_hooks")
_HOOKS_OF_PARAMETERS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def refuse_untrainable(torch: Any, module: Any, name: str) -> None:
    """Raise ModelImportError if a part of `module` is known to train otherwise once exported."""
    for path, part in module.named_modules():
        where = path or type(part).__name__
        if any(getattr(part, hooks, None) for hooks in _HOOKS_OF_MODULES):
            raise ModelImportError(
                f"{name}: the module {where!r} has backward hooks, which its export ignores. "
                "Remove them, or compute in forward() what they do to the gradients."
            )
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm) and part.training:
            _refuse_cumulative(part, where, name)
    for path, parameter in module.named_parameters():
        hooks = [getattr(parameter, hooks, None) for hooks in _HOOKS_OF_PARAMETERS]
        if parameter.requires_grad and any(hooks):
            raise ModelImportError(
                f"{name}: the parameter {path!r} has hooks on its gradient, which its export "
                "ignores. Remove them; to train a part of a parameter only, multiply it by a mask "
                "in forward()."
            )
    for path, value in module.state_dict(keep_vars=True).items():
        _refuse_value(torch, path, value, name)


def _refuse_cumulative(part: Any, where: str, name: str) -> None:
    if part.momentum is None and part.track_running_stats:
        raise ModelImportError(
            f"{name}: {where!r} is a {type(part).__name__} with momentum=None, a cumulative "
            "average, whose export reads a count while it traces. Set its momentum, such as 0.1."
        )


def _refuse_value(torch: Any, path: str, value: Any, name: str) -> None:
    if not isinstance(value, torch.Tensor):
        raise ModelImportError(
            f"{name}: {path!r} in the state dict is a {type(value).__name__} of get_extra_state(), "
            "which a trainer does not keep. Register what is needed as a buffer, a tensor."
        )
    try:
        value.detach().cpu().numpy()
    except (TypeError, RuntimeError) as error:
        kind = str(value.dtype).removeprefix("torch.")
        raise ModelImportError(
            f"{name}: the parameter or buffer {path!r} is of type {kind} ({value.layout}), which "
            f"NumPy lacks: {error}. Call model.float(), or keep it in float32."
        ) from error


@contextlib.contextmanager
def refusing_own_backwards(torch: Any, name: str) -> Iterator[None]:
    """Raise ModelImportError if this thread uses a backward pass of its own in the block.

    That is a torch.autograd.Function, of which an export keeps the forward pass only, or a hook on
    a tensor. torch's own functions are no change of the gradient: checkpointing, for example.
    """
    function, tensor = torch.autograd.Function, torch.Tensor
    apply, hook = function.__dict__["apply"], tensor.register_hook
    thread = threading.get_ident()
    found: list[str] = []

    def watched(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == thread and not cls.__module__.startswith("torch."):
            found.append(
                f"the torch.autograd.Function {cls.__name__!r}, whose backward() its export drops. "
                "Write it with torch's operators; tensor.detach() says what passes no gradient, as "
                "in x + (torch.round(x) - x).detach()"
            )
        return apply.__get__(None, cls)(*args, **kwargs)

    def watched_hook(self: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == thread:
            found.append("Tensor.register_hook, which its export ignores. Remove the hook")
        return hook(self, *args, **kwargs)

    with _WATCHING:
        function.apply, tensor.register_hook = classmethod(watched), watched_hook
        try:
            yield
        except Exception:
            if not found:  # else the export failed on what is refused below
                raise
        finally:
            function.apply, tensor.register_hook = apply, hook
    if found:
        raise ModelImportError(f"{name}: forward() uses {found[0]}.")
