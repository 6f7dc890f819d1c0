"""A GPU, or a skip that says why there is none."""

from __future__ import annotations

import os
from types import ModuleType

import pytest

from xrt.kernels.cuda import device, streams
from xrt.kernels.cuda.streams import Lane

# JAX would take three quarters of the GPU's memory, which other tests need.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


@pytest.fixture
def gpu() -> Lane:
    """The lane of this thread."""
    support = device.support()
    if not support:
        pytest.skip(support.reason)
    return streams.lane()


@pytest.fixture
def torch_cuda(gpu: Lane) -> ModuleType:
    """The package torch, where it has the GPU too."""
    torch: ModuleType = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    return torch
