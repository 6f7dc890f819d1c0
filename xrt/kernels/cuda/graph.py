"""CUDA graphs: work that was enqueued once, launched again as one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

from xrt.errors import EngineRunError
from xrt.kernels.cuda import device
from xrt.kernels.cuda.streams import Lane

T = TypeVar("T")


class Graph:
    """What was enqueued on a lane, kept as an executable graph with the memory that it works in.

    Attributes:
        instantiated: How often it was built anew.
        updated: How often it was given other addresses in place, which costs far less.
    """

    def __init__(self) -> None:
        self._executable: Any = None
        self._memory: list[Any] = []
        self.instantiated = self.updated = 0

    def capture(self, lane: Lane, work: Callable[[], T]) -> T:
        """Call `work`, and keep what it enqueues on `lane.compute` instead of running it.

        What `work` allocates belongs to the graph. A graph that holds work already is updated to
        the new addresses; only if the work itself is different, it is built anew. `work` must not
        wait for the device.

        Raises:
            EngineRunError: If something in `work` cannot be captured. The lane is as before.
        """
        arena: list[Any] = []
        lane.arena = arena
        builder = lane.compute.create_graph_builder()
        try:
            # Relaxed: other threads, and memory that is taken on the way, do not disturb it.
            builder.begin_building("relaxed")
            result = work()
            builder.end_building()
            self._hold(builder)
        except Exception as error:
            with contextlib.suppress(
                Exception
            ):  # it ends the capture, and says again that it broke
                builder.close()
            if isinstance(error, EngineRunError):
                raise
            raise EngineRunError(f"A CUDA graph could not be captured: {error}") from error
        finally:
            lane.arena = None
        builder.close()
        self._memory = arena
        lane.compute.wait(lane.copies)  # on which the memory was allocated
        return result

    def _hold(self, builder: Any) -> None:
        if self._executable is not None:
            try:
                self._executable.update(builder)
            except Exception:  # another topology: CUDA leaves the executable of no use
                self._executable = None
            else:
                self.updated += 1
                return
        self._executable = builder.complete()
        self.instantiated += 1

    def launch(self, lane: Lane) -> None:
        """Enqueue the work on `lane.compute`.

        Raises:
            EngineRunError: If CUDA refuses.
        """
        try:
            self._executable.launch(lane.compute)
        except Exception as error:
            raise device.failure(error, "launching a graph") from error
