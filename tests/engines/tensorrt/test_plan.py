from __future__ import annotations

import hashlib
import json

import pytest

from tests.engines.tensorrt.trt_support import OPTIONS, RTX, cluster_of, conv_bn_relu
from xrt.engines.tensorrt.build import build
from xrt.engines.tensorrt.plan import MAGIC, Binding, Plan
from xrt.errors import EngineBuildError

PLAN = Plan(
    RTX,
    b"\x00engine\n\xff" * 100,
    (Binding("x", "float32", "float32", (1, 3, None)),),
    (Binding("y", "int64", "int64", (1,)), Binding("z", "float16", "float16", ())),
    "sm_89",
    ({"x": ((1, 3, 1), (1, 3, 4), (1, 3, 8))},),
    {"build_seconds": 1.5, "layers": 3},
)


def same(left: Plan, right: Plan) -> bool:
    names = ("library", "data", "inputs", "outputs", "target", "profiles", "report")
    return all(getattr(left, name) == getattr(right, name) for name in names)


def tampered(change) -> bytes:
    """The plan with another header, whose checksum fits."""
    magic, _, payload = PLAN.to_bytes().split(b"\n", 2)
    length, _, content = payload.partition(b"\n")
    header = json.loads(content[: int(length)])
    change(header)
    text = json.dumps(header).encode()
    payload = b"%d\n%b%b" % (len(text), text, content[int(length) :])
    return b"\n".join([magic, hashlib.sha256(payload).hexdigest().encode(), payload])


def test_a_plan_survives_its_bytes():
    assert same(Plan.from_bytes(PLAN.to_bytes()), PLAN)


def test_a_built_plan_survives_its_bytes_and_begins_as_engines_do():
    plan = build(RTX, cluster_of(conv_bn_relu()), OPTIONS, "sm_80")
    again = Plan.from_bytes(plan.to_bytes())
    assert same(again, plan)
    assert again.data[:4] == b"vtrt"[:4] or again.data[:4] == b"ftrt"
    assert again.target == "sm_80"
    assert again.inputs == (Binding("x", "float32", "float32", (1, 3, 16, 16)),)
    assert again.outputs == (Binding("y", "float32", "float32", (1, 8, 16, 16)),)


@pytest.mark.parametrize("cut", [0, 1, len(MAGIC), len(MAGIC) + 1, 60, 200, -1])
def test_truncated_bytes_are_damaged(cut):
    data = PLAN.to_bytes()
    with pytest.raises(EngineBuildError, match="the plan is damaged"):
        Plan.from_bytes(data[: cut if cut >= 0 else len(data) + cut])


def test_every_changed_byte_is_noticed():
    data = PLAN.to_bytes()
    for place in range(0, len(data), 7):
        changed = bytearray(data)
        changed[place] ^= 0x20
        with pytest.raises(EngineBuildError, match="the plan is damaged"):
            Plan.from_bytes(bytes(changed))


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x80\x04pickle", MAGIC + b"\n\n0\n{}"])
def test_foreign_bytes_are_damaged(data):
    with pytest.raises(EngineBuildError, match="the plan is damaged"):
        Plan.from_bytes(data)


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.pop("inputs"),
        lambda header: header.update(inputs=3),
        lambda header: header.update(outputs=[{"name": "y"}]),
        lambda header: header.update(profiles=[{"x": [1]}]),
        lambda header: header.update(bytes=5),
    ],
)
def test_a_header_that_describes_no_engine_is_damaged(change):
    with pytest.raises(EngineBuildError, match="the plan is damaged"):
        Plan.from_bytes(tampered(change))


def test_a_plan_of_another_release_is_refused():
    with pytest.raises(EngineBuildError, match=r"built by tensorrt_rtx 1\.0\.0\.1, and .* cross"):
        Plan.from_bytes(tampered(lambda header: header.update(version="1.0.0.1")))


@pytest.mark.parametrize("name", ["os", "tensorrt_of_mine", "numpy"])
def test_a_header_cannot_make_xrt_load_other_packages(name):
    with pytest.raises(EngineBuildError, match="is no TensorRT package"):
        Plan.from_bytes(tampered(lambda header: header.update(library=name)))
