import numpy as np
import pytest

from xrt.errors import OptionError
from xrt.quantization.observers import (
    BINS,
    OBSERVERS,
    Entropy,
    MeanSquaredError,
    MinMax,
    Percentile,
    make_observer,
)

RNG = np.random.default_rng(0)


def seen(observer, *batches):
    for batch in batches:
        observer.update(np.abs(np.asarray(batch, np.float32)))
    return observer


def quantization_error(values, threshold):
    scale = threshold / 127
    return np.mean((values - np.clip(np.round(values / scale), -127, 127) * scale) ** 2)


def test_minmax_takes_the_largest():
    assert seen(MinMax(), [1.0, -3.0], [2.0]).threshold() == 3.0


@pytest.mark.parametrize("name", OBSERVERS)
def test_zeros_give_zero_and_nothing_gives_zero(name):
    assert make_observer(name).threshold() == 0.0
    assert seen(make_observer(name), np.zeros((2, 3))).threshold() == 0.0
    assert seen(make_observer(name), np.zeros((0, 3))).count == 0


@pytest.mark.parametrize("name", OBSERVERS)
def test_one_value_is_covered(name):
    assert seen(make_observer(name), np.full(1000, 0.7)).threshold() == pytest.approx(0.7, rel=1e-3)


@pytest.mark.parametrize("name", OBSERVERS)
def test_the_order_of_batches_does_not_matter(name):
    small, large = RNG.normal(size=5000), 40 * RNG.normal(size=5000)
    one = seen(make_observer(name), small, large).threshold()
    other = seen(make_observer(name), large, small).threshold()
    assert one == pytest.approx(other, rel=2e-3)


@pytest.mark.parametrize("percentile", [50.0, 90.0, 99.0, 99.99])
def test_percentile_agrees_with_numpy(percentile):
    values = RNG.normal(size=200_000)
    got = seen(Percentile(percentile), values[:1000], values[1000:]).threshold()
    want = np.percentile(np.abs(values), percentile)
    assert got == pytest.approx(want, abs=np.abs(values).max() * 2 / BINS)


def test_a_histogram_keeps_its_counts_as_its_range_grows():
    observer = seen(Percentile(), [0.1], [0.9], [3.0], [100.0])
    assert observer.histogram.sum() == observer.count == 4
    assert observer.range == 128.0
    places = np.flatnonzero(observer.histogram) * observer.width
    np.testing.assert_allclose(places, [0.09375, 0.875, 3.0, 100.0], atol=observer.width)


def test_mse_finds_the_least_error():
    values = np.concatenate([RNG.normal(size=100_000), [60.0]])
    got = seen(MeanSquaredError(), values).threshold()
    tried = np.linspace(0.5, 60, 400)
    best = min(quantization_error(values, threshold) for threshold in tried)
    assert quantization_error(values, got) < 1.05 * best
    assert got < 60


def test_entropy_clips_outliers_and_keeps_a_plain_range():
    values = RNG.normal(size=200_000)
    outlier = np.concatenate([values, [100.0]])
    assert seen(Entropy(), outlier).threshold() < 15
    plain = RNG.uniform(0, 1, size=200_000)
    assert seen(Entropy(), plain).threshold() > 0.97


def test_entropy_does_not_mind_the_zeros_of_a_relu():
    values = RNG.normal(size=200_000)
    plain = seen(Entropy(), values).threshold()
    assert seen(Entropy(), np.maximum(values, 0)).threshold() == pytest.approx(plain, rel=0.15)


def test_an_unknown_observer_is_named():
    with pytest.raises(OptionError, match=r"Observer 'best' is unknown\. Known observers: entropy"):
        make_observer("best")
