"""Memory and threads of a pass: nothing in use is overwritten, and nothing is left behind."""

import gc
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tests.xrt_data.images import greys
from xrt.data import ImageFolder
from xrt.data.buffers import ALIGNMENT, Pool, aligned


@pytest.fixture
def folder(tmp_path):
    greys(tmp_path, 40)
    return ImageFolder(tmp_path, 8, 4, resize=8, dtype="uint8", workers=3)


def decoders():
    return [thread for thread in threading.enumerate() if thread.name.startswith("xrt-decode")]


def wait_for_no_decoders():
    """The threads of a pass that nobody holds end by themselves; the test's timeout bounds this."""
    while decoders():
        time.sleep(0.001)


@pytest.fixture(autouse=True)
def nothing_left_behind():
    yield
    gc.collect()
    wait_for_no_decoders()


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (100_000,)])
def test_aligned_memory(dtype, shape):
    array = aligned(shape, dtype)
    assert array.ctypes.data % ALIGNMENT == 0
    assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
    assert array.flags.c_contiguous


def test_batches_are_aligned_and_dense(folder):
    for (images,) in folder:
        assert images.ctypes.data % ALIGNMENT == 0
        assert images.flags.c_contiguous
        assert images.flags.writeable


def test_memory_is_used_again(folder):
    for _ in range(3):
        for batch in folder:
            del batch
    assert folder._pool.allocated <= 5  # the one in use, two ahead, and a little for threads


def test_what_is_held_is_never_overwritten(folder):
    held = [batch for _ in range(3) for batch in folder]
    for number, batch in enumerate(held):
        assert batch.images[:, 0, 0, 0].tolist() == [4 * (number % 10) + n for n in range(4)]
    addresses = {batch.images.ctypes.data for batch in held}
    assert len(addresses) == len(held)


def test_a_view_holds_the_memory_of_its_batch(folder):
    views = []
    for number, batch in enumerate(folder):
        images = batch.images
        views.append([images[1], images[1:3].reshape(-1), images.view(np.int8)[1],
                      memoryview(images)[1:2]][number % 4])  # fmt: skip
        del batch, images
    for _ in folder:
        pass
    for number, view in enumerate(views):
        assert np.asarray(view).reshape(-1)[0] == 4 * number + 1


def test_tensors_hold_the_memory_of_their_batch(folder):
    torch = pytest.importorskip("torch")
    tensors = [torch.from_numpy(images)[1:] for (images,) in folder]
    for _ in folder:
        pass
    assert [int(tensor[0, 0, 0, 0]) for tensor in tensors] == list(range(1, 40, 4))


def test_what_a_program_computes_with_is_not_overwritten(folder):
    import xrt
    from tests.support import model

    made = model("g (uint8[4,3,8,8] x) => (uint8[4,3,8,8] y) <uint8 c = {1}> { y = Add (x, c) }")
    program = xrt.compile(made)
    outputs = list(program.stream(folder))
    assert [int(each[0, 0, 0, 0]) for each in outputs] == list(range(1, 41, 4))


def test_a_stream_that_is_left_early_ends_the_pass(folder):
    import xrt
    from tests.support import model

    program = xrt.compile(model("g (uint8[4,3,8,8] x) => (uint8[4,3,8,8] y) { y = Identity (x) }"))
    with program.stream(iter(folder)) as outputs:
        assert int(next(outputs)[1, 0, 0, 0]) == 1
    del outputs
    gc.collect()
    wait_for_no_decoders()


def test_a_pool_keeps_no_more_than_asked():
    pool = Pool((4,), np.uint8, keep=2)
    lent = [pool.lend(pool.take()) for _ in range(5)]
    addresses = {array.ctypes.data for array in lent}
    del lent
    again = [pool.take() for _ in range(3)]
    assert len({array.ctypes.data for array in again} & addresses) >= 2
    assert pool.allocated == 6


# --- threads --------------------------------------------------------------------------------------


def test_threads_end_with_the_last_batch(folder):
    batches = iter(folder)
    assert not decoders(), "threads start with the first batch"
    next(batches)
    assert len(decoders()) == 3
    assert len(list(batches)) == 9
    assert not decoders()
    with pytest.raises(StopIteration):
        next(batches)


def test_no_more_threads_than_files(tmp_path):
    folder = ImageFolder(greys(tmp_path, 2), 8, 4, resize=8, workers=16)
    batches = iter(folder)
    next(batches)
    assert len(decoders()) <= 2
    batches.close()


def test_threads_end_after_a_break(folder):
    for batch in folder:
        if batch.paths:
            break
    wait_for_no_decoders()
    assert batch.images[1, 0, 0, 0] == 1


def test_threads_end_after_an_exception(folder):
    with pytest.raises(ZeroDivisionError):
        sum(1 / int(batch.images[0, 0, 0, 0]) for batch in folder)
    wait_for_no_decoders()


def test_threads_end_when_a_cycle_is_collected(folder):
    batches = iter(folder)
    next(batches)
    cycle = [batches]
    cycle.append(cycle)
    del batches, cycle
    gc.collect()
    wait_for_no_decoders()


def test_close(folder):
    with iter(folder) as batches:
        next(batches)
    assert not decoders()
    assert list(batches) == []
    batches.close()
    unused = iter(folder)
    unused.close()
    assert list(unused) == []


def test_close_wakes_who_waits(folder):
    """In the middle of a pass, from another thread: the one that waits finds the end."""
    batches = iter(folder)
    next(batches)
    counts = []
    thread = threading.Thread(target=lambda: counts.append(sum(1 for _ in batches)))
    thread.start()
    batches.close()
    thread.join()
    assert counts[0] <= 9


def test_labels_keep_a_pass_alive(folder):
    labels = iter(folder).labels
    assert sum(1 for _ in labels) == 10


def test_several_threads_share_a_pass(folder):
    batches = iter(folder)
    found = []

    def take():
        for batch in batches:
            found.extend(batch.images[:, 0, 0, 0].tolist())

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(40))


def test_decoding_is_bounded(folder, tmp_path):
    """No more than `prefetch` batches are decoded before they are asked for."""
    batches = iter(folder)
    first = next(batches)
    while batches._pass._workers._files.qsize():
        time.sleep(0.001)
    allocated = folder._pool.allocated
    assert allocated == 3
    for path in folder.paths[12:]:
        path.unlink()  # nobody has looked at these yet
    del first
    with pytest.warns(UserWarning, match="28 of 40"):
        assert sum(len(batch.paths) for batch in batches) == 8


def test_a_failure_that_is_no_corrupt_file_reaches_the_caller(folder):
    def broken(image, slot):
        raise RuntimeError("broken")

    object.__setattr__(folder._decoder, "write", broken)
    with pytest.raises(RuntimeError, match="broken"):
        list(folder)
    assert not decoders()
    assert not folder.corrupt


def test_an_interrupted_pass_is_over(folder):
    def interrupt(path, reason):
        raise KeyboardInterrupt

    folder.paths[4].write_bytes(b"")
    folder._report = interrupt
    batches = iter(folder)
    next(batches)
    with pytest.raises(KeyboardInterrupt):
        next(batches)
    assert not decoders()
    assert list(batches) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_begins_its_own_pass(folder):
    code = """
import os, sys, xrt
folder = xrt.data.ImageFolder(sys.argv[1], 8, 4, resize=8)
batches = iter(folder)
next(batches)
child = os.fork()
if child == 0:
    try:
        next(batches)
    except xrt.XrtError as error:
        print(type(error).__name__, len(list(folder)), flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(sum(1 for _ in batches))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder.path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["DataError", "10", "9"]


def test_a_process_ends_with_a_pass_under_way(folder):
    code = "import sys, xrt; i = iter(xrt.data.ImageFolder(sys.argv[1], 8, 4, resize=8)); next(i)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder.path)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
