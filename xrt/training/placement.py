"""Where arrays of training live: on one device, or on a mesh of several.

The state is on every device; of a batch each holds its share. Everything else follows: XLA puts the
reductions of the gradients into the step. The devices may belong to several processes of
`jax.distributed`, which all run the same program; each passes its own share of a batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from xrt.engines.xla import compiler_flags
from xrt.engines.xla import device as D
from xrt.errors import TrainingError
from xrt.runtime import arrays as A

AXIS = "data"
"""The axis of the mesh that batches are cut along."""

# Devices wait for each other in a reduction. By default XLA ends the process after 40 s, which
# virtual devices may need that share few cores.
_CPU_MESH_OPTIONS = {"xla_cpu_collective_call_terminate_timeout_seconds": 1800}


class Placement:
    """Puts arrays where the step wants them.

    Args:
        devices: The devices, those of a process next to each other; None for the XLA engine's own.

    Attributes:
        devices: The devices.
        processes: How many processes they belong to.
        mesh: The mesh of several devices; None for one.
    """

    def __init__(self, devices: Sequence[jax.Device] | None = None) -> None:
        self.devices = list(devices or [D.device()])
        self.processes = len({device.process_index for device in self.devices})
        self.mesh: Any = None
        self.replicated: Any
        self.split: Any
        if len(self.devices) == 1:
            self.replicated = self.split = SingleDeviceSharding(self.devices[0])
        else:
            self.mesh = jax.sharding.Mesh(np.array(self.devices), (AXIS,))
            self.replicated, self.split = self._sharding(), self._sharding(AXIS)

    def _sharding(self, *axes: Any) -> Any:
        return NamedSharding(self.mesh, PartitionSpec(*axes))  # type: ignore[no-untyped-call]

    @property
    def parts(self) -> Any:
        """The sharding of a batch [parts, samples, ...], each part on all devices; None for one."""
        return None if self.mesh is None else self._sharding(None, AXIS)

    @property
    def local_count(self) -> int:
        """How many of the devices are this process's."""
        return len(self.devices) // self.processes

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files and shows progress."""
        return self.processes == 1 or jax.process_index() == 0

    def put(self, tree: Any) -> Any:
        """A tree of arrays, copied, whole on every device.

        The copies are XLA's own: those that share memory with NumPy cannot be donated.
        """
        return jax.tree.map(self._copy, tree)

    def put_batch(self, tree: Any) -> Any:
        """The arrays of a batch, cut along their first axis; the caller leaves them alone.

        In several processes `tree` is the share of this one, and the result the whole.
        """
        return jax.tree.map(lambda each: self._put(each, self._batch_sharding(each)), tree)

    def spec(self, tree: Any, *, batch: bool = False) -> Any:
        """Shapes, types and places of a tree of arrays; a batch is a whole one."""
        struct: Any = jax.ShapeDtypeStruct

        def one(array: Any) -> Any:
            sharding = self._batch_sharding(array) if batch else self.replicated
            return struct(np.shape(array), array.dtype, sharding=sharding)

        return jax.tree.map(one, tree)

    def axes(self, batch: Any) -> Any:
        """Along which axes of the mesh the arrays of a batch are cut."""
        return jax.tree.map(lambda each: _CUT if np.ndim(each) else _WHOLE, batch)

    def agreed(self, tree: Any) -> Any:
        """A tree of arrays as the first process has it."""
        return tree if self.processes == 1 else multihost_utils.broadcast_one_to_all(tree)

    def check_alike(self, what: str) -> None:
        """Raise TrainingError if the processes do not all pass the same text."""
        if self.processes == 1:
            return
        words = np.frombuffer(hashlib.sha256(what.encode()).digest(), np.uint8)
        others = np.asarray(multihost_utils.process_allgather(words))
        if (others != others[0]).any():
            raise TrainingError(
                "The processes train different models, or with different options. Run the same "
                "script in all of them, with batches of the same shapes."
            )

    def by_first(self, work: Callable[[], object]) -> None:
        """Let the first process do some work, while the others wait.

        Raises:
            TrainingError: In the others, if it failed.
        """
        if self.processes == 1:
            work()
            return
        failure: Exception | None = None
        if self.is_first:
            try:
                work()
            except Exception as error:
                failure = error
        failed = bool(self.agreed(np.array(failure is not None)))
        if failure is not None:
            raise failure
        if failed:
            raise TrainingError("Process 0 failed; its own error says why.")

    def compiler_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Compile options of XLA: xrt's own, and what the user gives."""
        if self.devices[0].platform != "cpu":
            return dict(given)
        mesh = _CPU_MESH_OPTIONS if self.mesh is not None else {}
        return compiler_flags.keep_barriers({**compiler_flags.CPU, **mesh, **given})

    def _batch_sharding(self, array: Any) -> Any:
        return self.split if np.ndim(array) else self.replicated

    def _copy(self, array: Any) -> Any:
        if self.processes > 1:
            return self._put(np.array(array, copy=True), self.replicated)
        return D.copied(np.asarray(A.on_host(array)), self.replicated, self.devices)

    def _put(self, array: Any, sharding: Any) -> Any:
        if self.mesh is None:
            return D.put(array, self.devices[0])
        if self.devices[0].platform == "cpu" or not isinstance(array, jax.Array):
            array = A.on_host(array)
        if self.processes == 1:
            return jax.device_put(array, sharding)
        if sharding is self.split:
            share = np.asarray(array)
            return jax.make_array_from_process_local_data(  # type: ignore[no-untyped-call]
                sharding, share
            )
        return jax.make_array_from_callback(np.shape(array), sharding, lambda index: array[index])


_WHOLE = PartitionSpec()  # type: ignore[no-untyped-call]
_CUT = PartitionSpec(AXIS)  # type: ignore[no-untyped-call]
