"""The lowerings that choose an algorithm, against PyTorch's eager operators on the same data.

    python -m benchmarks.ops.algorithms [--match 'Resize|TopK'] [--cores 2] [--json FILE]

Each case is a model of one node, compiled by `xrt.compile` and called with PyTorch tensors; `conv`
rows are the same node between two 1x1 convolutions (16 channels on the outside), as networks
have it: there no layout is given. Outputs are compared first, then both sides run in turn. *bare*
is the compiled code without the call around it: within a network, an operator costs no call.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ops.cases import Array, Case, Function, cases
from benchmarks.ops.measure import use_cores

ALLOWED = 1e-4
"""Largest difference from PyTorch, relative to the largest magnitude of each output. PyTorch itself
is 3e-5 off float64 in antialiasing, whose weights it computes in float32; xrt 1e-7."""
OUTSIDE = 16
"""Channels before and behind the convolutions around an operator: few, so that they cost little."""
LEAST = 1.0
"""Milliseconds that are timed at once."""
PAUSE = 0.004
"""Seconds of rest before a timed call: the peer's threads go on spinning for a while."""


def measure(case: Case, between: bool, *, seconds: float, rounds: int) -> dict[str, Any]:
    """Time one case: medians of wall and CPU milliseconds on both sides, difference and ratio."""
    import torch

    import xrt

    model, arrays, peer = _surrounded(case) if between else (_model(case), case.arrays, case.peer)
    # Copies: PyTorch aligns its memory so that XLA can use it as it is.
    tensors = [torch.tensor(array) for _, array in sorted(arrays.items())]
    options = xrt.CompileOptions(min_cluster_weight=0, cache=False, strict=True)
    program = xrt.compile(model, engine="xla", options=options)
    calls = {"xrt": lambda: program(*tensors), "torch": lambda: peer(*tensors)}
    off = difference(_tuple(calls["xrt"]()), _tuple(calls["torch"]()))
    if not off <= ALLOWED:
        raise AssertionError(f"{case.op} {case.name}: xrt is off by {off:.1e} of the largest value")
    calls["bare"] = _bare(program, tensors)
    times = in_turn(calls, seconds=seconds, rounds=rounds)
    return {
        "op": case.op,
        "name": case.name,
        "where": case.where,
        "between": between,
        "difference": off,
        "times": times,
        "ratio": times["xrt"]["median_ms"] / times["torch"]["median_ms"],
        "bare_ratio": times["bare"]["median_ms"] / times["torch"]["median_ms"],
        "ratio_of_least": times["xrt"]["min_ms"] / times["torch"]["min_ms"],
    }


def _bare(program: Any, tensors: Sequence[Any]) -> Callable[[], Any]:
    """A call of the compiled code alone, without what xrt does around it."""
    from xrt.engines.xla import device

    (executable,) = program.specialization.executables.values()
    call: Callable[[], Any] = executable.bare([device.put(tensor.numpy()) for tensor in tensors])
    return call


def in_turn(
    calls: Mapping[str, Callable[[], Any]], *, seconds: float, rounds: int
) -> dict[str, dict[str, float]]:
    """Time calls A B A B ..., each after one of its own; medians of wall and CPU milliseconds.

    What takes less than `LEAST` is called several times in a row.
    """
    repeats = {name: _repeats(call) for name, call in calls.items()}
    wall: dict[str, list[float]] = {name: [] for name in calls}
    busy: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    for number in range(rounds):
        if number >= 3 and time.perf_counter() > end:
            break
        for name, call in calls.items():
            time.sleep(PAUSE)
            call()
            taken, cpu = _timed(call, repeats[name])
            wall[name].append(taken)
            busy[name].append(cpu)
    return {
        name: {
            "median_ms": statistics.median(wall[name]),
            "min_ms": min(wall[name]),
            "cpu_ms": statistics.median(busy[name]),
            "rounds": len(wall[name]),
        }
        for name in calls
    }


def _timed(call: Callable[[], Any], count: int) -> tuple[float, float]:
    """Wall and CPU milliseconds of one of `count` calls in a row."""
    cpu, begin = time.process_time_ns(), time.perf_counter_ns()
    for _ in range(count):
        call()
    end, busy = time.perf_counter_ns(), time.process_time_ns()
    return (end - begin) / 1e6 / count, (busy - cpu) / 1e6 / count


def _repeats(call: Callable[[], Any]) -> int:
    taken = min(_timed(call, 1)[0] for _ in range(3))
    return max(1, min(100, round(LEAST / taken)))


def difference(got: Sequence[Any], want: Sequence[Any]) -> float:
    """The largest difference relative to the largest magnitude of each output; NaN counts."""
    found = 0.0
    for one, other in zip(got, want, strict=True):
        assert one.shape == other.shape, f"xrt gives {one.shape}, PyTorch {other.shape}"
        off = (one.double() - other.double()).abs().max() / other.double().abs().max()
        found = float(np.maximum(found, float(off)))
    return found


def _tuple(outputs: Any) -> tuple[Any, ...]:
    return tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)


def _model(case: Case) -> Any:
    """The ONNX model of the node alone."""
    return _build(case, case.arrays, [_node(case)], {})


def _node(case: Case, first: str = "x0", result: str = "y0") -> Any:
    from onnx import helper

    given = {**case.arrays, **case.constants}
    names = [f"x{i}" if i in given else "" for i in range(max(given) + 1)]
    results = [result, *(f"y{i}" for i in range(1, case.outputs))]
    return helper.make_node(case.op, [first, *names[1:]], results, **case.attributes)


def _build(
    case: Case, arrays: Mapping[int, Array], nodes: Sequence[Any], weights: Mapping[str, Array]
) -> Any:
    import onnx
    from onnx import helper

    from xrt.graph import OPSET

    kind = helper.np_dtype_to_tensor_dtype
    constants = {**{f"x{i}": a for i, a in case.constants.items()}, **weights}
    graph = helper.make_graph(
        list(nodes),
        "case",
        [
            helper.make_tensor_value_info(f"x{i}", kind(a.dtype), a.shape)
            for i, a in sorted(arrays.items())
        ],
        [onnx.ValueInfoProto(name=f"y{i}") for i in range(case.outputs)],
        [onnx.numpy_helper.from_array(a, name) for name, a in constants.items()],
    )
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=13)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def _surrounded(case: Case) -> tuple[Any, dict[int, Array], Function]:
    """Model, inputs and peer of the node between two 1x1 convolutions."""
    import torch
    from onnx import helper

    n, c, *spatial = case.arrays[0].shape
    rng = np.random.default_rng(1)
    tensors = [torch.tensor(array) for _, array in sorted(case.arrays.items())]
    c_after = case.peer(*tensors).shape[1]
    before = rng.standard_normal((c, OUTSIDE, 1, 1), np.float32) / 4
    behind = rng.standard_normal((OUTSIDE, c_after, 1, 1), np.float32) / np.float32(c_after**0.5)
    arrays = {**case.arrays, 0: rng.standard_normal((n, OUTSIDE, *spatial), np.float32)}
    nodes = [
        helper.make_node("Conv", ["x0", "before"], ["inner"]),
        _node(case, "inner", "outer"),
        helper.make_node("Conv", ["outer", "behind"], ["y0"]),
    ]
    first, last = torch.from_numpy(before), torch.from_numpy(behind)

    def peer(x: Any, *others: Any) -> Any:
        return torch.conv2d(case.peer(torch.conv2d(x, first), *others), last)

    return _build(case, arrays, nodes, {"before": before, "behind": behind}), arrays, peer


def _line(row: Mapping[str, Any]) -> str:
    xrt, bare, torch = (row["times"][name] for name in ("xrt", "bare", "torch"))
    return (
        f"{row['op']:17} {row['name']:50} {'conv' if row['between'] else '':4} "
        f"xrt {xrt['median_ms']:7.2f} ms, cpu {xrt['cpu_ms']:7.2f}, bare {bare['median_ms']:7.2f}  "
        f"torch {torch['median_ms']:7.2f} ms, cpu {torch['cpu_ms']:7.2f}  "
        f"ratio {row['ratio']:5.2f}, of the least {row['ratio_of_least']:5.2f}, "
        f"bare {row['bare_ratio']:5.2f}{' <<' if row['bare_ratio'] > 2 else ''}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Print one line a case, and write them all to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--match", default="", help="only cases of which this is found in the name")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=21, help="most timed calls of each side")
    parser.add_argument("--seconds", type=float, default=0.6, help="no new round after so long")
    parser.add_argument(
        "--json", type=Path, help="default: benchmarks/results/ops.json, without --match"
    )
    chosen = parser.parse_args(argv)
    use_cores(chosen.cores)

    import torch

    from benchmarks import harness

    torch.set_num_threads(chosen.cores)
    rows = []
    with torch.inference_mode():
        for case in cases():
            for between in (False, True) if case.between else (False,):
                label = f"{case.op} {case.name}{' conv' * between}"
                if re.search(chosen.match, label):
                    rows.append(
                        measure(case, between, seconds=chosen.seconds, rounds=chosen.rounds)
                    )
                    print(_line(rows[-1]), flush=True)
    if chosen.json or not chosen.match:
        print(f"written: {harness.save('ops', {'rows': rows}, chosen.json)}")


if __name__ == "__main__":
    main()
