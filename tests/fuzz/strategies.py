"""Every operator's strategy, from the tables of the families."""

from __future__ import annotations

from tests.fuzz import elementwise, movement, network, quantized, reduction, special, windows
from tests.fuzz.values import Maker, strategy

MAKERS: dict[str, Maker] = {
    **elementwise.TABLE,
    **movement.TABLE,
    **network.TABLE,
    **quantized.TABLE,
    **reduction.TABLE,
    **special.TABLE,
    **windows.TABLE,
}
"""Operator -> what describes its cases."""

STRATEGIES = {op: strategy(maker) for op, maker in sorted(MAKERS.items())}
"""Operator -> strategy of its cases."""
