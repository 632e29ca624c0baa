import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweepcp.config.choice import ChoiceRule, ReferencePoint, ScalarWeights
from sweepcp.runs.front import choose_point, is_on_front, knee_point, pareto_front, score_matrix
from tests.make import trial

# A front of three (a, c, e), with b and d dominated:
#   general
#     0 | a
#    -1 |    b  c
#    -4 |       d    e
#       +-- 2  5  6  9  domain
TRIALS = [
    trial(0, 2, 0),
    trial(1, 5, -1),
    trial(2, 6, -1),
    trial(3, 6, -4),
    trial(4, 9, -4),
    trial(5, None, None),
]
BOUND = ChoiceRule(max_regression=2.0)
ZERO = ReferencePoint(domain=0.0, general=-5.0)


def dominates(a: np.ndarray, b: np.ndarray) -> bool:
    return bool((a >= b).all() and (a > b).any())


def test_front_choice_and_hypervolume_by_hand():
    result = pareto_front(TRIALS, BOUND, ZERO)
    assert result.ids == ("0000", "0002", "0004")
    assert result.choice.id == "0002"
    assert (result.choice.domain, result.choice.general) == (6, -1)
    assert (result.choice.reported_domain, result.choice.reported_general) == (5, -2)
    assert result.hypervolume == pytest.approx(2 * 5 + 4 * 4 + 3 * 1)
    assert result.reference == {"domain": 0.0, "general": -5.0}


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), max_size=12))
def test_front_is_what_no_point_dominates(pairs: list[tuple[int, int]]):
    points = np.array(pairs, dtype=float).reshape(-1, 2)
    expected = [not any(dominates(q, p) for q in points) for p in points]
    assert is_on_front(points).tolist() == expected


def test_best_trial_within_a_bound_is_on_the_front():
    points = np.random.default_rng(0).normal(size=(40, 2)) * [5, 3]
    trials = [trial(i, *p) for i, p in enumerate(points.tolist())]
    for bound in (0.5, 1.0, 3.0):
        allowed = [t for t in trials if (t.general or 0) >= -bound]
        best = max(allowed, key=lambda t: t.domain or 0)
        assert pareto_front(trials, ChoiceRule(max_regression=bound), ZERO).choice.id == best.id


def test_without_a_choice_the_nearest_trial_is_named():
    result = pareto_front([trial(0, 5, -3), trial(1, 9, -8)], ChoiceRule(max_regression=1.0), ZERO)
    assert result.choice.id is None
    assert result.choice.nearest == "0000"
    assert result.choice.domain is None


def test_bound_is_inclusive():
    assert pareto_front([trial(0, 5, -2.0)], BOUND, ZERO).choice.id == "0000"


def test_choice_by_knee_and_by_weights():
    best = score_matrix([TRIALS[0], TRIALS[2], TRIALS[4]])
    assert choose_point(best, ChoiceRule(knee=True)) == 1
    assert choose_point(best, ChoiceRule(weights=ScalarWeights(domain=1, general=1))) == 1
    assert choose_point(best, ChoiceRule(weights=ScalarWeights(domain=1, general=9))) == 0
    assert choose_point(best, ChoiceRule(weights=ScalarWeights(domain=9, general=1))) == 2
    assert knee_point(np.array([[1.0, 0.0], [5.0, -3.0]])) == 0


def test_empty_front_and_front_below_the_reference():
    result = pareto_front([trial(0, None, None)], BOUND, ZERO)
    assert (result.ids, result.hypervolume, result.choice.id, result.choice.nearest) == (
        (),
        0.0,
        None,
        None,
    )
    assert pareto_front([trial(0, 5, -20)], BOUND, ZERO).hypervolume == 0.0


def test_of_equal_trials_the_lower_number_is_chosen():
    for order in itertools.permutations([trial(0, 5, -1), trial(1, 5, -1)]):
        result = pareto_front(list(order), BOUND, ZERO)
        assert result.ids == ("0000", "0001")
        assert result.choice.id == "0000"


def test_of_points_that_the_rule_values_alike_the_least_regression_is_chosen():
    weights = ChoiceRule(weights=ScalarWeights(domain=1, general=1))
    for order in itertools.permutations([(0.3, -0.1), (0.2, 0.0), (0.1 + 0.2, -0.1), (0.1, 0.1)]):
        trials = [trial(number, *scores) for number, scores in enumerate(order)]
        for rule in (weights, ChoiceRule(knee=True)):
            choice = pareto_front(trials, rule, ZERO).choice
            assert (choice.domain, choice.general) == (0.1, 0.1)


def test_scores_that_differ_by_rounding_are_equal():
    """0.1 + 0.2 is above 0.3 in floating point, which makes no trial better."""
    for order in itertools.permutations([(0.1 + 0.2, -1.0), (0.3, -1.0)]):
        result = pareto_front([trial(n, *scores) for n, scores in enumerate(order)], BOUND, ZERO)
        assert result.ids == ("0000", "0001")
        assert result.choice.id == "0000"
    assert pareto_front([trial(0, 1, -0.1 - 0.2)], ChoiceRule(max_regression=0.3), ZERO).choice.id


def test_rule_has_exactly_one_criterion():
    for content in ({}, {"knee": True, "max_regression": 1.0}):
        with pytest.raises(ValueError, match="exactly one"):
            ChoiceRule.model_validate(content)
