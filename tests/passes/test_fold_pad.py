import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import check_pass
from xrt.passes import FoldPadPass

rng = np.random.default_rng(0)
X = rng.normal(size=(1, 2, 6, 7)).astype(np.float32)
W = rng.normal(size=(3, 2, 3, 3))


def check(pad, op, after, **constants):
    declared = "".join(
        f", {kind}{list(np.shape(value)) if np.shape(value) else ''} {name}"
        for name, value in constants.items()
        for kind in ("float" if name == "v" else "int64",)
    )
    signature = "f (float[1,2,6,7] x) => (float[a,b,c,d] y)"
    return check_pass(
        FoldPadPass(),
        f"{signature} <float[3,2,3,3] w{declared}> {{ q = {pad} y = {op} }}",
        None if after is None else f"{signature} {{ y = {after} }}",
        [X],
        constants={"w": W, **constants},
    )


P = [0, 0, 1, 2, 0, 0, 3, 0]


@pytest.mark.parametrize("pad", ["Pad (x, p)", "Pad (x, p, v)", 'Pad <mode = "constant"> (x, p)'])
def test_into_conv(pad):
    constants = {"p": P} | ({"v": 0.0} if "v" in pad else {})
    check(pad, "Conv (q, w)", "Conv <pads = [1,2,3,0]> (x, w)", **constants)


def test_pads_add_up():
    check(
        "Pad (x, p)",
        "Conv <pads = [1,1,1,1], strides = [2,2]> (q, w)",
        "Conv <pads = [2,3,4,1], strides = [2,2]> (x, w)",
        p=P,
    )


def test_axes():
    check("Pad (x, p, , a)", "Conv (q, w)", "Conv <pads = [0,1,0,2]> (x, w)", p=[1, 2], a=[-1])


@settings(max_examples=25, deadline=None)
@given(
    mode=st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    pads=st.lists(st.integers(0, 2), min_size=4, max_size=4),
)
def test_auto_pad_becomes_explicit(mode, strides, dilations, pads):
    amounts = [0, 0, *pads[:2], 0, 0, *pads[2:]]
    attributes = f"strides = {list(strides)}, dilations = {list(dilations)}"
    before = f"""f (float[1,2,6,7] x) => (float[a,b,c,d] y) <float[3,2,3,3] w, int64[8] p>
        {{ q = Pad (x, p) y = Conv <auto_pad = "{mode}", {attributes}> (q, w) }}"""
    size = [6 + pads[0] + pads[2], 7 + pads[1] + pads[3]]
    starts, ends = [0, 0], [0, 0]
    if mode != "VALID":
        for axis in (0, 1):
            reach = 2 * dilations[axis] + 1
            outputs = -(-size[axis] // strides[axis])
            total = max((outputs - 1) * strides[axis] + reach - size[axis], 0)
            low = total // 2 if mode == "SAME_UPPER" else total - total // 2
            starts[axis], ends[axis] = low, total - low
    explicit = [a + b for a, b in zip(pads, starts + ends, strict=True)]
    dilated_same = mode != "VALID" and dilations != (1, 1)
    if dilated_same:
        return  # onnx.reference (1.23.2) leaves dilations out of SAME pads
    check_pass(
        FoldPadPass(),
        before,
        f"""f (float[1,2,6,7] x) => (float[a,b,c,d] y)
            {{ y = Conv <pads = {explicit}, {attributes}> (x, w) }}""",
        [X],
        constants={"w": W, "p": amounts},
    )


def test_into_average_pool_that_counts():
    check(
        "Pad (x, p)",
        "AveragePool <kernel_shape = [4,3], count_include_pad = 1> (q)",
        "AveragePool <kernel_shape = [4,3], count_include_pad = 1, pads = [1,2,3,0]> (x)",
        p=P,
    )


MUST_NOT = {
    "max pool": ("Pad (x, p)", "MaxPool <kernel_shape = [4,3]> (q)", {"p": P}),
    "pool that does not count": ("Pad (x, p)", "AveragePool <kernel_shape = [4,3]> (q)", {"p": P}),
    "pool smaller than its pads": (
        "Pad (x, p)",
        "AveragePool <kernel_shape = [3,3], count_include_pad = 1> (q)",
        {"p": P},
    ),
    "ceil mode": (
        "Pad (x, p)",
        """AveragePool <kernel_shape = [4,3], strides = [2,2], count_include_pad = 1, ceil_mode =
            1> (q)""",
        {"p": P},
    ),
    "another value": ("Pad (x, p, v)", "Conv (q, w)", {"p": P, "v": 1.0}),
    "another mode": ('Pad <mode = "reflect"> (x, p)', "Conv (q, w)", {"p": P}),
    "negative": ("Pad (x, p)", "Conv (q, w)", {"p": [0, 0, -1, 0, 0, 0, 1, 0]}),
    "batch": ("Pad (x, p)", "Conv (q, w)", {"p": [1, 0, 0, 0, 0, 0, 1, 0]}),
    "computed": ("Pad (x, s)", "Conv (q, w)", {"p": P}),
}


@pytest.mark.parametrize("case", MUST_NOT)
def test_must_not_fire(case):
    pad, op, constants = MUST_NOT[case]
    if case == "computed":
        pad, op = "Add (x, x)", "Conv (q, w)"
    check(pad, op, None, **constants)


def test_channels_stay():
    check_pass(
        FoldPadPass(),
        """f (float[1,1,6,7] x) => (float[a,b,c,d] y) <float[3,2,3,3] w, int64[8] p =
            {0,1,0,0,0,0,0,0}>
           { q = Pad (x, p) y = Conv (q, w) }""",
        None,
        [X[:, :1]],
        constants={"w": W},
    )


def test_the_pad_stays_for_other_users():
    check_pass(
        FoldPadPass(),
        """f (float[1,2,6,7] x) => (float[a,b,c,d] y, float[e,f,g,h] z) <float[3,2,3,3] w,
            int64[8] p>
           { q = Pad (x, p) y = Conv (q, w) z = Relu (q) }""",
        """f (float[1,2,6,7] x) => (float[a,b,c,d] y, float[e,f,g,h] z)
           { q = Pad (x, p) y = Conv <pads = [1,2,3,0]> (x, w) z = Relu (q) }""",
        [X],
        constants={"w": W, "p": P},
    )
