"""Which GPU there is, and what is said where there is none."""

from __future__ import annotations

import subprocess
import sys

import pytest

from xrt.errors import DeviceMemoryError, EngineRunError, EngineUnavailableError
from xrt.kernels.cuda import device

without_gpu = pytest.mark.skipif(
    not isinstance(device.present(), str), reason="this machine has a GPU"
)


def test_nothing_is_imported_before_it_is_needed():
    code = (
        "import sys, xrt.kernels.cuda.array, xrt.runtime.arrays; print('cuda.core' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@without_gpu
def test_a_missing_gpu_has_a_reason_and_a_remedy():
    support = device.support()
    assert not support
    assert support.reason == device.present()
    assert "NVIDIA driver" in support.remedy


@without_gpu
def test_using_a_missing_gpu_says_what_to_do():
    with pytest.raises(EngineUnavailableError, match=r"engine='xla' or 'host'.*NVIDIA driver"):
        device.current()


def test_a_target_is_named_by_its_capability():
    assert device.Gpu("NVIDIA L4", (8, 9), (13, 0)).target == "sm_89"
    assert device.Gpu("NVIDIA B200", (12, 0), (13, 0)).target == "sm_120"


@pytest.mark.parametrize(
    "text",
    [
        "CUDA_ERROR_OUT_OF_MEMORY: The API call failed",
        "Error Code 2: OutOfMemory (Requested size was 1 bytes.)",
        "Cuda Runtime (out of memory)",
    ],
)
def test_missing_memory_is_told_from_other_failures(text):
    error = device.failure(text, "12 bytes for a test")
    assert isinstance(error, DeviceMemoryError)
    assert isinstance(error, MemoryError)
    assert "12 bytes for a test" in str(error)
    assert "smaller batches" in str(error)


def test_other_failures_keep_cudas_words():
    error = device.failure("CUDA_ERROR_ILLEGAL_ADDRESS", "launching a kernel")
    assert type(error) is EngineRunError
    assert "launching a kernel: CUDA_ERROR_ILLEGAL_ADDRESS" in str(error)


@pytest.mark.gpu
def test_the_gpu_is_described(gpu):
    found = device.present()
    assert isinstance(found, device.Gpu)
    assert found.target == f"sm_{device.current().arch}"
    assert found.name == device.current().name
    free, total = device.memory()
    assert 0 < free <= total
    assert abs(found.memory - total) < 1 << 30
