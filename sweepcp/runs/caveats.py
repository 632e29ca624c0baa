"""What a search leaves open about a trial, in sentences."""

from sweepcp.config.space import Range
from sweepcp.runs.run_folder import Run
from sweepcp.runs.trial import Trial

FEW_TRIALS = 10
"""Fewer done trials than this are reported as a caveat."""


def caveats_of(run: Run, trial: Trial) -> list[str]:
    """Return the caveats of a trial: one seed, values at the ends of the space, few trials."""
    caveats = [
        "the standard errors cover evaluation only: the trial was trained once, with one seed"
    ]
    for name, value in trial.point.items():
        axis = run.experiment.space.axes[name]
        if isinstance(axis, Range) and axis.is_at_end(value):
            caveats.append(
                f"{name} {value:g} is at the end of its searched range, {axis.low:g} to "
                f"{axis.high:g}: the optimum may lie outside the range"
            )
    if len(run.done) < FEW_TRIALS:
        caveats.append(f"the choice was made among few trials: {len(run.done)} done")
    return caveats
