import json
import math
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sweepcp.config.recipe import TrainingSettings
from sweepcp.config.space import (
    Choices,
    Range,
    Space,
    WeightedSource,
    mixture_from_weights,
    recipe_at,
)

SOURCES = [
    WeightedSource(name="code", role="domain", language="python", weight=30),
    WeightedSource(name="reviews", role="domain", language="en", weight=10),
    WeightedSource(name="web", role="general", language="en", weight=2),
    WeightedSource(name="netz", role="general", language="de", weight=3),
    WeightedSource(name="toile", role="general", language="fr", weight=1),
]


def shares(general_share: float, non_english_share: float | None = None) -> dict[str, float]:
    mixture = mixture_from_weights(
        SOURCES, general_share=general_share, non_english_share=non_english_share
    )
    return {portion.source: portion.share for portion in mixture.portions}


def test_a_role_is_split_by_weight():
    expected = {"code": 0.45, "reviews": 0.15, "web": 0.4 * 2 / 6, "netz": 0.2, "toile": 0.4 / 6}
    assert shares(0.4) == pytest.approx(expected)


def test_the_general_half_is_first_split_by_language():
    expected = {"code": 0.375, "reviews": 0.125, "web": 0.45, "netz": 0.0375, "toile": 0.0125}
    assert shares(0.5, 0.1) == pytest.approx(expected)


def test_all_domain_and_all_general_are_exact():
    assert shares(0.0)["web"] == 0.0
    assert shares(1.0)["code"] == 0.0


def test_a_share_without_a_source_is_refused():
    with pytest.raises(ValueError, match=r"a share of 0\.5 has no source"):
        mixture_from_weights(SOURCES[:2], general_share=0.5)


@pytest.mark.parametrize("scale", ["linear", "log", "sqrt"])
@given(unit=st.floats(0, 1))
def test_a_scale_and_its_inverse_round_trip(scale: str, unit: float):
    axis = Range(low=0.01, high=1.0, scale=scale)  # type: ignore[arg-type]
    value = axis.from_unit(unit)
    assert axis.low <= value <= axis.high
    assert axis.to_unit(value) == pytest.approx(unit, abs=1e-9)


def test_ends_of_a_range_are_exact_and_zero_is_reached():
    axis = Range(low=0.0, high=1.0, scale="sqrt")
    assert (axis.from_unit(0.0), axis.from_unit(1.0)) == (0.0, 1.0)
    assert axis.to_unit(0.01) == pytest.approx(0.1)
    assert axis.to_unit(0.05) == pytest.approx(0.2236, abs=1e-4)
    axis = Range(low=0.01, high=1.0, scale="log")
    assert axis.from_unit(0.5) == pytest.approx(0.1)
    assert (axis.from_unit(0.0), axis.from_unit(1.0)) == (0.01, 1.0)


@pytest.mark.parametrize(
    ("scale", "low", "high", "at_end", "inside"),
    [
        # 2 % of the scale: 0.2 of 10; 0.04 of two decades; 0.02 of the square roots 0 to 1.
        ("linear", 0.0, 10.0, (0.0, 0.199, 9.801, 10.0), (0.201, 5.0, 9.799)),
        ("log", 0.01, 1.0, (0.01, 0.01095, 0.9125, 1.0), (0.01097, 0.02, 0.9115)),
        ("sqrt", 0.0, 1.0, (0.0, 0.000399, 0.961, 1.0), (0.000401, 0.02, 0.960)),
    ],
)
def test_the_ends_of_a_range_are_met_on_its_scale(
    scale: Literal["linear", "log", "sqrt"],
    low: float,
    high: float,
    at_end: tuple[float, ...],
    inside: tuple[float, ...],
):
    axis = Range(low=low, high=high, scale=scale)
    assert all(axis.is_at_end(value) for value in at_end)
    assert not any(axis.is_at_end(value) for value in inside)


def test_a_value_that_differs_from_an_end_in_its_last_digit_is_at_the_end():
    axis = Range(low=0.1, high=0.3)
    assert 0.1 + 0.2 != 0.3
    assert axis.is_at_end(0.1 + 0.2)
    assert axis.is_at_end(math.nextafter(0.1, 1))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"lr_fraction": {"low": 1, "high": 0.1}}, "low 1 is below high 0.1"),
        ({"lr_fraction": {"low": 0, "high": 1, "scale": "log"}}, "a log range starts above 0"),
        (
            {"lr_fraction": {"low": -1, "high": 1, "scale": "sqrt"}},
            "a sqrt range starts at 0 or above, not at -1",
        ),
        ({"general_share": {"low": 0, "high": 1.5}}, r"general_share cannot be 1\.5"),
        ({"non_english_share": {"low": 0, "high": 1.5}}, r"non_english_share cannot be 1\.5"),
        ({"lr_fraction": {"low": -0.1, "high": 1}}, r"lr_fraction cannot be -0\.1"),
        ({"schedule": {"choices": ["cosin"]}}, "schedule cannot be 'cosin'"),
        ({"warmup_steps": {"low": 0, "high": 10}}, r"warmup_steps cannot be 0\.0"),
        ({"warmup_steps": {"choices": [2.5]}}, r"warmup_steps cannot be 2\.5: it must be a mult"),
        ({"min_lr": {"low": 0, "high": 1e-5}}, r"min_lr cannot be 0\.0"),
        ({"epsilon": {"choices": [-1e-8]}}, "epsilon cannot be -1e-08"),
        (
            {"warmup": {"low": 0, "high": 0.5}, "warmup_steps": {"choices": [2]}},
            "warmup and warmup_steps exclude each other",
        ),
        ({"anchors": [{"lr_fraction": 0.1}]}, "an anchor names every axis"),
        ({"anchors": [{"lr_fraction": 5.0, "general_share": 0.5}]}, "outside its axis"),
    ],
)
def test_invalid_spaces_are_refused(content: dict[str, object], message: str):
    valid = {"lr_fraction": {"low": 0.01, "high": 1}, "general_share": {"low": 0, "high": 1}}
    with pytest.raises(ValidationError, match=message):
        Space.model_validate_json(json.dumps(valid | content))


def test_a_point_becomes_a_recipe():
    training = TrainingSettings(seq_len=4, batch_tokens=8, warmup=0.3)
    point = {"lr_fraction": 0.2, "general_share": 0.5, "non_english_share": 0.1, "schedule": "wsd"}
    recipe = recipe_at(point, SOURCES, training, tokens=80, seed=7)  # type: ignore[arg-type]
    assert (recipe.lr_fraction, recipe.schedule, recipe.warmup) == (0.2, "wsd", 0.3)
    assert (recipe.seed, recipe.tokens) == (7, 80)
    assert recipe.general_share == pytest.approx(0.5)
    assert recipe.mixture.non_english_share == pytest.approx(0.1)


def test_axes_over_absolute_numbers_stand_in_place_of_relative_ones():
    """Steps are rounded to whole ones; the values that `training` has by default give way."""
    training = TrainingSettings(seq_len=4, batch_tokens=8)
    content = {
        "lr_fraction": {"low": 0.1, "high": 1.0},
        "general_share": {"choices": [0.5]},
        "warmup_steps": {"low": 1, "high": 9, "scale": "log"},
        "min_lr": {"choices": [1e-6, 1e-5]},
        "epsilon": {"low": 1e-10, "high": 1e-6, "scale": "log"},
    }
    space = Space.model_validate_json(json.dumps(content))
    assert (space.bounds("min_lr"), space.bounds("warmup_steps")) == ((1e-6, 1e-5), (1, 9))
    point = {"warmup_steps": 2.6, "min_lr": 1e-5, "epsilon": 1e-7}
    recipe = recipe_at(
        {"lr_fraction": 0.2, "general_share": 0.5, **point}, SOURCES, training, tokens=80, seed=0
    )
    assert (recipe.warmup_steps, recipe.min_lr, recipe.epsilon) == (3, 1e-5, 1e-7)
    assert (recipe.warmup, recipe.final_fraction) == (None, None)
    # An axis over the relative number is one over it still.
    recipe = recipe_at(
        {"lr_fraction": 0.2, "general_share": 0.5, "warmup": 0.4},
        SOURCES,
        training,
        tokens=80,
        seed=0,
    )
    assert (recipe.warmup, recipe.warmup_steps) == (0.4, None)


def test_choices_hold_their_values_only():
    assert Choices(choices=("cosine", "wsd")).includes("wsd")
    assert not Choices(choices=("cosine",)).includes("wsd")
