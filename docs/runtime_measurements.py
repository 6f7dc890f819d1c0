"""Sections of docs/reference/benchmarks.md about streams, files, memory, training and TensorRT."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(heading)} |", "| --- " + "| ---: " * (len(heading) - 1) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _ms(times: dict[str, Any]) -> str:
    return f"{times['median_ms']:.1f}"


def runtime(result: dict[str, Any], machine: str) -> str:
    """Streams, cuts, calls, growth."""
    parts = ["## The host runtime\n\n`python -m benchmarks.runtime`.", machine]
    if "gap" in result:
        parts.append(
            "Time in which the device idles between the launches of a stream, input ready:\n\n"
            + _table(
                ("stream", "way", "ms a batch", "gap ms", "gap %", "between launches, ms"),
                [
                    (
                        f"{name}, batch {ways['batch']}",
                        way,
                        f"{found['wall_ms']:.2f}",
                        f"{found['gap_ms']:.3f}",
                        f"{found['gap_fraction'] * 100:.2f}",
                        f"{found['between_launches_ms']:.3f}",
                    )
                    for name, ways in result["gap"].items()
                    for way, found in ways.items()
                    if isinstance(found, dict) and "gap_fraction" in found
                ],
            )
        )
    if "split" in result:
        cut = result["split"]
        parts.append(
            f"{cut['network']}, batch {cut['batch']}, cut on purpose into {cut['clusters']} "
            f"clusters: {cut['ratio']:.3f} of the time of one cluster, and "
            f"{cut['ratio_less_cuts']:.3f} without what copying its {cut['cut_tensors']} cut "
            f"tensors ({cut['cut_bytes'] / 1e6:.0f} MB) takes by itself."
        )
    if "overhead" in result:
        over = result["overhead"]["overhead"]
        ways = result["overhead"]["ways"]
        parts.append(
            "A call of a small program over the bare executable: "
            + ", ".join(f"{micros:.0f} us ({name})" for name, micros in over.items())
            + ". A whole batch of it: "
            + ", ".join(f"{micros:.0f} us {name}" for name, micros in ways.items())
            + "."
        )
    if "growth" in result:
        found = ", ".join(
            f"{each['per_call']:.2f} {name}" for name, each in result["growth"].items()
        )
        parts.append(f"Bytes that each of 10,000 calls leaves behind (tracemalloc): {found}.")
    return "\n\n".join(parts)


def images(result: dict[str, Any], machine: str) -> str:
    """From JPEG files to scores."""
    rows = [
        (
            name,
            f"{found['images_per_second']:.1f}",
            f"{found['min']:.1f} to {found['max']:.1f}",
            f"{found['cpu_ms_per_image']:.1f}",
        )
        for name, found in result["rates"].items()
    ]
    summary = ", ".join(f"{name} {value:.3f}" for name, value in result["summary"].items())
    return "\n\n".join(
        [
            "## From JPEG files to scores\n\n"
            f"{result['images']} files through {result['network']}, batch {result['batch']}, "
            f"{result['threads']} threads: `python -m benchmarks.images`. *decode* and *compute* "
            "each have the whole machine; no system that does both on the same cores can be faster "
            "than 1 / (1 / decode + 1 / compute).",
            machine,
            _table(("system", "images/s", "parts", "CPU ms an image"), rows),
            f"Ratios: {summary}.",
        ]
    )


def saving(result: dict[str, Any], machine: str) -> str:
    """Loading beside compiling."""
    ways = list(next(iter(result["models"].values()))["seconds"])
    rows = [
        (
            name,
            *(f"{found['seconds'][way]['median_s']:.2f}" for way in ways),
            f"{found['times_the_load'][ways[0]]:.1f}",
            f"{found['times_the_load'][ways[1]]:.1f}",
            f"{found['file_mb']:.0f}",
            f"{found['memory_mb']['compiled']['Pss']:.0f}",
            f"{found['memory_mb']['loaded']['Pss']:.0f}",
        )
        for name, found in result["models"].items()
    ]
    heading = (
        "model",
        *(f"{way}, s" for way in ways),
        "compile / load",
        "from the cache / load",
        "file MB",
        "PSS MB, compiled",
        "PSS MB, loaded",
    )
    return "\n\n".join(
        [
            "## Saved programs\n\nSeconds in fresh processes, and memory of each of two processes "
            "that hold the program: `python -m benchmarks.saving`.",
            machine,
            _table(heading, rows),
        ]
    )


def memory(result: dict[str, Any], machine: str) -> str:
    """What memory that is kept between calls saves."""
    rows = [
        (
            name,
            str(found["clusters"]),
            _ms(found["times"]["fresh"]),
            _ms(found["times"]["kept"]),
            f"{found['page_faults']['fresh']:.0f}",
            f"{found['page_faults']['kept']:.0f}",
            f"{found['peak_mib']['fresh']:.1f}",
            f"{found['peak_mib']['kept']:.1f}",
        )
        for name, found in result["cases"].items()
    ]
    heading = ("network", "clusters", "ms, new", "ms, kept", "page faults, new", "kept",
               "peak MiB, new", "kept")  # fmt: skip
    return "\n\n".join(
        [
            "## Memory between clusters\n\nNetworks cut on purpose, with memory that is new in "
            "every call and with memory that is kept: `python -m benchmarks.memory`.",
            machine,
            _table(heading, rows),
        ]
    )


def training(result: dict[str, Any], machine: str) -> str:
    """Steps of BERT beside PyTorch."""
    times, peak = result["times"], result.get("peak_mb", {})
    eager = times["eager"]["median_ms"] if "eager" in times else None
    rows = [
        (
            name,
            _ms(found),
            f"{eager / found['median_ms']:.2f}" if eager else "",
            f"{peak[name]:.0f}" if name in peak else "",
            f"{result['losses'][name][-1]:.7g}",
        )
        for name, found in times.items()
    ]
    return "\n\n".join(
        [
            f"## Training\n\nSteps of BERT with {result['layers']} layers, sequence "
            f"{result['sequence']}, batch {result['batch']}, AdamW, fp32: "
            "`python -m benchmarks.training`.",
            machine,
            _table(("system", "ms a step", "times eager's speed", "peak MB", "third loss"), rows),
        ]
    )


def tensorrt_builds(result: dict[str, Any], machine: str) -> str:
    """Plans of the seventeen networks."""
    rows = []
    for network in result["networks"]:
        for row in network["rows"]:
            head = (network["name"], row["precision"], row["target"])
            if "error" in row:
                rows.append((*head, "", "", "", "", row["error"][:100].replace("|", "/")))
                continue
            left = sum(n for reasons in row["left_out"].values() for n in reasons.values())
            error = row["agreement"].get("mean_relative_error")
            rows.append(
                (
                    *head,
                    str(row["clusters"]),
                    f"{left} of {row['nodes']}",
                    f"{row['build_seconds']:.1f}",
                    f"{row['plan_bytes'] / 1e6:.1f}",
                    "" if error is None else f"{error:.1e}",
                )
            )
    heading = ("network", "precision", "target", "clusters", "left out", "build s", "plan MB",
               "error")  # fmt: skip
    return "\n\n".join(
        [
            "## TensorRT-RTX plans\n\nBuilt without a GPU: `python -m benchmarks.tensorrt_builds`. "
            "*error*: the ONNX bytes that its parser got, run by ONNX Runtime, against the same "
            "clusters run by XLA.",
            machine,
            _table(heading, rows),
        ]
    )


SECTIONS = {
    "runtime": runtime,
    "images": images,
    "saving": saving,
    "memory": memory,
    "training": training,
    "tensorrt_builds": tensorrt_builds,
}
"""Name of a result file -> its section."""
