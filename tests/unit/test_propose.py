import numpy as np

from sweepcp.config.space import Choices, Range, Space
from sweepcp.runs.front import is_on_front, score_matrix
from sweepcp.runs.trial import Trial
from sweepcp.search.proposals import propose_point
from tests.make import trial

SPACE = Space(
    lr_fraction=Range(low=0.01, high=1.0, scale="log"),
    general_share=Range(low=0.0, high=1.0, scale="sqrt"),
    schedule=Choices(choices=("cosine", "wsd")),
    anchors=({"lr_fraction": 0.1, "general_share": 0.5, "schedule": "cosine"},),
)


def analytic(point: dict[str, float | str]) -> tuple[float, float]:
    """A trade-off with a known front: LR fraction 0.3 and cosine; the share moves along it."""
    lr, share = float(point["lr_fraction"]), float(point["general_share"])
    miss = abs(np.log10(lr / 0.3)) * 5 + (point["schedule"] == "wsd") * 2
    return 12 * (1 - share) - miss, -10 * (1 - share) ** 2 - miss


def run(n: int, seed: int = 0) -> list[Trial]:
    trials: list[Trial] = []
    for number in range(n):
        proposal = propose_point(SPACE, trials, [], number=number, seed=seed)
        trials.append(
            trial(number, *analytic(proposal.point), point=proposal.point, proposed_by=proposal.by)
        )
    return trials


def test_anchors_then_four_quasi_random_then_the_model():
    trials = run(8)
    assert [t.proposed_by for t in trials] == ["anchor"] + ["quasi-random"] * 4 + ["tpe"] * 3
    assert trials[0].point == SPACE.anchors[0]
    assert len({tuple(t.point.values()) for t in trials}) == 8


def test_the_same_seed_gives_the_same_points_and_another_gives_others():
    points = [t.point for t in run(9)]
    assert points == [t.point for t in run(9)]
    assert points[1:] != [t.point for t in run(9, seed=1)][1:]


def test_a_continued_search_proposes_what_it_would_have():
    whole = run(10)
    assert propose_point(SPACE, whole[:7], [], number=7, seed=0).point == whole[7].point


def test_pending_points_are_avoided_and_failed_ones_ignored():
    trials = run(10)
    alone = propose_point(SPACE, trials, [], number=10, seed=0)
    beside = propose_point(SPACE, trials, [alone.point], number=10, seed=0)
    assert beside.point != alone.point
    broken = [*trials, trial(10, None, None)]
    assert propose_point(SPACE, broken, [], number=10, seed=0) == alone


def test_the_model_learns():
    trials = run(40)
    late = trials[25:]
    misses = [abs(np.log10(float(t.point["lr_fraction"]) / 0.3)) for t in late]
    assert np.median(misses) < 0.3  # uniform on the log scale would be about 0.5
    assert sum(t.point["schedule"] == "cosine" for t in late) > 10
    assert is_on_front(score_matrix(trials)).sum() >= 4
