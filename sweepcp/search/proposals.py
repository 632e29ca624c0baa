"""Which recipe to try next: a pure function of the trials so far."""

import hashlib
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from scipy.stats import qmc

from sweepcp.config.budget import QUASI_RANDOM_TRIALS
from sweepcp.config.space import Choices, Point, Range, Space
from sweepcp.runs.trial import Proposer, Trial


class Proposal(NamedTuple):
    """A point of the space, and who proposed it."""

    point: Point
    by: Proposer


def propose_point(
    space: Space, trials: Sequence[Trial], pending: Sequence[Point], number: int, seed: int
) -> Proposal:
    """The point of trial `number`: the anchors, then quasi-random points, then a multivariate TPE of both objectives.

    `trials` are the finished ones and `pending` the points that run now. Nothing is remembered between calls: the
    study is built from the trials each time and seeded by (seed, number), so a search that is continued proposes what
    it would have proposed. Diverged and failed trials carry no values; the model does not see them.
    """
    if number < len(space.anchors):
        return Proposal(dict(space.anchors[number]), "anchor")
    start = number - len(space.anchors)
    if start < QUASI_RANDOM_TRIALS:
        return Proposal(_sobol_point(space, start, seed), "quasi-random")
    return Proposal(_tpe_point(space, trials, pending, number, seed), "tpe")


def _sobol_point(space: Space, index: int, seed: int) -> Point:
    """Point `index` of a scrambled Sobol sequence over the space's scales."""
    sobol = qmc.Sobol(len(space.axes), scramble=True, rng=_seed_from(seed, "sobol")).random(
        QUASI_RANDOM_TRIALS
    )
    point: Point = {}
    for (name, axis), unit in zip(space.axes.items(), sobol[index].tolist(), strict=True):
        if isinstance(axis, Range):
            point[name] = axis.from_unit(unit)
        else:
            point[name] = axis.choices[min(int(unit * len(axis.choices)), len(axis.choices) - 1)]
    return point


def _tpe_point(
    space: Space, trials: Sequence[Trial], pending: Sequence[Point], number: int, seed: int
) -> Point:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            multivariate=True, n_startup_trials=0, constant_liar=True, seed=_seed_from(seed, number)
        )
    study = optuna.create_study(directions=["maximize", "maximize"], sampler=sampler)
    distributions = {name: _distribution(axis) for name, axis in space.axes.items()}
    for trial in trials:
        if trial.status == "done" and trial.domain is not None and trial.general is not None:
            study.add_trial(frozen_trial(space, trial.point, [trial.domain, trial.general]))
    for point in pending:
        study.add_trial(frozen_trial(space, point, None))
    asked = study.ask(distributions).params
    return {
        name: axis.from_unit(asked[name]) if isinstance(axis, Range) else asked[name]
        for name, axis in space.axes.items()
    }


def frozen_trial(space: Space, point: Point, values: list[float] | None) -> FrozenTrial:
    """A trial as Optuna keeps it: with values complete, without them running."""
    axes = space.axes
    return create_trial(
        state=TrialState.RUNNING if values is None else TrialState.COMPLETE,
        values=values,
        params={
            name: axis.to_unit(float(point[name])) if isinstance(axis, Range) else point[name]
            for name, axis in axes.items()
        },
        distributions={name: _distribution(axis) for name, axis in axes.items()},
    )


def _distribution(axis: Range | Choices) -> BaseDistribution:
    """Optuna sees every range as 0..1 on the range's own scale."""
    return (
        FloatDistribution(0.0, 1.0)
        if isinstance(axis, Range)
        else CategoricalDistribution(axis.choices)
    )


def _seed_from(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big")
