"""The published figures that this project answers, as they were published.

Each file holds a title, the hardware and the protocol of a table beside its rows. A null is a cell
that was not published, or for which the hardware had no memory.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TABLES = (
    "bert_training_xla",
    "cnn_inference_tensorrt",
    "flagperf_resnet50",
    "mlperf_inference",
    "torch_compile_inference",
)


def load(name: str) -> dict[str, Any]:
    """A published table by name."""
    if name not in TABLES:
        raise ValueError(f"Table {name!r} is unknown. Known tables: {', '.join(TABLES)}.")
    path = Path(__file__).with_name(f"{name}.json")
    table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return table
