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
    """Domain text `shift` % better than the base in every item, general text by `general` %."""
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
    writer.write_base(BaseRecord(model="base", parameters=1, max_lr=1.0, items=tuple(base), versions={}))
    for number, own in enumerate(trials):
        card = compare_with_base(own, base)
        record = trial(number, card.select.domain, card.select.general, scorecard=card)
        writer.begin_trial(record.id)
        writer.write_trial(record, TrialOutcome(status="done", items=tuple(own)))
    return sweepcp.load_run(folder)


def test_resampling_spreads_as_the_standard_errors_say(tmp_path: Path):
    run = sweepcp.load_run(write_run(tmp_path / "run", 4, documents=200))
    assert run.base is not None
    own = [m for m in run.base.items if m.unit == "bits per byte"]
    found = [
        [
            np.array(m.amount)
            for m in read_items(run.trial_folder(t.id) / "items.json")
            if m.unit == "bits per byte"
        ]
        for t in run.trials
    ]
    amounts = [np.stack(member) for member in zip(*found, strict=True)]
    draws = resampled_scores(amounts, own, "report", np.random.default_rng(0))
    assert draws.shape == (RESAMPLES, 4, 2)
    for index, t in enumerate(run.trials):
        assert t.scorecard is not None
        half = t.scorecard.report
        assert draws[:, index].mean(0) == pytest.approx([half.domain, half.general], abs=0.1)
        assert draws[:, index].std(0) == pytest.approx([half.domain_se, half.general_se], rel=0.15)


def test_a_trial_that_always_loses_is_never_on_the_front(tmp_path: Path):
    sure = estimate_certainty(run_of(tmp_path, [measured(5, 0), measured(4, -0.5)]))
    assert sure is not None
    assert sure.on_front == {"0000": 1.0, "0001": 0.0}
    assert sure.chosen == {"0000": 1.0, "0001": 0.0}
    assert (sure.no_choice, sure.within_bound) == (0.0, 1.0)


def test_how_often_a_trial_is_on_the_front_follows_the_normal_law(tmp_path: Path):
    """Of two trials of one domain gain the second is on the front when its general score is the higher one."""
    noise = np.random.default_rng(1).normal(0, 2, COUNT)
    run = run_of(tmp_path, [measured(5, 0), measured(5, noise)], max_regression=9.0)
    card = run.trials[1].scorecard
    assert card is not None
    better = NormalDist().cdf(card.select.general / card.select.general_se)
    sure = estimate_certainty(run)
    assert sure is not None
    assert sure.on_front["0001"] == pytest.approx(better, abs=0.07)
    assert sure.on_front["0000"] == pytest.approx(1 - better, abs=0.07)


def test_how_often_the_bound_holds_is_of_the_other_half(tmp_path: Path):
    noise = np.random.default_rng(2).normal(0, 4, COUNT)
    select = np.array(measured(0)[0].select)
    noise[select] = -0.5
    run = run_of(tmp_path, [measured(5, noise)], max_regression=1.0)
    card = run.trials[0].scorecard
    assert card is not None
    sure = estimate_certainty(run)
    assert sure is not None
    assert sure.chosen == {"0000": 1.0}  # on the half that is chosen on nothing is uncertain
    kept = NormalDist().cdf((card.report.general + 1.0) / card.report.general_se)
    assert sure.within_bound == pytest.approx(kept, abs=0.07)


def test_a_null_choice_is_counted(tmp_path: Path):
    sure = estimate_certainty(run_of(tmp_path, [measured(5, -3)]))
    assert sure is not None
    assert (sure.no_choice, sure.within_bound, sure.on_front) == (1.0, None, {"0000": 1.0})


def test_without_items_nothing_is_said(tmp_path: Path):
    run = run_of(tmp_path, [measured(5), measured(4)])
    (tmp_path / "trials" / "0001" / "items.json").unlink()
    assert estimate_certainty(run) is None
    assert estimate_certainty(run_of(tmp_path / "none", [])) is None


def test_the_same_run_gives_the_same_numbers(tmp_path: Path):
    run = sweepcp.load_run(write_run(tmp_path / "run", 6))
    assert estimate_certainty(run) == estimate_certainty(run)
