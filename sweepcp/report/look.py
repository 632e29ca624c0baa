"""A run to look at in Python: frames, charts, how sure they are."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from sweepcp import run as folder
from sweepcp.experiment import differences
from sweepcp.report import charts, frames
from sweepcp.report.chart import Chart
from sweepcp.report.resample import Certainty, certainty
from sweepcp.report.trend import Trend, fit
from sweepcp.report.words import Known, known

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure as Image
    from plotly.graph_objects import Figure

F = TypeVar("F")


class Run(folder.Run):
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
    def certainty(self) -> Certainty | None:
        """How often each trial is on the front, and chosen, in resamples of the items: evaluation noise only."""
        return certainty(self)

    @cached_property
    def known(self) -> Known:
        """What the charts show beyond the records."""
        return known(self, self.certainty)

    @cached_property
    def trend(self) -> Trend | None:
        """The fitted trend of both scores; None with too few trials."""
        return fit(self)

    @property
    def plot(self) -> "Plots[Figure]":
        """Charts as plotly figures, for notebooks and pages."""
        from sweepcp.report.interactive import figure

        return Plots(self, figure)

    @property
    def draw(self) -> "Plots[Image]":
        """The same charts as matplotlib figures, for `savefig`."""
        from sweepcp.report.image import drawing

        return Plots(self, drawing)


class Plots(Generic[F]):
    """The charts of a run, as figures of one library."""

    def __init__(self, run: Run, make: Callable[[Chart], F]) -> None:
        self._run, self._make = run, make

    def front(self) -> F:
        """Every done trial by its two scores, the base, the choice on both halves."""
        return self._make(charts.front(self._run, self._run.known))

    def plane(self) -> F:
        """Every trial by its recipe: where the search has looked, and where trials broke."""
        return self._make(charts.plane(self._run, self._run.known))

    def tradeoff(self) -> F:
        """Both scores against LR fraction and domain share, with the fitted trend."""
        return self._make(charts.tradeoff(self._run, self._run.trend, self._run.known))

    def parallel(self) -> F:
        """A line a done trial through every searched axis and both scores."""
        return self._make(charts.parallel(self._run, self._run.known))

    def importance(self) -> F:
        """Which axes decide whether a trial is among the best, by PED-ANOVA."""
        from sweepcp.search.importance import importance

        return self._make(charts.importance(self._run, importance(self._run)))

    def hypervolume(self) -> F:
        """The hypervolume of the front after each trial."""
        return self._make(charts.hypervolume(self._run))

    def curves(self, ids: Sequence[str] | None = None) -> F:
        """Loss, LR and gradient norm of trials; by default of the front and of those that broke."""
        return self._make(charts.curves(self._run, ids))

    def tolerance(self) -> F:
        """The choice as a function of the general regression that is accepted."""
        return self._make(charts.tolerance(self._run))

    def compare(self, other: folder.Run) -> F:
        """This run and another of other bases, sizes or seeds: both fronts, and the recipes that both tried."""
        different = differences(_asked(self._run), _asked(other))
        return self._make(charts.compare(self._run, other, different))


def _asked(run: folder.Run) -> dict[str, object]:
    return {key: value for key, value in run.experiment.items() if key != "choose"}


def load_run(path: str | Path) -> Run:
    """Read a run folder. Raises `BadInput` when it is none, or when a record in it is torn or of another version."""
    read = folder.load_run(path)
    return Run(**{field.name: getattr(read, field.name) for field in fields(read)})
