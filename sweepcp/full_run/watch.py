"""When a full run is rolled back or raises an alarm: spikes of the loss, regression of scores."""

from statistics import median

from sweepcp.config.target import SpikeRollback
from sweepcp.errors import Diverged


def check_spike(
    step: int, loss: float, recent: tuple[float, ...], spikes: SpikeRollback | None
) -> tuple[float, ...]:
    """Return the losses that the next step's is compared with.

    Args:
        step: The step that was taken.
        loss: Its loss.
        recent: The losses of the steps before, the latest last. Nothing is a spike before there are
            as many as the window.
        spikes: What counts as a spike; None if nothing does.

    Raises:
        Diverged: The loss is above `factor` times the median of the last `window` losses.
    """
    if spikes is None:
        return ()
    if len(recent) == spikes.window and loss > spikes.factor * median(recent):
        ratio = loss / median(recent)
        raise Diverged(
            f"step {step}: loss {loss:.4f}, {ratio:.2f} times the median of "
            f"the last {spikes.window} steps",
            step,
        )
    return (*recent, loss)[-spikes.window :]


def regression_alarm(step: int, general: float, max_regression: float | None) -> str:
    """Return an alarm, or an empty string.

    Args:
        step: The step after which the held-out text was scored.
        general: Its change against step 0 in %, negative where the model has become worse.
        max_regression: How many % it may be below 0; None for no bound.
    """
    if max_regression is None or general >= -max_regression:
        return ""
    return f"step {step}: held-out general {general:+.2f} %, the bound is -{max_regression:g} %"
