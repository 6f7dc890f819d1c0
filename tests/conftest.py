"""Random numbers that depend on no other test; a GPU, or a skip that says why there is none."""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from xrt.kernels.cuda import device, streams
from xrt.kernels.cuda.streams import Lane

# JAX would take three quarters of the GPU's memory, which other tests need.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

# Each generator of a test module, with its state before any test.
GENERATORS = pytest.StashKey[list[tuple[np.random.Generator, Any]]]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Remember the generators that the test modules share between their tests."""
    modules = [module for name, module in sys.modules.items() if name.startswith("tests.")]
    found = {
        id(value): value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, np.random.Generator)
    }
    session.stash[GENERATORS] = [(g, g.bit_generator.state) for g in found.values()]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Give every test the same numbers alone, after others and in any worker."""
    for generator, state in item.session.stash[GENERATORS]:
        generator.bit_generator.state = state


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
