"""Torch modules: calling convention, output structure, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from xrt.errors import InputError, ModelImportError  # noqa: E402
from xrt.importers import import_model  # noqa: E402


class Structured(nn.Module):
    """Takes optional and non-tensor arguments, returns a nest with None and a number in it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Any, mask: Any = None, scale: float = 2.0) -> Any:
        y = self.linear(x) * scale
        if mask is not None:
            y = y * mask
        return {"y": y, "rest": (y + 1, None, 3)}


X, MASK = torch.ones(2, 4), torch.ones(2, 3)


@pytest.mark.parametrize(
    ("args", "kwargs"), [((X, MASK), {}), ((X,), {"mask": MASK}), ((), {"mask": MASK, "x": X})]
)
def test_positions_and_names_are_one_convention(args, kwargs):
    imported = import_model(Structured().eval(), (X,), {"mask": MASK})
    flat = imported.interface.flatten(args, kwargs)
    assert flat[0] is X
    assert flat[1] is MASK


def test_absent_arguments_are_none():
    imported = import_model(Structured().eval(), (X,), {"mask": None})
    assert len(imported.interface.flatten((X,), {})) == 1
    with pytest.raises(InputError, match="structure"):
        imported.interface.flatten((X, MASK), {})


def test_graph_inputs_follow_the_signature_not_the_order_of_keywords():
    imported = import_model(Structured().eval(), (), {"mask": MASK, "x": X})
    assert [value.name for value in imported.model.graph.inputs] == ["x", "mask"]


def test_outputs_come_back_in_the_models_structure():
    imported = import_model(Structured().eval(), (X,), {})
    assert len(imported.model.graph.outputs) == 2
    assert imported.interface.unflatten(["a", "b"]) == {"y": "a", "rest": ("b", None, 3)}


def test_another_value_of_a_non_tensor_argument_is_refused():
    imported = import_model(Structured().eval(), (X,), {"scale": 3.0})
    with pytest.raises(InputError, match=r"2\.5 is no tensor's and was 3\.0"):
        imported.interface.flatten((X,), {"scale": 2.5})


def test_the_callers_exported_program_is_left_alone():
    program = torch.export.export(Structured().eval(), (X,))
    before = str(program.graph_signature)
    imported = import_model(program, (), {})
    assert str(program.graph_signature) == before
    assert imported.interface.unflatten(["a", "b"]) == {"y": "a", "rest": ("b", None, 3)}
    assert imported.interface.flatten((X,), {})[0] is X
    assert imported.interface.flatten((), {"x": X})[0] is X
    with pytest.raises(InputError, match="structure"):
        imported.interface.flatten((X, X), {})


def test_dataclass_outputs():
    from torch.utils import _pytree

    @dataclasses.dataclass
    class Out:
        a: Any
        b: Any

    _pytree.register_dataclass(Out, serialized_type_name="tests.Out")

    class Model(nn.Module):
        def forward(self, x: Any) -> Out:
            return Out(x + 1, x * 2)

    imported = import_model(Model(), (X,), {})
    assert imported.interface.unflatten([1, 2]) == Out(1, 2)


def test_attention_stays_whole():
    class Model(nn.Module):
        def forward(self, q: Any) -> Any:
            return nn.functional.scaled_dot_product_attention(q, q, q)

    imported = import_model(Model(), (torch.randn(1, 2, 3, 4),), {})
    assert "Attention" in [node.op_type for node in imported.model.graph]


@pytest.mark.parametrize(
    ("module", "shape", "op"),
    [
        (nn.BatchNorm2d(3), (1, 3, 4, 4), "batch_norm"),
        (nn.Dropout(0.5), (2, 3), "dropout"),
    ],
)
def test_training_mode_is_refused_where_it_matters(module, shape, op):
    with pytest.raises(ModelImportError, match=rf"training mode: aten::{op}.*model\.eval\(\)"):
        import_model(module.train(), (torch.randn(shape),), {})


def test_training_mode_is_accepted_where_it_does_not_matter():
    import_model(nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.0)).train(), (X,), {})


def test_dropout_inside_attention_is_refused():
    class Model(nn.Module):
        def forward(self, q: Any) -> Any:
            return nn.functional.scaled_dot_product_attention(q, q, q, dropout_p=0.1)

    with pytest.raises(ModelImportError, match="scaled_dot_product_attention"):
        import_model(Model(), (torch.randn(1, 2, 3, 4),), {})


def test_a_call_without_tensors_says_what_forward_takes():
    with pytest.raises(InputError, match=r"missing a required argument: 'input'"):
        import_model(nn.Linear(4, 3), (), {})
    with pytest.raises(InputError, match="hold no tensor"):
        import_model(nn.Linear(4, 3), (None,), {})


def test_what_torch_cannot_export_names_the_module():
    class Branches(nn.Module):
        def forward(self, x: Any) -> Any:
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelImportError, match="could not export Branches"):
        import_model(Branches(), (X,), {})


def test_numpy_examples_are_taken():
    imported = import_model(nn.Linear(4, 3), (np.ones((2, 4), np.float32),), {})
    assert len(imported.model.graph.inputs) == 1


def test_an_unknown_kind_of_model_is_named():
    with pytest.raises(ModelImportError, match=r"Cannot import a builtins\.int.*torch\.nn\.Module"):
        import_model(3, (), {})


class Scaled(nn.Module):
    """A tensor, and arguments that are none."""

    def forward(self, x: Any, *, factor: int = 2, mode: str = "times", by: Any = None) -> Any:
        return x * factor if mode == "times" else x / factor


def test_an_exported_program_refuses_other_values_of_what_is_no_tensor():
    given = {"factor": 3, "mode": "times", "by": None}
    interface = import_model(torch.export.export(Scaled(), (X,), given), (), {}).interface
    assert interface.flatten((X,), given) == [X]
    assert interface.flatten((), {"x": X}) == [X]
    for other in ({"factor": 5}, {"mode": "over"}, {"by": X}):
        with pytest.raises(
            InputError, match=r"is no tensor's and was .* when the model was exported"
        ):
            interface.flatten((X,), {**given, **other})


def test_a_number_for_a_tensor_is_left_to_the_dtype_check():
    interface = import_model(torch.export.export(nn.Linear(4, 3), (X,)), (), {}).interface
    assert interface.flatten((2.0,), {}) == [2.0]


def test_script_modules_are_refused():
    for module in (torch.jit.script(nn.Linear(4, 3)), torch.jit.trace(nn.Linear(4, 3), X)):
        with pytest.raises(ModelImportError, match=r"of torch\.jit cannot be exported"):
            import_model(module, (X,), {})


def test_weights_are_copied_once():
    linear = nn.Linear(4, 3)
    first, second = (import_model(linear, (x,), {}).model for x in (X, X[:1]))
    for name, value in first.graph.initializers.items():
        array = value.const_value.numpy()
        assert not array.flags.writeable
        assert array is second.graph.initializers[name].const_value.numpy()
