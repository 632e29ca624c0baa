"""Comparison of a trainer's facts and settings with those of the recipe."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweepcp.config.schedule import lr_factor
from sweepcp.export.recipe_facts import (
    FACTS,
    MIX_NOT_WRITTEN,
    compare_facts,
    compare_settings,
    is_same,
    is_same_lr,
    recipe_facts,
)
from tests.exports import promoted


def curve(steps=100, schedule="cosine", warmup=0.1, final=0.1, shift=0):
    """Return the LR of each step, `shift` steps late."""

    def lr(step):
        if step < 1:
            return lr_before(warmup)
        return lr_factor(
            step, steps=steps, schedule=schedule, warmup=warmup, final=final, decay=0.2
        )

    return [lr(step - shift) for step in range(1, steps + 1)]


def lr_before(warmup):
    return 0.0 if warmup else 1.0


def expected_curve(steps=100, schedule="cosine", warmup=0.1, final=0.1):
    return [lr_before(warmup), *curve(steps, schedule, warmup, final)]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
def test_a_curve_one_step_late_agrees_and_one_two_steps_late_does_not(schedule):
    expected = expected_curve(schedule=schedule)
    assert is_same_lr(expected=expected, parsed=curve(schedule=schedule)) == (True, "area +0.0000%")
    assert is_same_lr(expected=expected, parsed=curve(schedule=schedule, shift=1))[0]
    assert not is_same_lr(expected=expected, parsed=curve(schedule=schedule, shift=2))[0]
    no_warmup = expected_curve(schedule=schedule, warmup=0)
    assert is_same_lr(expected=no_warmup, parsed=curve(schedule=schedule, warmup=0, shift=1))[0]
    assert not is_same_lr(
        expected=no_warmup, parsed=[0.0, *curve(schedule=schedule, warmup=0)[1:]]
    )[0]


@pytest.mark.parametrize(
    "parsed",
    [
        curve(final=0.15),
        curve(warmup=0.13),
        curve(schedule="linear"),
        [1.01 * lr for lr in curve()],
        [*curve()[:99], 0.0],
        [*curve()[:49], math.nan, *curve()[50:]],
        curve()[:99],
    ],
    ids=["final", "warmup", "schedule", "peak", "last", "nan", "short"],
)
def test_other_curves_do_not_agree(parsed):
    agrees, detail = is_same_lr(expected=expected_curve(), parsed=parsed)
    assert not agrees
    assert detail


def test_the_first_step_that_differs_is_named():
    parsed = curve()
    parsed[40] *= 1.2
    assert is_same_lr(expected=expected_curve(), parsed=parsed)[1].startswith("step 41: 0.7")


@given(
    st.integers(20, 300),
    st.sampled_from(["cosine", "linear", "wsd"]),
    st.floats(0.02, 0.3),
    st.floats(0, 0.5),
)
def test_agreement_does_not_depend_on_the_length(steps, schedule, warmup, final):
    expected = expected_curve(steps, schedule, warmup, final)
    assert is_same_lr(expected=expected, parsed=curve(steps, schedule, warmup, final, shift=1))[0]
    assert not is_same_lr(expected=expected, parsed=[1.01 * lr for lr in expected[1:]])[0]


def test_same_values_have_the_same_type():
    assert is_same(1, 1.0)
    assert is_same(0.1 + 0.2, 0.3)
    assert not is_same(True, 1)
    assert not is_same("1", 1)
    assert not is_same(1e-8, 1.0001e-8)
    assert is_same({"a": [1, 2.0]}, {"a": [1, 2]})
    assert not is_same({"a": 1}, {"a": 1, "b": 2})
    assert not is_same([1, 2], [1])
    assert not is_same(None, False)


def test_every_fact_is_compared_and_a_missing_one_disagrees(tmp_path):
    expected = recipe_facts(promoted(tmp_path, "llama-3.1-8b-4x8").bundle)
    assert expected.keys() == FACTS.keys()
    parsed = expected | {"lr": expected["lr"][1:]}
    assert all(f.agrees for f in compare_facts(expected=expected, parsed=parsed))
    for name in FACTS:
        others = {key: value for key, value in parsed.items() if key != name}
        findings = compare_facts(expected=expected, parsed=others)
        assert [f.name for f in findings if f.agrees is False] == [name]


def test_shares_of_a_mix_that_is_not_written_are_pending(tmp_path):
    expected = recipe_facts(promoted(tmp_path, "llama-3.1-8b-4x8").bundle)
    parsed = expected | {"lr": expected["lr"][1:], "shares": MIX_NOT_WRITTEN}
    (pending,) = (f for f in compare_facts(expected=expected, parsed=parsed) if not f.agrees)
    assert (pending.name, pending.agrees) == ("shares", None)


def test_a_setting_that_was_not_parsed_disagrees():
    (same,) = compare_settings(written={"a": 1}, parsed={"a": 1})
    assert same.agrees
    (missing,) = compare_settings(written={"a": 1}, parsed={})
    assert (missing.name, missing.agrees) == ("setting a", False)


def test_facts_of_e_llama(tmp_path):
    """85,000 steps of 11,796,480 tokens, max LR a tenth of 1.5e-4, 1:1, as in the paper."""
    facts = recipe_facts(promoted(tmp_path, "llama-3.1-70b-60x8").bundle)
    assert (facts["steps"], facts["batch"], len(facts["lr"])) == (85_000, 11_796_480, 85_001)
    assert max(facts["lr"]) == pytest.approx(1.5e-5, rel=1e-12)
    assert facts["lr"][-1] == pytest.approx(1.5e-6, rel=1e-12)
    domain = [share for source, share in facts["shares"].items() if not source.startswith("web")]
    assert math.fsum(domain) == pytest.approx(0.5)
