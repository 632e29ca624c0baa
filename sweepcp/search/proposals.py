"""Propose the next point of the search space: a pure function of the trials so far."""

import copy
import hashlib
import warnings
from collections.abc import Container, Sequence
from typing import NamedTuple

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import TPESampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from sweepcp.config.budget import QUASI_RANDOM_TRIALS
from sweepcp.config.choice import ReferencePoint
from sweepcp.config.space import Choices, Point, Range, Space
from sweepcp.runs.trial import Proposer, Trial
from sweepcp.util.garbage import no_garbage_collection


class Proposal(NamedTuple):
    """A point of the space, and who proposed it."""

    point: Point
    by: Proposer


class PointSampler:
    """Proposes the points of trials: anchors, then quasi-random points, then two-objective TPE.

    A proposal depends on the trials that it was told, in any order, on the pending points and on
    (seed, number). A resumed search therefore proposes what an uninterrupted one would have
    proposed.
    """

    def __init__(self, space: Space, *, reference: ReferencePoint, seed: int) -> None:
        """Know of no trial yet.

        Args:
            space: The axes and anchors.
            reference: The scores that TPE is told of a diverged trial, so that it avoids the region
                in which training diverges.
            seed: The experiment's seed.
        """
        self.space, self.reference, self.seed = space, reference, seed
        self.told: dict[int, FrozenTrial] = {}
        # Optuna would report every study and every trial.
        optuna.logging.set_verbosity(optuna.logging.ERROR)

    def tell(self, trial: Trial) -> None:
        """Take a finished trial into account.

        One that failed is not: that a worker was lost says nothing about the point.
        """
        if (scores := _told_scores(trial, self.reference)) is not None:
            self.told[trial.number] = frozen_trial(self.space, trial.point, scores)

    def propose(self, pending: Sequence[Point], *, number: int) -> Proposal:
        """Propose the point of a trial.

        Args:
            pending: Points of the trials that are running, which TPE avoids (constant liar).
            number: The number of the trial, from 0.
        """
        if number < len(self.space.anchors):
            return Proposal(dict(self.space.anchors[number]), "anchor")
        start = number - len(self.space.anchors)
        if start < QUASI_RANDOM_TRIALS:
            return Proposal(_sobol_point(self.space, index=start, seed=self.seed), "quasi-random")
        # Ordered by number: workers finish in any order, and TPE's result depends on it.
        trials = [self.told[n] for n in sorted(self.told)]
        trials += [frozen_trial(self.space, point, None) for point in pending]
        return Proposal(_ask(self.space, trials, seed=_seed_from(self.seed, number)), "tpe")


class _ToldTrials(InMemoryStorage):
    """Shows a study trials that it was told before, without copying them.

    `Study.add_trial` copies a trial deeply, which takes longer than all that TPE does with it.
    """

    def __init__(self, trials: Sequence[FrozenTrial]) -> None:
        super().__init__()
        self.trials = trials
        # The trial that the study asks for has the number 0 here.
        for number, trial in enumerate(trials, start=1):
            trial.number = number

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,  # noqa: FBT001, FBT002  # Optuna's signature
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """Return the trials in the given states."""
        own = super().get_all_trials(study_id, deepcopy=deepcopy, states=states)
        told = [trial for trial in self.trials if states is None or trial.state in states]
        return [*(copy.deepcopy(told) if deepcopy else told), *own]


class _SpaceSampler(TPESampler):
    """Samples a known space, which Optuna would infer from the distributions of all trials."""

    distributions: dict[str, BaseDistribution]

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the axes that have more than one value; none before the first finished trial."""
        if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            return {}
        axes = sorted(self.distributions.items())
        return {name: axis for name, axis in axes if not axis.single()}


def _sobol_point(space: Space, *, index: int, seed: int) -> Point:
    """Return point `index` of a scrambled Sobol sequence over the scales of the axes."""
    # It takes longer to import than all else here, and no anchor needs it.
    with no_garbage_collection():
        from scipy.stats import qmc

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


def _ask(space: Space, trials: Sequence[FrozenTrial], *, seed: int) -> Point:
    """Return the point that TPE proposes after these trials."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = _SpaceSampler(
            multivariate=True, n_startup_trials=0, constant_liar=True, seed=seed
        )
    sampler.distributions = _distributions(space)
    study = optuna.create_study(
        storage=_ToldTrials(trials), sampler=sampler, directions=["maximize", "maximize"]
    )
    params = study.ask(sampler.distributions).params
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
        distributions=_distributions(space),
    )


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    return {name: _distribution(axis) for name, axis in space.axes.items()}


def _distribution(axis: Range | Choices) -> BaseDistribution:
    # Optuna has no square-root scale, so every range is 0 to 1 on the scale of the range.
    if isinstance(axis, Range):
        return FloatDistribution(0.0, 1.0)
    return CategoricalDistribution(axis.choices)


def _seed_from(*parts: object) -> int:
    """Return a 32-bit seed that differs between the streams that `parts` name."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big")
