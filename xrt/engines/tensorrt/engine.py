"""The TensorRT engine: clusters as serialized engines of TensorRT or TensorRT-RTX."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from xrt.engines.cache import open_cache
from xrt.engines.engine import Engine, Executable
from xrt.engines.tensorrt.build import UnknownShapesError, build
from xrt.engines.tensorrt.library import PACKAGES, TENSORRT, TENSORRT_RTX, Library, find, load
from xrt.engines.tensorrt.plan import Plan
from xrt.engines.tensorrt.support import remember_failure, supports
from xrt.errors import DeviceMemoryError, EngineBuildError, EngineUnavailableError, OptionError
from xrt.graph import Cluster, Support
from xrt.kernels.cuda import device
from xrt.options import CompileOptions
from xrt.passes.annotate_profiles import Profile

_INSTALL = "pip install 'xrt[tensorrt]'"
_ELSEWHERE = "or build for a GPU that is elsewhere, as in target='sm_89'"

_RUN_OPTIONS = ("cuda_graphs", "shape_specialization", "timing_cache")
"""Options that leave no trace in a plan."""

_RUN_MODULES = ("executable", "loading", "session")
"""Modules that run plans, and have no part in making them."""


class TensorRTEngine(Engine):
    """Builds clusters by TensorRT, for the GPU present or for a target.

    Args:
        name: "tensorrt", which is served by TensorRT where it is installed and by TensorRT-RTX
            otherwise, or "tensorrt_rtx", which means the latter.
        target: The compute capability to build for, as "sm_89"; None means the GPU present.
    """

    gpu = True
    takes_ranges = True

    def __init__(self, name: str = TENSORRT, target: str | None = None) -> None:
        self.name = name
        self.target = target

    def targeting(self, target: str) -> Engine:
        """This engine, building for `target`: TensorRT-RTX needs no such GPU for that.

        Raises:
            OptionError: If no installed library knows the target.
        """
        found = [load(name) for name in PACKAGES[self.name]]
        libraries = [each for each in found if isinstance(each, Library)]
        for library in libraries:
            if library.targets:
                library.capability(target)
        if libraries and not any(library.targets for library in libraries):
            raise OptionError(
                f"target={target!r}: {libraries[0].name} {libraries[0].version} builds for the GPU "
                f"present only. TensorRT-RTX builds for others: {_INSTALL}"
            )
        return TensorRTEngine(self.name, target)

    def available(self) -> Support:
        """Whether it can build and, unless it builds for a target, run here; if not, why."""
        if self.target is None and isinstance(device.present(), str):
            # Said without loading a library of 250 MB, which could do nothing here.
            reasons, remedies = [str(device.present())], [device.REMEDY, _ELSEWHERE]
            if not any(importlib.util.find_spec(name) for name in PACKAGES[self.name]):
                reasons.insert(0, f"the package {TENSORRT_RTX!r} is not installed")
                remedies.insert(0, _INSTALL)
            return Support.no(" and ".join(reasons), ", ".join(remedies))
        library = self.library
        if isinstance(library, str):
            return Support.no(library, _INSTALL)
        return Support.yes() if self.target is not None else self._runs_here(library)

    def _runs_here(self, library: Library) -> Support:
        gpu = device.present()
        assert isinstance(gpu, device.Gpu), "looked for before"
        if library.targets and gpu.target not in library.targets:
            known = ", ".join(library.targets)
            other = ", or install TensorRT" if self.name == TENSORRT else ""
            return Support.no(
                f"{library.name} {library.version} does not support the GPU present, "
                f"{gpu.name} ({gpu.target}), but {known}",
                f"use another engine{other}",
            )
        return device.support()

    def supports(self, node: ir.Node, context: Any = None) -> Support:
        """Whether TensorRT's parser takes `node`, or its reason not to."""
        library = self.library
        if isinstance(library, str):
            return Support.no(library)
        return supports(library, node, self._build_target(library))

    def identity(self, options: CompileOptions) -> Mapping[str, str]:
        """The library's exact version and the GPU that plans are for."""
        library = self.library
        if isinstance(library, str):
            return {}
        return {"library": f"{library.name} {library.version}", **self._device(library)}

    def _device(self, library: Library) -> dict[str, str]:
        """The GPU that plans are for: of RTX, its compute capability is all that counts."""
        gpu = device.present()
        if library.targets:
            return {"target": self.target or (gpu if isinstance(gpu, str) else gpu.target)}
        if isinstance(gpu, str):
            return {"gpu": "none"}
        return {"gpu": f"{gpu.name} {gpu.target}", "driver": "{}.{}".format(*gpu.driver)}

    def compile(self, cluster: Cluster, options: CompileOptions) -> Executable:
        """Build `cluster`, or take its plan from the disk cache; on the GPU it is for, load it."""
        return self._executable(self.plan(cluster, options), cluster, options)

    def deserialize(self, data: bytes, cluster: Cluster, options: CompileOptions) -> Executable:
        """The executable of a plan that was saved; on the GPU that it is for, it is loaded."""
        plan = Plan.from_bytes(data)
        if plan.library.name not in PACKAGES[self.name]:
            raise EngineBuildError(
                self.name, f"the plan is of {plan.library.name}; this engine does not run such"
            )
        return self._executable(plan, cluster, options)

    def plan(self, cluster: Cluster, options: CompileOptions) -> Plan:
        """The plan of `cluster`: built, or from the disk cache.

        Raises:
            EngineBuildError: If the library refuses or fails.
            OptionError: If it lacks an option that is set.
        """
        library = self.library
        if isinstance(library, str):
            raise EngineBuildError(self.name, library)
        cache = open_cache(options, self.name)
        if cache is None:
            return self._build(library, cluster, options)
        key = self._key(library, cluster, options)
        with cache.lock(key):
            stored = cache.get(key)
            if stored is not None:
                with contextlib.suppress(EngineBuildError):
                    plan = Plan.from_bytes(stored)
                    return replace(plan, report={**plan.report, "cache_hit": True})
            plan = self._build(library, cluster, options)
            about = {"cluster": cluster.name, **self.identity(options)}
            cache.put(key, plan.to_bytes(), about)
            return plan

    def _build(self, library: Library, cluster: Cluster, options: CompileOptions) -> Plan:
        target = self._build_target(library)
        try:
            return build(library, cluster, options, target)
        except UnknownShapesError:
            raise
        except EngineBuildError as error:
            if options.tensorrt.workspace is None:  # with less of it, more fails
                for node in cluster.nodes:
                    if error.place and node.name == error.place:
                        remember_failure(library, node, target, error.reason)
            raise

    def _build_target(self, library: Library) -> str | None:
        """The target that plans are made for: for RTX, that of the GPU present if none is given."""
        gpu = device.present()
        if self.target is not None or not library.targets or isinstance(gpu, str):
            return self.target
        return gpu.target

    def _executable(self, plan: Plan, cluster: Cluster, options: CompileOptions) -> Executable:
        from xrt.engines.tensorrt.executable import TensorRTExecutable

        executable = TensorRTExecutable(plan, cluster, options)
        gpu = device.present()
        if not isinstance(gpu, str) and plan.target in (None, gpu.target):
            try:
                executable.load()
            except (DeviceMemoryError, EngineUnavailableError) as error:
                raise EngineBuildError(self.name, str(error)) from error
        return executable

    def _key(self, library: Library, cluster: Cluster, options: CompileOptions) -> str:
        chosen = {
            name: str(value)
            for name, value in asdict(options.tensorrt).items()
            if name not in _RUN_OPTIONS
        }
        gpu = device.present()
        driver = "none" if isinstance(gpu, str) else "{}.{}".format(*gpu.driver)
        profiles = [Profile.of(value) for value in cluster.body.inputs]
        ranges = [None if profile is None else asdict(profile) for profile in profiles]
        parts = [cluster.digest, ranges, chosen, dict(self.identity(options)), driver, _rules()]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @property
    def library(self) -> Library | str:
        """The library that serves this engine, or the reason why none does."""
        if self.target is None:
            return find(self.name)
        for name in PACKAGES[self.name]:
            found = load(name)
            if isinstance(found, Library) and found.targets:
                return found
        return find(self.name)


def tensorrt() -> TensorRTEngine:
    """The engine that TensorRT serves, or TensorRT-RTX."""
    return TensorRTEngine(TENSORRT)


def tensorrt_rtx() -> TensorRTEngine:
    """The engine that TensorRT-RTX serves."""
    return TensorRTEngine(TENSORRT_RTX)


@functools.cache
def _rules() -> str:
    """A digest of the code that makes plans: a plan of other rules is another plan."""
    source = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem not in _RUN_MODULES:
            source.update(path.read_bytes())
    return source.hexdigest()
