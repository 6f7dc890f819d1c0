"""Everything that needs a GPU, in one command and ten minutes: tests, and each table's quick form.

    python -m benchmarks.gpu_suite                  # writes to benchmarks/results/<device>
    python -m benchmarks.gpu_suite --out results    # another folder
    python -m benchmarks.gpu_suite --dry            # tiny networks, no GPU needed

The folder gets the result of each table and a page, summary.md.

Works with whatever packages there are: a step that needs one which is not installed is left out, by
name. A step that takes longer than its share of the time is ended, and the summary says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import harness, tables

NEEDED = ("jax", "ml_dtypes", "networkx", "numpy", "onnx", "onnx_ir", "torch")
"""Without these nothing runs."""

OPTIONAL = ("onnxscript", "transformers", "PIL", "sklearn", "onnxruntime", "openvino", "tensorrt",
            "cuda", "pytest", "mlperf_loadgen")  # fmt: skip
"""What the summary tells the presence of."""


@dataclass(frozen=True)
class Step:
    """Something to run.

    Attributes:
        name: What the summary calls it.
        module: Run with ``python -m``.
        arguments: Its arguments; those of tables get more.
        needs: Packages without which it is left out.
        share: Of the time, beside the shares of the other steps.
        is_table: Whether it is a published table.
    """

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    needs: tuple[str, ...] = ("onnxscript",)
    share: float = 1.0
    is_table: bool = True


STEPS = (
    Step(
        "GPU tests",
        "pytest",
        ("-q", "-m", "gpu", "--continue-on-collection-errors", "tests"),
        ("pytest",),
        2.0,
        is_table=False,
    ),
    Step("cnn_inference", "benchmarks.cnn_inference", share=2.0),
    Step("hf_inference", "benchmarks.hf_inference", needs=("onnxscript", "transformers")),
    Step("flagperf_resnet50", "benchmarks.flagperf_resnet50", needs=("onnxscript", "PIL")),
    Step("mlperf", "benchmarks.mlperf", needs=("onnxscript", "transformers", "mlperf_loadgen")),
    Step("bert_training", "benchmarks.bert_training", needs=("onnxscript", "transformers")),
)


@dataclass(frozen=True)
class Outcome:
    """What became of a step: "passed", "failed", "ended" for want of time, or "left out"."""

    step: Step
    what: str
    reason: str = ""
    seconds: float = 0.0
    output: str = ""


def absent(packages: Sequence[str]) -> list[str]:
    """Those that are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def run(step: Step, seconds: float, folder: Path, *, dry: bool) -> Outcome:
    """Run a step for at most so long."""
    missing = absent(step.needs)
    if missing:
        return Outcome(step, "left out", f"not installed: {', '.join(missing)}")
    if importlib.util.find_spec(step.module) is None:
        return Outcome(step, "left out", f"there is no {step.module}")
    if dry and not step.is_table:
        return Outcome(step, "left out", "a dry run")
    if seconds < 10:
        return Outcome(step, "left out", "no time is left")
    command = [sys.executable, "-m", step.module, *step.arguments]
    if step.is_table:
        command += ["--quick", "--json", str(folder / f"{step.name}.json"), *["--dry"] * dry]
    begin = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, env=harness.threads_environment(harness.cores()),
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its workers, too
        output, _ = process.communicate()
        return Outcome(step, "ended", f"it took more than {seconds:.0f} s", seconds, output)
    took = time.perf_counter() - begin
    if process.returncode:
        return Outcome(step, "failed", f"exit status {process.returncode}", took, output)
    return Outcome(step, "passed", "", took, output)


def summary(outcomes: Sequence[Outcome]) -> str:
    """One page: the machine, what became of each step, and the first table of each."""
    machine = harness.machine()
    installed = [name for name in OPTIONAL if not absent([name])]
    body = [[o.step.name, o.what, f"{o.seconds:.0f}", o.reason] for o in outcomes]
    parts = [
        f"# {machine['gpu'] or machine['cpu']}",
        f"{machine['date']}, commit {machine['commit']}, {machine['cores']} cores. Installed: "
        f"{', '.join(installed) or 'none'} of {', '.join(OPTIONAL)}.",
        tables.markdown(("step", "outcome", "seconds", "why"), body),
    ]
    for outcome in outcomes:
        if outcome.output:
            parts.append(f"## {outcome.step.name}\n\n{_shown(outcome)}")
    return "\n\n".join(parts) + "\n"


def _shown(outcome: Outcome) -> str:
    """The first table of a step's output, or its last lines if it has none."""
    lines = outcome.output.splitlines()
    if outcome.what == "passed" and outcome.step.is_table:
        first = next((i for i, line in enumerate(lines) if line.startswith("| ")), len(lines))
        return "\n".join(itertools.takewhile(lambda line: line.startswith("|"), lines[first:]))
    return "```\n" + "\n".join(lines[-8:]) + "\n```"


def main(arguments: list[str] | None = None) -> int:
    """Run all steps; the exit status is 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_suite", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/<device>")
    parser.add_argument("--only", nargs="+", choices=[step.name for step in STEPS])
    parser.add_argument("--dry", action="store_true", help="tiny networks, no GPU needed")
    chosen = parser.parse_args(arguments)
    missing = absent(NEEDED)
    if missing:
        raise SystemExit(f"Not installed, and nothing runs without: {', '.join(missing)}.")
    if not (harness.gpu_name() or chosen.dry):
        raise SystemExit("torch sees no GPU here. Try --dry, or run the tables one by one.")
    folder = chosen.out or harness.RESULTS / harness.device()
    folder.mkdir(parents=True, exist_ok=True)
    steps = [step for step in STEPS if not chosen.only or step.name in chosen.only]
    end = time.perf_counter() + 60 * chosen.minutes
    outcomes: list[Outcome] = []
    for number, step in enumerate(steps):
        shares = sum(each.share for each in steps[number:])
        left = (end - time.perf_counter()) * step.share / shares
        print(f"... {step.name}, at most {left:.0f} s", file=sys.stderr, flush=True)
        outcomes.append(run(step, left, folder, dry=chosen.dry))
        (folder / "summary.md").write_text(summary(outcomes), "utf-8")
    print(summary(outcomes))
    return int(any(outcome.what == "failed" for outcome in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
