"""Where a program's models come from: imported and prepared once, or once for each structure."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from onnx_ir.passes.common import NameFixPass

from xrt import passes
from xrt.importers import Imported, import_model, is_torch_module
from xrt.kernels import host
from xrt.options import CompileOptions
from xrt.process import new_lock
from xrt.progress import progress
from xrt.runtime.normalization import normalized_example


class Source:
    """Imports a model for the arguments of a call. Safe to call from several threads.

    An ONNX model or an exported program is imported once. A torch module is exported by example:
    once for every structure, rank and fixed dimension of its inputs that calls come with.

    Args:
        model: Whatever `xrt.compile` takes.
        dynamic_shapes: As torch.export.export takes them.
        options: The options of the program.
    """

    def __init__(self, model: Any, dynamic_shapes: Any, options: CompileOptions) -> None:
        self.by_example = is_torch_module(model)
        self._model = model
        self._dynamic_shapes = dynamic_shapes
        self._options = options
        self._imports: list[Imported] = []
        self._used: dict[int, int] = {}  # id of an import -> number of the call that used it last
        self._calls = itertools.count()
        self._lock = new_lock()

    def __call__(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Imported, list[Any]]:
        """The imported model that fits a call, and the arrays of the call in its inputs' order.

        Raises:
            ModelImportError: If the model cannot be read.
            InputError: If the model cannot be called like this.
        """
        if not self.by_example:
            imported = self.imported()
            return imported, imported.interface.flatten(args, kwargs)
        found = self._match(args, kwargs)
        if found is None:
            with self._lock:
                found = self._match(args, kwargs)
                if found is None:
                    imported = self._import(args, kwargs)
                    found = imported, imported.interface.flatten(args, kwargs)
        return found

    def imported(self) -> Imported:
        """The model, where importing it takes no example."""
        if not self._imports:
            with self._lock:
                if not self._imports:
                    self._import((), {})
        return self._imports[0]

    def _match(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Imported, list[Any]] | None:
        for imported in self._imports:
            leaves = imported.match(args, kwargs)
            if leaves is not None:
                self._used[id(imported)] = next(self._calls)
                return imported, leaves
        return None

    def _import(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Imported:
        begin = time.perf_counter()
        normalization = self._options.normalization
        if normalization is not None and self.by_example:
            args, kwargs = normalized_example(self._model, normalization, args, kwargs)
        with progress("Importing", None, self._options.progress):
            imported = import_model(self._model, args, kwargs, self._dynamic_shapes)
            middle = time.perf_counter()
            passes.run([NameFixPass, *passes.PREPARE], imported.model, evaluate=host.evaluate)
            if normalization is not None:
                passes.run([passes.NormalizeInputPass(normalization)], imported.model)
            imported = replace(imported, shape_inputs=passes.shape_inputs(imported.model.graph))
        imported.seconds.update({"import": middle - begin, "prepare": time.perf_counter() - middle})
        self._keep(imported)
        return imported

    def _keep(self, imported: Imported) -> None:
        """Add an import; the least recently used goes if there are too many."""
        used = self._used
        known = sorted(self._imports, key=lambda each: used.get(id(each), -1))
        self._imports = [*known, imported][-self._options.max_specializations :]
        self._used = {id(each): used.get(id(each), -1) for each in known}
        self._used[id(imported)] = next(self._calls)
