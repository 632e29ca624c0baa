"""Numbers of steps and learning rates of an experiment, against the trials that they belong to."""

from types import SimpleNamespace

import pytest

from sweepcp.config.recipe import Recipe
from sweepcp.config.space import Point
from sweepcp.corpora.experiment import load_experiment
from sweepcp.errors import InvalidInput
from sweepcp.search.plan import make_plan
from sweepcp.training.pretraining import pretraining_recipe
from tests.make import experiment

NO_WARMUP, NO_FRACTION = "training.warmup=null", "training.final_fraction=null"
"""The quickstart states both. Its trials have 100 steps, its base 1,300; the lowest max LR of its
trials is 0.01 of 3e-3."""


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.warmup_steps=10"], "warmup and warmup_steps exclude each other"),
        (["training.min_lr=1e-6"], "final_fraction and min_lr exclude each other"),
        ([NO_WARMUP], "warmup or warmup_steps is stated"),
        (
            [NO_WARMUP, "training.warmup_steps=100"],
            r"training\.warmup_steps\n  found: 100\n  rule:  fewer steps .* which are 100 ",
        ),
        (
            ["space.warmup_steps={low: 1, high: 100}"],
            r"space\.warmup_steps\n  found: 100.0\n  rule:  fewer steps .* which are 100 ",
        ),
        (
            ["base.pretrain.training.warmup=null", "base.pretrain.training.warmup_steps=1300"],
            r"base\.pretrain\.training\.warmup_steps\n  found: 1300\n  rule:  .* are 1,300 ",
        ),
        (
            [NO_FRACTION, "training.min_lr=3.1e-5"],
            r"training\.min_lr\n  found: 3.1e-05\n  rule:  at most the lowest max LR, 3e-05 ",
        ),
        (
            ["space.min_lr={choices: [1e-6, 4e-5]}"],
            r"space\.min_lr\n  found: 4e-05\n  rule:  at most the lowest max LR, 3e-05 ",
        ),
        (
            ["base.pretrain.training.min_lr=3.1e-3"],
            r"base\.pretrain\.training\.min_lr\n  found: 0.0031\n .* 0\.003 \(lr_fraction 1 of",
        ),
        (
            [NO_WARMUP, "training.warmup_steps=9", "space.warmup={low: 0, high: 0.2}"],
            r"training\.warmup_steps\n  found: 9\n  rule:  none beside an axis .* over warmup",
        ),
        (
            [NO_FRACTION, "training.min_lr=1e-6", "space.final_fraction={choices: [0.1]}"],
            r"training\.min_lr\n  found: 1e-06\n  rule:  none beside an axis .* final_fraction",
        ),
    ],
)
def test_numbers_that_no_trial_can_have_are_refused(overrides: list[str], message: str):
    with pytest.raises(InvalidInput, match=message):
        experiment("space.anchors=[]", *overrides)


def test_numbers_at_their_limits_are_taken():
    """The last of 99 steps of warmup is the peak; an end at the lowest max LR is one of it all."""
    made = experiment(
        *(NO_WARMUP, "training.warmup_steps=99", NO_FRACTION, "training.min_lr=3e-5"),
        "base.pretrain.training.min_lr=3e-3",
    )
    assert (made.training.warmup_steps, made.training.min_lr) == (99, 3e-5)
    assert (made.training.warmup, made.training.final_fraction) == (None, None)


def test_the_curve_of_a_plan_is_that_of_absolute_numbers():
    """Of 480 steps: a tenth of 3e-4, reached at step 8, and 1e-6 at the end."""
    overrides = (
        "space={lr_fraction: {choices: [0.1]}, general_share: {choices: [0.5]}}",
        *(NO_WARMUP, "training.warmup_steps=8", NO_FRACTION, "training.min_lr=1e-6"),
        "training.schedule=linear",
    )
    curve = dict(make_plan(*load_experiment("e-llama", overrides)).lr_curve())
    assert {1, 8, 9, 240, 480} <= curve.keys()
    assert curve[1] == pytest.approx(3e-5 / 8)
    assert curve[8] == pytest.approx(3e-5)
    # 232 of the 472 steps after the warmup.
    assert curve[240] == pytest.approx(3e-5 - (3e-5 - 1e-6) * 232 / 472)
    assert curve[480] == pytest.approx(1e-6)


def test_an_experiment_with_absolute_numbers_survives_its_record():
    """Of the experiment of a run folder, and of the report's text without empty keys."""
    overrides = (NO_WARMUP, "training.warmup_steps=8", "training.epsilon=1e-6")
    made = experiment(*overrides, "space.min_lr={low: 1e-7, high: 1e-5}", "space.anchors=[]")
    content = made.model_dump_json()
    assert type(made).model_validate_json(content) == made
    assert type(made).model_validate_json(made.model_dump_json(exclude_none=True)) == made
    point: Point = {"lr_fraction": 0.5, "general_share": 0.5, "min_lr": 2e-6}
    recipe = made.recipe_at(point, {"python-docs": 1.0, "python-code": 1.0})
    assert isinstance(recipe, Recipe)
    assert (recipe.warmup_steps, recipe.min_lr, recipe.epsilon) == (8, 2e-6, 1e-6)
    assert recipe.lr(100, max_lr=3e-3) == pytest.approx(2e-6)


def test_a_small_base_is_pretrained_with_absolute_numbers():
    """Of 1,300 steps: 20 of warmup to the max LR itself."""
    prefix = "base.pretrain.training"
    made = experiment(f"{prefix}.warmup=null", f"{prefix}.warmup_steps=20", f"{prefix}.min_lr=1e-5")
    assert made.base.pretrain is not None
    stores = [SimpleNamespace(source="python-docs")]
    recipe = pretraining_recipe(made.base.pretrain, stores)  # type: ignore[arg-type]
    lr = [recipe.lr(step, max_lr=made.base.max_lr) for step in (1, 20, 1300)]
    assert lr == pytest.approx([3e-3 / 20, 3e-3, 1e-5])
