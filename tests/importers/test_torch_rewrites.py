"""What the ONNX exporter lacks or gets wrong: rewritten, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import xrt  # noqa: E402
from xrt.errors import ModelImportError  # noqa: E402
from xrt.importers import import_model  # noqa: E402

F = nn.functional
X = torch.tensor([[3.0, 1.0, 3.0, -2.0], [0.5, 0.5, 7.0, 0.5], [1.0, 2.0, float("nan"), 0.0]])
IMAGE = torch.arange(2 * 3 * 5 * 7.0).reshape(2, 3, 5, 7).sin()
TO = torch.tensor([[0, 0, 2], [1, 3, 1]])


class Function(nn.Module):
    """A module that computes `function`."""

    def __init__(self, function: Callable[..., Any], **buffers: Any) -> None:
        super().__init__()
        self.function = function
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


def check(function: Callable[..., Any], *inputs: Any, **options: Any) -> None:
    """The program computes what torch does."""
    net = Function(lambda _, *given: function(*given)).eval()
    program = xrt.compile(net, engine="host", **options)
    torch.testing.assert_close(program(*inputs), net(*inputs), equal_nan=True)


@pytest.mark.parametrize("descending", [False, True])
def test_a_stable_sort(descending):
    check(lambda x: torch.sort(x, stable=True, dim=1, descending=descending), X[:2])


def test_masked_select_broadcasts():
    check(lambda x: torch.masked_select(x, x[:1] > 0), X[:2])


def test_the_kth_value():
    check(lambda x: (x.kthvalue(2, 1)[0], x.kthvalue(1, 0, keepdim=True)[0]), X[:2])


def test_medians_are_lower_ones_and_keep_nan():
    check(lambda x: (x.median(1)[0], x.median(0, keepdim=True)[0], x.median()), X)
    check(lambda x: x.median(1)[0], X[:2].long())


@pytest.mark.parametrize("include_self", [True, False])
def test_scattered_means(include_self):
    def mean(x: Any, src: Any) -> Any:
        return x.scatter_reduce(1, TO, src, "mean", include_self=include_self)

    check(mean, X[:2], X[1:, :3].nan_to_num())
    check(mean, X[:2].long(), torch.tensor([[-5, 2, 9], [4, -3, 1]]))


def test_other_scatters_stay():
    check(lambda x, src: x.scatter_reduce(1, TO, src, "amax"), X[:2], X[:2, :3])


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("align_corners", [True, False])
def test_resizing_by_a_fraction(mode, align_corners):
    check(
        lambda x: F.interpolate(x, scale_factor=1.7, mode=mode, align_corners=align_corners), IMAGE
    )


def test_resizing_by_a_fraction_of_an_open_size():
    net = Function(
        lambda _, x: F.interpolate(x, scale_factor=1.7, mode="bilinear", align_corners=True)
    ).eval()
    height = torch.export.Dim("height", min=2, max=64)
    program = xrt.compile(net, (IMAGE,), engine="host", dynamic_shapes=(({2: height},),))
    for x in (IMAGE, IMAGE[:, :, 1:]):
        torch.testing.assert_close(program(x), net(x))
    assert len(program._source._imports) == 1


@pytest.mark.parametrize("function", [torch.fft.fft, lambda x: (x, x * 1j)])
def test_complex_outputs_are_refused(function):
    with pytest.raises(ModelImportError, match=r"the output '\w+' is complex.*view_as_real"):
        import_model(Function(lambda _, x: function(x)), (X,), {})


def test_complex_inputs_are_refused():
    with pytest.raises(ModelImportError, match=r"the input '\w+' is complex"):
        import_model(Function(lambda _, x: x.abs()), (X.to(torch.complex64),), {})


def test_complex_numbers_inside_are_fine():
    check(lambda x: torch.view_as_real(torch.view_as_complex(x) * (1 + 2j)), X[:2, :2])


def counted(self: Any, x: Any) -> Any:
    self.state.add_(1)
    return x + self.state


def replaced(self: Any, x: Any) -> Any:
    self.state = self.state + 1
    return x + self.state


def written_by_view(self: Any, x: Any) -> Any:
    self.state[1:].mul_(2)
    return x + self.state


def written_by_part(self: Any, x: Any) -> Any:
    self.state.split(2)[1].mul_(2)
    return x + self.state


@pytest.mark.parametrize("function", [counted, replaced, written_by_view, written_by_part])
def test_state_that_outputs_depend_on_is_refused(function):
    with pytest.raises(ModelImportError, match=r"keeps state: .* 'state'.*no state between"):
        import_model(Function(function, state=torch.ones(4)), (X,), {})


def unread(self: Any, x: Any) -> Any:
    self.state += 1
    return x * 2


def overwritten(self: Any, x: Any) -> Any:
    self.state.copy_(x[0])
    return x + self.state


@pytest.mark.parametrize("function", [unread, overwritten])
def test_state_that_no_output_depends_on_is_fine(function):
    net = Function(function, state=torch.ones(4)).eval()
    program = xrt.compile(net, (X,), engine="host")
    for x in (X, X + 1):
        torch.testing.assert_close(program(x), net(x), equal_nan=True)


def test_what_the_exporter_lacks_is_named():
    with pytest.raises(ModelImportError, match=r"could not convert Function: .*aten\.cummax"):
        import_model(Function(lambda _, x: x.cummax(1)), (X,), {})


def test_label_smoothing_and_probabilities():
    x, y = IMAGE[:, 0, 0], torch.tensor([3, -100])
    weight = torch.linspace(0.1, 2, 7)

    def smooth(x: Any, y: Any) -> Any:
        return F.cross_entropy(x, y, weight=weight, label_smoothing=0.3)

    check(smooth, x, y)
    check(smooth, x, x.softmax(1))
    check(lambda x, y: F.cross_entropy(x, y, reduction="sum"), x, x.flip(0).softmax(1))
    check(lambda x, y: F.cross_entropy(x, y), x, y)
