"""Trend of the scores over the search space: a quadratic fit, and how well it predicts."""

from dataclasses import dataclass

import numpy as np

from sweepcp.config.space import Point, Range
from sweepcp.runs.front import score_matrix
from sweepcp.runs.run_folder import Run

SPARE_TRIALS = 4
"""Trials that a fit needs beyond its number of coefficients."""
MAX_LEVERAGE = 1 - 1e-9
"""A trial of greater leverage determines a coefficient alone, so its prediction is undefined."""


@dataclass(frozen=True)
class Trend:
    """A quadratic with all cross terms, fitted by least squares.

    Its variables are the positions on the axes in 0..1, from low to high on the axis' own scale.
    """

    axes: dict[str, Range]
    """The searched ranges, in the order of the features."""
    coefficients: np.ndarray
    """Shape (features, 2): of `domain` and of `general`, in %."""
    predictive: tuple[float, float]
    """Leave-one-out R² of both scores. 1 is perfect; 0 is as good as predicting the mean."""
    trials: int
    """Number of trials in the fit."""

    def along(self, name: str, at: Point, count: int = 60) -> tuple[list[float], np.ndarray]:
        """Evaluate the trend along one axis.

        Args:
            name: The axis to vary from low to high.
            at: The values of the other axes.
            count: Number of positions.

        Returns:
            The values of the axis, and the scores there in %, shape (count, 2).
        """
        units = np.tile(_unit_position(self.axes, at), (count, 1))
        column = list(self.axes).index(name)
        units[:, column] = np.linspace(0, 1, count)
        values = [self.axes[name].from_unit(unit) for unit in units[:, column].tolist()]
        return values, _features(units) @ self.coefficients


def fit_trend(run: Run) -> Trend | None:
    """Fit the trend of the done trials over the searched ranges; axes with choices are left out.

    The leave-one-out residual of a linear fit is its residual over one minus its leverage (Allen,
    The relationship between variable selection and data augmentation, Technometrics 16, 1974).

    Returns:
        None with fewer than `SPARE_TRIALS` trials more than coefficients, or if the trials do not
        determine the coefficients.
    """
    axes = {
        name: axis for name, axis in run.experiment.space.axes.items() if isinstance(axis, Range)
    }
    done = run.done
    coefficient_count = (len(axes) + 1) * (len(axes) + 2) // 2
    if not axes or len(done) < coefficient_count + SPARE_TRIALS:
        return None
    positions = [_unit_position(axes, trial.point) for trial in done]
    features, scores = _features(np.array(positions)), score_matrix(done)
    coefficients, _, rank, _ = np.linalg.lstsq(features, scores, rcond=None)
    # The leverages are the diagonal of the projection onto the features, Q Qᵀ for features = Q R.
    leverage = np.square(np.linalg.qr(features)[0]).sum(axis=1)
    if rank < features.shape[1] or leverage.max() > MAX_LEVERAGE:
        return None
    residuals = (scores - features @ coefficients) / (1 - leverage)[:, None]
    spread = np.square(scores - scores.mean(axis=0)).sum(axis=0)
    domain, general = (1 - np.square(residuals).sum(axis=0) / spread).tolist()
    return Trend(
        axes=axes, coefficients=coefficients, predictive=(domain, general), trials=len(done)
    )


def _unit_position(axes: dict[str, Range], point: Point) -> list[float]:
    """Return the position of a point on each axis, in 0..1."""
    return [axis.to_unit(float(point[name])) for name, axis in axes.items()]


def _features(units: np.ndarray) -> np.ndarray:
    """Return 1, all axes, and all products of two axes: shape (n, axes) → (n, features)."""
    n, axes = units.shape
    products = [units[:, i] * units[:, j] for i in range(axes) for j in range(i, axes)]
    return np.column_stack([np.ones(n), units, *products])
