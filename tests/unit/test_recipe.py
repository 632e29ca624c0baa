import pytest
from pydantic import ValidationError

from sweepcp.config.recipe import Mixture, Recipe, SourceShare, nearest_multiple
from tests.make import mixture, recipe


def test_shares_by_role_and_language():
    mixed = Mixture(
        portions=(
            SourceShare(source="a", role="domain", language="en", share=0.4),
            SourceShare(source="b", role="general", language="en", share=0.45),
            SourceShare(source="c", role="general", language="de", share=0.15),
        )
    )
    assert mixed.share("domain") == pytest.approx(0.4)
    assert mixed.share("general") == pytest.approx(0.6)
    assert mixed.non_english_share == pytest.approx(0.25)
    assert mixture(0.0).non_english_share == 0.0


def test_a_mixture_that_does_not_sum_to_one_is_refused():
    with pytest.raises(ValidationError, match=r"sum to 1, these sum to 0\.9"):
        Mixture(portions=(SourceShare(source="a", role="domain", language="en", share=0.9),))


def test_id_depends_on_every_field_and_survives_a_file():
    first = recipe()
    assert Recipe.model_validate_json(first.model_dump_json()) == first
    assert Recipe.model_validate_json(first.model_dump_json()).id == first.id
    changes: list[dict[str, object]] = [
        {"lr_fraction": 0.2},
        {"mixture": mixture(0.4)},
        {"seed": 1},
        {"warmup": 0.2},
        {"warmup_steps": 1},
        {"min_lr": 1e-5},
        {"epsilon": 1e-7},
        {"schedule": "wsd-1-sqrt"},
        {"cross_documents": True},
    ]
    ids = {first.id} | {recipe(**change).id for change in changes}
    assert len(ids) == len(changes) + 1


def test_id_is_the_same_in_every_version():
    """Fields that came later have no part in it where they have their default."""
    assert recipe().id == "b42b00abc4bdc2d7"
    assert recipe(warmup_steps=None, min_lr=None, epsilon=1e-8).id == "b42b00abc4bdc2d7"
    later = {"warmup_steps", "min_lr", "epsilon"}
    assert not later & recipe().model_dump(mode="json").keys()
    assert later <= recipe(warmup_steps=2, min_lr=1e-6, epsilon=1e-6).model_dump().keys()


def test_absolute_numbers_stand_in_place_of_relative_ones_and_survive_a_file():
    made = recipe(warmup_steps=2, min_lr=1e-5, epsilon=1e-6)
    assert (made.warmup, made.final_fraction) == (None, None)
    assert (made.warmup_steps, made.min_lr, made.epsilon) == (2, 1e-5, 1e-6)
    assert Recipe.model_validate_json(made.model_dump_json()) == made
    assert (recipe().warmup, recipe(warmup_steps=2).final_fraction) == (0.1, 0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 81}, "use 80"),
        ({"batch_tokens": 10}, "use 8"),
        ({"lr_fraction": 0.0}, "greater than 0"),
        ({"seq_len": 1}, "greater than or equal to 2"),
        ({"warmup": 0.1, "warmup_steps": 2}, "warmup and warmup_steps exclude each other"),
        ({"final_fraction": 0.1, "min_lr": 1e-5}, "final_fraction and min_lr exclude each other"),
        ({"warmup": None}, "warmup or warmup_steps is stated"),
        ({"warmup_steps": 10}, "10 is not below the 10 steps"),
        ({"warmup_steps": 0}, "greater than or equal to 1"),
        ({"min_lr": 0.0}, "greater than 0"),
        ({"epsilon": 0.0}, "greater than 0"),
    ],
)
def test_an_invalid_recipe_is_refused_with_the_fix(changes: dict[str, object], message: str):
    with pytest.raises(ValidationError, match=message):
        recipe(**changes)


def test_steps_and_sequences():
    assert (recipe().steps, recipe().sequences) == (10, 2)


@pytest.mark.parametrize(
    ("warmup", "decay", "expected"),
    [
        (0.2, 0.3, (2, 3)),
        # 2.4 and 2.6 of ten steps are rounded to the nearest.
        (0.24, 0.26, (2, 3)),
        (0.26, 0.24, (3, 2)),
        (0.0, 0.0, (0, 0)),
        # The warmup takes eight steps, so two are left to fall.
        (0.8, 0.5, (8, 2)),
    ],
)
def test_steps_of_warmup_and_decay_are_those_of_the_learning_rate(
    warmup: float, decay: float, expected: tuple[int, int]
):
    made = recipe(schedule="wsd", warmup=warmup, decay=decay, final_fraction=0.5, lr_fraction=1.0)
    assert (made.warmup_length, made.decay_steps) == expected
    lr = [made.lr(step, max_lr=1.0) for step in range(1, 11)]
    warmup_steps, decay_steps = expected
    assert lr[:warmup_steps] == [step / warmup_steps for step in range(1, warmup_steps + 1)]
    falling = [1 - 0.5 * step / decay_steps for step in range(1, decay_steps + 1)]
    assert lr[10 - decay_steps :] == pytest.approx(falling)
    assert set(lr[warmup_steps : 10 - decay_steps]) <= {1.0}


def test_the_nearest_multiple_is_at_least_one():
    assert [nearest_multiple(value, unit=8) for value in (1, 11, 13, 80)] == [8, 8, 16, 80]
