"""Propose the next point of the search space: a pure function of the trials so far."""

import hashlib
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from scipy.stats import qmc

from sweepcp.config.budget import QUASI_RANDOM_TRIALS
from sweepcp.config.choice import ReferencePoint
from sweepcp.config.space import Choices, Point, Range, Space
from sweepcp.runs.trial import Proposer, Trial


class Proposal(NamedTuple):
    """A point of the space, and who proposed it."""

    point: Point
    by: Proposer


def propose_point(
    space: Space,
    trials: Sequence[Trial],
    pending: Sequence[Point],
    *,
    reference: ReferencePoint,
    number: int,
    seed: int,
) -> Proposal:
    """Propose the point of a trial: anchors, then quasi-random points, then two-objective TPE.

    Nothing is remembered between calls. The study is rebuilt from the trials each time and seeded
    by (seed, number), so a resumed search proposes what an uninterrupted one would have proposed.

    Args:
        space: The axes and anchors.
        trials: The finished trials, ordered by number. Those that failed are not shown to the
            sampler: that a worker was lost says nothing about the point.
        pending: Points of the trials that are running, which TPE avoids (constant liar).
        reference: The scores that the sampler is told of a diverged trial, so that it avoids the
            region in which training diverges.
        number: The number of the trial, from 0.
        seed: The experiment's seed.
    """
    if number < len(space.anchors):
        return Proposal(dict(space.anchors[number]), "anchor")
    start = number - len(space.anchors)
    if start < QUASI_RANDOM_TRIALS:
        return Proposal(_sobol_point(space, index=start, seed=seed), "quasi-random")
    study = _make_study(seed=_seed_from(seed, number))
    for trial in trials:
        if (scores := _told_scores(trial, reference)) is not None:
            study.add_trial(frozen_trial(space, trial.point, scores))
    for point in pending:
        study.add_trial(frozen_trial(space, point, None))
    point = _ask(study, space)
    return Proposal(point, "tpe")


def _sobol_point(space: Space, *, index: int, seed: int) -> Point:
    """Return point `index` of a scrambled Sobol sequence over the scales of the axes."""
    sobol = qmc.Sobol(len(space.axes), scramble=True, rng=_seed_from(seed, "sobol"))
    units = sobol.random(QUASI_RANDOM_TRIALS)[index].tolist()
    point: Point = {}
    for (name, axis), unit in zip(space.axes.items(), units, strict=True):
        if isinstance(axis, Range):
            point[name] = axis.from_unit(unit)
        else:
            choice = min(int(unit * len(axis.choices)), len(axis.choices) - 1)
            point[name] = axis.choices[choice]
    return point


def _told_scores(trial: Trial, reference: ReferencePoint) -> list[float] | None:
    """Return the scores of a trial that the sampler is told; None if it is not shown the trial."""
    if trial.status == "diverged":
        return [reference.domain, reference.general]
    if trial.domain is None or trial.general is None:
        return None
    return [trial.domain, trial.general]


def _make_study(*, seed: int) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            multivariate=True, n_startup_trials=0, constant_liar=True, seed=seed
        )
    return optuna.create_study(directions=["maximize", "maximize"], sampler=sampler)


def _ask(study: optuna.Study, space: Space) -> Point:
    distributions = {name: _distribution(axis) for name, axis in space.axes.items()}
    params = study.ask(distributions).params
    return {
        name: axis.from_unit(params[name]) if isinstance(axis, Range) else params[name]
        for name, axis in space.axes.items()
    }


def frozen_trial(space: Space, point: Point, values: list[float] | None) -> FrozenTrial:
    """Return a trial as Optuna stores it: complete with `values`, running without them."""
    params = {
        name: axis.to_unit(float(point[name])) if isinstance(axis, Range) else point[name]
        for name, axis in space.axes.items()
    }
    return create_trial(
        state=TrialState.RUNNING if values is None else TrialState.COMPLETE,
        values=values,
        params=params,
        distributions={name: _distribution(axis) for name, axis in space.axes.items()},
    )


def _distribution(axis: Range | Choices) -> BaseDistribution:
    # Optuna has no square-root scale, so every range is 0 to 1 on the scale of the range.
    if isinstance(axis, Range):
        return FloatDistribution(0.0, 1.0)
    return CategoricalDistribution(axis.choices)


def _seed_from(*parts: object) -> int:
    """Return a 32-bit seed that differs between the streams that `parts` name."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big")
