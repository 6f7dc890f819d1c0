"""Torch modules in training mode, to the graph IR, with nothing lost on the way.

torch's ONNX exporter is made for inference. In its graph the dropout inside of attention is gone,
BatchNorm normalizes by its running statistics, what forward() writes to buffers is dropped, and a
detached value passes gradients. Here each is translated:

- attention with dropout is decomposed into products, softmax and dropout;
- BatchNorm is ONNX's in training mode. With its momentum at 0 that gives the statistics of the
  batch, from which the graph computes the running ones as torch does: the variance unbiased;
- what forward() writes to buffers becomes outputs;
- `detach` becomes the operator xrt::StopGradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from xrt.errors import MissingDependencyError, ModelImportError
from xrt.graph import DOMAIN
from xrt.importers import torch as T
from xrt.importers.tensors import check_values
from xrt.importers.torch_gradients import refuse_untrainable, refusing_own_backwards
from xrt.importers.torch_rewrites import arguments, decompositions, refuse_complex
from xrt.importers.training import TrainingModel, lift_weights

_FLOATS = ("float32",)


def load_training_module(
    module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> TrainingModel:
    """Export `module`, in whatever mode each of its parts is, at example arguments.

    Raises:
        InputError: If the arguments do not fit forward().
        ModelImportError: If the module cannot be exported, or not without changing what it computes
            in training.
    """
    torch = T.load_torch()
    T.refuse_script(module)
    interface = T.ModuleInterface(module.forward, args, kwargs)
    name = type(module).__name__
    refuse_untrainable(torch, module, name)
    with refusing_own_backwards(torch, name):
        program = T.export_module(module, interface, args, kwargs, grad=True)
    spec, template = T.output_template(program)
    interface.set_outputs(spec, template)
    _refuse(program, name)
    with T.exporting(), torch.no_grad():
        try:
            program = program.run_decompositions(_decompositions(program))
            program = T.tensors_only(program)
            state = _give_state(program)
            model = _to_onnx(torch, program)
        except ImportError as error:
            raise MissingDependencyError("onnxscript", "torch", "Importing torch models") from error
        except Exception as error:
            raise ModelImportError(
                f"torch.onnx.export could not convert {name} in training mode: "
                f"{T.innermost(error)} Write that part of forward() with other operators."
            ) from error
    check_values([model.graph, *model.graph.subgraphs()], name)
    count = len(interface_outputs(template))
    _check_outputs(model, count + len(state), name)
    _reorder(model.graph, len(state))
    return _with_weights(module, model, interface, state, name)


def interface_outputs(template: list[Any]) -> list[Any]:
    """The leaves of an output template that are tensors."""
    return [leaf for leaf in template if leaf is T.TENSOR]


def _refuse(program: Any, name: str) -> None:
    refuse_complex(program, name)
    for node in program.graph.nodes:
        if "set_grad_enabled" in str(node.target):
            raise ModelImportError(
                f"{name} switches gradients off or on inside forward() (torch.no_grad, "
                f"set_grad_enabled; at {node.name!r}), which ONNX cannot say. Use "
                "tensor.detach() on what gradients must not pass."
            )
        op = getattr(getattr(node.target, "_schema", None), "name", "")
        if op in ("aten::rrelu", "aten::rrelu_"):
            raise ModelImportError(
                f"{name}: {op} at {node.name!r} draws its slopes in training, which the ONNX "
                "exporter drops. Use leaky_relu or prelu."
            )
        given = arguments(node)
        if op in ("aten::rnn_tanh", "aten::rnn_relu") and _drops_between_layers(given):
            raise ModelImportError(
                f"{name}: the dropout between the layers of nn.RNN ({node.name!r}) is lost by the "
                "ONNX exporter. Use one nn.RNN a layer with nn.Dropout between them, or nn.GRU."
            )
        if given.get("scale_grad_by_freq") is True:
            raise ModelImportError(
                f"{name}: {op} at {node.name!r} has scale_grad_by_freq=True, which ONNX cannot "
                "say. Leave it False."
            )


def _drops_between_layers(given: Mapping[str, Any]) -> bool:
    return bool(given["train"] and given["dropout"] and given["num_layers"] > 1)


def _decompositions(program: Any) -> Mapping[Any, Callable[..., Any]]:
    aten = T.load_torch().ops.aten
    return {
        **decompositions(program),
        aten.scaled_dot_product_attention.default: _attention,
        aten.embedding.default: _embedding,
    }


def _embedding(
    weight: Any,
    indices: Any,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    """The row of padding passes no gradient; the exporter forgets that there is one."""
    if padding_idx < 0:
        return NotImplemented
    torch = T.load_torch()
    rows = torch.ops.aten.embedding.default(weight, indices)
    return torch.where((indices == padding_idx).unsqueeze(-1), rows.detach(), rows)


def _attention(
    q: Any,
    k: Any,
    v: Any,
    mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """scaled_dot_product_attention with its dropout, by the definition in torch's documentation."""
    if not dropout_p:
        return NotImplemented
    torch = T.load_torch()
    if enable_gqa:
        repeats = q.size(-3) // k.size(-3)
        k, v = k.repeat_interleave(repeats, -3), v.repeat_interleave(repeats, -3)
    factor = 1 / math.sqrt(q.size(-1)) if scale is None else scale
    scores = torch.matmul(q * factor, k.transpose(-2, -1))
    if is_causal:
        mask = torch.ones(q.size(-2), k.size(-2), dtype=torch.bool, device=q.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        scores = torch.where(mask, scores, torch.full((), -math.inf, dtype=q.dtype))
    elif mask is not None:
        scores = scores + mask
    weights = torch.softmax(scores, -1) if mask is None else _safe_softmax(torch, scores)
    kept, _ = torch.ops.aten.native_dropout.default(weights, dropout_p, True)
    return torch.matmul(kept, v)


def _safe_softmax(torch: Any, scores: Any) -> Any:
    """Softmax whose rows are zero, and pass no gradient, where all is masked: as torch's."""
    masked = (scores == -math.inf).all(-1, keepdim=True)
    zero = torch.zeros((), dtype=scores.dtype)
    return torch.where(masked, zero, torch.softmax(torch.where(masked, zero, scores), -1))


def _give_state(program: Any) -> tuple[str, ...]:
    """Make outputs of what `program` writes to buffers; their names, in the outputs' order.

    They come first among the outputs.
    """
    specs = program.graph_signature.output_specs
    state = []
    for spec in specs:
        if spec.kind.name == "BUFFER_MUTATION":
            state.append(str(spec.target))
            spec.kind = type(spec.kind).USER_OUTPUT
            spec.target = None
    if state:
        output = next(node for node in program.graph.nodes if node.op == "output")
        signature = program.module_call_graph[0].signature
        signature.out_spec = T.load_torch().utils._pytree.tree_structure(tuple(output.args[0]))
    return tuple(state)


def _to_onnx(torch: Any, program: Any) -> ir.Model:
    from onnxscript import opset23 as op
    from onnxscript.values import Op, Opset

    stop = Op(Opset(DOMAIN, 1), "StopGradient", _stop_gradient())

    def detach(x: Any) -> Any:
        return stop(x)

    def batch_norm(
        x: Any,
        weight: Any,
        bias: Any,
        running_mean: Any,
        running_var: Any,
        training: bool,
        momentum: float,
        eps: float,
    ) -> Any:
        count = math.prod(x.shape) // x.shape[1]
        y, mean, variance = _normalize(op, x, weight, bias, running_mean, running_var, eps)
        part, rest = (op.Constant(value_float=f) for f in (momentum, 1 - momentum))
        unbiased = op.Constant(value_float=momentum * count / (count - 1))
        new_mean = op.Add(op.Mul(running_mean, rest), op.Mul(mean, part))
        new_var = op.Add(op.Mul(running_var, rest), op.Mul(variance, unbiased))
        return y, mean, variance, new_mean, new_var

    def batch_norm_alone(
        x: Any, weight: Any, bias: Any, training: bool, momentum: float, eps: float
    ) -> Any:
        zeros = op.Constant(value_floats=[0.0] * x.shape[1])
        return _normalize(op, x, weight, bias, zeros, zeros, eps)

    def clamp(x: Any, min: Any = None, max: Any = None) -> Any:
        """One operator, whose derivative is clear at the bounds; that of Max and Min is not."""
        bounds = [None if bound is None else op.CastLike(bound, x) for bound in (min, max)]
        if not any(bound.shape for bound in (min, max) if bound is not None):
            return op.Clip(x, *bounds)
        x = x if min is None else op.Max(x, bounds[0])
        return x if max is None else op.Min(x, bounds[1])

    aten = torch.ops.aten
    table = {
        aten.clamp.Tensor: clamp,
        aten.detach.default: detach,
        aten._native_batch_norm_legit_functional.default: batch_norm,
        aten._native_batch_norm_legit.no_stats: batch_norm_alone,
    }
    exported = torch.onnx.export(
        program,
        dynamo=True,
        optimize=False,
        verbose=False,
        opset_version=T.EXPORT_OPSET,
        custom_translation_table=table,
    )
    model: ir.Model = exported.model
    return model


def _stop_gradient() -> onnx.defs.OpSchema:
    kinds = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)", "tensor(double)"]
    kinds += ["tensor(int32)", "tensor(int64)", "tensor(bool)"]
    parameter = onnx.defs.OpSchema.FormalParameter
    return onnx.defs.OpSchema(
        "StopGradient",
        DOMAIN,
        1,
        doc="The input, which passes no gradient.",
        inputs=[parameter("x", "T")],
        outputs=[parameter("y", "T")],
        type_constraints=[("T", kinds, "")],
    )


def _normalize(op: Any, x: Any, weight: Any, bias: Any, mean: Any, var: Any, eps: float) -> Any:
    """BatchNormalization in training mode: the result, and the statistics of the batch."""
    channels = x.shape[1]
    weight = op.Constant(value_floats=[1.0] * channels) if weight is None else weight
    bias = op.Constant(value_floats=[0.0] * channels) if bias is None else bias
    return op.BatchNormalization(
        x, weight, bias, mean, var, epsilon=eps, momentum=0.0, training_mode=1
    )


def _check_outputs(model: ir.Model, count: int, name: str) -> None:
    if len(model.graph.outputs) != count:
        raise ModelImportError(
            f"{name} gives {count} tensors in training mode, its new buffers included, but its "
            f"export gives {len(model.graph.outputs)}. Return each tensor once."
        )


def _reorder(graph: ir.Graph, count: int) -> None:
    """Put the first `count` outputs, the new state, behind the others."""
    outputs = list(graph.outputs)
    graph.outputs[:] = [*outputs[count:], *outputs[:count]]


def _with_weights(
    module: Any, model: ir.Model, interface: Any, state: tuple[str, ...], name: str
) -> TrainingModel:
    graph = model.graph
    tensors = dict(module.state_dict(keep_vars=True))
    names = _canonical(tensors, graph)
    for each in state:
        if each not in names:
            raise ModelImportError(
                f"{name}: forward() changes the buffer {each!r}, which the state dict does not hold"
                " (persistent=False), so that a trainer could not give it back. Register it with "
                "persistent=True."
            )
    state = tuple(names[each] for each in state)
    used = [each for each in tensors if names[each] == each and each in graph.initializers]
    floats = [each for each in used if tensors[each].dtype.is_floating_point]
    weights = [each for each in used if each in floats or each in state]
    for each in state:
        if each not in weights:  # written, never read: BatchNorm with momentum None counts so
            raise ModelImportError(
                f"{name}: forward() writes the buffer {each!r} and never reads it, which its "
                "export loses. Let it depend on its value before, or keep it outside of the module."
            )
    trainable = {each for each in floats if getattr(tensors[each], "requires_grad", False)}
    _check_types(tensors, trainable, name)
    arrays = {each: _array(tensors[each]) for each in weights}
    lift_weights(graph, weights)
    rest = {each: _array(tensors[each]) for each in tensors if names[each] not in arrays}
    constants = {each: array for each, array in rest.items() if names[each] in graph.initializers}
    spare = {each: array for each, array in rest.items() if each not in constants}
    return TrainingModel(
        model, interface, arrays, frozenset(trainable), state, names, constants, spare
    )


def _canonical(tensors: Mapping[str, Any], graph: ir.Graph) -> dict[str, str]:
    """Every name -> the one of its tensor that the graph uses, or the first."""
    groups: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(id(tensor), []).append(name)
    names = {}
    for group in groups.values():
        used = [name for name in group if name in graph.initializers]
        first = (used or group)[0]
        for other in used[1:]:
            value = graph.initializers.pop(other)
            value.replace_all_uses_with(graph.initializers[first])
        names.update(dict.fromkeys(group, first))
    return {name: names[name] for name in tensors}


def _check_types(tensors: Mapping[str, Any], trainable: set[str], name: str) -> None:
    for each in sorted(trainable):
        kind = str(tensors[each].dtype).removeprefix("torch.")
        if kind not in _FLOATS:
            raise ModelImportError(
                f"{name}: the parameter {each!r} is of type {kind}; xrt trains float32 parameters. "
                "Call model.float(), and choose precision='bf16' or 'fp16' to compute in less."
            )


def _array(tensor: Any) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = np.array(tensor.detach().cpu().numpy(), order="C", copy=True)
    return array
