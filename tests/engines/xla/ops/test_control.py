"""If, Loop and Scan in clusters, against onnx.reference or loops written in NumPy."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.engines.xla.graph_support import check, jaxpr, normal, refusal

TRUE, FALSE = np.array(True), np.array(False)


# --- If ------------------------------------------------------------------------------------------

BRANCHES = """
    g (bool{shape} c, float[2,3] x) => (float[2,3] y, int64 n) {{
        a = Abs (x)
        y, n = If (c) <
            then_branch = t () => (float[2,3] p, int64 q) {{ p = Mul (a, x) q = Identity (one) }},
            else_branch = e () => (float[2,3] r, int64 s) {{ r = Identity (a) s = Size (x) }}
        >
    }}"""


@pytest.mark.parametrize("shape", ["", "[1]"])
def test_if_takes_one_branch_and_sees_outer_values(shape: str) -> None:
    x, dims = normal(2, 3), (1,) if shape else ()
    text = BRANCHES.format(shape=shape).replace("{ p =", "{ one = Constant <value_int = 1> () p =")
    check(text, (np.full(dims, True), x), (np.full(dims, False), x))


def test_if_nests() -> None:
    text = """
        g (bool c, bool d, float[3] x) => (float[3] y) {
            y = If (c) <
                then_branch = t () => (float[3] p) {
                    a = Neg (x)
                    p = If (d) <
                        then_branch = u () => (float[3] q) { q = Exp (a) },
                        else_branch = v () => (float[3] r) { r = Add (a, x) }
                    >
                },
                else_branch = e () => (float[3] s) { s = Sqrt (x) }
            >
        }"""
    x = np.abs(normal(3))
    check(text, *((c, d, x) for c in (TRUE, FALSE) for d in (TRUE, FALSE)))


def test_the_branch_not_taken_does_not_run() -> None:
    # It would loop forever.
    text = """
        g (bool c, float x) => (float y) {
            y = If (c) <
                then_branch = t () => (float p) {
                    p = Loop (, c, x) <body = b (int64 i, bool k, float z) => (bool k2, float w) {
                        k2 = Identity (k) w = Identity (z) }>
                },
                else_branch = e () => (float q) { q = Neg (x) }
            >
        }"""
    check(text, (FALSE, np.float32(2)), want=lambda c, x: [np.float32(-2)])


def test_if_with_shapes_by_branch_is_refused() -> None:
    reason = refusal("""
        g (bool c, float[4] x) => (float[n] y) {
            y = If (c) <
                then_branch = t () => (float[4] p) { p = Neg (x) },
                else_branch = e () => (float[8] q) { q = Concat <axis = 0> (x, x) }
            >
        }""")
    assert reason == "If: the shape of 'y', [4] or [8], depends on the data"


# --- Loop ----------------------------------------------------------------------------------------

STACKED = """
    g (float[3] x, int32 k) => (float[3] y, int32 h, float[m,3] all, int64[m] numbers)
    <int64 trips, bool yes> {
        y, h, all, numbers = Loop (trips, yes, x, k) <
            body = b (int64 i, bool c, float[3] s, int32 j)
                => (bool c2, float[3] t, int32 j2, float[3] u, int64 v) {
                c2 = Identity (c)
                f = Cast <to = 1> (i)
                t = Add (s, f)
                j2 = Add (j, j)
                u = Mul (t, x)
                v = Identity (i)
            }
        >
    }"""


@pytest.mark.parametrize("trips", [0, 1, 5])
def test_a_counted_loop_stacks_its_scan_outputs(trips: int) -> None:
    def want(x: Any, k: Any) -> Any:
        states = [x + i * (i + 1) / 2 for i in range(trips)]
        stacked = np.stack([s * x for s in states]) if trips else np.zeros((0, 3))
        last = states[-1] if trips else x
        results = last, k * 2**trips, stacked.astype("f"), np.arange(trips)
        return [np.asarray(r, d) for r, d in zip(results, ("f", "i4", "f", "i8"), strict=True)]

    x, k = normal(3), np.array(3, np.int32)
    check(STACKED, (x, k), want=want, trips=trips, yes=True)


def test_a_loop_without_condition_runs_the_constant_count() -> None:
    text = """
        g (float[2] x) => (float[2] y) <int64[1] trips> {
            y = Loop (trips, , x) <body = b (int64 i, bool c, float[2] s) => (bool c, float[2] t) {
                t = Add (s, x) }>
        }"""
    check(text, (normal(2),), want=lambda x: [x * 8], trips=[7])


def test_a_long_loop_holds_no_list_of_its_iterations() -> None:
    text = """
        g (int64 x) => (int64 y) <int64 trips, bool yes> {
            y = Loop (trips, yes, x) <body = b (int64 i, bool c, int64 s) => (bool c, int64 t) {
                t = Add (s, i) }>
        }"""
    count = 100_000
    want = [np.array(7 + count * (count - 1) // 2)]
    made = check(text, (np.array(7),), want=lambda x: want, trips=count, yes=True)
    assert f"[{count}]" not in jaxpr(made)


WHILE = """
    g (int64 m, bool c, float[2] x) => (float[2] y, int64 n) <int64 zero> {
        y, n = Loop (INPUTS, x, zero) <
            body = b (int64 i, bool k, float[2] s, int64 j) => (bool k2, float[2] t, int64 j2) {
                t = Add (s, s)
                top = ReduceMax <keepdims = 0> (t)
                k2 = Less (top, hundred)
                j2 = Add (j, i)
            }
        >
    }"""


@pytest.mark.parametrize("given", ["m, c", ", c", "m, ", ", "])
@pytest.mark.parametrize("most", [0, 3, 50])
@pytest.mark.parametrize("going", [TRUE, FALSE])
def test_a_loop_stops_by_count_or_condition(given: str, most: int, going: Any) -> None:
    def want(m: Any, c: Any, x: Any) -> Any:
        count, total, goes = 0, 0, bool(c) or "c" not in given
        while goes and (count < m or "m" not in given):
            x, total, count = x + x, total + count, count + 1
            goes = x.max() < 100
        return [x, np.array(total)]

    text = WHILE.replace("INPUTS", given).replace("<int64 zero>", "<int64 zero, float hundred>")
    inputs = np.array(most), going, np.array([1.5, -4], np.float32)
    made = check(text, inputs, want=want, zero=0, hundred=100)
    assert "while" in jaxpr(made)


def test_a_constant_count_does_not_override_the_condition() -> None:
    text = """
        g (float x) => (float y) <int64 trips, bool yes, float ten> {
            y = Loop (trips, yes, x) <body = b (int64 i, bool c, float s) => (bool d, float t) {
                t = Add (s, x) d = Less (t, ten) }>
        }"""
    want = np.float32(12)
    check(text, (np.float32(3),), want=lambda x: [want], trips=100, yes=True, ten=10)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "double", "uint8", "bool"])
def test_states_keep_their_dtypes(dtype: str) -> None:
    operator = "Xor" if dtype == "bool" else "Add"
    text = f"""
        g ({dtype}[2] x) => ({dtype}[2] y, {dtype}[3,2] z) <int64 trips, bool yes> {{
            y, z = Loop (trips, yes, x) <
                body = b (int64 i, bool c, {dtype}[2] s) => (bool c, {dtype}[2] t, {dtype}[2] u) {{
                    t = {operator} (s, x) u = Identity (s) }}>
        }}"""
    numpy = {"bfloat16": ml_dtypes.bfloat16, "double": np.float64}.get(dtype, dtype)

    def want(x: Any) -> Any:
        states = [x]
        for _ in range(3):
            states.append(states[-1] ^ x if dtype == "bool" else states[-1] + x)
        return states[-1], np.stack(states[:-1])

    check(text, (np.array([1, 100]).astype(numpy),), want=want, trips=3, yes=True)


@pytest.mark.parametrize("m", ["m", "trips"])
def test_a_size_by_an_unknown_count_is_refused(m: str) -> None:
    going = "Identity (c)" if m == "m" else "Less (s, ten)"
    reason = refusal(
        f"""
        g (int64 m, float x) => (float y, float[n] z) <int64 trips, bool yes, float ten> {{
            y, z = Loop ({m}, yes, x) <
                body = b (int64 i, bool c, float s) => (bool d, float t, float u) {{
                    t = Add (s, x) d = {going} u = Neg (s) }}>
        }}""",
        trips=3,
        yes=True,
        ten=10,
    )
    assert reason == (
        "Loop: the number of iterations, and with it the size of an output ('z'), "
        "depends on the data"
    )


def test_a_state_that_grows_is_refused() -> None:
    reason = refusal(
        """
        g (float[2] x) => (float[n] y) <int64 trips, bool yes> {
            y = Loop (trips, yes, x) <body = b (int64 i, bool c, float[k] s) => (bool c, float[l] t)
                { t = Concat <axis = 0> (s, x) }>
        }""",
        trips=3,
        yes=True,
    )
    assert reason == "Loop: the shape of 's', [2] on entry, changes from one iteration to the next"


def test_a_refused_body_names_the_node_and_its_reason() -> None:
    text = """
        g (bool c, float[4] x) => (float[4] y) {
            y = If (c) <
                then_branch = t () => (float[4] p) { p = Neg (x) },
                else_branch = e () => (float[4] q) {
                    q = Loop (, c, x) <body = b (int64 i, bool k, float[4] s)
                        => (bool k2, float[4] r) { k2 = Not (k) [far] nz = NonZero (s)
                            f = Cast <to = 1> (nz) m = ReduceSum <keepdims = 0> (f)
                            r = Add (s, m) }>
                }
            >
        }"""
    reason = refusal(text)
    assert reason.startswith("If: Loop (which makes 'q') in its else-branch: Loop: NonZero 'far'")
    assert reason.count(" in its body: ") == 1


def test_sequences_in_a_body_are_refused() -> None:
    reason = refusal(
        """
        g (float[2] x) => (float[2] y) <int64 trips, bool yes, int64 zero> {
            y = Loop (trips, yes, x) <body = b (int64 i, bool c, float[2] s) => (bool c, float[2] t)
                { q = SequenceConstruct (s, x) t = SequenceAt (q, zero) }>
        }""",
        trips=3,
        yes=True,
        zero=0,
    )
    assert "SequenceConstruct (which makes 'q') in its body: SequenceConstruct: " in reason


# --- Scan ----------------------------------------------------------------------------------------


def test_scan_hands_on_states_and_stacks_outputs() -> None:
    text = """
        g (float[3] a, int64 n, float[5,3] x, float[5] k) => (float[3] b, int64 m, float[5,3] y,
            float[5] z) <int64 one> {
            b, m, y, z = Scan <num_scan_inputs = 2, body = s (float[3] p, int64 i, float[3] e,
                float f) => (float[3] q, int64 j, float[3] r, float t) {
                w = Mul (e, f) q = Add (p, w) j = Add (i, one) r = Identity (q)
                t = ReduceSum <keepdims = 0> (q) }> (a, n, x, k)
        }"""

    def want(a: Any, n: Any, x: Any, k: Any) -> Any:
        sums = a + np.cumsum(x * k[:, None], 0)
        return sums[-1], n + 5, sums, sums.sum(1)

    check(text, (normal(3), np.array(4), normal(5, 3), normal(5)), want=want, one=1)


@pytest.mark.parametrize("back", [(0, 1, 0, 1), (1, 0, 1, 0), (1, 1, 1, 1)])
@pytest.mark.parametrize("axes", [(0, 0, 0, 0), (1, 2, 1, 2), (-1, -3, -1, -2)])
def test_scan_along_any_axis_and_direction(axes: Any, back: Any) -> None:
    xs = [np.moveaxis(normal(4, 2, 3), 0, axes[0]), np.moveaxis(normal(4, 2, 3), 0, axes[1])]
    x, y = ("float" + str(list(array.shape)) for array in xs)
    text = f"""
        g (float[2,3] s, {x} x, {y} y) => (float[2,3] t, float[a,b,c] u, float[d,e,f] v) {{
            t, u, v = Scan <num_scan_inputs = 2, scan_input_axes = {list(axes[:2])},
                scan_output_axes = {list(axes[2:])}, scan_input_directions = {list(back[:2])},
                scan_output_directions = {list(back[2:])},
                body = b (float[2,3] s0, float[2,3] e, float[2,3] f)
                    => (float[2,3] s1, float[2,3] p, float[2,3] q) {{
                    w = Mul (e, f) s1 = Sub (w, s0) p = Identity (s1) q = Add (e, s0) }}> (s, x, y)
        }}"""

    def want(s: Any, *given: Any) -> Any:
        one, two = (
            np.moveaxis(a, axis, 0)[:: -1 if b else 1]
            for a, axis, b in zip(given, axes, back, strict=False)
        )
        ps, qs = [], []
        for e, f in zip(one, two, strict=True):
            qs.append(e + s)
            s = e * f - s
            ps.append(s)
        u, v = (
            np.stack(parts[:: -1 if b else 1], axis)
            for parts, axis, b in zip((ps, qs), axes[2:], back[2:], strict=True)
        )
        return s, u, v

    check(text, (normal(2, 3), *xs), want=want)
