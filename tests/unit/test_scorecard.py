"""Standard errors, scalars and splits of a scorecard, by hand."""

import math

import numpy as np
import pytest

from sweepcp.scoring.scorecard import compare_with_base, in_select_split, ratio_estimate
from tests.make import items


def test_ratio_and_its_error_by_hand():
    value, error = ratio_estimate(amount=np.array([2.0, 6.0, 4.0]), size=np.array([1.0, 2.0, 3.0]))
    assert value == 2.0
    # residuals 2 - 2, 6 - 4, 4 - 6 = 0, 2, -2; sqrt(3/2 · 8) / 6
    assert error == pytest.approx(math.sqrt(12) / 6)


def test_the_error_with_equal_sizes_is_that_of_the_mean():
    x = np.array([0.0, 1.0, 1.0, 0.0, 1.0])
    assert ratio_estimate(amount=x, size=np.ones(5))[1] == pytest.approx(
        x.std(ddof=1) / math.sqrt(5)
    )


def test_scalars_by_hand():
    # Split `select` has items 0, 2, 4; split `report` has items 1, 3, 5.
    base = [items("domain", [10, 20, 10, 20, 10, 20]), items("general", [10.0] * 6)]
    after = [items("domain", [9, 16, 9, 16, 9, 16]), items("general", [10, 11, 10.5, 11, 10.1, 11])]
    card = compare_with_base(trial=after, base=base)
    assert card.select.domain == pytest.approx(10.0)
    assert card.select.domain_se == pytest.approx(0.0)
    assert card.report.domain == pytest.approx(20.0)
    assert card.select.general == pytest.approx(-2.0)
    assert card.report.general == pytest.approx(-10.0)
    # changes of the items are 0, 5 and 1 %, so the error is that of their mean
    assert card.select.general_se == pytest.approx(np.std([0, 5, 1], ddof=1) / math.sqrt(3))


def test_weights_and_accuracies():
    base = [
        items("domain", [10.0] * 4, name="a", weight=3.0),
        items("domain", [10.0] * 4, name="b"),
        items("domain", [0, 1, 1, 0], name="b", unit="accuracy", weight=9.0),
        items("general", [1.0] * 4),
    ]
    after = [
        items("domain", [8.0] * 4, name="a", weight=3.0),
        items("domain", [10.0] * 4, name="b"),
        items("domain", [1, 1, 1, 0], name="b", unit="accuracy", weight=9.0),
        items("general", [1.0] * 4),
    ]
    split = compare_with_base(trial=after, base=base).select
    assert split.domain == pytest.approx(15.0)  # (3 · 20 + 1 · 0) / 4, without the accuracy
    assert [m.change for m in split.members if m.unit == "accuracy"] == [pytest.approx(50.0)]


def test_other_items_than_the_base_are_refused():
    base = [items("domain", [1.0] * 4), items("general", [1.0] * 4)]
    other = [items("domain", [1.0] * 4, size=[1.0, 1.0, 2.0, 1.0]), items("general", [1.0] * 4)]
    with pytest.raises(ValueError, match="other items than the base"):
        compare_with_base(trial=other, base=base)


def test_scores_that_are_not_finite_are_refused():
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite number"):
            items("domain", [1.0, bad])


def test_a_suite_without_a_continuous_member_is_refused():
    only = [items("domain", [1.0] * 4, unit="accuracy"), items("general", [1.0] * 4)]
    with pytest.raises(ValueError, match="no continuous member"):
        compare_with_base(trial=only, base=only)


def test_splits_are_about_even_and_fixed():
    flags = [in_select_split(f"document {i}") for i in range(2000)]
    assert 900 < sum(flags) < 1100
    assert flags[:6] == [in_select_split(f"document {i}") for i in range(6)]
