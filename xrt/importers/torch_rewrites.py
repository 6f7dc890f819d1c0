"""Exported programs made fit for ONNX: what its exporter lacks or gets wrong is rewritten.

The rewrites are decompositions into operators that it translates well, written in torch.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

from xrt.errors import ModelImportError


def rewrite(program: Any, name: str) -> Any:
    """`program`, or a rewritten copy of it, that the ONNX exporter translates faithfully.

    Args:
        program: A torch.export.ExportedProgram.
        name: Who it is, for errors.

    Raises:
        ModelImportError: If inputs or outputs are complex, or outputs depend on a buffer that
            forward() changes.
    """
    refuse_complex(program, name)
    table = decompositions(program)
    targets = {node.target for node in _calls(program)}
    changes_state = _changes_state(program)
    if changes_state or not targets.isdisjoint(table):
        program = program.run_decompositions(table)
    if changes_state:
        _refuse_state(program, name)
    return program


def _calls(program: Any) -> Iterator[Any]:
    for module in program.graph_module.modules():
        if hasattr(module, "graph"):
            yield from (node for node in module.graph.nodes if node.op == "call_function")


def refuse_complex(program: Any, name: str) -> None:
    """Raise ModelImportError if inputs or outputs of `program` are complex."""
    nodes = {node.name: node for node in program.graph.nodes}
    signature = program.graph_signature
    for what, values in (("input", signature.user_inputs), ("output", signature.user_outputs)):
        for value in values:
            node = nodes.get(value) if isinstance(value, str) else None
            dtype = getattr(node.meta.get("val"), "dtype", None) if node else None
            if dtype is not None and dtype.is_complex:
                raise ModelImportError(
                    f"{name}: the {what} {value!r} is complex ({dtype}), which ONNX does not "
                    "compute with. Let forward() take and return torch.view_as_real(...)."
                )


def _state(program: Any) -> dict[str, str]:
    """Placeholder -> name of every parameter, buffer and constant."""
    return {
        spec.arg.name: spec.target
        for spec in program.graph_signature.input_specs
        if spec.kind.name in ("PARAMETER", "BUFFER", "CONSTANT_TENSOR")
    }


def _changes_state(program: Any) -> bool:
    """Whether a node writes to a buffer or a view of it."""
    state = _state(program)
    aliases = {n for n in program.graph.nodes if n.op == "placeholder" and n.name in state}
    for node in program.graph.nodes:
        if node.target is operator.getitem and node.args[0] in aliases:
            aliases.add(node)
        schema = getattr(node.target, "_schema", None)
        for argument, given in zip(schema.arguments if schema else (), node.args, strict=False):
            given = given if isinstance(given, (list, tuple)) else [given]
            if argument.alias_info is not None and not aliases.isdisjoint(given):
                if argument.alias_info.is_write:
                    return True
                aliases.add(node)
    return False


def _refuse_state(program: Any, name: str) -> None:
    """Raise if an output depends on what a changed buffer held before; `program` is functional."""
    changed = {
        spec.target
        for spec in program.graph_signature.output_specs
        if spec.kind.name == "BUFFER_MUTATION"
    }
    results = set(program.graph_signature.user_outputs)
    nodes = [node for node in program.graph.nodes if node.name in results]
    seen = set(nodes)
    while nodes:
        for source in nodes.pop().all_input_nodes:
            if source not in seen:
                seen.add(source)
                nodes.append(source)
    state = _state(program)
    read = sorted(changed & {state[node.name] for node in seen if node.name in state})
    if read:
        raise ModelImportError(
            f"{name} keeps state: forward() changes the buffer {', '.join(map(repr, read))}, and "
            "its outputs depend on what a call before left there. Programs keep no state between "
            "calls: take the state as an input and return the new one."
        )


def decompositions(program: Any) -> dict[Any, Callable[..., Any]]:
    """Operator -> what computes the same by operators that the exporter translates well.

    Some only where `program` needs them.
    """
    import torch

    aten = torch.ops.aten
    table: dict[Any, Callable[..., Any]] = {
        aten.sort.stable: _stable_sort,
        aten.masked_select.default: lambda x, mask: x.expand(
            torch.broadcast_shapes(x.shape, mask.shape)
        )[mask.expand(torch.broadcast_shapes(x.shape, mask.shape))],
        aten.kthvalue.default: _kth_value,
        aten.median.dim: _median,
        aten.median.default: lambda x: _median(x.reshape(-1), 0)[0],
        aten.scatter_reduce.two: _scatter_reduce,
        **_composites(program),
    }
    for upsample in (
        aten.upsample_linear1d.vec,
        aten.upsample_bilinear2d.vec,
        aten.upsample_bicubic2d.vec,
        aten.upsample_trilinear3d.vec,
    ):
        table[upsample] = _upsample(upsample)
    return table


def _composites(program: Any) -> dict[Any, Callable[..., Any]]:
    """torch's own definitions of operators that the exporter translates in part."""
    import torch

    aten = torch.ops.aten
    cases = {
        aten.cross_entropy_loss.default: _is_soft,
        aten.instance_norm.default: _updates_statistics,
    }
    found = {node.target for node in _calls(program) if cases.get(node.target, _never)(node)}
    if not found:
        return {}
    table = torch.export.default_decompositions()
    return {target: table[target] for target in found}


def _never(node: Any) -> bool:
    return False


def _is_soft(node: Any) -> bool:
    """Of a cross entropy: the exporter drops `label_smoothing`, and takes no probabilities."""
    given = arguments(node)
    return bool(given.get("label_smoothing")) or given["target"].meta["val"].is_floating_point()


def _updates_statistics(node: Any) -> bool:
    """Of an instance norm, which the exporter leaves as they were."""
    given = arguments(node)
    return given["running_mean"] is not None and bool(given["use_input_stats"])


def arguments(node: Any) -> dict[str, Any]:
    """The arguments that a node of an exported program gives, by name."""
    names = [each.name for each in getattr(getattr(node.target, "_schema", None), "arguments", ())]
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _stable_sort(
    x: Any, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> Any:
    return x.sort(dim, descending)  # ONNX's TopK, which this becomes, is stable


def _kth_value(x: Any, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Any, Any]:
    values, places = (each.narrow(dim, k - 1, 1) for each in x.sort(dim))
    return (values, places) if keepdim else (values.squeeze(dim), places.squeeze(dim))


def _median(x: Any, dim: int, keepdim: bool = False) -> tuple[Any, Any]:
    """The lower median; if there is a NaN, the last in order, which is one."""
    values, places = x.sort(dim)
    middle = x.new_full((), (x.shape[dim] - 1) // 2).long()
    if x.dtype.is_floating_point:
        middle = x.isnan().any(dim, keepdim=True).long() * (x.shape[dim] - 1 - middle) + middle
    else:
        middle = middle.expand(values.narrow(dim, 0, 1).shape)
    values, places = values.gather(dim, middle), places.gather(dim, middle)
    return (values, places) if keepdim else (values.squeeze(dim), places.squeeze(dim))


def _scatter_reduce(
    x: Any, dim: int, index: Any, src: Any, reduce: str, *, include_self: bool = True
) -> Any:
    """A mean as a sum and a count: the exporter takes it for no reduction at all."""
    if reduce != "mean":
        return NotImplemented
    import torch

    total = torch.scatter_reduce(x, dim, index, src, "sum", include_self=include_self)
    counts = torch.full_like(x, int(include_self))
    counts = counts.scatter_add(dim, index, torch.ones_like(src)).clamp(min=1)
    mode = None if x.dtype.is_floating_point else "floor"
    return torch.div(total, counts, rounding_mode=mode)


def _upsample(original: Any) -> Callable[..., Any]:
    """With aligned corners torch's step follows from the sizes; ONNX derives it from the scales."""

    import torch

    def upsample(x: Any, size: Any, align_corners: bool, scales: Any) -> Any:
        if not align_corners or not scales:
            return NotImplemented
        sizes = [torch.sym_int(n * scale) for n, scale in zip(x.shape[2:], scales, strict=True)]
        return original(x, sizes, align_corners, None)

    return upsample
