from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tests.engines.tensorrt.trt_support import (
    NETWORKS,
    RTX,
    check_export,
    cluster_of,
    exported,
    inputs_for,
    run_exported,
)
from tests.support import assert_close, model, run_reference
from xrt.engines.tensorrt import support as S
from xrt.engines.tensorrt.export import OPSET, export
from xrt.engines.tensorrt.parse import ParseError, parse
from xrt.engines.tensorrt.surgery import RefusedError, place_of

ATTENTION = "g (float[1,2,6,8] q, float[1,2,6,8] k, float[1,2,6,8] v%s) => (float[1,2,6,8] y) "


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_means_the_same_at_the_parsers_opset(name):
    given = NETWORKS[name]()
    check_export(given)
    assert exported(given).opset_imports == {"": OPSET}


def test_the_original_stays_and_shares_its_weights():
    given = NETWORKS["int8"]()
    before = ir.to_proto(given).SerializeToString(deterministic=True)
    changed = exported(given)
    assert changed.graph.initializers["w"].const_value is given.graph.initializers["w"].const_value
    assert ir.to_proto(given).SerializeToString(deterministic=True) == before


def test_an_int32_bias_becomes_a_constant_in_floating_point():
    assert check_export(NETWORKS["int8"]()).count("DequantizeLinear") == 2
    with pytest.raises(RefusedError, match="int32 constants only"):
        exported("g (int32[4] x, float s) => (float[4] y) { y = DequantizeLinear (x, s) }")


def test_an_output_that_becomes_a_constant_keeps_its_name():
    text = "g (float[2] x) => (float[2] y, float[4] d) <int32[4] b, float s = {0.5}> {%s}"
    ops = check_export(
        model(text % "y = Relu (x)  d = DequantizeLinear (b, s)", b=np.array([1, -2, 3, 4]))
    )
    assert ops == ["Relu", "Identity"]


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_both_modes_of_space_to_depth(mode):
    text = "g (float[2,3,4,6] x) => (float[2,12,2,3] y) { y = SpaceToDepth <blocksize=2%s> (x) }"
    ops = check_export(text % f', mode="{mode}"')
    assert ops == (["SpaceToDepth"] if mode == "DCR" else ["Reshape", "Transpose", "Reshape"])


def test_range_loses_the_attribute_of_a_newer_opset():
    text = "g (float[4] x) => (float[4] y) <float a = {0.0}, float b = {4.0}, float c = {1.0}>"
    assert check_export(text + "{ r = Range <stash_type=1> (a, b, c)  y = Add (x, r) }")


@pytest.mark.parametrize(
    ("op", "extra"),
    [
        ("MaxPool", ""),
        ("AveragePool", ""),
        ("MaxPool", ", pads=[1,0,1,1]"),
        ("AveragePool", ", pads=[1,0,1,1]"),
    ],
)
def test_windows_of_ceil_mode_become_padding(op, extra):
    rows = 5 if extra else 4
    text = f"g (float[1,2,8,8] x) => (float[1,2,{rows},4] y) {{ y = {op} "
    given = text + f"<kernel_shape=[3,3], strides=[2,2], ceil_mode=1{extra}> (x) }}"
    assert check_export(given) == [op]
    assert "ceil_mode" not in exported(given).graph.node(0).attributes


def test_ceil_mode_that_counts_what_lies_beyond_is_refused():
    with pytest.raises(RefusedError, match="ceil_mode reaches"):
        exported("""
            g (float[1,2,8,8] x) => (float[1,2,4,4] y) { y = AveragePool
            <kernel_shape=[3,3], strides=[2,2], ceil_mode=1, count_include_pad=1> (x) }
        """)


@pytest.mark.parametrize(
    ("text", "indices"),
    [
        ("int64[3] i) => (float[3,5] y) { y = Gather (x, i) }", [0, -1, 3]),
        ("int64[2] i) => (float[4,2] y) { y = Gather <axis=1> (x, i) }", [-5, -1]),
        ("int64[1,5] i) => (float[1,5] y) { y = GatherElements (x, i) }", [[0, -1, 2, -4, 3]]),
        ("int64[2,2] i) => (float[2] y) { y = GatherND (x, i) }", [[0, -1], [-4, 3]]),
    ],
)
@pytest.mark.parametrize("fixed", [False, True])
def test_negative_indices_count_from_the_end(text, indices, fixed):
    given = model("g (float[4,5] x, " + text)
    x, array = inputs_for(given)[0], np.array(indices)
    if fixed:
        value = given.graph.inputs.pop()
        value.const_value = ir.tensor(array, name=value.name)
        given.graph.register_initializer(value)
    ops = check_export(given, [x] if fixed else [x, array])
    assert len(ops) == (1 if fixed else 4)


@pytest.mark.parametrize("op", ["ScatterND", "ScatterElements"])
def test_negative_indices_of_scatter(op):
    shape = "2,2" if op == "ScatterND" else "1,5"
    indices = np.array([[0, -1], [-4, 3]] if op == "ScatterND" else [[0, -1, 2, -4, 3]])
    updates = "2" if op == "ScatterND" else "1,5"
    given = f"""
        g (float[4,5] x, int64[{shape}] i, float[{updates}] u) => (float[4,5] y)
        {{ y = {op} (x, i, u) }}
    """
    x, _, u = inputs_for(model(given))
    check_export(given, [x, indices, u])


@pytest.mark.parametrize("mask", ["bool[1,1,6,6]", "float[1,2,6,6]", "bool[6,6]"])
@pytest.mark.parametrize("blocked", [False, True])
def test_a_row_that_the_mask_forbids_gives_zeros(mask, blocked):
    given = model(ATTENTION % f", {mask} mask" + "{ y = Attention (q, k, v, mask) }")
    *qkv, array = inputs_for(given)
    if blocked:
        array[..., 2, :] = False if array.dtype == bool else -np.inf
    ops = check_export(given, [*qkv, array])
    assert ops[-1] == "Where"
    assert "Attention" in ops
    got = run_exported(exported(given), [*qkv, array])[0]
    assert bool((got[:, :, 2] == 0).all()) == blocked


def test_a_constant_mask_with_a_key_in_every_row_needs_no_guard():
    given = ATTENTION % "" + "<bool[6,6] mask> { y = Attention (q, k, v, mask) }"
    assert check_export(model(given, mask=np.tril(np.ones((6, 6))))) == ["Attention"]


@pytest.mark.parametrize(
    "attributes",
    [
        "<softcap=2.0>",
        "<left_window_size=1>",
        "<is_causal=1, left_window_size=2>",
    ],
)
def test_an_attention_that_the_parser_does_not_read_whole_is_written_out(attributes):
    ops = check_export(ATTENTION % "" + f"{{ y = Attention {attributes} (q, k, v) }}")
    assert "Attention" not in ops
    assert "Softmax" in ops


@pytest.mark.parametrize("attributes", ["", "<is_causal=1>", "<scale=0.3, softmax_precision=1>"])
def test_an_attention_that_the_parser_reads_stays(attributes):
    text = ATTENTION % "" + f"{{ y = Attention {attributes} (q, k, v) }}"
    assert check_export(text) == ["Attention"]
    parse(RTX, exported(text))


def test_heads_that_share_keys_are_written_out():
    text = """
        g (float[1,4,6,8] q, float[1,2,6,8] k, float[1,2,6,8] v) => (float[1,4,6,8] y)
        { [here] y = Attention (q, k, v) }
    """
    assert "Attention" not in check_export(text)
    assert {place_of(node) for node in exported(text).graph} == {("Attention", "here")}


def test_a_softmax_in_another_type_is_written_out():
    text = (ATTENTION % "").replace("float[", "float16[")
    given = model(text + "{ y = Attention <softmax_precision=1> (q, k, v) }")
    changed = exported(given)
    assert "Attention" not in [node.op_type for node in changed.graph]
    arrays = [array.astype(np.float16) for array in inputs_for(given)]
    assert_close(run_exported(changed, arrays)[0], run_reference(given, arrays)[0], scale=2)


@pytest.mark.parametrize(
    ("text", "attribute"),
    [
        (
            "g (float[2,3,4] x, float[1,8,4] w, float[1,8,2] r) => (float[2,3,1,2] y)"
            "{ y = LSTM <hidden_size=2, layout=1> (x, w, r) }",
            "layout",
        ),
        ("g (float[2] x) => (float8e4m3fn[2] y) { y = Cast <to=17, saturate=0> (x) }", "saturate"),
    ],
)
def test_an_attribute_that_the_parser_passes_over_is_refused(text, attribute):
    with pytest.raises(RefusedError, match=f"does not read its attribute '{attribute}'"):
        exported(text)


def test_a_type_said_by_an_attribute_is_said_by_a_zero_point():
    text = "g (float[4] x) => (int8[4] y) <float s = {0.1}>"
    given = text + "{ y = QuantizeLinear <output_dtype=3> (x, s) }"
    check_export(given)
    node = exported(given).graph.node(0)
    assert node.inputs[2].const_value.dtype == ir.DataType.INT8
    assert "output_dtype" not in node.attributes


def test_every_node_has_a_name_of_its_own_and_knows_where_it_comes_from():
    given = model(ATTENTION % ", bool[6,6] m" + "{ [a] z = Attention (q, k, v, m)  y = Relu (z) }")
    nodes = list(exported(given).graph)
    assert len({node.name for node in nodes}) == len(nodes)
    assert {place_of(node) for node in nodes} == {("Attention", "a"), ("Relu", "")}


def test_large_weights_are_handed_over_by_address():
    given = model(
        "g (float[1,1000] x) => (float[1,1000] y) <float[1000,1000] w> { y = MatMul (x, w) }",
        w=np.ones((1000, 1000)),
    )
    changed = exported(given)
    network = parse(RTX, changed).network
    assert len(ir.to_proto(changed).SerializeToString()) < 1000
    assert [network.get_layer(i).name for i in range(network.num_layers)][-1] == "MatMul_0_of_y"


def test_the_parsers_words_come_with_the_node():
    changed = exported(
        "g (float[2,2] x) => (float y) { a = Relu (x)  [here] d = Det (a)  y = Neg (d) }"
    )
    with pytest.raises(ParseError, match="has no operator Det") as caught:
        parse(RTX, changed)
    assert place_of(caught.value.node) == ("Det", "here")


def test_a_result_that_nobody_uses_has_a_name_unless_it_is_optional():
    split = "g (float[6] x) => (float[2] y) { y, a, b = Split <num_outputs=3> (x) }"
    changed = exported(split)
    for value in changed.graph.node(0).outputs[1:]:
        value.name = ""  # as a pass leaves them that drops what nobody uses
    (node,) = (again := S.alone(changed.graph.node(0)))
    assert [bool(value.name) for value in node.outputs] == [True, False, False]
    names = [value.name for value in export(again).graph.node(0).outputs]
    assert all(names)
    assert len(set(names)) == 3
    norm = "g (float[2,3] x, float[3] s) => (float[2,3] y) { y, m, v = LayerNormalization (x, s) }"
    alone = S.alone(cluster_of(norm).nodes[0])
    assert [bool(v.name) for v in export(alone).graph.node(0).outputs] == [True, False, False]
