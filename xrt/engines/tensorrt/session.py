"""An execution context on one lane: shapes, addresses and profiles are told only upon change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes  # noqa: F401  (NumPy knows bfloat16 by name then)
import numpy as np

from xrt.engines.tensorrt.library import listening
from xrt.engines.tensorrt.loading import Loaded
from xrt.engines.tensorrt.plan import Binding, Plan, Profile, Shape
from xrt.errors import EngineRunError, InputError
from xrt.kernels.cuda import array as A
from xrt.kernels.cuda import device, source, streams
from xrt.kernels.cuda.array import DeviceArray
from xrt.kernels.cuda.staging import Frame, Staging
from xrt.kernels.cuda.streams import Lane

MOST_SEEN = 64
"""Shapes after whose first run kernels are saved; those of later ones, when the process ends."""


class Session:
    """One thread's execution of an engine."""

    def __init__(self, plan: Plan, loaded: Loaded, lane: Lane) -> None:
        self._plan, self._loaded, self._lane = plan, loaded, lane
        self._inputs = [
            (place, binding, np.dtype(binding.dtype))
            for place, binding in enumerate(plan.inputs)
            if binding.name in loaded.names
        ]
        self._context = loaded.context()
        self._staging = Staging(lane)
        self._nothing = A.allocate(1, lane, "empty arrays")
        self._stream = streams.address(lane.compute)
        self._shapes: tuple[Shape, ...] | None = None
        self._seen: set[tuple[Shape, ...]] = set()
        self._outputs: list[Shape] = []
        self._bound: dict[str, int] = {}
        self._consumed = 0
        self._spare = device.current().create_event()  # for calls without inputs from the host
        self._on_host: dict[str, np.ndarray[Any, Any]] = {}
        self._profile = int(self._context.active_optimization_profile)

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """Enqueue the engine on the lane; the outputs are in order on its stream.

        Raises:
            InputError: If a shape is outside of all profiles.
            EngineRunError: If the library fails.
        """
        lane = self._lane
        arrays, frame = self._take(inputs)
        shapes = tuple(tuple(given.shape) for given in inputs)
        fresh = shapes != self._shapes or bool(self._on_host)
        for (_, binding, _), array in zip(self._inputs, arrays, strict=True):
            self._bind(binding.name, array)
        if fresh:
            self._reshape(shapes)
        outputs = [
            self._output(binding, shape)
            for binding, shape in zip(self._plan.outputs, self._outputs, strict=True)
        ]
        self._enqueue(frame)
        results = [self._restore(b, o) for b, o in zip(self._plan.outputs, outputs, strict=True)]
        if not lane.capturing:
            event = lane.compute.record()
            for result in results:
                if isinstance(result, DeviceArray):
                    result.done_at(event)
            # The context and the pinned memory, too, may be dropped while the device is at work.
            lane.keep(event, self, [a for a in arrays if not _is_at_home(a, lane)])
        if fresh:
            self._save_kernels(shapes)
        return results

    def _save_kernels(self, shapes: tuple[Shape, ...]) -> None:
        """Save what the library may have compiled for shapes that it meets first."""
        if shapes not in self._seen and len(self._seen) < MOST_SEEN:
            self._seen.add(shapes)
            self._loaded.save_kernels()

    def _take(self, inputs: Sequence[Any]) -> tuple[list[Any], Frame | None]:
        """The inputs on the device and of the engine's types, and the frame of those that came from
        the host.
        """
        lane = self._lane
        frame: Frame | None = None
        arrays: list[Any] = []
        for place, binding, wanted in self._inputs:
            given = inputs[place]
            if binding.name in self._loaded.on_host:
                value = np.ascontiguousarray(np.asarray(given), wanted)
                self._on_host[binding.name] = value
                arrays.append(value)
            elif A.is_on_device(given):
                array = A.of(given, lane)
                array.wait_on(lane.compute)
                arrays.append(source.cast(array, wanted, lane))
            else:
                if frame is None:
                    frame = self._staging.frame()
                arrays.append(frame.put(binding.name, fit(np.asarray(given), binding), wanted))
        if frame is not None:
            frame.end()
        return arrays, frame

    def _bind(self, name: str, array: Any) -> None:
        address = _address(array) or self._nothing.pointer  # an empty array may have none
        if self._bound.get(name) != address:
            if not self._context.set_tensor_address(name, address):
                raise EngineRunError(f"TensorRT does not take address {address:#x} for {name!r}.")
            self._bound[name] = address

    def _reshape(self, shapes: tuple[Shape, ...]) -> None:
        """Tell the context the shapes of the inputs, and ask for those of the outputs."""
        self._shapes = None  # should anything fail, the next call tells them again
        if self._plan.profiles:
            self._choose_profile(shapes)
        with listening() as messages:
            for place, binding, _ in self._inputs:
                shape = shapes[place]
                if None in binding.shape and not self._context.set_input_shape(binding.name, shape):
                    raise self._loaded.failure(
                        messages.errors, f"shape {shape} of {binding.name!r}"
                    )
            missing = self._context.infer_shapes() if self._plan.profiles else []
        if missing:
            raise self._loaded.failure(messages.errors, f"shapes: {', '.join(missing)} are open")
        self._outputs = [self._shape_of(binding) for binding in self._plan.outputs]
        self._shapes = shapes

    def _choose_profile(self, shapes: tuple[Shape, ...]) -> None:
        chosen = profile_for(self._plan, shapes)
        if chosen == self._profile:
            return
        with listening() as messages:
            done = self._context.set_optimization_profile_async(chosen, self._stream)
        if not done:
            raise self._loaded.failure(messages.errors, f"switching to profile {chosen}")
        self._profile = chosen

    def _shape_of(self, binding: Binding) -> Shape:
        if None not in binding.shape:
            return tuple(size for size in binding.shape if size is not None)
        shape = tuple(self._context.get_tensor_shape(binding.name))
        if min(shape, default=0) < 0:
            raise EngineRunError(
                f"The output {binding.name!r} has the shape {list(shape)}: TensorRT knows it only "
                "after it has run, and xrt keeps such operators out of clusters."
            )
        return shape

    def _output(self, binding: Binding, shape: Shape) -> Any:
        dtype = np.dtype(binding.dtype)
        if binding.name in self._loaded.on_host:
            made: Any = np.zeros(shape, dtype)
        else:
            made = A.empty(shape, dtype, self._lane, f"the output {binding.name!r}")
        self._bind(binding.name, made)
        return made

    def _enqueue(self, frame: Frame | None) -> None:
        event = self._spare if frame is None else frame.consumed
        consumed = streams.address_of_event(event)
        with listening() as messages:
            if consumed != self._consumed:
                self._consumed = 0
                if not self._context.set_input_consumed_event(consumed):
                    raise self._loaded.failure(messages.errors, "taking the event of its inputs")
                self._consumed = consumed
            done = self._context.execute_async_v3(self._stream)
        if not done:
            raise self._loaded.failure(messages.errors, "running")

    def _restore(self, binding: Binding, output: Any) -> Any:
        """An output in the type that it has in the cluster."""
        wanted = np.dtype(binding.original)
        if isinstance(output, np.ndarray):
            return output.astype(wanted, copy=False)
        return source.cast(output, wanted, self._lane)

    @property
    def capturable(self) -> bool:
        """Whether the library lets its work be captured now."""
        asked = getattr(self._context, "is_stream_capturable", None)
        return asked is None or bool(asked(self._stream))

    def release(self) -> None:
        """Give pinned memory back, once the device is done with it."""
        self._staging.release()


def _is_at_home(array: Any, lane: Lane) -> bool:
    return isinstance(array, DeviceArray) and array.is_at_home(lane)


def _address(array: Any) -> int:
    return int(array.ctypes.data) if isinstance(array, np.ndarray) else int(array.pointer)


def fit(value: np.ndarray[Any, Any], binding: Binding) -> np.ndarray[Any, Any]:
    """`value`, if the type of the engine's input holds all its numbers.

    Raises:
        InputError: If an integer does not fit the narrower type that the engine takes.
    """
    narrow = np.dtype(binding.dtype)
    if value.dtype.kind not in "iu" or narrow.kind not in "iu" or narrow == value.dtype:
        return value
    if not value.size or np.can_cast(value.dtype, narrow, "safe"):
        return value
    bounds = np.iinfo(narrow)
    least, most = int(value.min()), int(value.max())
    if least < bounds.min or most > bounds.max:
        worst = most if most > bounds.max else least
        raise InputError(
            f"The input {binding.name!r} holds {worst}, and TensorRT computes it in {narrow.name}, "
            f"which ends at {bounds.max if worst == most else bounds.min}. Compile with "
            "engine='xla' or 'host' for such numbers."
        )
    return value


def profile_for(plan: Plan, shapes: Sequence[Shape]) -> int:
    """The number of the first profile of `plan` that covers the shapes of the inputs.

    Raises:
        InputError: If none does; the message names the dimension and the ranges.
    """
    given = {b.name: tuple(s) for b, s in zip(plan.inputs, shapes, strict=True)}
    misses = []
    for number, profile in enumerate(plan.profiles):
        miss = _miss(profile, given)
        if miss is None:
            return number
        misses.append(miss)
    name, axis = misses[0]
    ranges = [f"{p[name][0][axis]} to {p[name][2][axis]}" for p in plan.profiles if name in p]
    raise InputError(
        f"Input {name!r} has size {given[name][axis]} in dimension {axis}, shape "
        f"{list(given[name])}; the engine was built for {' or '.join(dict.fromkeys(ranges))} "
        "there. Compile with a wider range."
    )


def _miss(profile: Profile, given: dict[str, Shape]) -> tuple[str, int] | None:
    """The first input and dimension that `profile` does not cover."""
    for name, (least, _, most) in profile.items():
        for axis, size in enumerate(given.get(name, ())):
            if not least[axis] <= size <= most[axis]:
                return name, axis
    return None
