"""CUDA sources, compiled at run time by NVRTC through cuda-core."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xrt.errors import KernelError, MissingDependencyError
from xrt.kernels.cuda import array as A
from xrt.kernels.cuda import device
from xrt.kernels.cuda.array import DeviceArray
from xrt.kernels.cuda.streams import Lane

TYPES: Mapping[str, str] = {
    "float16": "__half",
    "bfloat16": "__nv_bfloat16",
    "float32": "float",
    "float64": "double",
    "bool": "bool",
    "int8": "signed char",
    "int16": "short",
    "int32": "int",
    "int64": "long long",
    "uint8": "unsigned char",
    "uint16": "unsigned short",
    "uint32": "unsigned int",
    "uint64": "unsigned long long",
}
"""NumPy dtype -> the type in C. The first two need their headers: cuda_fp16.h and cuda_bf16.h."""

_CAST = """
extern "C" __global__ void cast(const FROM* source, TO* target, long long size) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i < size) target[i] = (TO)source[i];
}
"""


def compile_source(
    source: str, name: str, target: str, defines: Mapping[str, str] | None = None
) -> Any:
    """The machine code (a `cuda.core.ObjectCode`) of a kernel. Needs no GPU.

    Args:
        source: CUDA C++.
        name: The `__global__` function, `extern "C"` or not.
        target: A compute capability: "sm_90".
        defines: Macros.

    Raises:
        KernelError: If it does not compile; the message holds the compiler's own words.
        MissingDependencyError: If the packages are not installed.
    """
    core = device.core()
    options = {"arch": target, "std": "c++17", **_headers(source)}
    if defines:
        options["define_macro"] = list(defines.items())
    try:
        program = core.Program(source, "c++", core.ProgramOptions(**options))
        return program.compile("cubin", name_expressions=(name,))
    except Exception as error:
        if type(error).__name__ == "DynamicLibNotFoundError":
            raise MissingDependencyError("nvidia-cuda-nvrtc", "cuda", "A CUDA source") from error
        macros = ", ".join(f"{key}={value}" for key, value in (defines or {}).items())
        raise KernelError(
            f"The CUDA kernel {name!r} does not compile for {target}"
            f"{f' with {macros}' if macros else ''}: {_log(error)}"
        ) from error


def _headers(source: str) -> dict[str, Any]:
    """Where CUDA's own headers are, if `source` includes any."""
    if not re.search(r"^\s*#\s*include", source, re.MULTILINE):
        return {}
    pathfinder = importlib.import_module("cuda.pathfinder")
    folder = pathfinder.find_nvidia_header_directory("cudart")
    return {"include_path": folder} if folder else {}


def _log(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return "\n".join(lines) or type(error).__name__


@functools.lru_cache(maxsize=256)
def load(source: str, name: str, defines: tuple[tuple[str, str], ...] = ()) -> Any:
    """A kernel (a `cuda.core.Kernel`) for the GPU present; compiled once.

    Raises:
        KernelError: If it does not compile.
        EngineUnavailableError: If there is no GPU.
    """
    target = f"sm_{device.current().arch}"
    return compile_source(source, name, target, dict(defines)).get_kernel(name)


def launch(
    kernel: Any,
    size: int,
    arguments: Sequence[Any],
    lane: Lane,
    *,
    block: int = 256,
    grid: tuple[int, ...] | None = None,
) -> None:
    """Enqueue a kernel with a thread for each of `size` elements, or with `grid` blocks.

    Args:
        kernel: What `load` gave.
        size: Number of elements; nothing is launched for none.
        arguments: Addresses as int, numbers as NumPy scalars of the types that the kernel takes.
        lane: Where.
        block: Threads of a block.
        grid: Blocks, in up to three dimensions.

    Raises:
        EngineRunError: If CUDA refuses.
    """
    if grid is None and not size:
        return
    core = device.core()
    config = core.LaunchConfig(grid=grid or (-(-size // block),), block=(block,))
    try:
        core.launch(lane.compute, config, kernel, *arguments)
    except Exception as error:
        raise device.failure(error, "launching a kernel") from error


def cast(array: DeviceArray, dtype: np.dtype[Any], lane: Lane) -> DeviceArray:
    """`array` as another dtype, as C converts; `array` itself if it has that dtype."""
    if array.dtype == dtype:
        return array
    array.wait_on(lane.compute)
    made = A.empty(array.shape, dtype, lane, "a conversion")
    defines = (("FROM", TYPES[array.dtype.name]), ("TO", TYPES[dtype.name]))
    kernel = load(_CAST, "cast", defines)
    launch(kernel, array.size, (array.pointer, made.pointer, np.int64(array.size)), lane)
    return made
