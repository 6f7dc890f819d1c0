"""Tuning: which convolution algorithm is fastest for each layer, measured on this device.

Every distinct convolution of a cluster is compiled with a bias and a ReLU behind it, once for each
exact algorithm that can compute it, and timed in turn: A B C, A B C, ... so that drift hits all
alike. The winner's name is kept on disk and written into the metadata of the nodes, where the
lowering reads it; metadata is no part of a cluster's digest, so its name stays.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx_ir as ir

from xrt.engines.cache import DiskCache
from xrt.engines.xla import denormals, launch
from xrt.engines.xla import device as D
from xrt.engines.xla.ops import conv as ops
from xrt.kernels.jax import conv as kernels
from xrt.kernels.jax.conv import Algorithm, ConvSpec
from xrt.progress import progress

_log = logging.getLogger(__name__)

Choices = dict[str, str]
"""Specification of a convolution, as `key` writes it -> name of the algorithm."""

SECONDS = 0.5
"""Time for the measured runs of one specification, all candidates together."""
ROUNDS = 5, 40
"""Fewest and most runs of each candidate that count."""
HOPELESS = 2.0
"""A candidate whose first runs all take so many times the best one's is not run again."""
TRIALS = 3
"""How many first runs that are: one or two may just have had bad luck."""
MARGIN = 0.9
"""A candidate replaces the rule's choice if it takes less than this share of its time: what is
closer is noise on a shared machine, and may be lost among the other layers."""


def key(spec: ConvSpec) -> str:
    """`spec` as the key of `Choices`."""
    return repr(spec)


def tune(
    body: ir.Graph,
    flags: Mapping[str, Any],
    *,
    cache: DiskCache | None = None,
    identity: Sequence[str] = (),
    show: bool | None = None,
) -> Choices:
    """Measure, or read from `cache`, the fastest algorithm for each convolution of `body`.

    Args:
        body: The body of a cluster.
        flags: The compiler options that the cluster will be compiled with.
        cache: Where results are kept.
        identity: What else the results depend on: versions, device, sources.
        show: Whether to show progress; None if stderr is a terminal.
    """
    specs = {key(spec): spec for spec in map(_spec, body.all_nodes()) if spec is not None}
    base = (sorted(flags.items()), tuple(identity))
    found: Choices = {}
    with progress("Tuning convolutions", len(specs), show) as advance:
        for name, spec in specs.items():
            place = hashlib.sha256(repr((name, base)).encode()).hexdigest()
            known = _stored(cache, place, spec)
            if known is None:
                record = measure(spec, flags)
                known = record["chosen"]
                if cache:
                    cache.put(place, json.dumps(record).encode())
            found[name] = known
            advance(f"{spec.kernel[0]}x{spec.kernel[1]} {spec.c_in}->{spec.c_out} {known}")
    return found


def annotate(body: ir.Graph, chosen: Mapping[str, str]) -> None:
    """Write choices into the metadata of the convolutions of `body`; what was there goes."""
    for node in body.all_nodes():
        node.metadata_props.pop(ops.ALGORITHM, None)
        spec = _spec(node)
        if spec is not None and key(spec) in chosen:
            node.metadata_props[ops.ALGORITHM] = chosen[key(spec)]


def choices(body: ir.Graph) -> Choices:
    """The choices that `annotate` wrote into `body`."""
    found = ((_spec(n), n.metadata_props.get(ops.ALGORITHM)) for n in body.all_nodes())
    return {key(spec): name for spec, name in found if spec is not None and name}


def algorithms(body: ir.Graph) -> dict[str, int]:
    """How many convolutions of `body` each algorithm computes, tuned or not."""
    geometries = [ops.tunable(node) for node in body.all_nodes()]
    return dict(Counter(g.algorithm.name for g in geometries if g is not None))


def _spec(node: ir.Node) -> ConvSpec | None:
    geometry = ops.tunable(node)
    return None if geometry is None else geometry.spec


def measure(spec: ConvSpec, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Time the candidates for `spec`: chosen, milliseconds, and why others were dropped."""
    rule = ops.rule(spec)
    names = [rule.name, *(a.name for a in candidates(spec) if a.name != rule.name)]
    if len(names) == 1:
        return {"spec": key(spec), "chosen": rule.name, "ms": {}, "dropped": {}}
    runs, dropped = _compiled(spec, names, flags)
    times = _times(runs, dropped, rule.name)
    best = min(times, key=lambda name: times[name], default=rule.name)
    if rule.name in times and times[best] > MARGIN * times[rule.name]:
        best = rule.name
    for name, reason in dropped.items():
        _log.debug("%s: %s is dropped: %s", spec, name, reason)
    _log.debug("%s: %s of %s", spec, best, times)
    return {"spec": key(spec), "chosen": best, "ms": times, "dropped": dropped}


def candidates(spec: ConvSpec) -> tuple[Algorithm, ...]:
    """The algorithms that are worth measuring: exact ones, each computation once."""
    same = {"im2col", "patchify"} if kernels.POINTWISE.applicable(spec) else set()
    return tuple(a for a in kernels.candidates(spec) if a.exact and a.name not in same)


def _compiled(
    spec: ConvSpec, names: Sequence[str], flags: Mapping[str, Any]
) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """The candidates that compile and agree with `direct`, as calls; the others' reasons."""
    rng = np.random.default_rng(0)
    shapes = (
        (spec.n, spec.h, spec.w, spec.c_in),
        (spec.c_out, spec.c_in // spec.groups, *spec.kernel),
        (spec.c_out,),
    )
    x, w, b = (rng.standard_normal(shape, np.float32).astype(spec.dtype) for shape in shapes)
    on_device = D.put(x), D.put(b)
    expected: Any = None
    runs: dict[str, Callable[[], Any]] = {}
    dropped: dict[str, str] = {}
    for name in ("direct", *(name for name in names if name != "direct")):
        try:
            run = _build(spec, kernels.ALGORITHMS[name], flags, w, *on_device)
            result = np.asarray(run())
        except Exception as error:
            dropped[name] = f"{type(error).__name__}: {error}"
            continue
        expected = result if expected is None else expected
        off = _difference(result, expected)
        if off <= _tolerance(spec.dtype):
            runs[name] = run
        else:
            dropped[name] = f"its result is off by {off:.1e} of the largest value"
    return {name: runs[name] for name in names if name in runs}, dropped


def _build(
    spec: ConvSpec, algorithm: Algorithm, flags: Mapping[str, Any], w: Any, x: Any, b: Any
) -> Callable[[], Any]:
    weight = D.put(algorithm.prepare_weight(w, spec))
    headed = denormals.kept(D.device())  # as a cluster is

    def layer(x: Any, w: Any, b: Any) -> Any:
        if headed:
            result = math.prod(spec.out_shape) * x.itemsize
            x, w, b = launch.head([x, w, b], max(x.nbytes, result), [result])
        return jnp.maximum(kernels.convolve(x, w, spec, algorithm) + b, 0)

    compiled = jax.jit(layer).lower(x, weight, b).compile(compiler_options=dict(flags) or None)

    def call() -> Any:
        return jax.block_until_ready(compiled(x, weight, b))  # type: ignore[no-untyped-call]

    return lambda: launch.run(call)


def _difference(got: Any, want: Any) -> float:
    """The largest difference relative to the largest value; infinite where one is not finite."""
    if got.shape != want.shape:
        return np.inf
    got, want = got.astype(np.float64), want.astype(np.float64)
    found = float(np.abs(got - want).max() / max(np.abs(want).max(), 1e-30))
    return found if np.isfinite(found) else np.inf


def _tolerance(dtype: str) -> float:
    """What sums in another order may differ by: some units of the accumulator, one rounding."""
    inner = kernels.accumulator(np.dtype(dtype))
    return float(64 * jnp.finfo(inner).eps + 2 * jnp.finfo(dtype).eps)


def _times(
    runs: Mapping[str, Callable[[], Any]], dropped: dict[str, str], keep: str
) -> dict[str, float]:
    """Milliseconds by name, of all but `keep` only if they are not clearly slow.

    The lower quartile: what other processes take from a run counts less than in a median, and what
    every run pays, as fresh pages for its temporaries, counts in full, unlike in a minimum.
    """
    first = {name: _seconds(run) for name, run in runs.items()}
    fastest = min(first.values(), default=0.0)
    taken: dict[str, list[float]] = {}
    for name, seconds in first.items():
        trials = 1
        while name != keep and seconds > HOPELESS * fastest and trials < TRIALS:
            seconds, trials = min(seconds, _seconds(runs[name])), trials + 1
        if name != keep and seconds > HOPELESS * fastest:
            dropped[name] = f"{1e3 * seconds:.2f} ms beside {1e3 * fastest:.2f} ms"
        else:
            taken[name] = []
    end = time.perf_counter() + SECONDS
    for number in range(ROUNDS[1]):
        if number >= ROUNDS[0] and time.perf_counter() > end:
            break
        for name, times in taken.items():
            times.append(_seconds(runs[name]))
    return {name: 1e3 * sorted(times)[len(times) // 4] for name, times in taken.items()}


def _seconds(run: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def _stored(cache: DiskCache | None, place: str, spec: ConvSpec) -> str | None:
    """The choice kept at `place`, or None if there is none that fits `spec`."""
    data = cache.get(place) if cache else None
    if data is None:
        return None
    try:
        chosen = json.loads(data)["chosen"]
    except (ValueError, KeyError, TypeError):
        return None
    fits = chosen in {a.name for a in candidates(spec)} | {ops.rule(spec).name}
    return str(chosen) if fits else None
