"""Which axes of the search decide whether a trial is among the best, by PED-ANOVA."""

import warnings
from collections.abc import Callable

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial

from sweepcp.runs.run_folder import Run
from sweepcp.search.proposals import frozen_trial

MIN_BEST_TRIALS = 5
"""Trials that are called the best at least: fewer leave the estimate unstable, as Optuna's documentation says."""


def axis_importance(run: Run) -> dict[str, dict[str, float]]:
    """For `front`, `domain` and `general`: axis → its part of the importance, which sums to 1.

    PED-ANOVA (Watanabe et al. 2023, arXiv 2304.10255): how differently the best tenth of the done trials, at least five
    of them, spread over an axis than all do. `front` calls those the best that are nearest to the front, the other two
    those of the highest score. Empty for fewer than ten done trials. Says nothing of how much a score changes.
    """
    done = run.done
    if len(done) < 2 * MIN_BEST_TRIALS:
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=["maximize", "maximize"])
    for trial in done:
        study.add_trial(
            frozen_trial(
                run.space, trial.point, [float(trial.domain or 0), float(trial.general or 0)]
            )
        )
    targets: dict[str, Callable[[FrozenTrial], float] | None] = {
        "front": None,
        "domain": lambda t: -float(t.values[0]),  # the evaluator takes lower for better
        "general": lambda t: -float(t.values[1]),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna repeats there that lower is better
        evaluator = PedAnovaImportanceEvaluator(
            target_quantile=max(0.1, MIN_BEST_TRIALS / len(done))
        )
        return {
            name: get_param_importances(study, evaluator=evaluator, target=target)
            for name, target in targets.items()
        }
