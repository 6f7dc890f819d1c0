"""CUDA sources: compiled without a GPU, run with one."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from tests.support import assert_close
from xrt.errors import KernelError, MissingDependencyError
from xrt.kernels.cuda import source, staging

GOOD = 'extern "C" __global__ void good(const IN0* x, float* y) { y[0] = (float)x[0]; }'
BAD = 'extern "C" __global__ void bad(float* x) { x[0] = nothing; }'


def _compiler() -> str:
    """Why sources cannot be compiled here; empty if they can."""
    try:
        source.compile_source('extern "C" __global__ void f() {}', "f", "sm_90")
    except MissingDependencyError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def compiler() -> None:
    reason = _compiler()
    if reason:
        pytest.skip(reason)


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_120"])
@pytest.mark.parametrize("kind", ["float", "int", "signed char"])
def test_a_source_compiles_for_a_device_that_is_not_here(compiler, target, kind):
    code = source.compile_source(GOOD, "good", target, {"IN0": kind})
    assert code.code_type == "cubin"
    assert bytes(code.code)[:4] == b"\x7fELF"


@pytest.mark.parametrize("dtype", sorted(set(source.TYPES) - {"float16", "bfloat16"}))
def test_every_type_converts_to_every_other(compiler, dtype):
    for other in ("int32", "float32", "float64", "int64"):
        defines = {"FROM": source.TYPES[dtype], "TO": source.TYPES[other]}
        assert source.compile_source(source._CAST, "cast", "sm_90", defines).code


def test_an_error_quotes_the_compiler(compiler):
    with pytest.raises(KernelError, match=r"'bad' does not compile for sm_90.*with A=1") as raised:
        source.compile_source(BAD, "bad", "sm_90", {"A": "1"})
    assert 'identifier "nothing" is undefined' in str(raised.value)


def test_a_function_that_is_not_there_is_named(compiler):
    with pytest.raises(KernelError, match="'other'"):
        source.compile_source(GOOD, "other", "sm_90", {"IN0": "float"})


@pytest.mark.skipif(
    importlib.util.find_spec("cuda") is not None
    and importlib.util.find_spec("cuda.bindings") is not None,
    reason="the packages are installed",
)
def test_missing_packages_are_named_with_their_extra():
    with pytest.raises(MissingDependencyError, match=r"pip install 'xrt\[cuda\]'"):
        source.compile_source(GOOD, "good", "sm_90", {"IN0": "float"})


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["int64", "float64", "bool", "uint8", "int32"])
def test_a_conversion_is_numpys(gpu, dtype):
    value = np.array([0, 1, 5, 120], dtype)
    for other in ("int32", "float32", "float64", "int64"):
        there = staging.upload(value, gpu)
        assert_close(np.asarray(source.cast(there, np.dtype(other), gpu)), value.astype(other))


@pytest.mark.gpu
def test_a_conversion_to_the_same_type_is_none(gpu):
    there = staging.upload(np.ones(3, np.float32), gpu)
    assert source.cast(there, np.dtype("float32"), gpu) is there


@pytest.mark.gpu
def test_templates_can_be_launched(gpu):
    text = (
        "template<class T> __global__ void twice(T* x, long long n) { if (threadIdx.x < n) "
        "x[threadIdx.x] *= 2; }\ntemplate __global__ void twice<float>(float*, long long);"
    )
    there = staging.upload(np.arange(5, dtype=np.float32), gpu)
    source.launch(source.load(text, "twice<float>"), 5, (there.pointer, np.int64(5)), gpu)
    there.done_at(gpu.compute.record())
    assert_close(np.asarray(there), np.arange(5, dtype=np.float32) * 2)
