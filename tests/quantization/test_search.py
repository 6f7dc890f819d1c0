import pytest

from xrt.errors import CalibrationError
from xrt.quantization.search import rank, revert

HARM = {"a": 0.1, "b": 5.0, "c": 0.0, "d": 2.0}
RANKED = [name for name, _ in rank(HARM, HARM.__getitem__)]


def remaining(reverted):
    return sum(harm for name, harm in HARM.items() if name not in reverted)


def test_ranked_by_harm():
    assert rank(HARM, HARM.__getitem__) == [("b", 5.0), ("d", 2.0), ("a", 0.1), ("c", 0.0)]
    assert [name for name, _ in rank(["x", "y"], lambda _: 1.0)] == ["x", "y"]


@pytest.mark.parametrize(
    ("bound", "want"),
    [(8, ()), (7.1, ()), (7, ("b",)), (2.1, ("b",)), (1, ("b", "d")), (0.1, ("b", "d"))],
)
def test_the_fewest_that_keep_to_the_bound(bound, want):
    found = revert(RANKED, remaining, bound)
    assert found.groups == want
    assert found.loss == pytest.approx(remaining(want))


def test_a_loss_that_does_not_fall_evenly_still_keeps_to_the_bound():
    losses = {0: 9.0, 1: 1.0, 2: 3.0, 3: 1.0}
    found = revert(RANKED, lambda reverted: losses[len(reverted)], 1.5)
    assert found.loss <= 1.5


def test_each_set_is_measured_once():
    seen = []
    revert(RANKED, lambda reverted: seen.append(reverted) or remaining(reverted), 0.1)
    assert len(seen) == len(set(seen))


def test_a_bound_that_cannot_be_met_names_the_best_reached():
    losses = {0: 9.0, 1: 4.0, 2: 5.0, 3: 6.0}
    with pytest.raises(
        CalibrationError, match=r"mismatch of at most 1 .* best reached is 6, with 3"
    ):
        revert(RANKED, lambda r: losses[len(r)], 1.0, metric="mismatch")


def test_one_group_cannot_go_back():
    with pytest.raises(CalibrationError, match="best reached is 9, with 0 of 1"):
        revert(["a"], lambda _: 9.0, 1.0)
