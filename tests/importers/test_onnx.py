"""Import of ONNX: what loads, what stays untouched, and what every error says."""

from __future__ import annotations

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx.backend.test.loader
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from xrt.errors import ModelImportError, ModelNotFoundError, UnsupportedOpError, XrtError
from xrt.graph import OPSET, structurally_equal
from xrt.importers.onnx import load_onnx

BODY = "g (float[2,3] x) => (float[2,4] y) <float[3,4] w = {1,2,3,4,5,6,7,8,9,10,11,12}>"
LINEAR = f"{BODY} {{ a = Relu (x) y = MatMul (a, w) }}"


def proto(text: str = LINEAR, opset: int = 18, domains: str = "") -> onnx.ModelProto:
    header = f'<ir_version: 8, opset_import: ["": {opset}{domains}]>'
    return onnx.parser.parse_model(f"{header}\n{text}")


def weighted(array: np.ndarray, op_type: str = "MatMul") -> onnx.ModelProto:
    """A model with `array` as a large initializer "w"."""
    weight = numpy_helper.from_array(array, "w")
    kind = weight.data_type
    graph = helper.make_graph(
        [helper.make_node(op_type, ["x", "w"], ["y"], name="layer")],
        "g",
        [helper.make_tensor_value_info("x", kind, [1, array.shape[0]])],
        [helper.make_tensor_value_info("y", kind, None)],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A model whose weight is in an external file."""
    model = weighted(np.arange(1024, dtype=np.float32).reshape(32, 32))
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    return path


# What loads


def test_all_kinds_of_source_agree(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(proto(), path)
    sources = [path, str(path), path.read_bytes(), proto(), ir.from_proto(proto())]
    models = [load_onnx(source) for source in sources]
    assert all(isinstance(model, ir.Model) for model in models)
    assert all(structurally_equal(model.graph, models[0].graph) for model in models)


def test_text_formats_are_known_by_suffix(tmp_path):
    path = tmp_path / "model.json"
    onnx.save(proto(), path)
    assert structurally_equal(load_onnx(path).graph, load_onnx(proto()).graph)


def test_sources_are_not_edited():
    source = proto()
    before = source.SerializeToString(deterministic=True)
    model = load_onnx(source)
    model.graph.remove(model.graph[-1], safe=False)
    assert source.SerializeToString(deterministic=True) == before
    ours = ir.from_proto(proto())
    copy = load_onnx(ours)
    copy.graph[0].op_type = "Neg"
    assert ours.graph[0].op_type == "Relu"
    copied, own = (
        graph.initializers["w"].const_value.numpy() for graph in (copy.graph, ours.graph)
    )
    np.testing.assert_array_equal(copied, own)
    assert not np.shares_memory(copied, own)


def test_external_data_stay_memory_mapped(external, monkeypatch):
    monkeypatch.chdir(external.parent)
    for source in (external, "model.onnx", ir.load(external)):
        tensor = load_onnx(source).graph.initializers["w"].const_value
        assert isinstance(tensor, ir.ExternalTensor)
        assert tensor.raw is not None
        assert tensor.numpy()[1, 1] == 33
    os.chdir("/")
    assert load_onnx(external).graph.initializers["w"].const_value.numpy().shape == (32, 32)


def test_relative_path_survives_a_change_of_folder(external, monkeypatch):
    monkeypatch.chdir(external.parent)
    model = load_onnx("model.onnx")
    monkeypatch.chdir("/")
    assert model.graph.initializers["w"].const_value.tobytes()


def test_initializers_that_are_inputs_are_constants():
    source = proto()
    source.ir_version = 3
    source.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3, 4]))
    model = load_onnx(source)
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert model.graph.initializers["w"].const_value is not None
    assert len(source.graph.input) == 2


def test_unsorted_nodes_are_sorted():
    model = load_onnx(proto(f"{BODY} {{ y = MatMul (a, w) a = Relu (x) }}"))
    assert [node.op_type for node in model.graph] == ["Relu", "MatMul"]


def test_infinite_mask_is_no_weight():
    mask = np.triu(np.full((4, 4), -np.inf, np.float32), 1)
    model = load_onnx(weighted(mask, "Add"))
    assert np.isinf(model.graph.initializers["w"].const_value.numpy()).any()


def test_large_finite_weights_are_finite():
    load_onnx(weighted(np.full((64, 64), np.finfo(np.float32).max)))
    load_onnx(weighted(np.full((8, 8), np.finfo(np.float16).max)))
    load_onnx(weighted(np.full((8, 8), 3e38, ml_dtypes.bfloat16)))


def test_functions_and_known_domains_load():
    text = """g (float[4] x) => (float[4] y) { a = local.twice (x) y = ai.onnx.ml.Scaler (a) }
    <domain: "local", opset_import: ["": 18]> twice (x) => (y) { y = Add (x, x) }"""
    model = load_onnx(proto(text, domains=', "local": 1, "ai.onnx.ml": 3'))
    assert len(model.functions) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["node", "simple", "pytorch-operator", "pytorch-converted"])
def test_every_model_of_the_backend_suite_loads(kind):
    for case in onnx.backend.test.loader.load_model_tests(kind=kind):
        load_onnx(case.model or Path(case.model_dir) / "model.onnx")


# Files


def fails(source: object, *parts: str, kind: type[XrtError] = ModelImportError) -> None:
    """Loading `source` raises `kind`, whose message has all `parts`."""
    with pytest.raises(kind) as caught:
        load_onnx(source)  # type: ignore[arg-type]
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def test_missing_file(tmp_path):
    fails(tmp_path / "none.onnx", "none.onnx", "no file", kind=ModelNotFoundError)
    with pytest.raises(FileNotFoundError):
        load_onnx(str(tmp_path / "none.onnx"))


def test_folder(external):
    fails(external.parent, "is a folder", "model.onnx")


def test_foreign_type():
    fails(3, "builtins.int", "onnx.ModelProto")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08",
        b"PK\x03\x04 a zip file",
        b"<html><body>404</body></html>",
        bytes(range(256)),
        proto().SerializeToString()[:-20],
        proto().SerializeToString()[:30],
        proto().SerializeToString()[:2],
        b"\x08\x08",
    ],
)
def test_damaged_bytes(content, tmp_path):
    fails(content, "ONNX bytes")
    path = tmp_path / "damaged.onnx"
    path.write_bytes(content)
    fails(path, "damaged.onnx")


def test_every_truncation_is_an_xrt_error():
    content = weighted(np.ones((4, 4), np.float32)).SerializeToString()
    for length in range(len(content)):
        try:
            load_onnx(content[:length])
        except XrtError:
            continue


def test_truncated_tensor():
    source = weighted(np.ones((4, 4), np.float32))
    source.graph.initializer[0].raw_data = source.graph.initializer[0].raw_data[:-4]
    fails(source, "initializer 'w'", "FLOAT", "[4, 4]")


def test_external_file_missing(external):
    (external.parent / "w.bin").unlink()
    fails(external, "model.onnx", "'w'", "'w.bin'", "does not exist", kind=ModelNotFoundError)


def test_external_file_truncated(external):
    data = external.parent / "w.bin"
    data.write_bytes(data.read_bytes()[:-1])
    fails(external, "'w.bin'", "4096 bytes are needed, 4095 are there")


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "a/../../secret.bin"])
def test_external_file_outside_of_the_folder(external, location):
    (external.parent.parent / "secret.bin").write_bytes(bytes(4096))
    model = onnx.load(external, load_external_data=False)
    entries = model.graph.initializer[0].external_data
    next(entry for entry in entries if entry.key == "location").value = location
    external.write_bytes(model.SerializeToString())
    fails(external, location, "outside the folder")


def test_external_file_through_links(external, tmp_path_factory):
    data = external.parent / "w.bin"
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "w.bin"
    os.link(data, elsewhere)
    fails(external, "hard link")
    data.unlink()
    data.symlink_to(elsewhere)
    fails(external, "outside the folder")


def test_external_data_without_a_folder(external):
    fails(external.read_bytes(), "ONNX bytes", "'w.bin'", "Pass the path")
    fails(onnx.load(external, load_external_data=False), "Pass the path")


# Opsets and operators


@pytest.mark.parametrize("opset", [0, -1, OPSET + 1, 1000])
def test_unknown_opset(opset):
    source = proto()
    source.opset_import[0].version = opset
    fails(source, f"opset {opset}", f"1 to {OPSET}", kind=UnsupportedOpError)


def test_no_opset():
    source = proto()
    del source.opset_import[:]
    fails(source, "imports no opset", kind=UnsupportedOpError)


def test_no_standard_opset():
    source = proto()
    source.opset_import[0].domain = "ai.onnx.ml"
    fails(source, "Relu", "'ai.onnx'", "no opset", kind=UnsupportedOpError)


@pytest.mark.parametrize(
    ("node", "opset", "parts"),
    [
        ("y = Affine (x)", 18, ["Affine (which makes 'y')", "opset 18", "no operator 'Affine'"]),
        ("y = Gelu (x)", 19, ["Gelu", "opset 19"]),
        ("y = ai.onnx.ml.Nope (x)", 18, ["Nope", "ai.onnx.ml"]),
        ("y = com.microsoft.Gelu (x)", 18, ["Gelu", "'com.microsoft'", "no function body"]),
        ("y = xrt.Cluster (x)", 18, ["Cluster", "'xrt'", "only used inside xrt"]),
    ],
)
def test_unknown_operator(node, opset, parts):
    domains = ', "ai.onnx.ml": 3, "com.microsoft": 1, "xrt": 1'
    source = proto(f"g (float[2] x) => (float[2] y) {{ {node} }}", opset, domains)
    fails(source, *parts, kind=UnsupportedOpError)


def test_unknown_operator_inside():
    nested = """g (bool c, float[2] x) => (float[2] y) { y = If (c) <
        then_branch = t () => (float[2] a) { a = Relu (x) },
        else_branch = e () => (float[2] b) { b = Affine (x) } > }"""
    fails(proto(nested), "Affine", kind=UnsupportedOpError)
    function = """g (float[4] x) => (float[4] y) { y = local.f (x) }
    <domain: "local", opset_import: ["": 18]> f (x) => (y) { y = Affine (x) }"""
    fails(proto(function, domains=', "local": 1'), "Affine", kind=UnsupportedOpError)


def test_function_of_another_opset():
    text = """g (float[4] x) => (float[4] y) { y = local.f (x) }
    <domain: "local", opset_import: ["": 13]> f (x) => (y) { y = Relu (x) }"""
    fails(proto(text, domains=', "local": 1'), "'f'", "18", "13", kind=UnsupportedOpError)


@pytest.mark.parametrize(
    ("node", "parts"),
    [
        ("y = Add (x)", ["Add", "has 1 inputs", "takes 2"]),
        ("y = Relu (x, x)", ["Relu", "has 2 inputs", "takes 1"]),
        ("y = Clip (x, x, x, x)", ["Clip", "has 4 inputs", "takes 1 to 3"]),
        ("y = Concat <axis = 0> ()", ["Concat", "has 0 inputs", "at least 1"]),
        ("y = Add (x, )", ["Add", "lacks its input 'B'"]),
        ("y = Concat (x, x)", ["Concat", "lacks its attribute 'axis'"]),
    ],
)
def test_wrong_arguments(node, parts):
    source = proto(f"g (float[2] x) => (float[2] y) {{ {node} }}")
    if "(x, )" in node:
        del source.graph.node[0].input[:]
        source.graph.node[0].input.extend(["x", ""])
    fails(source, *parts)


# Structure


def test_cycle():
    text = "g (float[2] x) => (float[2] y) { a = Add (x, c) b = Neg (a) c = Exp (b) y = Neg (c) }"
    source = proto(text)
    for node, name in zip(source.graph.node, ("one", "two", "three", "out"), strict=True):
        node.name = name
    fails(source, "cycle of 3 nodes", "'one'", "'two'", "'three'")
    fails(ir.from_proto(source), "onnx_ir.Model", "cycle of 3 nodes")


def test_cycle_through_a_nested_graph():
    text = """g (bool c, float[2] x) => (float[2] y) { a = If (c) <
        then_branch = t () => (float[2] p) { p = Relu (y) },
        else_branch = e () => (float[2] q) { q = Relu (x) } >  y = Neg (a) }"""
    fails(proto(text), "cycle of 2 nodes", "If", "Neg")


def test_undefined_value():
    fails(proto("g (float[2] x) => (float[2] y) { y = Add (x, z) }"), "Add", "'z'")
    fails(proto("g (float[2] x) => (float[2] z) { y = Neg (x) }"), "output 'z'")
    nested = """g (bool c, float[2] x) => (float[2] y) { y = If (c) <
        then_branch = t () => (float[2] a) { a = Relu (nowhere) },
        else_branch = e () => (float[2] b) { b = Relu (x) } > }"""
    fails(proto(nested), "Relu", "'nowhere'")


def test_value_of_an_inner_graph_is_not_seen_outside():
    nested = """g (bool c, float[2] x) => (float[2] y) { z = If (c) <
        then_branch = t () => (float[2] a) { a = Relu (x) },
        else_branch = e () => (float[2] b) { b = Relu (x) } > y = Add (z, a) }"""
    fails(proto(nested), "Add", "'a'")


def test_duplicate_names():
    fails(proto("g (float[2] x) => (float[2] y) { y = Neg (x) y = Exp (x) }"), "value 'y'", "once")
    source = proto()
    source.graph.input.append(source.graph.input[0])
    fails(source, "'x'", "more than once")
    source = proto()
    source.graph.initializer.append(source.graph.initializer[0])
    fails(source, "'w'", "more than once")
    ours = ir.from_proto(proto())
    ours.graph[0].outputs[0].name = "x"
    fails(ours, "'x'", "more than once")


def test_unsorted_onnx_ir_model_says_what_to_do():
    source = proto(f"{BODY} {{ y = MatMul (a, w) a = Relu (x) }}")
    fails(ir.from_proto(source), "graph.sort()")


def test_sparse_initializer():
    source = proto()
    values = numpy_helper.from_array(np.ones(1, np.float32), "s")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "i")
    source.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    fails(source, "sparse", "'s'")


# Numbers


@pytest.mark.parametrize(
    "dtype",
    [np.float16, np.float32, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn],
)
def test_nan(dtype):
    array = np.ones((8, 8), dtype)
    array[1, 2] = array[3, 4] = np.nan
    fails(weighted(array, "Add"), "2 of 64", "initializer 'w'", "NaN")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_infinite_weight(dtype):
    array = np.ones((8, 8), dtype)
    array[1, 2], array[2, 2] = np.inf, -np.inf
    fails(weighted(array), "2 of 64", "initializer 'w'", "MatMul 'layer'", "infinite")


def test_nan_in_constant():
    for value in ("value = float[2] {1, 2}", "value_floats = [1.0, 2.0]"):
        source = proto(
            f"g (float[2] x) => (float[2] y) {{ c = Constant <{value}> () y = Add (x, c) }}"
        )
        attribute = source.graph.node[0].attribute[0]
        if attribute.floats:
            attribute.floats[1] = float("nan")
        else:
            attribute.t.CopyFrom(numpy_helper.from_array(np.float32([1, np.nan])))
        fails(source, "1 of 2", "Constant 'c'", "NaN")


def test_failed_import_leaves_the_source_as_it_was():
    ours = ir.from_proto(weighted(np.full((4, 4), np.nan, np.float32)))
    before = ir.to_proto(ours).SerializeToString(deterministic=True)
    fails(ours, "NaN")
    assert ir.to_proto(ours).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("kind", ["proto", "ir"])
def test_weights_in_memory_are_copied(kind):
    """A digest names the weights as they were read; the caller's arrays may go on changing."""
    weight = np.ones(300, np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, [300])],
        [onnx.helper.make_tensor_value_info("y", 1, [300])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    opsets = [onnx.helper.make_opsetid("", 20)]
    source = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    if kind == "ir":
        source = ir.from_proto(source)
        source.graph.initializers["w"].const_value = ir.Tensor(weight, name="w")
    loaded = load_onnx(source)
    if kind == "ir":
        weight[:] = 7
    else:
        source.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight * 7, "w"))
    np.testing.assert_array_equal(loaded.graph.initializers["w"].const_value.numpy(), 1)
