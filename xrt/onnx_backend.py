"""xrt as a backend of ONNX: what `onnx.backend.base.Backend` asks for, as functions of a module.

    import xrt
    rep = xrt.onnx_backend.prepare(onnx.load("model.onnx"))
    outputs = rep.run([x])

Inputs and outputs are NumPy arrays, with the dtypes of ml_dtypes where NumPy has none; sequences
are lists, an empty optional is None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from onnx.backend.base import Backend, BackendRep, Device, DeviceType, namedtupledict

from xrt.compile import compile as compile_model
from xrt.errors import OptionError
from xrt.graph import OPSET
from xrt.options import CompileOptions
from xrt.runtime.program import Program

__all__ = [
    "XrtBackend",
    "XrtBackendRep",
    "is_compatible",
    "prepare",
    "run_model",
    "run_node",
    "supports_device",
]


class XrtBackendRep(BackendRep):  # type: ignore[misc]
    """A compiled model.

    Attributes:
        program: The program, compiled for the shapes of each call.
    """

    def __init__(self, program: Program, outputs: Sequence[str]) -> None:
        self.program = program
        self._outputs = tuple(outputs)
        self._tuple = namedtupledict("Outputs", self._outputs)

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The outputs, always a tuple, which can also be asked for an output by name.

        Args:
            inputs: A list or tuple of inputs in the order of the graph, a dict of them by name, or
                the only input.
            **kwargs: Ignored; other backends take options here.
        """
        if isinstance(inputs, Mapping):
            found = self.program(**inputs)
        elif isinstance(inputs, (list, tuple)):
            found = self.program(*inputs)
        else:
            found = self.program(inputs)
        results: tuple[Any, ...] = self._tuple(*(found if len(self._outputs) != 1 else (found,)))
        return results


class XrtBackend(Backend):  # type: ignore[misc]
    """The backend as a class, for tools that want one."""

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether the model may be prepared: always, for `prepare` says best what is wrong."""
        return True

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> XrtBackendRep:
        """Compile a model.

        Args:
            model: The model.
            device: "CPU", or "CUDA" where JAX sees a GPU.
            **kwargs: `engine` and `options` as `xrt.compile` takes them; others are ignored.

        Raises:
            XrtError: What `xrt.compile` raises, or OptionError for a device that is not here.
        """
        if not cls.supports_device(device):
            raise OptionError(
                f"Device {device!r} is not supported here. Use 'CPU', or 'CUDA' with a GPU and "
                "a jaxlib built for it."
            )
        options: CompileOptions | None = kwargs.get("options")
        program = compile_model(model, engine=kwargs.get("engine", "auto"), options=options)
        return XrtBackendRep(program, [value.name for value in model.graph.output])

    @classmethod
    def run_model(
        cls, model: onnx.ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any
    ) -> tuple[Any, ...]:
        """Compile a model and run it once."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: onnx.NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[Any, tuple[int, ...]]] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Run one operator.

        Args:
            node: The node.
            inputs: Its inputs that are present, in order.
            device: As for `prepare`.
            outputs_info: Ignored: the types of outputs are inferred.
            **kwargs: `opset_version`, and what `prepare` takes.
        """
        version = kwargs.pop("opset_version", OPSET if node.domain in ("", "ai.onnx") else 1)
        names = list(dict.fromkeys(name for name in node.input if name))
        declared = [_declare(name, value) for name, value in zip(names, inputs, strict=True)]
        results = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        graph = onnx.helper.make_graph([node], "node", declared, results)
        opset = onnx.helper.make_opsetid(node.domain, version)
        model = onnx.helper.make_model(graph, opset_imports=[opset])
        return cls.run_model(model, list(inputs), device, **kwargs)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether models run on `device` here: "CPU", or "CUDA" if that is XLA's device."""
        try:
            kind = Device(device).type
        except (AttributeError, ValueError):
            return False
        if kind == DeviceType.CPU:
            return True
        from xrt.engines.xla.device import device as xla_device

        return xla_device().platform in ("gpu", "cuda")


def _declare(name: str, value: Any) -> onnx.ValueInfoProto:
    """The type of an input as a value of it tells."""
    info = onnx.ValueInfoProto(name=name)
    if hasattr(value, "dtype"):
        code = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        info = onnx.helper.make_tensor_value_info(name, code, value.shape)
    elif isinstance(value, list) and value and hasattr(value[0], "dtype"):
        code = onnx.helper.np_dtype_to_tensor_dtype(value[0].dtype)
        info = onnx.helper.make_tensor_sequence_value_info(name, code, None)
    return info


is_compatible = XrtBackend.is_compatible
prepare = XrtBackend.prepare
run_model = XrtBackend.run_model
run_node = XrtBackend.run_node
supports_device = XrtBackend.supports_device
