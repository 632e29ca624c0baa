"""A run to look at in Python: frames, charts, how sure they are."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from sweepcp.report import charts, frames
from sweepcp.report.chart import Chart
from sweepcp.report.labels import TrialLabels, trial_labels
from sweepcp.report.trend import Trend, fit_trend
from sweepcp.runs import run_folder
from sweepcp.runs.uncertainty import FrontCertainty, estimate_certainty
from sweepcp.util.json_values import json_differences

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure as Image
    from plotly.graph_objects import Figure


F = TypeVar("F")


class RunView(run_folder.Run):
    """A run folder, read: see `sweepcp.run.Run`; and its frames and charts."""

    def to_pandas(self) -> "pd.DataFrame":
        """A row a trial, see `frames.trial_frame`. Frames of several runs concatenate: `run` tells them apart."""
        return frames.trial_frame(self)

    def members_to_pandas(self) -> "pd.DataFrame":
        """A row a trial, half and member of a suite, see `frames.member_frame`."""
        return frames.member_frame(self)

    def steps_to_pandas(self, ids: list[str] | None = None) -> "pd.DataFrame":
        """A row a trial and optimizer step, see `frames.step_frame`."""
        return frames.step_frame(self, ids)

    @cached_property
    def certainty(self) -> FrontCertainty | None:
        """How often each trial is on the front, and chosen, in resamples of the items: evaluation noise only."""
        return estimate_certainty(self)

    @cached_property
    def known(self) -> TrialLabels:
        """What the charts show beyond the records."""
        return trial_labels(self, self.certainty)

    @cached_property
    def trend(self) -> Trend | None:
        """The fitted trend of both scores; None with too few trials."""
        return fit_trend(self)

    @property
    def plot(self) -> "Plots[Figure]":
        """Charts as plotly figures, for notebooks and pages."""
        from sweepcp.report.plotly_figures import plotly_figure

        return Plots(self, plotly_figure)

    @property
    def draw(self) -> "Plots[Image]":
        """The same charts as matplotlib figures, for `savefig`."""
        from sweepcp.report.matplotlib_figures import matplotlib_figure

        return Plots(self, matplotlib_figure)


class Plots(Generic[F]):
    """The charts of a run, as figures of one library."""

    def __init__(self, run: RunView, make: Callable[[Chart], F]) -> None:
        self._run, self._make = run, make

    def front(self) -> F:
        """Every done trial by its two scores, the base, the choice on both halves."""
        return self._make(charts.front_chart(self._run, self._run.known))

    def plane(self) -> F:
        """Every trial by its recipe: where the search has looked, and where trials broke."""
        return self._make(charts.recipe_chart(self._run, self._run.known))

    def tradeoff(self) -> F:
        """Both scores against LR fraction and domain share, with the fitted trend."""
        return self._make(charts.tradeoff_chart(self._run, self._run.trend, self._run.known))

    def parallel(self) -> F:
        """A line a done trial through every searched axis and both scores."""
        return self._make(charts.parallel_chart(self._run, self._run.known))

    def importance(self) -> F:
        """Which axes decide whether a trial is among the best, by PED-ANOVA."""
        from sweepcp.search.importance import axis_importance

        return self._make(charts.importance_chart(self._run, axis_importance(self._run)))

    def hypervolume(self) -> F:
        """The hypervolume of the front after each trial."""
        return self._make(charts.hypervolume_chart(self._run))

    def curves(self, ids: Sequence[str] | None = None) -> F:
        """Loss, LR and gradient norm of trials; by default of the front and of those that broke."""
        return self._make(charts.training_chart(self._run, ids))

    def tolerance(self) -> F:
        """The choice as a function of the general regression that is accepted."""
        return self._make(charts.tolerance_chart(self._run))

    def compare(self, other: run_folder.Run) -> F:
        """This run and another of other bases, sizes or seeds: both fronts, and the recipes that both tried."""
        different = json_differences(
            before=_compared_settings(self._run), after=_compared_settings(other)
        )
        return self._make(charts.comparison_chart(self._run, other, different))


def _compared_settings(run: run_folder.Run) -> dict[str, object]:
    return run.experiment.model_dump(mode="json", exclude={"choose"})


def load_run(path: str | Path) -> RunView:
    """Read a run folder. Raises `BadInput` when it is none, or when a record in it is torn or of another version."""
    read = run_folder.read_run(path)
    return RunView(**{field.name: getattr(read, field.name) for field in fields(read)})
