"""When a full run is rolled back or raises an alarm, and what its loss is compared with."""

import pytest

from sweepcp.config.target import SpikeRollback
from sweepcp.errors import Diverged
from sweepcp.full_run.run_log import proxy_loss
from sweepcp.full_run.watch import check_spike, regression_alarm


def spikes() -> SpikeRollback:
    return SpikeRollback(factor=2.0, window=4)


def test_a_spike_is_measured_against_the_median():
    """The median of 1, 1, 1 and 9 is 1, so 2.1 is a spike, although 9 was larger."""
    recent = (1.0, 9.0, 1.0, 1.0)
    with pytest.raises(Diverged, match=r"step 5: loss 2.1000, 2.10 times the median"):
        check_spike(5, 2.1, recent, spikes())
    assert check_spike(5, 2.0, recent, spikes()) == (9.0, 1.0, 1.0, 2.0)
    # The median of 1, 2, 4 and 8 is 3: neither the smallest, the largest nor the mean (3.75).
    assert check_spike(5, 6.0, (8.0, 1.0, 4.0, 2.0), spikes()) == (1.0, 4.0, 2.0, 6.0)
    with pytest.raises(Diverged, match=r"2\.03 times"):
        check_spike(5, 6.1, (8.0, 1.0, 4.0, 2.0), spikes())


def test_nothing_is_a_spike_before_the_window_is_full_or_without_the_setting():
    assert check_spike(4, 99.0, (1.0, 1.0, 1.0), spikes()) == (1.0, 1.0, 1.0, 99.0)
    assert check_spike(5, 99.0, (1.0, 1.0, 1.0, 1.0), None) == ()


def test_only_a_regression_beyond_the_bound_is_an_alarm():
    assert regression_alarm(3, -1.01, 1.0) == (
        "step 3: held-out general -1.01 %, the bound is -1 %"
    )
    for general, bound in ((-1.0, 1.0), (5.0, 1.0), (0.0, 0.0), (-99.0, None)):
        assert regression_alarm(3, general, bound) == ""
    assert regression_alarm(3, -0.01, 0.0)


@pytest.mark.parametrize(
    ("proxy_steps", "expected"),
    [
        (5, {1: 1, 4: 1, 5: 2, 8: 2, 9: 3, 17: 5, 20: 5}),
        (20, {1: 1, 7: 7, 20: 20}),
        (40, {1: 2, 10: 20, 20: 40}),
        (30, {1: 2, 2: 3, 3: 5, 20: 30}),
    ],
)
def test_the_proxys_loss_is_that_at_the_same_fraction_of_its_run(proxy_steps, expected):
    losses = tuple(float(step) for step in range(1, proxy_steps + 1))
    assert {step: proxy_loss(losses, step, steps=20) for step in expected} == expected
