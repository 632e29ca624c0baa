import math
from typing import Any, Literal

import pytest

from sweepcp.config.schedule import lr_factor
from tests.make import recipe


def curve(schedule: str, **changes: float) -> list[float]:
    settings: dict[str, Any] = {"warmup": 0.1, "final": 0.1, "decay": 0.2} | changes
    settings |= {"steps": 100, "schedule": schedule}
    return [lr_factor(step, **settings) for step in range(1, 101)]


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


def test_linear_and_constant():
    assert curve("linear")[54] == pytest.approx(0.55)
    assert curve("linear")[99] == pytest.approx(0.1)
    assert set(curve("constant")[9:]) == {1.0}


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.01, 0.5])
def test_first_step_moves_and_last_step_ends(schedule: str, warmup: float):
    lr = curve(schedule, warmup=warmup, final=0.25)
    assert lr[0] > 0
    assert max(lr) == 1.0 or warmup == 0.0
    assert all(0 < x <= 1 for x in lr)
    if schedule != "constant":
        assert lr[-1] == pytest.approx(0.25)


@pytest.mark.parametrize(("warmup", "steps"), [(0.24, 2), (0.26, 3), (0.0, 1)])
def test_warmup_is_rounded_to_the_nearest_step(warmup: float, steps: int):
    """2.4 and 2.6 of ten steps."""
    settings: dict[str, Any] = {"steps": 10, "schedule": "constant", "final": 0.1, "decay": 0.2}
    lr = [lr_factor(step, warmup=warmup, **settings) for step in range(1, 5)]
    assert lr == [min(1.0, step / steps) for step in range(1, 5)]


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_run_of_warmup_alone_ends_at_its_final_rate(schedule: Literal["cosine", "linear"]):
    settings: dict[str, Any] = {"steps": 10, "warmup": 0.96, "final": 0.25, "decay": 0.2}
    lr = [lr_factor(step, schedule=schedule, **settings) for step in (9, 10)]
    assert lr == pytest.approx([0.9, 0.25])


def test_steps_outside_the_run_are_refused():
    for step in (0, 101):
        with pytest.raises(ValueError, match="not within 1 to 100"):
            lr_factor(step, steps=100, schedule="cosine", warmup=0.1, final=0.1, decay=0.2)


def test_recipe_scales_the_curve_by_its_fraction_of_the_max_lr():
    scaled = recipe(lr_fraction=0.1, warmup=0.1, final_fraction=0.1)
    assert scaled.steps == 10
    assert scaled.lr(1, max_lr=3e-3) == pytest.approx(3e-4)
    assert scaled.lr(10, max_lr=3e-3) == pytest.approx(3e-5)
    assert math.isclose(
        scaled.lr(2, max_lr=3e-3), 3e-4 * (0.1 + 0.9 * (1 + math.cos(math.pi / 9)) / 2)
    )
