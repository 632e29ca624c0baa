"""A run with its data frames, charts and statistics, for notebooks and scripts."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from sweepcp.report import frames
from sweepcp.report.chart import Chart
from sweepcp.report.comparison import comparison_chart
from sweepcp.report.front_charts import front_chart, tolerance_chart
from sweepcp.report.labels import TrialLabels, trial_labels
from sweepcp.report.progress_charts import hypervolume_chart, training_chart
from sweepcp.report.recipe_charts import (
    importance_chart,
    parallel_chart,
    recipe_chart,
    tradeoff_chart,
)
from sweepcp.report.trend import Trend, fit_trend
from sweepcp.runs.run_folder import Run, read_run
from sweepcp.runs.uncertainty import FrontCertainty, estimate_certainty

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure as MatplotlibFigure
    from plotly.graph_objects import Figure as PlotlyFigure

F = TypeVar("F")


class RunView(Run):
    """A run with its data frames, charts and statistics."""

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per finished trial, see `frames.trial_frame`.

        Frames of several runs can be concatenated: the column `run` tells them apart.
        """
        return frames.trial_frame(self)

    def members_to_pandas(self) -> "pd.DataFrame":
        """Return one row per done trial, half and suite member, see `frames.member_frame`."""
        return frames.member_frame(self)

    def steps_to_pandas(self, ids: Sequence[str] | None = None) -> "pd.DataFrame":
        """Return one row per trial and optimizer step, see `frames.step_frame`."""
        return frames.step_frame(self, ids)

    @cached_property
    def certainty(self) -> FrontCertainty | None:
        """Shares of resamples in which trials are on the front, and chosen (evaluation noise)."""
        return estimate_certainty(self)

    @cached_property
    def labels(self) -> TrialLabels:
        """The hover texts of the trials, and the certainty of the front."""
        return trial_labels(self, self.certainty)

    @cached_property
    def trend(self) -> Trend | None:
        """The fitted trend of both scores; None with too few trials."""
        return fit_trend(self)

    @property
    def plot(self) -> "Plots[PlotlyFigure]":
        """The charts as plotly figures, for notebooks and web pages."""
        from sweepcp.report.plotly_figures import plotly_figure

        return Plots(self, plotly_figure)

    @property
    def draw(self) -> "Plots[MatplotlibFigure]":
        """The charts as matplotlib figures, for `savefig`."""
        from sweepcp.report.matplotlib_figures import matplotlib_figure

        return Plots(self, matplotlib_figure)


class Plots(Generic[F]):
    """The charts of a run as figures of one plotting library."""

    def __init__(self, run: RunView, make_figure: Callable[[Chart], F]) -> None:
        self._run = run
        self._make_figure = make_figure

    def front(self) -> F:
        """Draw all done trials by their two scores, the base, and the choice on both halves."""
        return self._make_figure(front_chart(self._run, self._run.labels))

    def plane(self) -> F:
        """Draw all finished trials by LR fraction and domain share, also those without a score."""
        return self._make_figure(recipe_chart(self._run, self._run.labels))

    def tradeoff(self) -> F:
        """Draw both scores against LR fraction and domain share, with the fitted trend."""
        return self._make_figure(tradeoff_chart(self._run, self._run.trend, self._run.labels))

    def parallel(self) -> F:
        """Draw one line per done trial through all searched axes and both scores."""
        return self._make_figure(parallel_chart(self._run, self._run.labels))

    def importance(self) -> F:
        """Draw the importance of each axis for being among the best trials, by PED-ANOVA."""
        from sweepcp.search.importance import axis_importance

        return self._make_figure(importance_chart(self._run, axis_importance(self._run)))

    def hypervolume(self) -> F:
        """Draw the hypervolume of the front after each trial."""
        return self._make_figure(hypervolume_chart(self._run))

    def curves(self, ids: Sequence[str] | None = None) -> F:
        """Draw loss, LR and gradient norm of trials.

        By default of those that are on the front, without a score, or unfinished.
        """
        return self._make_figure(training_chart(self._run, ids))

    def tolerance(self) -> F:
        """Draw the chosen recipe as a function of the general regression that is accepted."""
        return self._make_figure(tolerance_chart(self._run))

    def compare(self, other: Run) -> F:
        """Draw the fronts of this run and another, and the recipes that both tried.

        The runs may differ in base model, length or seed.
        """
        return self._make_figure(comparison_chart(self._run, other))


def load_run(path: str | Path) -> RunView:
    """Read a run folder.

    Raises:
        InvalidInput: The folder is no run folder, or a record in it is corrupt or of another
            version of sweepcp.
    """
    run = read_run(path)
    return RunView(**{field.name: getattr(run, field.name) for field in fields(run)})
