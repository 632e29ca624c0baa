import itertools
import math
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

import sweepcp
from sweepcp.config.experiment import ChoiceSection
from sweepcp.errors import InvalidInput
from sweepcp.runs.run_folder import RunIdentity, RunWriter
from sweepcp.runs.trial import BaseRecord, TrialOutcome
from sweepcp.runs.uncertainty import RESAMPLES, estimate_certainty, resampled_scores
from sweepcp.scoring.scorecard import ItemScores, compare_with_base, read_items
from tests.make import documents, experiment, items, trial
from tests.make_run import write_run

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
    folder: Path,
    trials: list[list[ItemScores]],
    *,
    base: list[ItemScores] | None = None,
    **rule: Any,
) -> sweepcp.RunView:
    writer, base = RunWriter(folder), base or measured(0, 0)
    section = ChoiceSection(**rule or {"max_regression": 1.0})
    writer.start(experiment(choose=section), RunIdentity())
    writer.write_base(
        BaseRecord(
            model="base", parameters=1, max_lr=1.0, items=tuple(base), environment={}, versions={}
        )
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
    noise = np.random.default_rng(2).normal(-0.8, 4, COUNT)
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
    assert 0.1 < kept < 0.9
    assert certainty.within_bound == pytest.approx(kept, abs=0.07)


def test_resamples_without_a_choice_are_counted(tmp_path: Path):
    certainty = estimate_certainty(run_of(tmp_path, [measured(5, -3)]))
    assert certainty is not None
    assert (certainty.no_choice, certainty.within_bound, certainty.on_front) == (
        1.0,
        None,
        {"0000": 1.0},
    )


def of_documents(members: list[ItemScores], owners: np.ndarray) -> list[ItemScores]:
    """The members with the items of documents of one source; both suites share the documents."""
    ids = tuple(np.array(documents("source", COUNT))[owners].tolist())
    return [member.model_copy(update={"document": ids}) for member in members]


def test_documents_are_resampled_with_all_of_their_items(tmp_path: Path):
    """Ten documents of forty items each are ten observations, also for two suites at once."""
    owners = np.arange(COUNT) // 40
    effects = np.random.default_rng(3).normal(0, 2, COUNT // 40)[owners]
    base = of_documents(measured(0, 0), owners)
    trial_items = of_documents(measured(5, effects), owners)
    trial_items[0] = trial_items[0].model_copy(update={"amount": trial_items[1].amount})
    amounts = [np.array([member.amount]) for member in trial_items]
    draws = resampled_scores(amounts, base, "select", np.random.default_rng(0))[:, 0]
    changes = 100 * (1 - amounts[1][0, ::40][::2] / np.array(base[1].amount)[::40][::2])
    # Five documents are in the half, and the bootstrap has their variance without Bessel's factor.
    assert draws[:, 1].std() == pytest.approx(changes.std() / math.sqrt(len(changes)), rel=0.1)
    # The suites share documents, and here also bits.
    assert draws[:, 0] == pytest.approx(draws[:, 1])


def test_spread_of_resamples_of_shared_documents_is_the_standard_error(tmp_path: Path):
    owners = np.random.default_rng(6).integers(0, COUNT // 2, COUNT)
    effects = np.random.default_rng(7).normal(0, 2, COUNT)[owners]
    base = of_documents(measured(0, 0), owners)
    run = run_of(tmp_path, [of_documents(measured(5, effects), owners)], base=base)
    card = run.trials[0].scorecard
    assert card is not None
    amounts = [np.array([member.amount]) for member in of_documents(measured(5, effects), owners)]
    draws = resampled_scores(amounts, base, "select", np.random.default_rng(0))[:, 0]
    assert draws[:, 1].std() == pytest.approx(card.select.general_se, rel=0.1)


@pytest.mark.parametrize(
    "rule", [{"max_regression": 9.0}, {"knee": True}, {"weights": {"domain": 1, "general": 1}}]
)
def test_of_identical_trials_the_chosen_one_is_always_chosen(tmp_path: Path, rule: dict[str, Any]):
    """Also where sums of the same numbers differ in their last digit, as matrix products do."""
    rng = np.random.default_rng(8)
    bits = 2 * 100 * rng.uniform(0.8, 1.2, COUNT)
    base = [items(role, bits.tolist()) for role in ("domain", "general")]
    changed = [items("domain", (bits * rng.normal(0.95, 0.2, COUNT)).tolist())]
    changed += [items("general", (bits * rng.normal(1.01, 0.2, COUNT)).tolist())]
    run = run_of(tmp_path, [changed] * 9, base=base, **rule)
    certainty = estimate_certainty(run)
    assert certainty is not None
    assert run.front.choice.id == "0000"
    assert certainty.chosen["0000"] == 1 - certainty.no_choice == 1
    assert set(certainty.on_front.values()) == {1.0}


@pytest.mark.parametrize(
    "order", list(itertools.permutations([(4.0, -2.0), (3.0, -1.0), (2.0, 0)]))
)
@pytest.mark.parametrize("rule", [{"knee": True}, {"weights": {"domain": 1, "general": 1}}])
def test_certainty_breaks_ties_as_the_choice_does(
    tmp_path: Path, order: tuple[tuple[float, float], ...], rule: dict[str, Any]
):
    """By this rule the three are equal in every resample: no item differs from another."""
    run = run_of(tmp_path, [measured(*scores) for scores in order], **rule)
    certainty = estimate_certainty(run)
    assert certainty is not None
    assert run.chosen is not None
    assert (run.chosen.domain, run.chosen.general) == pytest.approx((2.0, 0))
    assert certainty.chosen[run.chosen.id] == 1.0


def test_a_trial_on_the_bound_is_within_it_in_every_resample(tmp_path: Path):
    for regression in (0.1, 0.3, 0.7, 1.1):
        run = run_of(
            tmp_path / str(regression), [measured(5, -regression)], max_regression=regression
        )
        certainty = estimate_certainty(run)
        assert certainty is not None
        assert run.front.choice.id == "0000"
        assert (certainty.no_choice, certainty.within_bound) == (0.0, 1.0)


def test_weights_of_members_count_as_in_the_scalars():
    """Members of one suite that all resamples change by 10 and by -20 %, weighted 3 to 1."""
    base = [
        items("domain", [10.0] * 40, name="a", weight=3.0),
        items("domain", [10.0] * 40, name="b"),
        items("general", [10.0] * 40, weight=7.0),
    ]
    amounts = [np.full((1, 40), bits) for bits in (9.0, 12.0, 10.5)]
    draws = resampled_scores(amounts, base, "report", np.random.default_rng(0))[:, 0]
    assert draws[:, 0] == pytest.approx(0.75 * 10 - 0.25 * 20)
    assert draws[:, 1] == pytest.approx(-5)


def test_every_resample_has_documents_of_every_member():
    """One in seven resamples of 200 documents has neither of the two of the small member."""
    base = [items("domain", [10.0] * COUNT), items("general", [10.0] * 4)]
    amounts = [np.full((1, COUNT), 9.0), np.array([[9.0, 0.0, 11.0, 0.0]])]
    draws = resampled_scores(amounts, base, "select", np.random.default_rng(0))[:, 0]
    assert draws[:, 0] == pytest.approx(10.0)
    # Of the one document or the other, or the mean of both.
    assert (draws[:, 1].min(), draws[:, 1].max()) == pytest.approx((-10, 10))
    assert draws[:, 1].mean() == pytest.approx(0, abs=1.5)


def test_items_of_another_version_are_refused(tmp_path: Path):
    run = run_of(tmp_path, [measured(5), measured(4)])
    path = tmp_path / "trials" / "0001" / "items.json"
    path.write_text("[]")
    with pytest.raises(InvalidInput, match="this version of sweepcp") as error:
        estimate_certainty(run)
    assert error.value.file == str(path)


def test_certainty_is_none_without_items(tmp_path: Path):
    run = run_of(tmp_path, [measured(5), measured(4)])
    (tmp_path / "trials" / "0001" / "items.json").unlink()
    assert estimate_certainty(run) is None
    assert estimate_certainty(run_of(tmp_path / "none", [])) is None


def test_resampling_is_deterministic(tmp_path: Path):
    run = sweepcp.load_run(write_run(tmp_path / "run", 6))
    assert estimate_certainty(run) == estimate_certainty(run)
