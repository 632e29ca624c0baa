"""Comparison of a trainer's facts and settings with those of the recipe."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweepcp.config.schedule import lr_factor
from sweepcp.export.recipe_facts import (
    FACTS,
    MIX_NOT_WRITTEN,
    Finding,
    compare_facts,
    compare_settings,
    is_same,
    is_same_lr,
    recipe_facts,
)
from sweepcp.export.verify import Verification, compare_parsed
from sweepcp.export.write import TRAINERS
from tests.exports import make_input, promoted, promoted_short

AGREEMENTS = (("steps", True), ("clip", False), ("shares", None))


def curve(steps=100, schedule="cosine", warmup=0.1, final=0.1, shift=0):
    """Return the LR of each step, `shift` steps late."""

    def lr(step):
        if step < 1:
            return lr_before(warmup)
        return lr_factor(
            step,
            steps=steps,
            schedule=schedule,
            warmup_steps=round(warmup * steps),
            final=final,
            decay_steps=min(round(0.2 * steps), steps - round(warmup * steps)),
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


def test_a_curve_that_is_always_the_lower_of_its_neighbours_does_not_agree():
    """It loses a step at max LR in the warmup, and nine tenths of one in the decay."""
    expected = expected_curve()
    lower = [min(expected[step - 1 : step + 2]) for step in range(1, 101)]
    agrees, detail = is_same_lr(expected=expected, parsed=lower)
    assert (agrees, detail.startswith("area -")) == (False, True)


def test_shares_agree_within_a_thousandth(tmp_path):
    expected = recipe_facts(promoted_short(tmp_path).bundle)
    first, second, *_ = expected["shares"]

    def agrees(shares):
        parsed = expected | {"lr": expected["lr"][1:], "shares": shares}
        findings = {f.name: f.agrees for f in compare_facts(expected=expected, parsed=parsed)}
        assert all(agrees for name, agrees in findings.items() if name != "shares")
        return findings["shares"]

    for difference, is_same_share in ((0.0009, True), (0.0011, False), (-0.0011, False)):
        shares = dict(expected["shares"])
        shares[first] += difference
        shares[second] -= difference
        assert agrees(shares) is is_same_share
    assert agrees(expected["shares"] | {"more": 0.0}) is False


def test_a_verification_passes_if_the_trainer_deviates_exactly_where_it_is_stated():
    same, other, pending = (Finding(name, agrees, "") for name, agrees in AGREEMENTS)
    for findings, differences, passed in (
        ((same,), (), True),
        ((same, other), (), False),
        ((same, other), ("clip",), True),
        # One stated difference does not excuse another one.
        ((same, other), ("seed",), False),
        ((same, pending), (), True),
        # The trainer agrees where a difference is stated.
        ((same, other), ("clip", "steps"), False),
        # What is pending neither agrees nor deviates.
        ((same, pending), ("shares",), True),
    ):
        verification = Verification("peer", findings, differences)
        assert verification.passed is passed
        assert bool(verification.problems) is not passed
        assert verification.pending == tuple(f for f in findings if f is pending)


def test_a_setting_that_was_parsed_otherwise_is_no_verified_export(tmp_path):
    export_input = make_input(promoted_short(tmp_path), tmp_path / "out")
    plan = TRAINERS["hf-trainer"].make_export_plan(export_input)
    facts = recipe_facts(export_input.bundle)
    content = {"facts": facts | {"lr": facts["lr"][1:]}, "settings": dict(plan.settings)}
    assert compare_parsed(export_input, plan, peer="peer", content=content).passed
    content["settings"]["adam_beta2"] = 0.999
    verification = compare_parsed(export_input, plan, peer="peer", content=content)
    assert [finding.name for finding in verification.mismatches] == ["setting adam_beta2"]
    content = {"facts": content["facts"] | {"seed": 3}, "settings": plan.settings}
    verification = compare_parsed(export_input, plan, peer="peer", content=content)
    assert [finding.name for finding in verification.mismatches] == ["seed"]
    assert not compare_parsed(export_input, plan, peer="peer", content={"error": "no"}).passed


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
