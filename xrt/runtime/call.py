"""A batch on its way through a program, in the three parts that a pipeline runs on its threads."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from xrt.errors import InputError
from xrt.importers import split_example
from xrt.runtime import arrays
from xrt.runtime.staging import Staging
from xrt.runtime.trace import Recorder

if TYPE_CHECKING:
    from xrt.runtime.program import Program, Specialization


class Call:
    """A batch on its way through a program.

    Attributes:
        number: Its place in the stream.
        result: The model's outputs, once it has finished.
        error: What went wrong.
        staging: The memory that its inputs are copied to.
        future: Who waits for it, if it was submitted.
        done: Set once it has gone through, if the next batch has to wait for that.
        concurrent: Whether it may launch beside another that may.
    """

    def __init__(
        self, program: Program | None, batch: Any, number: int, recorder: Recorder | None = None
    ) -> None:
        self.number = number
        self.result: Any = None
        self.error: BaseException | None = None
        self.staging: Staging | None = None
        self.future: Future[Any] | None = None
        self.done: threading.Event | None = None
        self.concurrent = False
        self._program = program
        self._batch = batch
        self._recorder = recorder
        self._specialization: Specialization | None = None
        self._kind = ""
        self._taken: list[Any] = []
        self._values: list[Any] = []

    def prepare(self) -> None:
        """Find or compile the specialization, take the inputs, run the steps before launches."""
        assert self._program is not None
        with self._span("prepare", "prepare", "input"):
            args, kwargs = split_example(self._batch)
            self._specialization, leaves = self._program.locate(args, kwargs)
            self._kind = arrays.kind_of(leaves)
            self._taken = [arrays.take(leaf) for leaf in leaves]
        self.concurrent = self._specialization.concurrent
        if self._specialization.observe is not None:
            self.done = threading.Event()
        if self.staging is not None:
            with self._span("copy", "copy inputs", "input"):
                self._taken = self.staging.copy(self._taken)
        self._batch = None
        schedule = self._specialization.schedule
        self._values = schedule.begin(self._taken)
        self._advance(range(schedule.middle.start), "input")

    def launch(self) -> None:
        """Run the launches, and the host steps between them."""
        assert self._specialization is not None
        self._advance(self._specialization.schedule.middle, "launch")

    def finish(self) -> None:
        """Run the steps after the launches, and make the outputs."""
        specialization = self._specialization
        assert specialization is not None
        schedule = specialization.schedule
        self._advance(range(schedule.middle.stop, len(schedule.steps)), "output")
        with self._span("copy", "give outputs", "output"):
            results = schedule.finish(self._values, self._taken)
            _wait(results)
            if specialization.observe is not None:
                results = specialization.observe(self._taken, results)
            given = [arrays.give(result, self._kind) for result in results]
            self.result = specialization.imported.interface.unflatten(given)

    def release(self) -> None:
        """Forget the inputs and whatever else only running needed."""
        self._program = self._specialization = self._batch = None
        self._taken, self._values = [], []

    def fail(self, error: BaseException) -> None:
        """Take note of what went wrong."""
        if isinstance(error, StopIteration):  # which would end the caller's loop in silence
            error = RuntimeError(f"batch {self.number} raised StopIteration")
        self.error = error

    def _advance(self, steps: range, phase: str) -> None:
        if not steps:
            return
        assert self._specialization is not None
        record = None if self._recorder is None else self._recorder.steps(self.number, phase)
        self._specialization.schedule.advance(self._values, steps, record)

    def _span(self, kind: str, label: str, phase: str) -> contextlib.AbstractContextManager[None]:
        if self._recorder is None:
            return contextlib.nullcontext()
        return self._recorder.span(self.number, kind, label, phase)


def _wait(results: Iterable[Any]) -> None:
    """Until the device has made `results`: from then on nothing reads the inputs of the batch."""
    for result in results:
        if hasattr(result, "block_until_ready"):
            result.block_until_ready()


def as_iterable(batches: Any, who: str) -> Iterable[Any]:
    """`batches`, or an iterator over what has only `__getitem__`, as many data sets have.

    Raises:
        InputError: If there are no batches to be had from it.
    """
    if not isinstance(batches, (str, bytes, Mapping)) and getattr(batches, "ndim", 1) != 0:
        if isinstance(batches, Iterable):
            return batches
        if hasattr(type(batches), "__getitem__"):
            # Not all such data sets end by an IndexError.
            ends = len(batches) if hasattr(batches, "__len__") else None
            return itertools.islice(iter(batches), ends)
    raise InputError(
        f"{who} takes an iterable of batches; got a {type(batches).__name__}. Each batch is "
        "a tuple of inputs, a dict of inputs by name, or a single input."
    )


class Reader:
    """Makes calls of a user's iterable, one at a time, on whatever thread asks.

    Args:
        program: The program to call.
        batches: Each a tuple of inputs, a dict of inputs by name, or a single input.
        recorder: Takes the time of reading.
    """

    def __init__(
        self, program: Program, batches: Iterable[Any], recorder: Recorder | None = None
    ) -> None:
        self._iterator = iter(batches)
        self._ours = self._iterator is not batches
        self._program = program
        self._recorder = recorder
        self._count = 0

    def __call__(self) -> Call | None:
        """The next call, which carries the error if reading failed; None at the end."""
        number, self._count = self._count, self._count + 1
        try:
            if self._recorder is None:
                batch = next(self._iterator)
            else:
                with self._recorder.span(number, "read", "read", "input"):
                    batch = next(self._iterator)
        except StopIteration:
            return None
        except BaseException as error:
            failed = Call(None, None, number)
            failed.fail(error)
            return failed
        return Call(self._program, batch, number, self._recorder)

    def close(self) -> None:
        """End the iterator, if it was made here, and can be."""
        if self._ours and hasattr(self._iterator, "close"):
            self._iterator.close()
