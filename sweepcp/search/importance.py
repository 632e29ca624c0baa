"""Estimate which axes of the search decide whether a trial is among the best."""

import warnings
from collections.abc import Callable

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial

from sweepcp.runs.run_folder import Run
from sweepcp.search.proposals import frozen_trial

MIN_BEST_TRIALS = 5
"""The best trials are at least so many: Optuna's documentation calls fewer unstable."""


def axis_importance(run: Run) -> dict[str, dict[str, float]]:
    """Return how much each axis matters, by PED-ANOVA (Watanabe et al. 2023, arXiv 2304.10255).

    The best trials are a tenth of the done ones, at least five. An axis is important if the best
    trials are distributed over it differently from all trials; how much a score changes along it is
    not measured.

    Returns:
        For `front` (best: nearest to the front), `domain` and `general` (best: highest score), a
        mapping of axis to its share of the importance, which sums to 1. Empty for fewer than ten
        done trials.
    """
    done = run.done
    if len(done) < 2 * MIN_BEST_TRIALS:
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=["maximize", "maximize"])
    for trial in done:
        scores = [float(trial.domain or 0), float(trial.general or 0)]
        study.add_trial(frozen_trial(run.experiment.space, trial.point, scores))
    # In a target the evaluator takes lower values for better ones, whatever the study's directions.
    targets: dict[str, Callable[[FrozenTrial], float] | None] = {
        "front": None,
        "domain": lambda trial: -float(trial.values[0]),
        "general": lambda trial: -float(trial.values[1]),
    }
    with warnings.catch_warnings():
        # Optuna warns that lower values are taken for better ones.
        warnings.simplefilter("ignore")
        quantile = max(0.1, MIN_BEST_TRIALS / len(done))
        evaluator = PedAnovaImportanceEvaluator(target_quantile=quantile)
        return {
            name: get_param_importances(study, evaluator=evaluator, target=target)
            for name, target in targets.items()
        }
