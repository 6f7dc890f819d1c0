"""Where arrays of training live."""

import jax
import numpy as np
import pytest

from xrt.engines.xla import device as D
from xrt.training.placement import Placement


def aligned(count):
    """Numbers in memory that XLA could share."""
    room = np.zeros(4 * count + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + 4 * count].view(np.float32)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kind", ["numpy", "jax"])
def test_what_is_put_is_a_copy_that_can_be_donated(kind, count):
    devices = None if count == 1 else D.virtual_devices(count)
    place = Placement(devices)
    numbers = aligned(4096)
    numbers[:] = 7
    given = numbers if kind == "numpy" else D.put(numbers)
    with D.isolated():
        put = place.put({"x": given})["x"]
        numbers[:] = 0
        shards = [each.data for each in put.addressable_shards]
        assert len({each.unsafe_buffer_pointer() for each in shards}) == count
        assert all((np.asarray(each) == 7).all() for each in shards)
        before = shards[0].unsafe_buffer_pointer()
        twice = jax.jit(lambda x: x * 2, donate_argnums=0)(put)
        assert put.is_deleted()
        after = twice.addressable_shards[0].data
        assert after.unsafe_buffer_pointer() == before
        assert (np.asarray(after) == 14).all()


@pytest.mark.parametrize("dtype", [np.int64, np.float64, np.uint8, np.bool_])
def test_types_keep_their_width(dtype):
    array = np.array([0, 1, 1], dtype)
    put = Placement(None).put(array)
    assert put.dtype == dtype
    np.testing.assert_array_equal(np.asarray(put), array)
