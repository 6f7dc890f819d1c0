"""Upgrade rules of `convert_opset`, one file per family of operators."""

from xrt.passes.opset import arithmetic, layout, neural, recurrent, resize
from xrt.passes.opset.rules import RETIRED, RETIRED_TO, RULES, Names, Site

__all__ = [
    "RETIRED",
    "RETIRED_TO",
    "RULES",
    "Names",
    "Site",
    "arithmetic",
    "layout",
    "neural",
    "recurrent",
    "resize",
]
