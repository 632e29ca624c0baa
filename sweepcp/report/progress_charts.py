"""Charts of how the search and the training of its trials progressed."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sweepcp.report.chart import Axis, Chart, Panel, Series
from sweepcp.runs.front import hypervolume, is_on_front, score_matrix
from sweepcp.runs.run_folder import Run

MAX_POINTS = 300
"""Points of a curve at most. In longer curves each point is the mean of several steps."""
METRICS = (
    ("loss", Axis("loss, nats per target token")),
    ("lr", Axis("LR")),
    ("grad_norm", Axis("gradient norm")),
)


def hypervolume_chart(run: Run) -> Chart:
    """Return the hypervolume of the front after each trial, above the run's reference point."""
    reference = run.experiment.choose.reference
    front, volume = np.empty((0, 2)), 0.0
    volumes = []
    for trial in run.done:
        point = score_matrix([trial])
        dominated = np.all(front >= point, axis=1)
        if not np.any(dominated):
            front = np.vstack([front, point])
            front = front[is_on_front(front)]
            volume = hypervolume(front, reference)
        volumes.append(volume)
    numbers = [trial.number for trial in run.done]
    line = Series("", numbers, volumes, draw="steps", colour="front")
    panel = Panel(Axis("trial number"), Axis("hypervolume, %²"), [line])
    note = (
        f"Measured above the reference point (domain {reference.domain:g} %, general "
        f"{reference.general:g} %), which is fixed for the run."
    )
    return Chart("Hypervolume of the front", [panel], [note])


def training_chart(run: Run, ids: Sequence[str] | None = None) -> Chart:
    """Return loss, LR and gradient norm of trials over tokens.

    Args:
        run: The run of the trials.
        ids: The trials to show; by default those on the front, without a score, and unfinished.
    """
    unscored = [trial.id for trial in run.trials if trial.status != "done"]
    shown = list(ids) if ids is not None else [*run.front.ids, *unscored, *run.unfinished]
    lines: dict[str, list[Series]] = {name: [] for name, _ in METRICS}
    longest = 1
    for trial_id in shown:
        steps = run.read_steps(trial_id)
        window = max(1, -(-len(steps) // MAX_POINTS))
        longest = max(longest, window)
        windows = [steps[start : start + window] for start in range(0, len(steps), window)]
        colour = _trial_colour(run, trial_id)
        for name, series in lines.items():
            series.append(_metric_curve(windows, name, trial_id=trial_id, colour=colour))
    notes = [
        f"Trials shown: {', '.join(shown) or 'none'}. The chosen trial is pink; trials without a "
        "score are red."
    ]
    if longest > 1:
        notes.append(f"Each point is the mean of up to {longest} steps.")
    panels = [Panel(Axis("tokens, million"), axis, lines[name]) for name, axis in METRICS]
    return Chart("Training curves", panels, notes)


def _metric_curve(
    windows: Sequence[Sequence[dict[str, Any]]], name: str, *, trial_id: str, colour: str
) -> Series:
    """Return the means of a metric over windows of steps."""
    tokens = [sum(window[-1]["tokens"].values()) / 1e6 for window in windows]
    means = [math.fsum(step[name] for step in window) / len(window) for window in windows]
    hover = [
        f"{trial_id}: {name} {mean:.4g} after {count:.4g} million tokens"
        for count, mean in zip(tokens, means, strict=True)
    ]
    return Series("", tokens, means, draw="line", colour=colour, hover=hover)


def _trial_colour(run: Run, trial_id: str) -> str:
    if trial_id == run.front.choice.id:
        return "chosen"
    if trial_id in run.front.ids:
        return "front"
    trial = run.by_id.get(trial_id)
    return "other" if trial is None or trial.status == "done" else "bad"
