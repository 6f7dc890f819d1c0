"""The XLA engine on a GPU: `pytest -m gpu`."""

from __future__ import annotations

import numpy as np
import pytest

import xrt
from benchmarks import models
from tests.support import run_reference
from tests.test_compile import cnn, image
from xrt.engines.xla import device as D

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _needs_gpu():
    if D.device().platform != "gpu":
        pytest.skip(f"JAX sees no GPU here, but {D.device().platform}")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU here")


def close(got, want):
    scale = np.abs(want).max()
    np.testing.assert_allclose(np.asarray(got), want, rtol=0, atol=1e-4 * scale)


def test_numpy_in_and_out():
    got = xrt.compile(cnn())(image())
    assert isinstance(got, np.ndarray)
    close(got, run_reference(cnn(), {"image": image()})[0])


@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_tensors_come_back_to_where_they_came_from(where):
    program = xrt.compile(cnn())
    got = program(torch.from_numpy(image()).to(where))
    assert got.device.type == where
    close(got.cpu(), run_reference(cnn(), {"image": image()})[0])


def test_weights_and_outputs_are_on_the_device():
    program = xrt.compile(cnn(), (image(),))
    (executable,) = program.specialization.executables.values()
    (result,) = executable.run([image()])
    assert result.devices() == {D.device()}


@pytest.mark.parametrize("name", ["resnet50", "bert", "segformer", "convnext"])
def test_networks_agree_with_torch_on_the_gpu(name):
    module, inputs = models.load(name)
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    program = xrt.compile(module, inputs)
    with torch.no_grad():
        want, got = module(*args, **kwargs), program(*args, **kwargs)
    from torch.utils import _pytree

    for mine, theirs in zip(_pytree.tree_leaves(got), _pytree.tree_leaves(want), strict=True):
        close(mine, theirs.numpy())
    assert len(program.clusters) == 1


def test_ten_thousand_calls_do_not_grow_device_memory():
    program = xrt.compile(cnn(), (image(),))
    for _ in range(100):
        program(image())
    before = D.device().memory_stats()["bytes_in_use"]
    for _ in range(10_000):
        program(image())
    assert D.device().memory_stats()["bytes_in_use"] <= before + (1 << 20)
