"""Schedules: order, freeing, and that outputs are nobody else's memory."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support import model
from xrt.errors import EngineRunError
from xrt.runtime.schedule import Schedule, Step, build_schedule

CHAIN = """
<ir_version: 10, opset_import: ["" : 28]>
chain (float[4] x) => (float[4] z) <float[4] w = {1, 2, 3, 4}> {
  a = Relu(x)
  b = Add(a, w)
  c = Mul(b, a)
  z = Neg(c)
}
"""

VIEWS = """
<ir_version: 10, opset_import: ["" : 28]>
views (float[4] x) => (float[2, 2] y, float[4] x2, float[4] w2, float[4] twice)
<float[4] w = {1, 2, 3, 4}, int64[2] shape = {2, 2}> {
  y = Reshape(x, shape)
  x2 = Identity(x)
  w2 = Identity(w)
  twice = Add(x, x)
}
"""


def test_steps_run_in_order_and_slots_are_freed_after_their_last_use():
    schedule = build_schedule(model(CHAIN), {})
    assert [step.label.split()[0] for step in schedule.steps] == ["Relu", "Add", "Mul", "Neg"]
    x_slot, relu_slot = schedule.steps[0].inputs[0], schedule.steps[0].outputs[0]
    assert schedule.steps[0].frees == (x_slot,)
    assert relu_slot not in schedule.steps[1].frees
    assert relu_slot in schedule.steps[2].frees
    weight_slot = schedule.steps[1].inputs[1]
    assert all(weight_slot not in step.frees for step in schedule.steps)
    x = np.array([-1, 0, 1, 2], np.float32)
    a = np.maximum(x, 0)
    np.testing.assert_array_equal(schedule.run([x])[0], -((a + np.arange(1, 5)) * a))


def test_outputs_share_memory_with_nothing():
    schedule = build_schedule(model(VIEWS), {})
    x = np.arange(4, dtype=np.float32)
    first, second = schedule.run([x]), schedule.run([x])
    for number, array in enumerate(first):
        assert array.flags.writeable
        assert not np.shares_memory(array, x)
        assert not any(np.shares_memory(array, other) for other in first[number + 1 :])
        assert not np.shares_memory(array, second[number])
        array[...] = -7
    np.testing.assert_array_equal(schedule.run([x])[2], [1, 2, 3, 4])


def test_one_value_given_out_twice_is_two_arrays():
    made = model(CHAIN)
    made.graph.outputs.append(made.graph.outputs[0])
    left, right = build_schedule(made, {}).run([np.ones(4, np.float32)])
    assert not np.shares_memory(left, right)


def test_the_recorder_sees_every_step():
    schedule = build_schedule(model(CHAIN), {})
    seen = []
    schedule.run(
        [np.ones(4, np.float32)], record=lambda step, start, end: seen.append((step, end - start))
    )
    assert [step for step, _ in seen] == list(schedule.steps)
    assert all(spent >= 0 for _, spent in seen)


@pytest.mark.parametrize(
    ("kind", "engine", "told"),
    [
        ("host", "", "Host step 'NonZero n1' failed: ValueError: odd"),
        ("launch", "", "Kernel 'NonZero n1' failed: ValueError: odd"),
        ("launch", "xla", "Cluster 'NonZero n1' failed on engine 'xla': ValueError: odd"),
    ],
)
def test_an_error_of_a_step_says_what_failed(kind, engine, told):
    def fail(arguments):
        raise ValueError("odd")

    step = Step(kind, "NonZero n1", fail, (0,), (1,), (), engine)
    with pytest.raises(EngineRunError, match=f"^{told}$"):
        Schedule([step], [None, None], [0], [1]).run([np.ones(1)])
