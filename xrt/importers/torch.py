"""Torch modules and exported programs, to the graph IR.

The graph comes from ``torch.onnx.export(dynamo=True)``, whose product already is an onnx_ir model.
Its weights are copied: the module's own may go on changing.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from xrt.errors import InputError, MissingDependencyError, ModelImportError
from xrt.importers.interface import Imported, Interface
from xrt.importers.structure import plain_tree
from xrt.importers.tensors import check_values, take_snapshots
from xrt.importers.torch_rewrites import rewrite
from xrt.process import new_lock

# From this opset on the exporter keeps scaled_dot_product_attention whole, as `Attention`.
EXPORT_OPSET = 23

# What computes something else in training than in inference, and how to see that it is training.
_TRAINING_OPS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "dropout": lambda arguments: bool(arguments.get("train")) and arguments.get("p") != 0,
    "alpha_dropout": lambda arguments: bool(arguments.get("train")),
    "feature_dropout": lambda arguments: bool(arguments.get("train")),
    "native_dropout": lambda arguments: arguments.get("train") is not False,
    "batch_norm": lambda arguments: bool(arguments.get("training")),
    "instance_norm": lambda arguments: (
        bool(arguments.get("use_input_stats")) and arguments.get("running_mean") is not None
    ),
    "scaled_dot_product_attention": lambda arguments: bool(arguments.get("dropout_p")),
}


_EXPORTING = new_lock()
"""torch.export patches torch's own classes while it traces: one export at a time in a process."""


def is_torch_module(model: object) -> bool:
    """Whether `model` is a torch.nn.Module; does not import torch."""
    return _is_instance_of(model, "torch.nn.modules.module", "Module")


def is_exported_program(model: object) -> bool:
    """Whether `model` is a torch.export.ExportedProgram; does not import torch."""
    return _is_instance_of(model, "torch.export.exported_program", "ExportedProgram")


def _is_instance_of(model: object, module: str, name: str) -> bool:
    return any(c.__module__ == module and c.__name__ == name for c in type(model).__mro__)


class ModuleInterface(Interface):
    """A module's arguments, bound by its forward() signature, flattened by torch's pytree.

    Arguments that are no tensors are part of the program: it is exported for their values.
    """

    def __init__(self, forward: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._signature = inspect.signature(forward)
        self._values, self._spec = self._leaves(args, kwargs)
        if not any(map(_is_array, self._values)):
            raise InputError(
                "A torch model is exported by example, and the example inputs hold no tensor. Pass "
                "example_inputs to xrt.compile, or call the program with inputs: "
                f"forward{self._signature}."
            )
        self._is_tensor = [_is_array(leaf) for leaf in self._values]
        self._outputs: tuple[Any, list[Any]] | None = None

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> inspect.BoundArguments:
        """The arguments in the order of the signature, those that are None left out.

        So forward(x, mask=None) and forward(x) are one call, and f(x, m) and f(x, mask=m) too.
        """
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InputError(
                f"The model's forward{self._signature} cannot be called like this: {error}."
            ) from None
        for name, value in list(bound.arguments.items()):
            if value is None:
                del bound.arguments[name]
        return bound

    def _leaves(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[list[Any], Any]:
        from torch.utils import _pytree

        leaves, spec = _pytree.tree_flatten(dict(self.bind(args, kwargs).arguments))
        return leaves, spec

    def flatten(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """The tensors among the arguments, in the order of the signature."""
        leaves, spec = self._leaves(args, kwargs)
        if spec != self._spec:
            raise InputError(
                f"The structure of the inputs is {spec}; the model was exported with {self._spec}."
            )
        return _arrays(leaves, self._values, self._is_tensor)

    def set_outputs(self, spec: Any, template: list[Any]) -> None:
        """Tell the output structure: a pytree spec, and its leaves with None for each tensor."""
        self._outputs = (spec, template)

    def unflatten(self, outputs: Sequence[Any]) -> Any:
        """What forward() returned at the export, around these tensors."""
        assert self._outputs is not None
        return _unflatten(*self._outputs, outputs)

    def to_plain(self) -> dict[str, Any]:
        """Signature and structures; see `importers.saved`."""
        assert self._outputs is not None
        return {
            "kind": "module",
            "parameters": [
                (each.name, each.kind.name, _shown(each.default))
                for each in self._signature.parameters.values()
            ],
            "inputs": plain_tree(self._spec, self._values, self._is_tensor),
            "outputs": _plain_outputs(*self._outputs),
        }


class ExportedInterface(Interface):
    """The calling convention that an exported program recorded."""

    def __init__(self, program: Any) -> None:
        self._in_spec = program.call_spec.in_spec
        given = [s.arg for s in program.graph_signature.input_specs if s.kind.name == "USER_INPUT"]
        self._is_tensor = [type(argument).__name__ == "TensorArgument" for argument in given]
        self._values = [getattr(argument, "value", None) for argument in given]
        self._names = [a.name for a, tensor in zip(given, self._is_tensor, strict=True) if tensor]
        self._outputs = output_template(program)

    @property
    def output_count(self) -> int:
        """Number of tensors that the program returns."""
        return self._outputs[1].count(TENSOR)

    def flatten(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """The tensors among the arguments: as exported, or by the program's own names."""
        from torch.utils import _pytree

        leaves, spec = _pytree.tree_flatten((args, dict(kwargs)))
        if spec == self._in_spec:
            return _arrays(leaves, self._values, self._is_tensor)
        if kwargs and not args and set(kwargs) == set(self._names):
            return [kwargs[name] for name in self._names]
        if not kwargs and len(args) == len(self._names) and all(map(_is_array, args)):
            return list(args)
        raise InputError(
            f"The structure of the inputs is {spec}; the program was exported with "
            f"{self._in_spec}, whose tensors are named {', '.join(self._names)}."
        )

    def unflatten(self, outputs: Sequence[Any]) -> Any:
        """What the program returned at the export, around these tensors."""
        return _unflatten(*self._outputs, outputs)

    def to_plain(self) -> dict[str, Any]:
        """Structures; see `importers.saved`."""
        return {
            "kind": "exported",
            "names": self._names,
            "inputs": plain_tree(self._in_spec, self._values, self._is_tensor),
            "outputs": _plain_outputs(*self._outputs),
        }


TENSOR = object()
"""Stands for a tensor among the leaves of an output structure."""


def _shown(default: Any) -> str | None:
    return None if default is inspect.Parameter.empty else repr(default)


def _plain_outputs(spec: Any, template: list[Any]) -> dict[str, Any]:
    return plain_tree(spec, template, [leaf is TENSOR for leaf in template])


def _unflatten(spec: Any, template: list[Any], outputs: Sequence[Any]) -> Any:
    from torch.utils import _pytree

    remaining = iter(outputs)
    leaves = [next(remaining) if leaf is TENSOR else leaf for leaf in template]
    return _pytree.tree_unflatten(leaves, spec)


def _is_array(leaf: object) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def _arrays(leaves: list[Any], values: list[Any], is_tensor: list[bool]) -> list[Any]:
    """The leaves where the model was exported with tensors; the others must be as they were then.

    Raises:
        InputError: If another one differs from its value.
    """
    arrays = []
    for leaf, value, wanted in zip(leaves, values, is_tensor, strict=True):
        if wanted:
            arrays.append(leaf)
        elif _is_array(leaf) or leaf != value:
            raise InputError(
                f"The argument {leaf!r:.50} is no tensor's and was {value!r:.50} when the model "
                "was exported; export or compile the model again for other values."
            )
    return arrays


def output_template(program: Any) -> tuple[Any, list[Any]]:
    """Pytree spec of the outputs and its leaves: `TENSOR`, or a constant (None, a number)."""
    template = []
    for spec in program.graph_signature.output_specs:
        if spec.kind.name != "USER_OUTPUT":
            continue
        is_tensor = type(spec.arg).__name__ == "TensorArgument"
        template.append(TENSOR if is_tensor else getattr(spec.arg, "value", None))
    return program.call_spec.out_spec, template


def load_module(
    module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic_shapes: Any = None
) -> Imported:
    """Export `module` at example arguments.

    Args:
        module: A torch.nn.Module.
        args: Example positional arguments.
        kwargs: Example keyword arguments.
        dynamic_shapes: As torch.export.export takes them.

    Raises:
        InputError: If the arguments do not fit forward().
        ModelImportError: If the module cannot be exported, or is in training mode with operators
            for which that matters.
    """
    refuse_script(module)
    interface = ModuleInterface(module.forward, args, kwargs)
    program = export_module(module, interface, args, kwargs, dynamic_shapes)
    spec, template = output_template(program)
    interface.set_outputs(spec, template)
    model = _to_ir(program, type(module).__name__, template.count(TENSOR))
    return Imported(model, interface, ranges=_ranges(program))


def refuse_script(module: Any) -> None:
    """Raise ModelImportError if `module` is one of torch.jit."""
    if isinstance(module, load_torch().jit.ScriptModule):
        raise ModelImportError(
            f"A {type(module).__name__} of torch.jit cannot be exported. Pass the module that it "
            "was made from, or an ONNX model."
        )


def export_module(
    module: Any,
    interface: ModuleInterface,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    dynamic_shapes: Any = None,
    *,
    grad: bool = False,
) -> Any:
    """The torch.export.ExportedProgram of `module` at example arguments; `grad` as torch's mode.

    Raises:
        ModelImportError: If the module cannot be exported.
    """
    torch = load_torch()
    bound = interface.bind(args, kwargs)
    args, kwargs = _as_tensors(torch, bound.args), _as_tensors(torch, bound.kwargs)
    with exporting(), torch.set_grad_enabled(grad):
        try:
            return torch.export.export(module, args, kwargs, dynamic_shapes=dynamic_shapes)
        except Exception as error:
            raise ModelImportError(
                f"torch.export could not export {type(module).__name__}: {_first_line(error)} "
                "Try torch.export.export on it alone to see the whole report."
            ) from error


def load_exported_program(program: Any) -> Imported:
    """Convert a torch.export.ExportedProgram.

    Raises:
        ModelImportError: If it cannot be converted, or holds training-mode operators.
    """
    interface = ExportedInterface(program)
    model = _to_ir(program, "ExportedProgram", interface.output_count)
    return Imported(model, interface, ranges=_ranges(program))


def _ranges(program: Any) -> dict[str, tuple[int, int]]:
    """The bounds of the symbolic dimensions of an exported program that have an upper one."""
    return {
        str(symbol): (int(bounds.lower), int(bounds.upper))
        for symbol, bounds in program.range_constraints.items()
        if str(bounds.upper).isdecimal()  # and not infinite
    }


def _to_ir(program: Any, name: str, output_count: int) -> ir.Model:
    torch = load_torch()
    _refuse_training(program, name)
    with exporting(), torch.no_grad():
        try:
            program = tensors_only(rewrite(program, name))
            exported = torch.onnx.export(
                program, dynamo=True, optimize=False, verbose=False, opset_version=EXPORT_OPSET
            )
        except ImportError as error:
            raise MissingDependencyError("onnxscript", "torch", "Importing torch models") from error
        except ModelImportError:
            raise
        except Exception as error:
            raise ModelImportError(
                f"torch.onnx.export could not convert {name}: {innermost(error)} "
                "Write that part of forward() with other operators."
            ) from error
    model: ir.Model = exported.model
    if len(model.graph.outputs) != output_count:
        raise ModelImportError(
            f"{name} returns {output_count} tensors, but its export gives "
            f"{len(model.graph.outputs)}: does forward() change a buffer? Return the new value "
            "instead."
        )
    check_values([model.graph, *model.graph.subgraphs()], name)
    take_snapshots(model)
    return model


def tensors_only(program: Any) -> Any:
    """`program` without outputs that are numbers, at which the ONNX exporter stumbles.

    The interface has recorded them; the exporter leaves out None by itself.
    """
    specs = program.graph_signature.output_specs
    if not any(_is_number(spec) for spec in specs):
        return program
    with _quiet():
        program = program.run_decompositions({})  # a copy: the caller's program stays as it is
    specs = program.graph_signature.output_specs
    kept = [not _is_number(spec) for spec in specs]
    output = next(node for node in program.graph.nodes if node.op == "output")
    results = [value for value, keep in zip(output.args[0], kept, strict=True) if keep]
    output.args = (tuple(results),)
    specs[:] = [spec for spec, keep in zip(specs, kept, strict=True) if keep]
    signature = program.module_call_graph[0].signature
    signature.out_spec = load_torch().utils._pytree.tree_structure(tuple(results))
    program.graph_module.recompile()
    return program


def _is_number(spec: Any) -> bool:
    return type(spec.arg).__name__ == "ConstantArgument" and spec.arg.value is not None


def _refuse_training(program: Any, name: str) -> None:
    for node in program.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            continue
        op = schema.name.removeprefix("aten::")
        is_training = _TRAINING_OPS.get(op)
        if is_training is None:
            continue
        arguments = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
        arguments.update(zip((a.name for a in schema.arguments), node.args, strict=False))
        arguments.update(node.kwargs)
        if is_training(arguments):
            raise ModelImportError(
                f"{name} is in training mode: {schema.name} at {node.name!r} behaves differently "
                "then. Call model.eval() before xrt.compile, or train with xrt.compile_training."
            )


def _as_tensors(torch: Any, tree: Any) -> Any:
    """`tree` with NumPy and JAX arrays as tensors: export understands tensors only."""
    from torch.utils import _pytree

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor) or not _is_array(leaf):
            return leaf
        import numpy as np

        return torch.from_numpy(np.array(leaf))

    return _pytree.tree_map(convert, tree)


def load_torch() -> Any:
    """The package torch.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError("torch", "torch", "Importing torch models") from error
    return torch


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


def innermost(error: BaseException) -> str:
    """What the exporter wraps: its own message names no operator, its causes do."""
    lines = []
    cause: BaseException | None = error
    while cause is not None:
        lines.append(_first_line(cause))
        cause = cause.__cause__
    return " ".join(lines[1:] or lines)


_LOGGERS = ("onnx._internal.exporter", "_subclasses.fake_tensor")


@contextlib.contextmanager
def exporting() -> Iterator[None]:
    """One export at a time, and a quiet one."""
    with _EXPORTING, _quiet():
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's notes and deprecations, and reports of what becomes an xrt error."""
    loggers = [logging.getLogger(f"torch.{name}") for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
