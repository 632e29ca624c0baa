"""What the scores do along each axis of the search: a quadratic over all of them, and how well it predicts."""

from dataclasses import dataclass

import numpy as np

from sweepcp.config.space import Point, Range
from sweepcp.runs.front import score_matrix
from sweepcp.runs.run_folder import Run


@dataclass(frozen=True)
class Trend:
    """A quadratic with all cross terms in the axes' own scales (0..1 from low to high), fitted by least squares."""

    axes: dict[str, Range]
    """The searched ranges, in the order of the features."""
    coefficients: np.ndarray
    """Shape (features, 2): of `domain` and of `general`, in %."""
    predictive: tuple[float, float]
    """Leave-one-out R² of the two: 1 is perfect, 0 as good as their mean, below 0 worse."""
    trials: int

    def along(self, name: str, at: Point, count: int = 60) -> tuple[list[float], np.ndarray]:
        """Values of the axis `name`, the others as they are `at` a point, and the scores there, (count, 2), in %."""
        units = np.tile(
            [axis.to_unit(float(at[key])) for key, axis in self.axes.items()], (count, 1)
        )
        column = list(self.axes).index(name)
        units[:, column] = np.linspace(0, 1, count)
        values = [self.axes[name].from_unit(unit) for unit in units[:, column].tolist()]
        return values, _features(units) @ self.coefficients


def fit_trend(run: Run) -> Trend | None:
    """The trend of the done trials; None unless there are four more of them than the quadratic has terms.

    The leave-one-out residual of a linear fit is its residual over one minus its leverage (Allen, The relationship
    between variable selection and data augmentation, Technometrics 16, 1974). Axes with choices are left out.
    """
    axes = {name: axis for name, axis in run.experiment.space.axes.items() if isinstance(axis, Range)}
    done = run.done
    units = np.array(
        [[axis.to_unit(float(t.point[name])) for name, axis in axes.items()] for t in done]
    )
    if not axes or len(done) < (len(axes) + 1) * (len(axes) + 2) // 2 + 4:
        return None
    features, values = _features(units), score_matrix(done)
    coefficients, _, rank, _ = np.linalg.lstsq(features, values, rcond=None)
    leverage = np.square(np.linalg.qr(features)[0]).sum(axis=1)
    if rank < features.shape[1] or leverage.max() > 1 - 1e-9:  # the trials do not determine it
        return None
    left_out = (values - features @ coefficients) / (1 - leverage)[:, None]
    spread = np.square(values - values.mean(axis=0)).sum(axis=0)
    domain, general = (1 - np.square(left_out).sum(axis=0) / spread).tolist()
    return Trend(
        axes=axes, coefficients=coefficients, predictive=(domain, general), trials=len(done)
    )


def _features(units: np.ndarray) -> np.ndarray:
    """1, every axis, and every product of two, of shape (n, axes) → (n, features)."""
    n, axes = units.shape
    products = [units[:, i] * units[:, j] for i in range(axes) for j in range(i, axes)]
    return np.column_stack([np.ones(n), units, *products])
