import json

import numpy as np
import pytest

from xrt.errors import CalibrationError
from xrt.quantization import Calibration, data_digest


def test_thresholds_by_name():
    calibration = Calibration("minmax")
    calibration.observe({"a": np.array([1.0, -2.0]), "b": np.array([[0.5]], np.float16)})
    calibration.observe({"a": np.array([1.5]), "c": np.zeros((0,), np.float32)})
    assert calibration.thresholds() == {"a": 2.0, "b": 0.5}
    assert calibration.batches == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_named_and_nothing_is_taken_in(bad):
    calibration = Calibration("minmax")
    calibration.observe({"a": np.array([1.0])})
    with pytest.raises(CalibrationError, match="batch 1 makes 'b' NaN or infinite"):
        calibration.observe({"a": np.array([9.0]), "b": np.array([1.0, bad])})
    assert calibration.thresholds() == {"a": 1.0}


def test_json_and_back():
    calibration = Calibration("percentile", percentile=90.0)
    calibration.observe({"a": np.arange(100.0)})
    again = Calibration.from_json(calibration.to_json())
    assert again.thresholds() == calibration.thresholds()
    assert again.batches == 1
    assert json.loads(again.to_json()) == json.loads(calibration.to_json())


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff", b'{"observer": "minmax"}'])
def test_other_data_is_refused(data):
    with pytest.raises(CalibrationError, match="Not a calibration"):
        Calibration.from_json(data)


def test_the_digest_of_data_tells_content_shape_and_dtype_apart():
    x = np.arange(6, dtype=np.float32)
    digests = [
        data_digest(batches)
        for batches in (
            [[x]],
            [[x + 1]],
            [[x.reshape(2, 3)]],
            [[x.view(np.int32)]],
            [[x], [x]],
            [[x, x]],
            [],
        )
    ]
    assert len(set(digests)) == len(digests)
    assert data_digest([[x.copy()]]) == digests[0]
