"""The ONNX backend suite through `xrt.onnx_backend`: what passes, and where every node ran.

python -m benchmarks.conformance [--json FILE] [--engine auto] [--match REGEX]

`--json benchmarks/results/conformance.json` writes what docs/reference/operators.md shows.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import time
import unittest
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from onnx.backend.test.runner import Runner

from benchmarks.harness import save
from xrt.onnx_backend import XrtBackend, XrtBackendRep
from xrt.options import CompileOptions

RANDOM = {
    f"test_bernoulli{kind}{form}": {"atol": 1e30}
    for kind in ("", "_double", "_seed")
    for form in ("", "_expanded")
}
"""Cases whose outputs are random: any value of the right shape and dtype passes."""

KINDS = {
    "NodeModel": "node",
    "SimpleModel": "simple",
    "PyTorchConvertedModel": "pytorch-converted",
    "PyTorchOperatorModel": "pytorch-operator",
    "RealModel": "real",
}
WHOLE, SPLIT, HOST, EMPTY = "whole in xla", "split", "all on the host", "no nodes left"


@dataclass
class Result:
    """What became of one case.

    Attributes:
        name: The case, as onnx names it.
        kind: Its kind: node, simple, ...
        error: Why it failed; empty if it passed.
        place: Where its nodes ran: one of WHOLE, SPLIT, HOST, EMPTY; empty if it never compiled.
        reasons: Operator -> reason -> count, for nodes outside XLA.
        seconds: What it took.
    """

    name: str
    kind: str
    error: str = ""
    place: str = ""
    reasons: dict[str, dict[str, int]] = field(default_factory=dict)
    seconds: float = 0.0


class Suite(Runner):
    """onnx's runner, able to compare sequences of scalars.

    The original compares the elements of a sequence by passing each as a list of outputs, whose
    length it takes; a scalar has none. Here each is passed as the only output. Each case runs once,
    on the device of this machine; the original also lists it as skipped for "CUDA".
    """

    def _add_test(self, *arguments: Any, **kwargs: Any) -> None:
        super()._add_test(*arguments, **{"devices": ("CPU",), **kwargs})

    @classmethod
    def assert_similar_outputs(
        cls, ref_outputs: Any, outputs: Any, rtol: float, atol: float, model_dir: str | None = None
    ) -> None:
        """Fail unless all outputs agree in shape, dtype and value."""
        if len(outputs) != len(ref_outputs):
            raise AssertionError(f"got {len(outputs)} outputs, want {len(ref_outputs)}")
        for got, want in zip(outputs, ref_outputs, strict=True):
            if isinstance(got, list) and isinstance(want, list):
                cls.assert_similar_outputs(want, got, rtol, atol, model_dir)
            else:
                super().assert_similar_outputs([want], [got], rtol, atol, model_dir)


class Recorder(XrtBackend):
    """The backend, remembering what it prepared last.

    Every cluster is built, however light: a case is mostly one node, which xrt by default leaves to
    the host.
    """

    engine = "auto"
    options = CompileOptions(min_cluster_weight=0)
    latest: XrtBackendRep | None = None

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> XrtBackendRep:
        """Compile a model, and remember it."""
        Recorder.latest = None
        kwargs.update(engine=cls.engine, options=cls.options)
        Recorder.latest = super().prepare(model, device, **kwargs)
        return Recorder.latest


def cases(pattern: str = "") -> Iterator[tuple[str, str, Any]]:
    """(kind, name, function) of every case whose name `pattern` matches, in a fixed order."""
    runner = Suite(Recorder, test_kwargs=RANDOM)
    for category, items in runner._test_items.items():
        for name, item in sorted(items.items()):
            if re.search(pattern, name):
                yield KINDS[category], name.removesuffix("_cpu"), item.func


def run(kind: str, name: str, function: Any) -> Result:
    """Run one case."""
    result = Result(name, kind)
    start = time.perf_counter()
    Recorder.latest = None
    try:
        function(unittest.TestCase())
    except unittest.SkipTest as error:
        result.error = f"skipped: {error}"
    except Exception as error:
        result.error = f"{type(error).__name__}: {error}"
    result.seconds = time.perf_counter() - start
    _place(result)
    return result


def _place(result: Result) -> None:
    program = None if Recorder.latest is None else Recorder.latest.program
    if program is None or program._latest is None:
        return
    explanation = program.explain()
    engines = Counter(placed["engine"] for placed in explanation.placements)
    result.reasons = explanation.reasons()
    if not engines:
        result.place = EMPTY
    elif engines.keys() == {"host"}:
        result.place = HOST
    else:
        result.place = SPLIT if "host" in engines else WHOLE


def table(results: Sequence[Result]) -> str:
    """The report as text."""
    heading = ("kind", "passed", "total", WHOLE, SPLIT, HOST, EMPTY)
    rows = [heading]
    for kind, found in counts(results).items():
        rows.append((kind, *(str(found[name]) for name in heading[1:])))
    lines = [
        "  ".join(cell.ljust(len(head) + 4) for cell, head in zip(row, heading, strict=True))
        for row in rows
    ]
    lines.append(f"\n{sum(result.seconds for result in results):.0f} s\n\noutside XLA:")
    for op, reasons in sorted(outside(results).items()):
        lines += [f"  {op}: {count} x {reason}" for reason, count in reasons.items()]
    failed = [result for result in results if result.error]
    lines += ["", f"failed: {len(failed)}"]
    lines += [f"  {result.name}: {' '.join(result.error.split())[:300]}" for result in failed]
    return "\n".join(line.rstrip() for line in lines)


def counts(results: Sequence[Result]) -> dict[str, dict[str, int]]:
    """Kind of case -> how many passed, how many there are, and how many ran where."""
    found: dict[str, dict[str, int]] = {}
    for kind in (*dict.fromkeys(result.kind for result in results), "all"):
        mine = [result for result in results if kind in (result.kind, "all")]
        places = Counter(result.place for result in mine)
        found[kind] = {
            "passed": sum(not result.error for result in mine),
            "total": len(mine),
            **{place: places[place] for place in (WHOLE, SPLIT, HOST, EMPTY)},
        }
    return found


def outside(results: Sequence[Result]) -> dict[str, dict[str, int]]:
    """Operator -> reason -> count of nodes, over all results."""
    counts: dict[str, Counter[str]] = {}
    for result in results:
        for op, reasons in result.reasons.items():
            for reason, count in reasons.items():
                counts.setdefault(op, Counter())[_general(reason)] += count
    return {op: dict(counter.most_common()) for op, counter in counts.items()}


def _general(reason: str) -> str:
    """A reason without what differs from node to node: names and shapes."""
    return re.sub(r"\[[^\]]*\]", "[...]", re.sub(r"'[^']*'", "'...'", reason))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the counts here")
    parser.add_argument("--engine", default="auto", help="as xrt.compile takes it")
    parser.add_argument("--match", default="", help="run only cases whose name this finds")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    Recorder.engine = arguments.engine
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ONNX_HOME"] = folder  # where onnx keeps what it makes for the "real" cases
        results = [run(*case) for case in cases(arguments.match)]
    print(table(results))
    if arguments.json:
        # A case a line would be long: what docs/reference/operators.md shows, and what failed.
        content = {
            "onnx": onnx.__version__,
            "engine": arguments.engine,
            "kinds": counts(results),
            "outside": outside(results),
            "failed": {result.name: result.error for result in results if result.error},
            "not_whole": {result.name: result.place for result in results if result.place != WHOLE},
        }
        save("conformance", content, arguments.json)


if __name__ == "__main__":
    main()
