import math
from typing import Any, Literal

import pytest

from sweepcp.config.schedule import lr_factor
from tests.make import recipe


def curve(schedule: str, **changes: float) -> list[float]:
    settings: dict[str, Any] = {"warmup_steps": 10, "final": 0.1, "decay_steps": 20} | changes
    settings |= {"steps": 100, "schedule": schedule}
    return [lr_factor(step, **settings) for step in range(1, 101)]


def curve_at(step: int) -> float:
    return lr_factor(step, steps=100, schedule="cosine", warmup_steps=10, decay_steps=0, final=0.1)


def test_cosine_is_what_the_formula_gives_by_hand():
    lr = curve("cosine")
    assert lr[0] == pytest.approx(0.1)
    assert lr[1] == pytest.approx(0.2)
    assert lr[9] == 1.0
    assert lr[10] == pytest.approx(0.9997258721585931, abs=1e-15)  # 0.1 + 0.9 · (1 + cos(π/90)) / 2
    assert lr[54] == pytest.approx(0.55)  # half way down
    assert lr[99] == pytest.approx(0.1, abs=1e-15)


def test_wsd_holds_then_falls_over_its_last_fifth():
    lr = curve("wsd")
    assert set(lr[9:80]) == {1.0}
    assert lr[80] == pytest.approx(0.1 + 0.9 * 19 / 20)
    assert lr[99] == pytest.approx(0.1)


def test_one_minus_sqrt_is_what_the_formula_gives_by_hand():
    """Hägele et al. 2024, arXiv 2405.18392: 1 − √((n − (N − D)) / D), scaled to end at a tenth."""
    lr = curve("wsd-1-sqrt")
    assert set(lr[9:80]) == {1.0}
    # 1, 5, 10 and 20 steps into the fall: 1 − √0.05, 1 − √0.25, 1 − √0.5 and 1 − √1.
    assert lr[80] == pytest.approx(0.1 + 0.9 * 0.7763932022500211, abs=1e-12)
    assert lr[84] == pytest.approx(0.1 + 0.9 * 0.5, abs=1e-12)
    assert lr[89] == pytest.approx(0.1 + 0.9 * 0.2928932188134524, abs=1e-12)
    assert lr[99] == 0.1
    assert lr[80:] == sorted(lr[80:], reverse=True)
    assert curve("wsd-1-sqrt", final=0.0)[99] == 0.0


def test_linear_and_constant():
    assert curve("linear")[54] == pytest.approx(0.55)
    assert curve("linear")[99] == pytest.approx(0.1)
    assert set(curve("constant")[9:]) == {1.0}


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "wsd-1-sqrt", "linear", "constant"])
@pytest.mark.parametrize("warmup_steps", [0, 1, 50])
def test_first_step_moves_and_last_step_ends(schedule: str, warmup_steps: int):
    lr = curve(schedule, warmup_steps=warmup_steps, final=0.25)
    assert lr[0] > 0
    assert max(lr) == 1.0 or warmup_steps == 0
    assert all(0 < x <= 1 for x in lr)
    if schedule != "constant":
        assert lr[-1] == pytest.approx(0.25)


@pytest.mark.parametrize(("warmup", "steps"), [(0.24, 2), (0.26, 3), (0.0, 1)])
def test_warmup_is_rounded_to_the_nearest_step(warmup: float, steps: int):
    """2.4 and 2.6 of ten steps."""
    made = recipe(schedule="constant", warmup=warmup, lr_fraction=1.0)
    lr = [made.lr(step, max_lr=1.0) for step in range(1, 5)]
    assert lr == [min(1.0, step / steps) for step in range(1, 5)]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # Half of the way down from 1e-3 to 2e-5, at the sixth of eight steps after the warmup.
        ("cosine", {1: 5e-4, 2: 1e-3, 6: 5.1e-4, 10: 2e-5}),
        ("linear", {1: 5e-4, 2: 1e-3, 6: 5.1e-4, 10: 2e-5}),
        # The last two steps fall: 1 − √(1/2) of the way from the end.
        ("wsd-1-sqrt", {1: 5e-4, 2: 1e-3, 8: 1e-3, 9: 2e-5 + 9.8e-4 * (1 - 0.5**0.5), 10: 2e-5}),
        ("constant", {1: 5e-4, 2: 1e-3, 6: 1e-3, 10: 1e-3}),
    ],
)
def test_steps_of_warmup_and_a_minimum_lr_are_met_as_they_are(
    schedule: str, expected: dict[int, float]
):
    """A tenth of 1e-2 at the peak; the first step is not 0, the last one is the minimum."""
    made = recipe(schedule=schedule, warmup_steps=2, min_lr=2e-5, lr_fraction=0.1)
    lr = {step: made.lr(step, max_lr=1e-2) for step in expected}
    assert lr == pytest.approx(expected, rel=1e-12)
    # At twice the length, half of the max LR: the same steps of warmup and the same end.
    other = recipe(schedule=schedule, warmup_steps=2, min_lr=2e-5, lr_fraction=0.05, tokens=160)
    assert other.lr(1, max_lr=1e-2) == pytest.approx(2.5e-4)
    assert other.lr(2, max_lr=1e-2) == pytest.approx(5e-4)
    assert other.lr(20, max_lr=1e-2) == pytest.approx(5e-4 if schedule == "constant" else 2e-5)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_run_of_warmup_alone_ends_at_its_final_rate(schedule: Literal["cosine", "linear"]):
    settings: dict[str, Any] = {"steps": 10, "warmup_steps": 10, "final": 0.25, "decay_steps": 0}
    lr = [lr_factor(step, schedule=schedule, **settings) for step in (9, 10)]
    assert lr == pytest.approx([0.9, 0.25])


def test_steps_outside_the_run_are_refused():
    for step in (0, 101):
        with pytest.raises(ValueError, match="not within 1 to 100"):
            curve_at(step)


def test_recipe_scales_the_curve_by_its_fraction_of_the_max_lr():
    scaled = recipe(lr_fraction=0.1, warmup=0.1, final_fraction=0.1)
    assert scaled.steps == 10
    assert scaled.lr(1, max_lr=3e-3) == pytest.approx(3e-4)
    assert scaled.lr(10, max_lr=3e-3) == pytest.approx(3e-5)
    assert math.isclose(
        scaled.lr(2, max_lr=3e-3), 3e-4 * (0.1 + 0.9 * (1 + math.cos(math.pi / 9)) / 2)
    )
