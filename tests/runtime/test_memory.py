"""Memory that calls use again: results are those of fresh memory, and nobody else's arrays change.

`Split` is XLA without Sigmoid, so each Sigmoid cuts a model in two.
"""

from __future__ import annotations

import gc
import importlib
import threading
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xrt
from tests.support import model
from xrt.engines.engine import INNER, Executable, Support
from xrt.engines.xla import XlaEngine, device
from xrt.passes import InferShapesPass
from xrt.runtime import memory
from xrt.runtime.build import Built, build


class Split(XlaEngine):
    def supports(self, node, context=None):
        if node.op_type == "Sigmoid":
            return Support.no("the tests want a cut")
        return super().supports(node, context)


N = 1 << 15  # float32: 4 N are the least that is recycled, 16 N are staged

BLOCKS = f"""
    g (float[4,{N}] x) => (float[4,{N}] y, float[4,1] last) <int64[1] axes = {{1}}> {{
        a0 = Tanh (x)       p0 = ReduceMax (a0, axes)   s0 = Sigmoid (p0)     b0 = Mul (a0, s0)
        a1 = Tanh (b0)      p1 = ReduceMax (a1, axes)   s1 = Sigmoid (p1)     b1 = Mul (a1, s1)
        c1 = Add (b1, a0)
        a2 = Tanh (c1)      p2 = ReduceMax (a2, axes)   s2 = Sigmoid (p2)     b2 = Mul (a2, s2)
        c2 = Add (b2, b1)
        a3 = Tanh (c2)      p3 = ReduceMax (a3, axes)   last = Sigmoid (p3)   b3 = Mul (a3, last)
        y = Add (b3, b2)
    }}
"""
"""Large values go from cluster to cluster, small ones over the host."""

HOSTLY = f"""
    g (float[{N},16] x) => (float[{N},16] y) {{
        s = Sigmoid (x)
        a = Add (s, s)
        b = Mul (a, x)
        t = Sigmoid (b)
        u = Add (t, s)
        y = Add (u, x)
    }}
"""
"""Large values go from the host to clusters, two of them to several."""


def built(text: str, *, keep: bool = True, engine: XlaEngine | None = None) -> Built:
    options = xrt.CompileOptions(cache=False, min_cluster_weight=0, keep_memory=keep)
    made = model(text)
    InferShapesPass()(made)
    return build(made, [engine or Split()], options)


def random(shape: tuple[int, ...], seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def same(left: list[Any], right: list[Any]) -> bool:
    pairs = zip(left, right, strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


@pytest.mark.parametrize(("text", "shape"), [(BLOCKS, (4, N)), (HOSTLY, (N, 16))])
def test_results_are_those_of_fresh_memory_and_stay_what_they_are(text, shape):
    kept, fresh = built(text), built(text, keep=False)
    assert any(step.memory for step in kept.schedule.steps)
    assert not any(step.memory for step in fresh.schedule.steps)
    inputs = [random(shape, seed) for seed in range(5)]
    before = [array.copy() for array in inputs]
    got = [kept.schedule.run([array]) for array in inputs]
    want = [fresh.schedule.run([array]) for array in inputs]
    assert all(map(same, got, want))
    assert all(map(np.array_equal, inputs, before))


def test_clusters_take_turns_in_the_same_memory():
    program = built(BLOCKS)
    schedule = program.schedule
    assert any(executable.recycled for executable in program.executables.values())
    for seed in range(2):
        schedule.run([random((4, N), seed)])
    (arena,) = schedule.arenas._idle
    pointers = [array.unsafe_buffer_pointer() for array in arena.spare]
    written = sum(len(step.memory.into) for step in schedule.steps if step.memory)
    assert len(pointers) == len(set(pointers)) < written
    for seed in range(3):
        schedule.run([random((4, N), seed)])
    assert schedule.arenas._idle == [arena]
    assert sorted(a.unsafe_buffer_pointer() for a in arena.spare) == sorted(pointers)
    assert schedule.arenas.recycled == len(pointers) * 4 * 4 * N


def test_only_what_clusters_alone_read_is_marked():
    def outputs(keep: bool) -> dict[str, bool]:
        clusters = built(BLOCKS, keep=keep).partition.clusters
        values = [value for cluster in clusters for value in cluster.body.outputs]
        return {str(value.name): INNER in value.metadata_props for value in values}

    marks = outputs(keep=True)
    assert set(marks) > {"y", "p0", "p1", "p2", "p3"}
    assert {name for name, marked in marks.items() if not marked} == {"y", "p0", "p1", "p2", "p3"}
    assert not any(outputs(keep=False).values())


def unaligned(array: np.ndarray[Any, Any], offset: int) -> np.ndarray[Any, Any]:
    place = memory.allocate(array.nbytes + 64)[offset : offset + array.nbytes]
    place = place.view(array.dtype).reshape(array.shape)
    place[...] = array
    return place


@pytest.mark.parametrize(("text", "shape"), [(BLOCKS, (4, N)), (HOSTLY, (N, 16))])
def test_inputs_of_any_memory_are_read_right(text, shape):
    program = built(text)
    x = random(shape)
    want = built(text, keep=False).schedule.run([x])
    variants = [
        unaligned(x, 0),
        unaligned(x, 4),
        np.asfortranarray(x),
        np.repeat(x, 2, axis=1)[:, ::2],
        x[::-1].copy()[::-1],
        device.put(x),
    ]
    for array in [*variants, *reversed(variants)]:
        kept = np.array(array)
        assert same(program.schedule.run([array]), want)
        assert np.array_equal(array, kept)


def test_staging_memory_is_shared_by_lifetime():
    schedule = built(HOSTLY).schedule
    layout = schedule.arenas.layout
    names = [each.name for each in layout.buffers]
    assert names == ["x", "s"]  # clusters read both twice, and t once
    assert 0 < layout.live <= layout.peak <= layout.unshared
    schedule.run([random((N, 16))])
    assert len(schedule.arenas._idle) == 1


@pytest.mark.parametrize(("text", "shape"), [(BLOCKS, (4, N)), (HOSTLY, (N, 16))])
def test_eight_threads_have_an_arena_each_and_a_few_are_kept(text, shape):
    kept, fresh = built(text), built(text, keep=False)
    inputs = [unaligned(random(shape, seed), 4) for seed in range(8)]
    want = [fresh.schedule.run([x]) for x in inputs]
    wrong: list[Any] = []
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        barrier.wait()
        try:
            results = [kept.schedule.run([inputs[number]]) for _ in range(20)]
            wrong.extend(number for result in results if not same(result, want[number]))
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert 1 <= len(kept.schedule.arenas._idle) <= memory.KEPT_ARENAS


@pytest.mark.parametrize("text", [BLOCKS, HOSTLY])
def test_the_arena_goes_back_after_the_last_step_that_reads_of_it(text):
    schedule = built(text).schedule
    ends = [
        number for number, step in enumerate(schedule.steps) if step.memory and step.memory.last
    ]
    assert len(ends) == 1
    staged = {slot for step in schedule.steps if step.memory for _, _, slot in step.memory.staged}
    readers = [
        number
        for number, step in enumerate(schedule.steps)
        if step.kind == "launch" and staged.intersection(step.inputs)
    ]
    assert ends[0] >= max(readers, default=0)


def test_calls_do_not_add_memory():
    schedule = built(HOSTLY).schedule
    x = random((N, 16))
    for _ in range(20):
        schedule.run([x])
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(200):
            schedule.run([x])
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 50_000
    finally:
        tracemalloc.stop()


@st.composite
def programs(draw: st.DrawFn) -> str:
    """Models of elementwise operators over one shape, cut at random."""
    names, lines = ["x"], []
    for number in range(draw(st.integers(3, 14))):
        pick = st.sampled_from(names)
        op = draw(st.sampled_from(["Tanh", "Neg", "Add", "Mul", "Sigmoid", "Transposes"]))
        inputs = f"{draw(pick)}, {draw(pick)}" if op in ("Add", "Mul") else draw(pick)
        if op == "Transposes":
            lines.append(f"t{number} = Transpose ({inputs}) v{number} = Transpose (t{number})")
        else:
            lines.append(f"v{number} = {op} ({inputs})")
        names.append(f"v{number}")
    outputs = draw(st.lists(st.sampled_from(names[1:]), min_size=1, max_size=3, unique=True))
    told = ", ".join(f"float[384,384] {name}" for name in outputs)
    return f"g (float[384,384] x) => ({told}) {{ {' '.join(lines)} }}"


@settings(max_examples=25, deadline=None)
@given(programs())
def test_any_program_gives_the_results_of_fresh_memory(text):
    kept, fresh = built(text), built(text, keep=False)
    inputs = [random((384, 384), seed) for seed in range(3)]
    got = [kept.schedule.run([x]) for x in (*inputs, *inputs)]
    want = [fresh.schedule.run([x]) for x in (*inputs, *inputs)]
    assert all(map(same, got, want))


def test_an_executable_with_recycled_results_can_be_called_alone_and_serialized():
    program = built(BLOCKS)
    (cluster, executable) = next(
        (cluster, program.executables[cluster.name])
        for cluster in program.partition.clusters
        if program.executables[cluster.name].recycled
    )
    inputs = [random(tuple(value.shape.numpy())) for value in cluster.body.inputs]
    want = executable.run(inputs)
    options = xrt.CompileOptions(cache=False)
    again = Split().deserialize(executable.serialize(), cluster, options)
    assert again.recycled == executable.recycled
    for each in (executable, again):
        assert same(list(each.run(inputs)), list(want))
        spare = [each.run(inputs)[position] for position in each.recycled]
        pointers = [array.unsafe_buffer_pointer() for array in spare]
        results = each.run_into(inputs, spare)
        assert same(list(results), list(want))
        given = [results[position].unsafe_buffer_pointer() for position in each.recycled]
        assert given == pointers


def test_streams_reports_and_saved_programs_work_with_kept_memory(monkeypatch, tmp_path):
    compiler = importlib.import_module("xrt.compile")
    monkeypatch.setattr(compiler, "resolve", lambda *given, **named: (Split(),))

    def compiled(keep: bool) -> xrt.Program:
        options = xrt.CompileOptions(cache=False, min_cluster_weight=0, keep_memory=keep)
        return xrt.compile(model(BLOCKS), engine="xla", options=options)

    program, fresh = compiled(True), compiled(False)
    inputs = [random((4, N), seed) for seed in range(12)]
    want = [list(fresh(x)) for x in inputs]
    for depth in (1, 3):
        got = [list(outputs) for outputs in program.stream(inputs, depth=depth)]
        assert all(map(same, got, want))
    assert len(program.specialization.schedule.arenas._idle) == 1
    assert "5 clusters agree" in str(xrt.verify(program, inputs[0]))
    program.save(tmp_path / "model.xrt")
    loaded = xrt.load(tmp_path / "model.xrt")
    memories = [step.memory for step in loaded.specialization.schedule.steps]
    assert any(memory and memory.into for memory in memories)
    assert all(same(list(loaded(x)), wanted) for x, wanted in zip(inputs, want, strict=True))


class Fragile(Executable):
    """Doubles; reads in place; every other run fails after it has written to what it was given."""

    def __init__(self) -> None:
        self.runs = 0

    reads_in_place = True
    recycled = (0,)

    def run(self, inputs, stream: Any = None):
        return self.run_into(inputs, [None])

    def run_into(self, inputs, spare):
        self.runs += 1
        result = np.empty_like(inputs[0]) if spare[0] is None else spare[0]
        result[...] = np.nan
        if self.runs % 4 == 0:
            raise RuntimeError("lost")
        np.multiply(inputs[0], 2, out=result)
        return [result]

    def serialize(self) -> bytes:
        return b""


class FragileEngine(XlaEngine):
    name = "fragile"

    def supports(self, node, context=None) -> Support:
        return Support.yes() if node.op_type == "Add" else Support.no("only Add")

    def compile(self, cluster, options):
        return Fragile()


def test_a_launch_that_fails_spoils_no_later_call():
    text = f"""
        g (float[{N}] x) => (float[{N}] y) {{
            s = Neg (x)  a = Add (s, s)  n = Neg (a)  b = Add (n, n)  y = Neg (b)
        }}
    """
    program = built(text, engine=FragileEngine())
    assert len(program.partition.clusters) == 2
    failed = 0
    for seed in range(12):
        x = random((N,), seed)
        try:
            (y,) = program.schedule.run([x])
        except xrt.errors.EngineRunError:
            failed += 1
        else:
            np.testing.assert_array_equal(y, -4 * x)
    assert failed > 2


def test_the_report_tells_what_sharing_saves():
    program = built(BLOCKS)
    told = memory.report(program.schedule, program.executables)
    assert told["live"] <= told["peak"] < told["unshared"]
    assert told["recycled"] >= 2 * 4 * 4 * N
    assert told["kept"] == told["recycled"] + told["staged"]
    assert told["unknown"] == 0
    alone = memory.report(built(BLOCKS, keep=False).schedule, program.executables)
    assert (alone["kept"], alone["peak"]) == (0, told["peak"])


def test_explain_prints_the_memory():
    program = xrt.compile(
        model(HOSTLY), engine="host", options=xrt.CompileOptions(min_cluster_weight=0)
    )
    explanation = program.explain()
    size = 16 * 4 * N
    assert explanation.to_dict()["memory"]["unshared"] == 6 * size
    assert explanation.to_dict()["memory"]["peak"] == 3 * size
    assert "memory    6 MiB at most between steps (12 MiB if no two" in str(explanation)
