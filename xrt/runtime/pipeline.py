"""Several batches in flight: what is read and prepared, launched and given out overlaps.

    input thread    reads batch i+1, copies it to staging memory, runs its steps before launches
    launch thread   runs the launches of batch i, and the host steps between them
    output thread   runs the steps after the launches of batch i-1, and makes its outputs

Where an engine leaves cores idle during a launch (`Executable.concurrent`) and three batches may be
in flight, a second launch thread takes every other batch.

Between the threads are queues that keep the order. All waits are `SimpleQueue.get`, which an
interrupt ends, and whose `put` may run anywhere, even in the garbage collector: so that is how an
unfinished stream which nobody holds any more ends its threads.
"""

from __future__ import annotations

import atexit
import contextvars
import itertools
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any

from xrt.errors import OptionError, XrtError, unknown
from xrt.runtime.call import Call, Reader, as_iterable
from xrt.runtime.staging import Staging
from xrt.runtime.trace import Recorder

if TYPE_CHECKING:
    from xrt.runtime.program import Program

ON_ERROR = ("cancel", "continue")
"""What becomes of later batches when one fails."""

_SUBMITTED_DEPTH = 2
"""Submitted batches that are in staging memory at once."""

_LAUNCHES = 2
"""Most batches that launch at once."""

_PATIENCE = 2.0
"""Seconds that closing waits for the user's iterator to return."""


class Pipeline:
    """Its threads, and the queues between them.

    Args:
        read: Gives the next call; None at the end. Asked only while fewer than `depth` calls are
            under way, on the input thread.
        deliver: Gets every call in order on the output thread; None at the end. Whoever is done
            with a call puts its `staging` back to `free`.
        depth: Most calls under way.
        cancel: Whether calls after one that failed are skipped.
        ended: Called by the input thread when it has read for the last time.
        at_exit: Called at the end of the interpreter to end the threads; None stops them.
    """

    def __init__(
        self,
        read: Callable[[], Call | None],
        deliver: Callable[[Call | None], None],
        depth: int,
        *,
        cancel: bool,
        ended: Callable[[], None] = lambda: None,
        at_exit: Callable[[], None] | None = None,
    ) -> None:
        self.free: SimpleQueue[Staging | None] = SimpleQueue()
        for _ in range(depth):
            self.free.put(Staging())
        self._lanes = [_Lane() for _ in range(max(1, min(_LAUNCHES, depth - 1)))]
        self._order: SimpleQueue[_Lane | None] = SimpleQueue()  # who has the next call
        self._read: Callable[[], Call | None] | None = read
        self._ended = ended
        self._deliver = deliver
        self._cancel = cancel
        self._failed_at: float = float("inf")  # calls of larger numbers are skipped
        self._stopped = False
        self._process = os.getpid()
        self._at_exit = at_exit
        launches = [partial(self._launch, lane) for lane in self._lanes]
        works = [("output", self._output), *(("launch", each) for each in launches)]
        self._threads = [
            threading.Thread(
                # A context of its own: NumPy's errstate is the caller's, as in a direct call.
                target=contextvars.copy_context().run, args=(work,), name=f"xrt-{name}", daemon=True
            )
            for name, work in [*works, ("input", self._input)]  # `join` wants the input last
        ]  # fmt: skip
        self._start()

    def _start(self) -> None:
        _live_pipelines().add(self)
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:
            self.stop()
            raise

    @property
    def is_ours(self) -> bool:
        """Whether its threads are in this process: a fork leaves them behind."""
        return self._process == os.getpid()

    def stop(self) -> None:
        """Skip all calls and end the threads, without waiting. May run in a garbage collector."""
        self._stopped = True
        self.free.put(None)
        self._close_queues()  # the input thread may hang in the user's iterator

    def _close_queues(self) -> None:
        for lane in self._lanes:
            lane.ready.put(None)
        self._order.put(None)

    def exit(self) -> None:
        """End the threads, as the end of the interpreter asks for."""
        (self._at_exit or self.stop)()

    def join(self) -> None:
        """Wait until the threads have ended; for the user's iterator only a while."""
        if threading.current_thread() in self._threads:
            return  # a callback of the user's runs there
        *others, reading = self._threads
        for thread in (*others, reading):
            if thread.ident is not None:
                thread.join(_PATIENCE if thread is reading else None)

    # --- on the threads: an idle one holds no call, which would keep memory and programs alive ---

    def _input(self) -> None:
        turns = itertools.cycle(self._lanes)
        try:
            while self._read_one(turns):
                pass
        finally:
            self._close_queues()
            self._read = None
            self._ended()

    def _read_one(self, turns: Iterator[_Lane]) -> bool:
        """Read and prepare a call once there is room for it; False at the end."""
        staging = self.free.get()
        if staging is None or self._is_over() or self._read is None:
            return False
        call = self._read()
        if call is None:
            return False
        call.staging = staging
        if call.error is not None:
            self._note_failure(call)
        self._attempt(call, Call.prepare)
        done = call.done
        lane = next(turns) if call.concurrent else self._lanes[0]
        self._order.put(lane)
        lane.ready.put(call)
        # The batch may be the one that completes a calibration: who comes next runs quantized.
        if done is not None and not self._stopped:
            done.wait()
        return not self._is_over()

    def _is_over(self) -> bool:
        return self._stopped or self._failed_at < float("inf")

    def _launch(self, lane: _Lane) -> None:
        self._pass_on(lane.ready.get, Call.launch, lane.launched.put)

    def _output(self) -> None:
        self._pass_on(self._next_launched, Call.finish, self._finished)

    def _next_launched(self) -> Call | None:
        lane = self._order.get()
        return None if lane is None else lane.launched.get()

    def _finished(self, call: Call | None) -> None:
        if call is not None:
            call.release()
            if call.done is not None:
                call.done.set()
        self._deliver(call)

    def _pass_on(
        self,
        take: Callable[[], Call | None],
        work: Callable[[Call], None],
        hand_on: Callable[[Call | None], None],
    ) -> None:
        try:
            while (call := take()) is not None:
                self._attempt(call, work)
                hand_on(call)
                del call
        finally:
            hand_on(None)

    def _attempt(self, call: Call, work: Callable[[Call], None]) -> None:
        if call.error is not None:
            return
        try:
            if self._stopped or call.number > self._failed_at:
                raise CancelledError
            work(call)
        except BaseException as error:
            call.fail(error)
            self._note_failure(call)

    def _note_failure(self, call: Call) -> None:
        if self._cancel:
            self._failed_at = min(self._failed_at, call.number)


class _Lane:
    """The queues before and behind a launch thread."""

    def __init__(self) -> None:
        self.ready: SimpleQueue[Call | None] = SimpleQueue()
        self.launched: SimpleQueue[Call | None] = SimpleQueue()


class Stream(Iterator[Any]):
    """The outputs of batches, in order, while later batches are under way. See `Program.stream`.

    It is a context manager; leaving it, `close()`, an interrupt, or dropping the last reference
    ends its threads.
    """

    def __init__(
        self,
        program: Program,
        batches: Iterable[Any],
        depth: int = 2,
        *,
        on_error: str = "cancel",
        recorder: Recorder | None = None,
    ) -> None:
        batches = as_iterable(batches, "stream()")
        _check(depth, on_error)
        self._outputs: SimpleQueue[Call | None] = SimpleQueue()
        self._cancel = on_error == "cancel"
        reader = Reader(program, batches, recorder)
        self._pipeline = Pipeline(
            reader, self._outputs.put, depth, cancel=self._cancel, ended=reader.close
        )
        # Nothing on the threads refers to this object: once it is gone they are told to end.
        self._finalizer = weakref.finalize(self, self._pipeline.stop)
        self._finalizer.atexit = False

    def __next__(self) -> Any:
        """The outputs of the next batch.

        Raises:
            BaseException: What its batch raised, or the user's iterator in its place.
        """
        if not self._pipeline.is_ours:
            raise XrtError("A stream cannot be read after a fork: its threads are in the parent.")
        if not self._finalizer.alive:
            raise StopIteration
        try:
            call = self._outputs.get()
            if call is not None:
                self._pipeline.free.put(call.staging)
        except BaseException:  # an interrupt
            self.close()
            raise
        if call is None:
            self.close()
            raise StopIteration
        error, call.error = call.error, None
        if error is None:
            return call.result
        if self._cancel:
            self.close()
        error.add_note(f"In batch {call.number} of an xrt stream.")
        try:
            raise error
        finally:
            del error  # its traceback holds this frame

    def close(self) -> None:
        """Cancel what is under way and end the threads; the iterator is at its end then.

        A launch under way is waited for. The user's iterator is, for two seconds; if it hangs
        longer, its thread ends when it returns.
        """
        if self._finalizer.detach() is not None:
            self._pipeline.stop()
        self._outputs.put(None)  # for other threads that wait
        self._pipeline.join()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<xrt stream, {'running' if self._finalizer.alive else 'ended'}>"


class Submitter:
    """Runs submitted batches in order and settles their futures."""

    def __init__(self) -> None:
        self._inbox: SimpleQueue[Call | None] = SimpleQueue()
        self._count = 0
        self.pipeline = Pipeline(
            self._read, self._settle, _SUBMITTED_DEPTH, cancel=False, at_exit=self.end
        )

    def submit(self, program: Program, batch: Any) -> Future[Any]:
        """The outputs to come of `batch`. Not safe to call from several threads at once."""
        call = Call(program, batch, self._count)
        self._count += 1
        future: Future[Any] = Future()
        call.future = future
        self._inbox.put(call)
        return future

    def end(self) -> None:
        """Take no more batches; those submitted still run. May run in a garbage collector."""
        self._inbox.put(None)

    def _read(self) -> Call | None:
        while (call := self._inbox.get()) is not None:
            assert call.future is not None
            if call.future.set_running_or_notify_cancel():
                return call
        return None

    def _settle(self, call: Call | None) -> None:
        if call is None:
            return
        self.pipeline.free.put(call.staging)
        error, call.error = call.error, None
        assert call.future is not None
        try:
            if error is None:
                call.future.set_result(call.result)
            else:
                call.future.set_exception(error)
        except (
            BaseException
        ):  # a callback of the user's: the batches after it still want their turn
            threading.excepthook(
                threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread()))
            )


def _check(depth: int, on_error: str) -> None:
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        raise OptionError(f"depth must be a whole number of at least 1; got {depth!r}.")
    if on_error not in ON_ERROR:
        raise OptionError(unknown("on_error", on_error, ON_ERROR))


_LIVE: weakref.WeakSet[Pipeline] = weakref.WeakSet()


def _live_pipelines() -> weakref.WeakSet[Pipeline]:
    """Those whose threads the end of the interpreter has to wait for."""
    if not _LIVE:
        # Now, not on import: what is registered last runs first, while JAX's device still works.
        atexit.unregister(_end_all)
        atexit.register(_end_all)
    return _LIVE


def _end_all() -> None:
    pipelines = [pipeline for pipeline in _LIVE if pipeline.is_ours]
    for pipeline in pipelines:
        pipeline.exit()
    for pipeline in pipelines:
        pipeline.join()
