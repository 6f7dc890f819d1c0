"""ai.onnx.ml on the host where strings and maps are concerned.

What computes with numbers is checked in tests/engines/xla/ops/test_classical.py and test_trees.py,
for both engines.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from xrt.errors import KernelError
from xrt.kernels.host import find

F32 = np.float32
NAN = float("nan")


def run(op: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
    values = [ir.val(f"x{i}") for i in range(len(inputs))]
    converted = [ir.convenience.convert_attribute(n, v) for n, v in attributes.items()]
    node = ir.Node("ai.onnx.ml", op, values, converted, num_outputs=outputs, name="here")
    kernel = find(node)
    assert kernel.native
    results = kernel(inputs)
    return results if outputs > 1 else results[0]


@pytest.mark.parametrize("dtype", [object, np.str_, np.bytes_])
def test_label_encoder_knows_strings_however_they_are_stored(dtype: Any) -> None:
    x = np.array([["b", "a"], ["c", "b"]], dtype)
    got = run("LabelEncoder", x, keys_strings=["a", "b"], values_int64s=[5, 6], default_int64=-2)
    np.testing.assert_array_equal(got, np.array([[6, 5], [-2, 6]]))
    assert got.dtype == np.int64


def test_label_encoder_gives_strings() -> None:
    x = np.array([1, NAN, 2, 1], F32)
    got = run("LabelEncoder", x, keys_floats=[1.0, NAN, 1.0], values_strings=["x", "y", "z"])
    assert got.tolist() == ["z", "y", "_Unused", "z"]
    words = np.array(["a", "q"], object)
    tensors: dict[str, Any] = {
        "keys_tensor": ir.tensor(["a"]),
        "values_tensor": ir.tensor(["b"]),
        "default_tensor": ir.tensor(["none"]),
    }
    assert run("LabelEncoder", words, **tensors).tolist() == ["b", "none"]


def test_one_hot_encoder_knows_strings_and_demands_a_category() -> None:
    x = np.array([["b", "z"]], object)
    got = run("OneHotEncoder", x, cats_strings=["a", "b"])
    np.testing.assert_array_equal(got, np.array([[[0, 1], [0, 0]]], F32))
    with pytest.raises(KernelError, match="'z' is none of the categories"):
        run("OneHotEncoder", x, cats_strings=["a", "b"], zeros=0)
    one = run("OneHotEncoder", np.array([3, 4]), cats_int64s=[4, 3], zeros=0)
    np.testing.assert_array_equal(one, np.array([[0, 1], [1, 0]], F32))


def test_category_mapper_goes_both_ways() -> None:
    table: dict[str, Any] = {"cats_int64s": [1, 7], "cats_strings": ["one", "seven"]}
    words = np.array([["seven", "two"]], object)
    np.testing.assert_array_equal(run("CategoryMapper", words, **table), np.array([[7, -1]]))
    numbers = np.array([1, 2, 7])
    assert run("CategoryMapper", numbers, **table).tolist() == ["one", "_Unused", "seven"]


def test_classifiers_give_string_labels() -> None:
    x = np.array([[1, 0], [0, 1], [-3, 2]], F32)
    labels, scores = run(
        "LinearClassifier", x, outputs=2, coefficients=[1.0, 0.0, 0.0, 1.0],
        intercepts=[0.0, 0.0], classlabels_strings=["left", "right"],
    )  # fmt: skip
    assert labels.tolist() == ["left", "right", "right"]
    np.testing.assert_array_equal(scores, x)
    labels, _ = run(
        "SVMClassifier", x, outputs=2, coefficients=[1.0, 0.0, 0.0, 1.0], rho=[0.0, 0.0],
        classlabels_strings=["left", "right"],
    )  # fmt: skip
    assert labels.tolist() == ["left", "right", "right"]


def test_dict_vectorizer_orders_values_by_vocabulary() -> None:
    got = run("DictVectorizer", {"a": 4, "c": 8}, string_vocabulary=["a", "c", "b", "z"])
    np.testing.assert_array_equal(got, np.array([4, 8, 0, 0]))
    words = run("DictVectorizer", {3: "x"}, int64_vocabulary=[1, 3])
    assert words.tolist() == ["", "x"]
    with pytest.raises(KernelError, match="'q' is not in the vocabulary"):
        run("DictVectorizer", {"q": 1}, string_vocabulary=["a"])


def test_zip_map_makes_a_map_of_each_row() -> None:
    x = np.array([[0.25, 0.75], [1, 0]], F32)
    assert run("ZipMap", x, classlabels_int64s=[10, 20]) == [{10: 0.25, 20: 0.75}, {10: 1, 20: 0}]
    assert run("ZipMap", x[0], classlabels_strings=["n", "y"]) == [{"n": 0.25, "y": 0.75}]


def test_cast_map_orders_by_key() -> None:
    got = run("CastMap", {5: 2.5, 1: 1.0})
    np.testing.assert_array_equal(got, np.array([[1, 2.5]], F32))
    assert got.dtype == F32
    got = run("CastMap", {3: "7", 0: "2"}, cast_to="TO_INT64", map_form="SPARSE", max_map=5)
    np.testing.assert_array_equal(got, np.array([[2, 0, 0, 7, 0]]))
    assert run("CastMap", {1: "a", 0: "b"}, cast_to="TO_STRING").tolist() == [["b", "a"]]
