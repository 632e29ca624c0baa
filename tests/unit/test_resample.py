from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

import sweepcp
from sweepcp.config.experiment import ChoiceSection
from sweepcp.runs.run_folder import RunWriter
from sweepcp.runs.trial import BaseRecord, TrialOutcome
from sweepcp.runs.uncertainty import RESAMPLES, estimate_certainty, resampled_scores
from sweepcp.scoring.scorecard import ItemScores, compare_with_base, read_items
from tests.make import experiment, items, trial, write_run

COUNT = 400


def measured(
    shift: float, general: np.ndarray | float = 0.0, size: float = 100.0
) -> list[ItemScores]:
    """Items of domain and general text that are `shift` and `general` % better than the base."""
    flat = [2 * size] * COUNT
    rows = np.full(COUNT, general) if np.isscalar(general) else np.asarray(general)
    return [
        items("domain", [a * (1 - shift / 100) for a in flat], [size] * COUNT),
        items("general", (2 * size * (1 - rows / 100)).tolist(), [size] * COUNT),
    ]


def run_of(
    folder: Path, trials: list[list[ItemScores]], max_regression: float = 1.0
) -> sweepcp.RunView:
    writer, base = RunWriter(folder), measured(0, 0)
    writer.start(experiment(choose=ChoiceSection(max_regression=max_regression)), {})
    writer.write_base(
        BaseRecord(model="base", parameters=1, max_lr=1.0, items=tuple(base), versions={})
    )
    for number, trial_items in enumerate(trials):
        card = compare_with_base(trial=trial_items, base=base)
        record = trial(number, card.select.domain, card.select.general, scorecard=card)
        writer.begin_trial(record.id)
        writer.write_trial(record, TrialOutcome(status="done", items=tuple(trial_items)))
    return sweepcp.load_run(folder)


def stack_amounts(items_of_trials: list[list[ItemScores]], index: int) -> np.ndarray:
    """The amounts of one member in all trials, shape (trials, items)."""
    return np.array([members[index].amount for members in items_of_trials])


def test_spread_of_resamples_matches_the_standard_errors(tmp_path: Path):
    run = sweepcp.load_run(write_run(tmp_path / "run", 4, documents=200))
    assert run.base is not None
    base = [member for member in run.base.items if member.unit == "bits per byte"]
    items_of_trials = [read_items(run.trial_folder(t.id) / "items.json") for t in run.trials]
    # The continuous members come first in a made run.
    amounts = [stack_amounts(items_of_trials, index) for index in range(len(base))]
    draws = resampled_scores(amounts, base, "report", np.random.default_rng(0))
    assert draws.shape == (RESAMPLES, 4, 2)
    for index, t in enumerate(run.trials):
        assert t.scorecard is not None
        scores = t.scorecard.report
        errors = [scores.domain_se, scores.general_se]
        assert draws[:, index].mean(0) == pytest.approx([scores.domain, scores.general], abs=0.1)
        assert draws[:, index].std(0) == pytest.approx(errors, rel=0.15)


def test_dominated_trial_is_never_on_the_front(tmp_path: Path):
    certainty = estimate_certainty(run_of(tmp_path, [measured(5, 0), measured(4, -0.5)]))
    assert certainty is not None
    assert certainty.on_front == {"0000": 1.0, "0001": 0.0}
    assert certainty.chosen == {"0000": 1.0, "0001": 0.0}
    assert (certainty.no_choice, certainty.within_bound) == (0.0, 1.0)


def test_share_on_the_front_matches_the_normal_approximation(tmp_path: Path):
    """Of two trials of equal domain gain, the one with the higher general score is on the front."""
    noise = np.random.default_rng(1).normal(0, 2, COUNT)
    run = run_of(tmp_path, [measured(5, 0), measured(5, noise)], max_regression=9.0)
    card = run.trials[1].scorecard
    assert card is not None
    better = NormalDist().cdf(card.select.general / card.select.general_se)
    certainty = estimate_certainty(run)
    assert certainty is not None
    assert certainty.on_front["0001"] == pytest.approx(better, abs=0.07)
    assert certainty.on_front["0000"] == pytest.approx(1 - better, abs=0.07)


def test_share_within_the_bound_is_of_the_reporting_half(tmp_path: Path):
    noise = np.random.default_rng(2).normal(0, 4, COUNT)
    select = np.array(measured(0)[0].select)
    noise[select] = -0.5
    run = run_of(tmp_path, [measured(5, noise)], max_regression=1.0)
    card = run.trials[0].scorecard
    assert card is not None
    certainty = estimate_certainty(run)
    assert certainty is not None
    # The items of the selection half are all alike, so that nothing is uncertain there.
    assert certainty.chosen == {"0000": 1.0}
    kept = NormalDist().cdf((card.report.general + 1.0) / card.report.general_se)
    assert certainty.within_bound == pytest.approx(kept, abs=0.07)


def test_resamples_without_a_choice_are_counted(tmp_path: Path):
    certainty = estimate_certainty(run_of(tmp_path, [measured(5, -3)]))
    assert certainty is not None
    assert (certainty.no_choice, certainty.within_bound, certainty.on_front) == (
        1.0,
        None,
        {"0000": 1.0},
    )


def test_certainty_is_none_without_items(tmp_path: Path):
    run = run_of(tmp_path, [measured(5), measured(4)])
    (tmp_path / "trials" / "0001" / "items.json").unlink()
    assert estimate_certainty(run) is None
    assert estimate_certainty(run_of(tmp_path / "none", [])) is None


def test_resampling_is_deterministic(tmp_path: Path):
    run = sweepcp.load_run(write_run(tmp_path / "run", 6))
    assert estimate_certainty(run) == estimate_certainty(run)
