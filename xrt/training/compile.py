"""`compile_training`: from a model to a trainer. The data flow, on one page.

import     model in training mode -> graph whose weights are inputs    importers/
prepare    one opset, static shapes, no folding of weights             passes.PREPARE_TRAINING
forward    the graph as a pure JAX function                            training.forward
recipe     loss, gradients and update as one function                  training.step
build      one executable (engine "xla"), or one an operator ("host")  training.step, .host
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import onnx_ir as ir

from xrt.engines.xla import device as D
from xrt.errors import OptionError, TrainingError, unknown
from xrt.graph import used_values
from xrt.importers import import_for_training, is_torch_module
from xrt.importers.training import TrainingModel
from xrt.options import TrainingOptions
from xrt.progress import progress
from xrt.training.batches import BatchReader, cut, split_batch, whole
from xrt.training.devices import resolve_devices
from xrt.training.forward import Forward
from xrt.training.losses import resolve_loss
from xrt.training.nodes import is_float
from xrt.training.optimizers import Optimizer, resolve_optimizer
from xrt.training.placement import Placement
from xrt.training.prepare import prepare
from xrt.training.step import Recipe
from xrt.training.trainer import Trainer

ENGINES = ("host", "xla")
PRECISIONS = ("fp32", "bf16", "fp16")


def compile_training(
    model: Any,
    example_batch: Any,
    *,
    optimizer: Any,
    loss: Any = None,
    engine: str = "xla",
    precision: str = "fp32",
    devices: int | Sequence[Any] | None = None,
    options: TrainingOptions | None = None,
) -> Trainer:
    """Compile forward pass, backward pass and update of a model.

    Args:
        model: A torch.nn.Module; each part of it is trained in the mode that it is in (train() or
            eval()), and parameters with requires_grad=False are not. Or an ONNX model, whose
            trainable initializers `options.trainable` names or their metadata mark. The weights
            are copied.
        example_batch: A batch as `Trainer.step` takes it; all batches have its shapes. Without a
            loss function it holds the model's inputs: a tuple by position, a dict by name, or a
            single array. With one it is a pair (inputs, targets).
        optimizer: An optax transformation, which sees the weights as a dict by name; a
            torch.optim.SGD, Adam or AdamW over the model's parameters; or a torch scheduler of one,
            which then steps after every update. Settings are read now.
        loss: None for the loss that the model returns, "cross_entropy", "mse", or a function of
            (outputs, targets) in JAX.
        engine: "xla" makes one executable of a step, "host" one for every operator.
        precision: "fp32"; or "bf16" or "fp16", in which the step computes what is safe in that type
            while the weights, their updates, statistics and losses stay in fp32. The loss of "fp16"
            is scaled, by as much as the gradients bear.
        devices: How many devices share each batch, or a list of JAX devices; each holds the whole
            state. None for one device. On the CPU they are virtual. Under `jax.distributed` the
            number is that of all processes, and the batches are this process's shares.
        options: See `TrainingOptions`.

    Raises:
        ModelImportError: If the model cannot be read, or would not train as it does in torch.
        OptionError: If an argument has an unknown value.
        InputError: If the example batch does not fit the model.
        TrainingError: If a step cannot be built: an operator XLA lacks or cannot differentiate, a
            loss that is no scalar.
    """
    options = options or TrainingOptions()
    _check(engine, precision, options)
    function = resolve_loss(loss)
    args, kwargs, _ = split_batch(example_batch, function is not None)
    placement = Placement(resolve_devices(devices))
    _check_devices(placement, engine, options)
    options = options if placement.is_first else replace(options, progress=False)
    cut(example_batch, options.accumulate * placement.local_count)  # complains if it does not work
    synchronized = options.batch_norm == "synchronized"
    parts = options.accumulate * (1 if synchronized else len(placement.devices))
    args, kwargs = (
        cut(whole(each, placement.processes), parts) for each in (tuple(args), dict(kwargs))
    )
    with progress("Importing", None, options.progress):
        source = import_for_training(model, args, kwargs, options.trainable)
        source = prepare(source, args, kwargs, own=function is None, precision=precision)
    chosen = resolve_optimizer(optimizer, _parameter_names(model, source))
    with D.isolated():
        forward = Forward(source, options.segments)
        recipe = Recipe(
            forward,
            source.interface,
            function,
            chosen,
            options,
            precision == "fp16",
            placement.parts if synchronized else None,
            precision,
        )
        trainable = _trainable(source, chosen)
        reader = BatchReader(
            source.interface, forward.inputs, function is not None, parts, placement.processes
        )
        return Trainer(model, source, recipe, trainable, reader, placement, engine, example_batch)


def _parameter_names(model: Any, source: TrainingModel) -> dict[int, str]:
    """id of each parameter of a torch module -> the name of its weight."""
    if not is_torch_module(model):
        return {}
    named = model.named_parameters(remove_duplicate=False)
    return {id(parameter): source.names.get(name, name) for name, parameter in named}


def _trainable(source: TrainingModel, optimizer: Optimizer) -> list[str]:
    """The weights that the optimizer changes: those to which gradients flow.

    torch leaves alone what has no gradient, and so does xrt: not even its decay applies there.

    Raises:
        TrainingError: If there is none.
    """
    graph = source.model.graph
    count = len(graph.outputs) - len(source.state)
    seen = _receiving(graph, list(graph.outputs)[:count])
    values = list(graph.inputs)[-len(source.weights) :] if source.weights else []
    used = {n for n, value in zip(source.weights, values, strict=True) if value in seen}
    known = optimizer.weights
    found = [
        n for n in source.weights
        if n in source.trainable and n in used and (known is None or n in known)
    ]  # fmt: skip
    if not found:
        raise TrainingError(
            "There is nothing to train: the loss depends on no parameter that requires a gradient "
            f"and that the optimizer holds. Trainable are: "
            f"{', '.join(sorted(source.trainable)[:8]) or 'none'}."
        )
    return found


_CONSTANT_IN_X = ("StopGradient", "RandomNormalLike", "RandomUniformLike")


def _receiving(graph: ir.Graph, outputs: Sequence[ir.Value]) -> set[ir.Value]:
    """The values that a gradient of `outputs` flows to; one of zeros counts, as in torch."""
    seen = {value for value in outputs if is_float(value)}
    for node in reversed(list(graph)):
        if node.op_type not in _CONSTANT_IN_X and not seen.isdisjoint(node.outputs):
            seen.update(value for value in used_values(node) if is_float(value))
    return seen


def _check(engine: str, precision: str, options: TrainingOptions) -> None:
    if not isinstance(options, TrainingOptions):
        raise OptionError(f"options must be an xrt.TrainingOptions; got {options!r}.")
    if engine not in ENGINES:
        raise OptionError(unknown("Engine", engine, ENGINES))
    if precision not in PRECISIONS:
        raise OptionError(unknown("Precision", precision, PRECISIONS))


def _check_devices(placement: Placement, engine: str, options: TrainingOptions) -> None:
    if placement.mesh is None or engine == "xla":
        return
    if options.batch_norm == "device" or placement.processes > 1:
        got = "several processes" if placement.processes > 1 else "batch_norm='device'"
        raise OptionError(
            f"The engine 'host' does not train with {got}: single operators know nothing of the "
            "devices' shares. Use engine='xla'."
        )
