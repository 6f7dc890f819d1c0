"""torch.optim optimizers and schedulers, as functions of JAX arrays.

The formulas and the order of operations are those of torch.optim's single-tensor loops, so that the
numbers agree to rounding. Learning rates come from torch's scheduler itself, run on a stand-in.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from xrt.errors import OptionError, TrainingError, unknown
from xrt.training.optimizers import Arrays, Optimizer

Settings = Mapping[str, Any]
Slots = dict[str, Any]
"""What an algorithm keeps for one weight."""

Rule = Callable[[Any, Slots, Any, Any, Settings], tuple[Any, Slots]]
"""(gradient, slots, weight, learning rate, settings) -> new weight and slots."""


def _sgd_slots(weight: Any, settings: Settings) -> Slots:
    if not settings["momentum"]:
        return {}
    return {"momentum_buffer": jnp.zeros_like(weight), "step": jnp.zeros((), jnp.int32)}


def _sgd(g: Any, slots: Slots, w: Any, rate: Any, settings: Settings) -> tuple[Any, Slots]:
    """torch.optim.SGD; the first momentum is the gradient, without dampening."""
    if settings["weight_decay"]:
        g = g + settings["weight_decay"] * w
    momentum = settings["momentum"]
    if momentum:
        later = momentum * slots["momentum_buffer"] + (1 - settings["dampening"]) * g
        buffer = jnp.where(slots["step"] == 0, g, later)
        slots = {"momentum_buffer": buffer, "step": slots["step"] + 1}
        g = g + momentum * buffer if settings["nesterov"] else buffer
    return w - rate * g, slots


def _adam_slots(weight: Any, settings: Settings) -> Slots:
    slots = {
        "exp_avg": jnp.zeros_like(weight),
        "exp_avg_sq": jnp.zeros_like(weight),
        "step": jnp.zeros((), jnp.int32),
    }
    if settings["amsgrad"]:
        slots["max_exp_avg_sq"] = jnp.zeros_like(weight)
    return slots


def _adam(g: Any, slots: Slots, w: Any, rate: Any, settings: Settings) -> tuple[Any, Slots]:
    """torch.optim.Adam, or AdamW where the decay is decoupled."""
    (beta1, beta2), decay = settings["betas"], settings["weight_decay"]
    if decay and settings["decoupled"]:
        w = w * (1 - rate * decay).astype(w.dtype)
    elif decay:
        g = g + decay * w
    step = slots["step"] + 1
    mean = slots["exp_avg"] + (1 - beta1) * (g - slots["exp_avg"])
    square = beta2 * slots["exp_avg_sq"] + (1 - beta2) * g * g
    new = {"exp_avg": mean, "exp_avg_sq": square, "step": step}
    if settings["amsgrad"]:
        square = new["max_exp_avg_sq"] = jnp.maximum(slots["max_exp_avg_sq"], square)
    # In float64, as torch on the host: 1 - 0.999 has five digits in float32.
    count = step.astype(jnp.float64)
    size = rate / (1 - jnp.power(jnp.float64(beta1), count))
    root = jnp.sqrt(1 - jnp.power(jnp.float64(beta2), count))
    denominator = jnp.sqrt(square) / root.astype(w.dtype) + settings["eps"]
    return w - size.astype(w.dtype) * (mean / denominator), new


@dataclass(frozen=True)
class _Algorithm:
    slots: Callable[[Any, Settings], Slots]
    rule: Rule
    settings: tuple[str, ...]


_ADAM = ("betas", "eps", "weight_decay", "amsgrad")

_ALGORITHMS = {
    "SGD": _Algorithm(_sgd_slots, _sgd, ("momentum", "dampening", "weight_decay", "nesterov")),
    "Adam": _Algorithm(_adam_slots, _adam, _ADAM),
    "AdamW": _Algorithm(_adam_slots, _adam, _ADAM),
}

# Settings that change how torch computes, and not what.
_INDIFFERENT = {"foreach", "fused", "capturable", "differentiable"}
# What schedulers keep in the groups.
_INDIFFERENT |= {"initial_lr", "min_lr", "max_lr", "swa_lr"}
_READ = {"params", "param_names", "lr", "maximize", "decoupled_weight_decay"}


class TorchOptimizer(Optimizer):
    """SGD, Adam or AdamW, with the groups of a torch optimizer.

    Args:
        algorithm: Its name.
        groups: The settings of each group, with the names of its weights as "weights".
        scheduler: A torch scheduler over a stand-in, or None for constant rates.
    """

    by_weight = True

    def __init__(self, algorithm: str, groups: list[dict[str, Any]], scheduler: Any = None) -> None:
        self._name, self._algorithm = algorithm, _ALGORITHMS[algorithm]
        self._groups = groups
        self._scheduler = scheduler
        self._group_of = {name: i for i, group in enumerate(groups) for name in group["weights"]}
        self.weights = set(self._group_of)

    def init(self, weights: Arrays) -> Any:
        """torch's own state of each weight, by weight."""
        return {
            name: self._algorithm.slots(weight, self._groups[self._group_of[name]])
            for name, weight in weights.items()
        }

    def update(self, gradients: Arrays, state: Any, weights: Arrays, rates: Any) -> tuple[Any, Any]:
        """One step of the algorithm for every weight."""
        new_weights, new_state = {}, {}
        for name, weight in weights.items():
            index = self._group_of[name]
            gradient = gradients[name]
            settings = self._groups[index]
            if settings["maximize"]:
                gradient = -gradient
            rate = rates[index]
            found, slots = self._algorithm.rule(gradient, state[name], weight, rate, settings)
            new_weights[name], new_state[name] = found.astype(weight.dtype), slots
        return new_weights, new_state

    def rates(self) -> list[float]:
        """The learning rate of each group."""
        if self._scheduler is None:
            return [float(group["lr"]) for group in self._groups]
        return [float(group["lr"]) for group in self._scheduler.optimizer.param_groups]

    def advance(self) -> None:
        """Step the scheduler."""
        if self._scheduler is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the stand-in's step() is not the one it patched
                try:
                    self._scheduler.step()
                except ValueError as error:  # such as OneCycleLR past its last step
                    name = type(self._scheduler).__name__
                    raise TrainingError(
                        f"The step was made, but {name} gives no learning rate for the next one: "
                        f"{error} Make the schedule as long as the training."
                    ) from error

    def identity(self) -> dict[str, Any]:
        """The algorithm, the kind of schedule, and the settings of each group."""
        found: dict[str, Any] = {"optimizer": self._name, "scheduler": None}
        if self._scheduler is not None:
            count = len(self._groups)
            groups = f" over {count} groups" if count > 1 else ""
            found["scheduler"] = _described(self._scheduler) + groups
        for index, group in enumerate(self._groups):
            place = f"groups[{index}]." if len(self._groups) > 1 else ""
            found |= {f"{place}{name}": group[name] for name in group if name != "weights"}
        return found

    def state_dict(self) -> dict[str, Any]:
        """The state of the scheduler and the rates that it works with."""
        if self._scheduler is None:
            return {}
        groups = self._scheduler.optimizer.param_groups
        return {"scheduler": self._scheduler.state_dict(), "rates": [_rates(g) for g in groups]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the scheduler back."""
        if self._scheduler is None:
            return
        self._scheduler.load_state_dict(copy.deepcopy(state["scheduler"]))
        groups = self._scheduler.optimizer.param_groups
        for group, rates in zip(groups, state["rates"], strict=True):
            group.update(rates)


def read(given: Any, names: dict[int, str]) -> TorchOptimizer:
    """The optimizer that a torch optimizer, or a scheduler of one, describes.

    Args:
        given: A torch.optim.Optimizer or a torch.optim.lr_scheduler.LRScheduler.
        names: id of a torch parameter -> the name of its weight.

    Raises:
        OptionError: If the optimizer, a setting of it or the scheduler cannot be read.
    """
    from torch.optim import Optimizer as Torch

    scheduler = None if isinstance(given, Torch) else given
    optimizer = given if scheduler is None else scheduler.optimizer
    kind = type(optimizer)
    if not kind.__module__.startswith("torch.optim") or kind.__name__ not in _ALGORITHMS:
        raise OptionError(
            unknown("torch.optim optimizer", kind.__name__, _ALGORITHMS)
            + " An optax transformation can do what others do."
        )
    if getattr(optimizer, "state", None):
        raise OptionError(
            f"The torch.optim.{kind.__name__} has made steps already, and its state is not taken "
            "over. Pass a new one."
        )
    stand_in = None if scheduler is None else _stand_in(optimizer, scheduler)
    groups = [_group(kind.__name__, group, names) for group in optimizer.param_groups]
    return TorchOptimizer(kind.__name__, groups, stand_in)


def _group(kind: str, group: Settings, names: dict[int, str]) -> dict[str, Any]:
    algorithm = _ALGORITHMS[kind]
    strange = set(group) - set(algorithm.settings) - _READ - _INDIFFERENT
    strange = {name for name in strange if group[name] not in (None, False, 0)}
    if strange:
        raise OptionError(
            f"torch.optim.{kind} has settings that xrt does not know: {', '.join(sorted(strange))}."
            " Leave them out, or use an optax transformation."
        )
    weights = []
    for parameter in group["params"]:
        if id(parameter) in names:
            weights.append(names[id(parameter)])
        elif parameter.requires_grad:
            raise OptionError(
                f"The optimizer holds a parameter of shape {list(parameter.shape)} that is none of "
                "the model's. Make it from model.parameters() of the model that is compiled."
            )
    found = {name: _plain(group.get(name, 0)) for name in algorithm.settings}
    decoupled = kind == "AdamW" or bool(group.get("decoupled_weight_decay"))
    return {
        **found,
        "lr": _plain(group["lr"]),
        "maximize": bool(group.get("maximize")),
        "decoupled": decoupled,
        "weights": tuple(dict.fromkeys(weights)),
    }


def _plain(value: Any) -> Any:
    """Settings may be tensors of one number."""
    if isinstance(value, (tuple, list)):
        return type(value)(map(_plain, value))
    return value.item() if hasattr(value, "item") else value


_BY_METRIC = ("ReduceLROnPlateau",)


def _stand_in(optimizer: Any, scheduler: Any) -> Any:
    """A copy of `scheduler` over an optimizer of the same groups that holds no weights."""
    import torch

    for each in _schedulers(scheduler):
        if type(each).__name__ in _BY_METRIC:
            raise OptionError(
                f"{type(each).__name__} sets the learning rate by a metric, which a step does not "
                "know. Use a scheduler of the step's number."
            )
        if getattr(each, "cycle_momentum", False):
            raise OptionError(
                f"{type(each).__name__} also changes the momentum, which xrt keeps constant. Pass "
                "cycle_momentum=False."
            )
    # OneCycleLR and CyclicLR keep their bounds in the groups.
    groups = [{n: _plain(v) for n, v in g.items() if n != "params"} for g in optimizer.param_groups]
    empty = torch.optim.SGD([{"params": [torch.zeros(1)], **_rates(g)} for g in groups])
    try:
        copied = copy.deepcopy(scheduler, {id(optimizer): empty})
    except Exception as error:
        raise OptionError(
            f"The {type(scheduler).__name__} could not be copied: {error}. Make its function one "
            "that can be, or use an optax schedule."
        ) from error
    for each in _schedulers(copied):
        for name, value in vars(each).items():
            setattr(each, name, _plain(value))
    return copied


_RATES = ("lr", "initial_lr", "min_lr", "max_lr", "swa_lr")


def _rates(group: Settings) -> dict[str, Any]:
    return {name: _plain(group[name]) for name in _RATES if name in group}


def _schedulers(scheduler: Any) -> list[Any]:
    """`scheduler` and those inside of it."""
    inner = getattr(scheduler, "_schedulers", ())
    return [scheduler, *(deep for each in inner for deep in _schedulers(each))]


def _described(scheduler: Any) -> str:
    """The kind of a scheduler, and of those inside of it."""
    inner = ", ".join(map(_described, getattr(scheduler, "_schedulers", ())))
    return type(scheduler).__name__ + (f" of {inner}" if inner else "")
