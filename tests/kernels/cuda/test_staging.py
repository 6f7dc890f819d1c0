"""Pinned memory, and the frames that inputs are copied through."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support import assert_close
from xrt.kernels.cuda import staging
from xrt.kernels.cuda.staging import Pinned, Pool, Staging


def test_sizes_are_met_again():
    assert [staging.size_class(n) for n in (0, 1, 4096, 4097, 1 << 20)] == [
        4096,
        4096,
        4096,
        8192,
        1 << 20,
    ]


@pytest.mark.gpu
def test_pinned_memory_is_allocated_once(gpu):
    pool = Pool()
    first = pool.take(5000)
    pool.give(first)
    assert pool.take(8000) is first
    assert pool.take(8000) is not first


@pytest.mark.gpu
def test_pinned_memory_is_an_array(gpu):
    pinned = Pinned(4096)
    view = pinned.view((3, 4), np.dtype("float32"))
    view[...] = np.arange(12).reshape(3, 4)
    assert view.ctypes.data == pinned.pointer
    assert pinned.view((12,), np.dtype("float32"))[5] == 5


@pytest.mark.gpu
def test_frames_take_turns_and_convert(gpu):
    frames = Staging(gpu)
    seen = []
    for number in range(6):
        frame = frames.frame()
        there = frame.put("x", np.full((2, 3), number, np.int64), np.dtype("int32"))
        frame.end()
        gpu.compute.record(frame.consumed)
        seen.append(there.pointer)
        assert_close(np.asarray(there), np.full((2, 3), number, np.int32))
    assert seen[:2] * 3 == seen
    frames.release()


@pytest.mark.gpu
def test_a_frame_grows(gpu):
    frames = Staging(gpu, frames=1)
    for size in (10, 10_000, 100, 1_000_000):
        frame = frames.frame()
        value = np.arange(size, dtype=np.float32)
        there = frame.put("x", value, value.dtype)
        frame.end()
        gpu.compute.record(frame.consumed)
        assert_close(np.asarray(there), value)


@pytest.mark.gpu
def test_several_downloads_are_waited_for_together(gpu):
    values = [np.full(size, size, np.float32) for size in (0, 1, 1000)]
    arrays = [staging.upload(value, gpu) for value in values]
    assert_close(staging.download(arrays), values)
