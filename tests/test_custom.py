"""Operators that users define, from the model to the outputs, on the CPU."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import xrt
from tests.support import assert_close
from xrt import custom
from xrt.errors import KernelError, OptionError, UnsupportedOpError

X = np.linspace(-2, 2, 6, dtype=np.float32).reshape(2, 3)


def parse(body: str, signature: str = "(float[2,3] x) => (float[2,3] y)") -> onnx.ModelProto:
    header = '<ir_version: 10, opset_import: ["": 21, "com.example": 1]>'
    return onnx.parser.parse_model(f"{header}\ng {signature} {{ {body} }}")


SCALE = "a = Relu(x) b = com.example.Scale<factor=2.5>(a) c = Add(b, x) y = Mul(c, c)"


def scale(x, *, factor):
    return x * np.float32(factor)


def like_input(x, **_):
    return x.shape, x.dtype


@pytest.fixture(autouse=True)
def _forget_operators():
    yield
    for name in custom.names():
        custom.unregister_kernel(*name.split("::"))


def expected() -> np.ndarray:
    c = np.maximum(X, 0) * np.float32(2.5) + X
    return c * c


@pytest.mark.parametrize("engine", ["host", "xla"])
def test_a_kernel_runs_between_clusters(engine):
    xrt.register_kernel("com.example", "Scale", scale, outputs=like_input)
    program = xrt.compile(parse(SCALE), engine=engine)
    assert_close(program(X), expected())


def test_nodes_after_it_can_be_in_clusters_once_its_outputs_are_known():
    xrt.register_kernel("com.example", "Scale", scale)
    assert xrt.compile(parse(SCALE), engine="xla").clusters == []
    xrt.register_kernel("com.example", "Scale", scale, outputs=like_input)
    program = xrt.compile(parse(SCALE), engine="xla")
    assert [[n.op_type for n in c.nodes] for c in program.clusters] == [["Add", "Mul"]]
    assert_close(program(X), expected())


def test_types_that_the_model_declares_count():
    model = parse(SCALE)
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("b", 1, [2, 3]))
    xrt.register_kernel("com.example", "Scale", scale)
    program = xrt.compile(model, engine="xla")
    assert len(program.clusters) == 1
    assert_close(program(X), expected())


def test_several_outputs_and_absent_inputs():
    def split(x, bias=None, scale=None):
        assert bias is None
        return x * scale, x - scale

    xrt.register_kernel(
        "com.example", "Split", split, outputs=lambda x, *_: [(x.shape, x.dtype)] * 2
    )
    model = parse(
        "y, z = com.example.Split(x, , s)",
        "(float[2,3] x, float[3] s) => (float[2,3] y, float[2,3] z)",
    )
    factors = np.array([1, 2, 3], np.float32)
    y, z = xrt.compile(model, engine="host")(X, factors)
    assert_close([y, z], [X * factors, X - factors])


def test_attributes_come_as_numbers_strings_tuples_and_arrays():
    seen = {}

    def note(x, **attributes):
        seen.update(attributes)
        return x

    xrt.register_kernel("com.example", "Note", note)
    table = "<int64[2] {7, 8}>".strip("<>")
    body = f'y = com.example.Note<i=3, f=0.5, s="text", v=[1,2], t={table}>(x)'
    assert_close(xrt.compile(parse(body), engine="host")(X), X)
    table_seen = seen.pop("t")
    assert table_seen.tolist() == [7, 8]
    assert seen == {"i": 3, "f": 0.5, "s": "text", "v": (1, 2)}


def test_a_result_is_not_the_input_itself():
    xrt.register_kernel("com.example", "Same", lambda x: x, outputs=like_input)
    given = X.copy()
    result = xrt.compile(parse("y = com.example.Same(x)"), engine="host")(given)
    given[:] = 0
    assert_close(result, X)


def test_it_works_inside_a_branch():
    xrt.register_kernel("com.example", "Scale", scale, outputs=like_input)
    model = parse(
        "y = If(c) <then_branch = t () => (float[2,3] a) { a = com.example.Scale<factor=3.0>(x) },"
        " else_branch = e () => (float[2,3] b) { b = Neg(x) }>",
        "(float[2,3] x, bool c) => (float[2,3] y)",
    )
    program = xrt.compile(model, engine="xla")
    assert_close(program(X, np.array(True)), X * 3)
    assert_close(program(X, np.array(False)), -X)


def test_it_keeps_its_types_in_half_precision():
    seen = set()

    def note(x, *, factor):
        seen.add(x.dtype.name)
        return scale(x, factor=factor)

    xrt.register_kernel("com.example", "Scale", note, outputs=like_input)
    program = xrt.compile(parse(SCALE), engine="xla", precision="fp16")
    assert_close(program(X).astype(np.float16), expected().astype(np.float16), scale=2)
    assert seen == {"float32"}


def test_it_takes_part_in_a_stream():
    xrt.register_kernel("com.example", "Scale", scale, outputs=like_input)
    program = xrt.compile(parse(SCALE), engine="xla")
    with program.stream([X] * 4) as outputs:
        for output in outputs:
            assert_close(output, expected())


def test_a_saved_program_needs_the_kernel_again(tmp_path):
    xrt.register_kernel("com.example", "Scale", scale, outputs=like_input)
    xrt.compile(parse(SCALE), engine="xla").save(tmp_path / "model.xrt")
    assert_close(xrt.load(tmp_path / "model.xrt")(X), expected())
    custom.unregister_kernel("com.example", "Scale")
    with pytest.raises(UnsupportedOpError, match=r"register_kernel\('com.example', 'Scale'"):
        xrt.load(tmp_path / "model.xrt")(X)


def test_an_unknown_operator_says_how_to_define_it():
    xrt.register_kernel("com.example", "Other", scale)
    with pytest.raises(UnsupportedOpError) as raised:
        xrt.compile(parse(SCALE))
    assert "xrt.register_kernel('com.example', 'Scale', kernel)" in str(raised.value)
    assert "Registered: com.example::Other" in str(raised.value)


def test_a_kernel_can_be_replaced():
    xrt.register_kernel("com.example", "Scale", scale, outputs=like_input)
    before = xrt.compile(parse(SCALE), engine="host")
    xrt.register_kernel("com.example", "Scale", lambda x, *, factor: x * 0, outputs=like_input)
    after = xrt.compile(parse(SCALE), engine="host")
    assert_close(before(X), expected())
    assert_close(after(X), X * X)


def test_a_failing_kernel_is_named_and_leaves_the_program_usable():
    def fussy(x, *, factor):
        if x.min() < -1:
            raise RuntimeError("too small")
        return scale(x, factor=factor)

    xrt.register_kernel("com.example", "Scale", fussy, outputs=like_input)
    program = xrt.compile(parse("y = com.example.Scale<factor=2.0>(x)"), engine="host")
    with pytest.raises(KernelError, match=r"Scale failed.*float32\[2, 3\].*too small"):
        program(X)
    assert_close(program(np.abs(X)), np.abs(X) * 2)


def test_a_wrong_number_of_outputs_is_named():
    xrt.register_kernel("com.example", "Scale", lambda x, *, factor: (x, x), outputs=like_input)
    program = xrt.compile(parse(SCALE), engine="host")
    with pytest.raises(KernelError, match=r"com.example::Scale gave 2 outputs .* tuple of 1"):
        program(X)


def test_a_result_unlike_its_promise_is_named():
    xrt.register_kernel(
        "com.example", "Scale", lambda x, *, factor: x.astype(np.float64), outputs=like_input
    )
    program = xrt.compile(parse(SCALE), engine="xla")
    with pytest.raises(
        KernelError, match=r"gave float64\[2, 3\] as output 0.*says float32\[2, 3\]"
    ):
        program(X)


def test_a_promise_that_fails_is_named():
    xrt.register_kernel("com.example", "Scale", scale, outputs=lambda x: (x.shape, x.dtype))
    with pytest.raises(KernelError, match=r"'outputs' of com\.example::Scale failed: TypeError"):
        xrt.compile(parse(SCALE), engine="host")
    xrt.register_kernel("com.example", "Scale", scale, outputs=lambda x, **_: [like_input(x)] * 2)
    with pytest.raises(KernelError, match="a node of 1 outputs"):
        xrt.compile(parse(SCALE), engine="host")


def test_a_promise_of_negative_sizes_is_named():
    xrt.register_kernel("com.example", "Scale", scale, outputs=lambda x, **_: ((-1, -1), x.dtype))
    with pytest.raises(KernelError, match=r"shape=\(-1, -1\).*a node of 1 outputs"):
        xrt.compile(parse(SCALE), engine="host")


@pytest.mark.parametrize("domain", ["", "ai.onnx", "ai.onnx.ml", "xrt"])
def test_domains_of_others_are_refused(domain):
    with pytest.raises(OptionError, match="not yours to define"):
        xrt.register_kernel(domain, "Scale", scale)


def test_what_is_no_kernel_is_refused():
    with pytest.raises(OptionError, match=r"a function or an xrt\.CudaKernel; got 3"):
        xrt.register_kernel("com.example", "Scale", 3)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="Device 'tpu' is unknown"):
        xrt.register_kernel("com.example", "Scale", scale, device="tpu")
    with pytest.raises(OptionError, match="the source has no function 'f'"):
        xrt.CudaKernel("void g() {}", "f")
    with pytest.raises(OptionError, match="block must be 1 to 1024; got 2000"):
        xrt.CudaKernel("void f() {}", "f", block=2000)


def test_attributes_of_other_kinds_are_refused():
    xrt.register_kernel("com.example", "Odd", lambda x, **_: x)
    body = "y = com.example.Odd<body = b (float z) => (float w) { w = Neg(z) }>(x)"
    with pytest.raises(UnsupportedOpError, match=r"Attribute 'body' of com\.example::Odd"):
        xrt.compile(parse(body), engine="host")
