"""What a search leaves open about a trial."""

from sweepcp.config.space import Range
from sweepcp.runs.run_folder import Run
from sweepcp.runs.trial import Trial

FEW_TRIALS = 10
"""Done trials below which a choice is called one of few."""


def caveats_of(run: Run, trial: Trial) -> list[str]:
    """One seed, the ends of what was searched, few trials: as sentences."""
    said = ["the errors of the trial are those of evaluation: it was trained on one seed"]
    for name, value in trial.point.items():
        axis = run.space.axes[name]
        if isinstance(axis, Range) and value in (axis.low, axis.high):
            said.append(
                f"{name} {value:g} is at the end of what was searched: the best may lie beyond"
            )
    if len(run.done) < FEW_TRIALS:
        said.append(f"the choice is one of {len(run.done)} trials that are done")
    return said
