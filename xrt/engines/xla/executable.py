"""What the XLA engine built: machine code on a device, with its weights."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxlib import xla_client

from xrt import graph as G
from xrt.engines.engine import Executable
from xrt.engines.prepared import PreparedKey
from xrt.engines.xla import device as D
from xrt.engines.xla import keys as K
from xrt.engines.xla import launch, recycle
from xrt.engines.xla import lowering as L
from xrt.engines.xla import trace as T
from xrt.engines.xla import tune as tuning
from xrt.errors import EngineRunError
from xrt.graph import Cluster

_FORK_LOCK = threading.Lock()


def _after_fork() -> None:
    """Another thread may have held the lock when this process was forked."""
    global _FORK_LOCK
    _FORK_LOCK = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Code:
    """What XLA compiled, on a device.

    Args:
        loaded: The executable.
        data: The bytes that it was loaded from, if it was: jaxlib 0.10.2 loses functions when an
            executable that was loaded is serialized again.
    """

    def __init__(self, loaded: Any, data: bytes | None = None) -> None:
        self.loaded = loaded
        self._data = data

    def serialize(self) -> bytes:
        """Bytes that `load` takes."""
        return self.loaded.serialize() if self._data is None else self._data


class XlaExecutable(Executable):
    """A cluster compiled by XLA, with its weights on the device."""

    def __init__(
        self,
        code: Code,
        cluster: Cluster,
        parameters: Sequence[jax.Array],
        threads: int | None = None,
        recycled: tuple[int, ...] = (),
    ) -> None:
        self._code = code
        self._recycled = recycled
        self._order = recycle.order(recycled, len(cluster.body.outputs))
        self._cluster = cluster
        self._loaded = code.loaded
        self._parameters = list(parameters)
        self._threads = threads
        self._device = D.device()
        self._cores = D.thread_count()
        self._generation = D.generation
        self._choices = tuning.choices(cluster.body)
        self._algorithms = tuning.algorithms(cluster.body)
        self._keys = K.KeySource() if any(map(L.draws, cluster.body)) else None

    def run(self, inputs: Sequence[Any], stream: Any = None) -> Sequence[jax.Array]:
        """Run the cluster; `stream` is XLA's own. On the CPU the result is ready on return."""
        if self._recycled:
            return self.run_into(inputs, [None] * len(self._recycled))
        arguments = self._arguments(inputs)  # which may load anew
        results = launch.run(self._loaded.execute_sharded, arguments)
        return [shards[0] for shards in results.disassemble_into_single_device_arrays()]

    def run_into(self, inputs: Sequence[Any], spare: Sequence[Any]) -> Sequence[jax.Array]:
        """Run the cluster with memory for its recycled outputs."""
        arguments = self._arguments(inputs)
        for position, given in zip(self._recycled, spare, strict=True):
            if given is None or given.device != self._device:  # after a fork it is the parent's
                value = self._cluster.body.outputs[position]
                assert value.dtype is not None
                shape = G.static_shape(value) or ()
                given = recycle.fresh(shape, value.dtype.numpy(), self._device)
            arguments.append(given)
        executed = launch.run(self._loaded.execute_sharded, arguments)
        results: list[Any] = [None] * len(self._order)
        shards = executed.disassemble_into_single_device_arrays()
        for position, single in zip(self._order, shards, strict=True):
            results[position] = single[0]
        return results

    def _arguments(self, inputs: Sequence[Any]) -> list[jax.Array]:
        if self._generation != D.generation:
            self._reload()
        target = self._device
        arguments = [D.put(array, target) for array in inputs]
        arguments += self._parameters
        if self._keys is not None:
            arguments.append(D.put(self._keys(), target))
        return arguments

    @property
    def reads_in_place(self) -> bool:
        """On the CPU; a GPU may copy later."""
        return bool(self._device.platform == "cpu")

    @property
    def concurrent(self) -> bool:
        """On several cores of a CPU, since parts of a program use one; random numbers are drawn in
        order.
        """
        return self._cores > 1 and self._device.platform == "cpu" and self._keys is None

    @property
    def recycled(self) -> tuple[int, ...]:
        """Outputs whose memory is given."""
        return self._recycled

    def bare(self, inputs: Sequence[jax.Array]) -> Callable[[], Any]:
        """A call of the compiled code alone, for arrays on the device: what benchmarks subtract."""
        if self._recycled:
            return lambda: self.run(inputs)
        arguments = [*inputs, *self._parameters]
        if self._keys is not None:
            arguments.append(D.put(self._keys(), self._device))
        return lambda: self._loaded.execute_sharded(arguments)

    def _reload(self) -> None:
        """Move from the client of the process that this one was forked from to one of its own."""
        with _FORK_LOCK, D.isolated(self._threads):
            if self._generation == D.generation:
                return
            target = D.device()
            code = load(self._code.serialize()) if target.platform == "cpu" else None
            if code is None:
                raise EngineRunError(
                    "A program compiled before this process was forked cannot run in it. Start "
                    "the process by 'spawn' or 'forkserver' and compile there; the compile cache "
                    "makes that quick."
                )
            # The weights' memory stays where it is.
            self._parameters = [D.put(np.asarray(array)) for array in self._parameters]
            if self._keys is not None:
                self._keys = K.KeySource()  # the parent goes on with the other
            self._code, self._loaded, self._device = code, code.loaded, target
            self._generation = D.generation

    @property
    def details(self) -> dict[str, Any]:
        """How many convolutions each algorithm computes."""
        return {"algorithms": self._algorithms} if self._algorithms else {}

    def serialize(self) -> bytes:
        """The tuned choices, which say how the weights are laid out, what is recycled, and the
        machine code.
        """
        header = {"choices": self._choices, "recycled": self._recycled}
        return json.dumps(header).encode() + b"\n" + self._code.serialize()

    def prepared(self) -> Mapping[PreparedKey, np.ndarray[Any, Any]]:
        """Weights in the layouts of the CPU's algorithms; a GPU is sent them anyway."""
        if self._device.platform != "cpu":
            return {}
        with D.isolated(self._threads):
            plan = T.plan(self._cluster.body)
        pairs = zip(plan.parameters, self._parameters, strict=True)
        return {each.key: np.asarray(array) for each, array in pairs if each.prepared is not None}

    def memory(self) -> dict[str, int]:
        """Bytes that XLA plans for a run: arguments, outputs, temporaries, weights, code."""
        stats = self._loaded.get_compiled_memory_stats()
        return {
            "arguments": int(stats.argument_size_in_bytes),
            "outputs": int(stats.output_size_in_bytes),
            "temporaries": int(stats.temp_size_in_bytes),
            "weights": sum(int(array.nbytes) for array in self._parameters),
            "code": int(self._loaded.size_of_generated_code_in_bytes()),
        }


def load(data: bytes) -> Code | None:
    """The executable in `data`, or None if this device or jaxlib cannot take it."""

    target = D.device()
    try:
        devices = xla_client.DeviceList((target,))
        return Code(target.client.deserialize_executable(data, devices), data)
    except (RuntimeError, ValueError, TypeError):
        return None
