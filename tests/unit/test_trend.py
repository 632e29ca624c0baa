from pathlib import Path

import numpy as np
import pytest

import sweepcp
from sweepcp.config.experiment import ChoiceSection
from sweepcp.config.space import Point, Range, Space
from sweepcp.report.trend import fit_trend
from sweepcp.runs.run_folder import RunIdentity, RunWriter
from sweepcp.runs.trial import TrialOutcome
from sweepcp.search.importance import axis_importance
from tests.make import experiment, trial

SPACE = Space(
    lr_fraction=Range(low=0.01, high=1.0, scale="log"),
    general_share=Range(low=0.0, high=1.0, scale="sqrt"),
)


def scored(point: Point) -> tuple[float, float]:
    """Quadratic functions of the positions on the axes: log fraction, square root of the share."""
    u, s = np.log10(float(point["lr_fraction"])) / 2 + 1, np.sqrt(float(point["general_share"]))
    return 1 + 8 * u - 6 * u * u + 2 * u * s - s * s, -3 * u * u + 2 * s


def run_of(folder: Path, points: list[Point]) -> sweepcp.RunView:
    writer = RunWriter(folder)
    writer.start(experiment(space=SPACE, choose=ChoiceSection(max_regression=5.0)), RunIdentity())
    for number, point in enumerate(points):
        record = trial(number, *scored(point), point=point)
        writer.begin_trial(record.id)
        writer.write_trial(record, TrialOutcome(status="done"))
    return sweepcp.load_run(folder)


def points(count: int) -> list[Point]:
    rng = np.random.default_rng(0)
    return [
        {"lr_fraction": float(10 ** rng.uniform(-2, 0)), "general_share": float(rng.uniform())}
        for _ in range(count)
    ]


def test_quadratic_is_recovered(tmp_path: Path):
    trend = fit_trend(run_of(tmp_path, points(10)))
    assert trend is not None
    assert trend.predictive == pytest.approx((1, 1))
    at: Point = {"lr_fraction": 0.5, "general_share": 0.3}
    for name in ("lr_fraction", "general_share"):
        values, curve = trend.along(name, at, 7)
        assert values[0] == getattr(SPACE, name).low
        assert values[-1] == getattr(SPACE, name).high
        assert curve == pytest.approx(
            np.array([scored(at | {name: value}) for value in values]), abs=1e-9
        )


def test_predictive_r2_equals_that_of_fits_without_each_trial(tmp_path: Path):
    """Compare leave-one-out residuals from leverages with those of one fit per trial."""
    run = run_of(tmp_path, points(14))
    noise = np.random.default_rng(3).normal(0, 0.5, 14).tolist()
    noisy = [
        trial.model_copy(update={"domain": (trial.domain or 0) + error})
        for trial, error in zip(run.trials, noise, strict=True)
    ]
    run.trials[:] = noisy
    trend = fit_trend(run)
    assert trend is not None
    residuals = []
    for index, left_out in enumerate(noisy):
        run.trials[:] = noisy[:index] + noisy[index + 1 :]
        without = fit_trend(run)
        assert without is not None
        point = left_out.point
        u = without.axes["lr_fraction"].to_unit(float(point["lr_fraction"]))
        s = without.axes["general_share"].to_unit(float(point["general_share"]))
        features = np.array([1, u, s, u * u, u * s, s * s])
        residuals.append(float(features @ without.coefficients[:, 0]) - (left_out.domain or 0))
    scores = np.array([trial.domain for trial in noisy], dtype=float)
    expected = 1 - np.square(residuals).sum() / np.square(scores - scores.mean()).sum()
    assert trend.predictive[0] == pytest.approx(expected, rel=1e-9)


def test_no_trend_with_too_few_or_equal_trials(tmp_path: Path):
    assert fit_trend(run_of(tmp_path / "few", points(9))) is None
    assert fit_trend(run_of(tmp_path / "equal", points(1) * 12)) is None


def test_axis_that_decides_a_score_has_the_highest_importance(tmp_path: Path):
    """Fifty trials, in which each score depends on one axis."""
    run = run_of(tmp_path, points(50))
    run.trials[:] = [
        trial.model_copy(
            update={
                "domain": float(trial.point["lr_fraction"]),
                "general": -float(trial.point["general_share"]),
            }
        )
        for trial in run.trials
    ]
    importance = axis_importance(run)
    assert importance["domain"]["lr_fraction"] > 0.8
    assert importance["general"]["general_share"] > 0.8
    for shares in importance.values():
        assert sum(shares.values()) == pytest.approx(1)


def test_importance_of_few_trials_is_empty(tmp_path: Path):
    assert axis_importance(run_of(tmp_path, points(9))) == {}
