import json

import numpy as np
import pytest

from xrt.quantization.accuracy import compare, main_output, predictions, signal_to_noise

SCORES = np.array([[0.1, 0.9], [0.8, 0.2], [0.6, 0.4]], np.float32)


def test_mismatches_are_predictions_that_differ():
    other = SCORES.copy()
    other[2] = [0.4, 0.6]
    found = compare([[SCORES], [SCORES]], [[SCORES], [other]])
    assert (found.predictions, found.mismatches) == (6, 1)
    assert found.agreement == pytest.approx(5 / 6)
    noise = 2 * 0.2**2
    assert found.signal_to_noise == pytest.approx(
        10 * np.log10(2 * np.sum(np.square(SCORES)) / noise), rel=1e-5
    )
    assert json.loads(json.dumps(found.to_dict()))["mismatches"] == 1


def test_equal_outputs():
    found = compare([[SCORES]], [[SCORES]])
    assert found.agreement == 1.0
    assert found.signal_to_noise == np.inf


def test_without_a_floating_point_output_there_is_nothing_to_compare():
    found = compare([[np.arange(3)]], [[np.arange(3)]])
    assert (found.predictions, found.agreement) == (0, 1.0)


def test_the_main_output_is_the_first_of_floats():
    assert main_output([None, [SCORES], np.arange(3), SCORES, SCORES + 1]) is SCORES


@pytest.mark.parametrize(
    ("shape", "want"),
    [((), (1,)), ((5,), (1,)), ((4, 5), (4,)), ((2, 3, 5), (2, 3)), ((2, 7, 4, 4), (2, 4, 4))],
)
def test_one_prediction_a_row_of_scores(shape, want):
    assert predictions(np.random.default_rng(0).normal(size=shape)).shape == want


def test_signal_to_noise():
    x = np.ones(100)
    assert signal_to_noise(x, x * 1.1) == pytest.approx(20.0)
    assert signal_to_noise(np.zeros(3), np.ones(3)) == -np.inf
    assert signal_to_noise(x, x) == np.inf
