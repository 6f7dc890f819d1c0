"""Which groups go back to floating point to hold a bound on accuracy: rank, revert, validate.

A group is ranked by the harm that it does alone, with everything else in floating point; the most
harmful go back first, as few of them as the bound asks for. The scheme is that of accuracy-aware
quantization in Intel's NNCF; here a group is one operator with the rounding around it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from xrt.errors import CalibrationError

Measure = Callable[[frozenset[str]], float]
"""The loss of accuracy with these groups in floating point and all others on int8."""


@dataclass(frozen=True)
class Reversion:
    """What went back to floating point.

    Attributes:
        groups: The groups, most harmful first.
        loss: The loss of accuracy that is left.
    """

    groups: tuple[str, ...]
    loss: float


def revert(
    ranked: Sequence[str], measure: Measure, bound: float, *, metric: str = "loss"
) -> Reversion:
    """The fewest of the most harmful groups without which `measure` keeps to `bound`.

    Found by bisection, which takes the loss to fall as groups go back; where it does not, the
    result still keeps to the bound, but might be longer than need be.

    Args:
        ranked: All groups, most harmful first.
        measure: The loss, for groups that are back in floating point.
        bound: The largest loss allowed.
        metric: What the loss is called in the error.

    Raises:
        CalibrationError: If the bound holds for no more than an empty set of quantized groups. It
            names the least loss that was met.
    """
    known: dict[int, float] = {}

    def loss(count: int) -> float:
        if count not in known:
            known[count] = measure(frozenset(ranked[:count]))
        return known[count]

    if loss(0) <= bound:
        return Reversion((), loss(0))
    low, high = 0, len(ranked) - 1  # the bound does not hold at low; with all back, nothing is int8
    if high < 1 or loss(high) > bound:
        best = min(known, key=lambda count: known[count])
        raise CalibrationError(
            f"The bound cannot be met: {metric} of at most {bound:g} was asked for, and the best "
            f"reached is {known[best]:g}, with {best} of {len(ranked)} operators in floating "
            "point. Loosen the bound, give more calibration data, or use precision='bf16'."
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if loss(middle) <= bound else (middle, high)
    return Reversion(tuple(ranked[:high]), loss(high))


def rank(groups: Collection[str], harm: Callable[[str], float]) -> list[tuple[str, float]]:
    """The groups with the harm that each does alone, most harmful first, ties in order."""
    found = [(group, harm(group)) for group in groups]
    return sorted(found, key=lambda pair: -pair[1])
