"""Standard errors, scalars and splits of a scorecard, by hand and by simulation."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sweepcp.errors import InvalidInput
from sweepcp.scoring.jackknife import jackknife_ratio, standard_error
from sweepcp.scoring.scorecard import (
    ItemScores,
    check_splits,
    compare_with_base,
    document_id,
    in_select_split,
    read_items,
    write_items,
)
from tests.make import documents, items

BITS = np.array([8.0, 2.0, 15.0, 40.0, 3.0, 21.0, 9.0, 5.0])
"""They differ between items, as those of real text do."""
BASE: list[float] = BITS.tolist()
FACTORS = np.array([0.9, 1.05, 0.97, 1.2, 0.8, 1.0, 0.95, 1.1])
"""Bits of a trial per bit of the base."""
C2 = math.sqrt(math.pi) / 2
"""c(2) of `standard_error`: √(2 / 2) · Γ(1.5) / Γ(1)."""


def without_document(members: list[ItemScores], deleted: str) -> list[ItemScores]:
    """The members without the items of one document."""
    kept_members = []
    for member in members:
        kept = [index for index, d in enumerate(member.document) if d != deleted]
        columns = {
            name: tuple(getattr(member, name)[index] for index in kept)
            for name in ("document", "amount", "size")
        }
        kept_members.append(member.model_copy(update=columns))
    return kept_members


def test_influences_are_what_changes_without_a_document():
    ratio, influence = jackknife_ratio(np.array([2.0, 6.0, 4.0, 0]), np.array([1.0, 2.0, 3.0, 0]))
    assert ratio == 2.0
    # Without each: 10 / 5, 6 / 4, 8 / 3. The fourth document has no items, so n is 3.
    expected = math.sqrt(2 / 3) * np.array([0, -0.5, 2 / 3, 0])
    assert influence == pytest.approx(expected, abs=1e-15)


def test_standard_error_by_hand():
    # Squares 4, 9, 1: f = 3 · 14² / 98 − 2 = 4, but three documents have 2 degrees of freedom.
    assert standard_error(np.array([-2.0, 3.0, -1.0])) == pytest.approx(math.sqrt(14) / C2)
    # Squares 1, 1, 1, 1, 9: f = 3 · 13² / 85 − 2, below 4. One large influence is little evidence.
    freedom = 3 * 169 / 85 - 2
    c = math.sqrt(2 / freedom) * math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2)
    error = standard_error(np.array([1.0, -1.0, 1.0, -1.0, 3.0]))
    assert error == pytest.approx(math.sqrt(13) / c)
    assert standard_error(np.zeros(5)) == 0
    # A single document that decides has one degree of freedom: c(1) = √2 · Γ(1) / Γ(½).
    assert standard_error(np.array([0.0, 3.0, 0.0])) == pytest.approx(3 / math.sqrt(2 / math.pi))


def test_scalars_by_hand():
    # Split `select` has items 0, 2, 4; split `report` has items 1, 3, 5.
    base = [items("domain", [10, 20, 10, 20, 10, 20]), items("general", [10.0] * 6)]
    after = [items("domain", [9, 16, 9, 16, 9, 16]), items("general", [10, 11, 10.5, 11, 10.1, 11])]
    card = compare_with_base(trial=after, base=base)
    assert card.select.domain == pytest.approx(10.0)
    assert card.select.domain_se == pytest.approx(0.0)
    assert card.report.domain == pytest.approx(20.0)
    assert card.select.general == pytest.approx(-2.0)
    assert card.report.general == pytest.approx(-10.0)
    # The changes of the items are 0, 5 and 1 %: the variance is that of their mean.
    of_mean = np.std([0, 5, 1], ddof=1) / math.sqrt(3)
    assert card.select.general_se == pytest.approx(of_mean / C2)


def test_items_of_one_document_are_one_observation():
    once = compare_with_base(
        trial=[items(role, (BITS * FACTORS).tolist()) for role in ("domain", "general")],
        base=[items(role, BASE) for role in ("domain", "general")],
    )
    ids = tuple(np.repeat(documents("held_out", 8), 5).tolist())

    def repeat(role: str, amount: np.ndarray) -> ItemScores:
        return items(role, np.repeat(amount, 5).tolist(), document=ids)

    repeated = compare_with_base(
        trial=[repeat(role, BITS * FACTORS) for role in ("domain", "general")],
        base=[repeat(role, BITS) for role in ("domain", "general")],
    )
    for split in ("select", "report"):
        one, many = getattr(once, split), getattr(repeated, split)
        assert (many.members[0].items, many.members[0].documents) == (20, 4)
        assert many.domain_se == pytest.approx(one.domain_se)
        for name in ("base_se", "value_se", "change_se"):
            assert getattr(many.members[0], name) == pytest.approx(getattr(one.members[0], name))


def test_error_of_a_scalar_is_the_jackknife_over_documents_of_all_members():
    rng = np.random.default_rng(4)
    owners = rng.integers(0, 12, 60)
    owners[:12] = np.arange(12)
    ids = {
        "held_out": documents("source", 12),
        "cloze": tuple(np.array(documents("source", 12))[owners].tolist()),
    }
    base, trial = [], []
    for role, weight in (("domain", 3.0), ("general", 0.5)):
        for name, owned in ids.items():
            bits = rng.uniform(1, 30, len(owned))
            member = items(
                role,
                bits.tolist(),
                name=name,
                document=owned,
                weight=weight if name == "cloze" else 1.0,
            )
            changed = (bits * rng.normal(0.9, 0.2, len(bits))).tolist()
            base.append(member)
            trial.append(member.model_copy(update={"amount": tuple(changed)}))
    scores = compare_with_base(trial=trial, base=base).report
    differences: dict[str, list[float]] = {"domain": [], "general": []}
    for deleted in ids["held_out"]:
        card = compare_with_base(
            trial=without_document(trial, deleted), base=without_document(base, deleted)
        )
        for role, values in differences.items():
            values.append(getattr(card.report, role) - getattr(scores, role))
    for role, values in differences.items():
        # Six documents are in the half; without one of the other half nothing changes.
        influence = math.sqrt(5 / 6) * np.array(values)
        assert np.count_nonzero(np.round(influence, 9)) == 6
        assert getattr(scores, f"{role}_se") == pytest.approx(standard_error(influence), rel=1e-6)


def test_members_of_the_same_documents_are_not_independent_evidence():
    general = items("general", BASE)

    def error_of(source: str) -> tuple[float, float]:
        first = items("domain", BASE, name="a")
        second = items("domain", BASE, name="b", document=documents(source, 8))
        base = [first, second, general]
        changed = tuple((BITS * FACTORS).tolist())
        trial = [m.model_copy(update={"amount": changed}) for m in base[:2]] + [general]
        scores = compare_with_base(trial=trial, base=base).select
        return scores.domain_se, scores.members[0].change_se

    shared, alone = error_of("a")
    assert shared == pytest.approx(alone)
    other, alone = error_of("b")
    assert other < 0.75 * alone


def test_errors_of_changes_are_those_of_paired_differences():
    """A change that is the same on every item has no error, however much the items differ."""
    right = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0]
    base = [
        items("domain", BASE),
        items("domain", right, unit="accuracy", name="quiz"),
        items("domain", right, unit="normalised accuracy", name="quiz"),
        items("general", BASE),
    ]
    after = [items("domain", (BITS * 0.95).tolist()), *base[1:]]
    card = compare_with_base(trial=after, base=base)
    for scores in (card.select, card.report):
        assert scores.domain == pytest.approx(5.0)
        assert scores.domain_se == pytest.approx(0, abs=1e-9)
        assert [m.change_se for m in scores.members] == pytest.approx([0] * 4, abs=1e-9)
        assert min(m.value_se for m in scores.members) > 0
        assert min(m.base_se for m in scores.members) > 0


def test_error_of_an_accuracy_is_that_of_the_differences_by_hand():
    base = [
        items("domain", BASE),
        items("domain", [0, 0, 1, 0, 1, 0, 0, 0], unit="accuracy", name="quiz"),
        items("general", BASE),
    ]
    quiz = items("domain", [1, 0, 1, 0, 1, 0, 0, 0], unit="accuracy", name="quiz")
    member = compare_with_base(trial=[base[0], quiz, base[2]], base=base).select.members[1]
    # Of items 0, 2, 4, 6 one is answered better: differences 1, 0, 0, 0.
    assert (member.base, member.value, member.change) == (0.5, 0.75, 25.0)
    influence = 100 * math.sqrt(3 / 4) * (np.array([0, 1 / 3, 1 / 3, 1 / 3]) - 0.25)
    assert member.change_se == pytest.approx(standard_error(influence))
    for error, right in ((member.base_se, [0, 1, 1, 0]), (member.value_se, [1, 1, 1, 0])):
        without = (sum(right) - np.array(right)) / 3
        influence = math.sqrt(3 / 4) * (without - sum(right) / 4)
        assert error == pytest.approx(standard_error(influence))


def test_weights_and_accuracies():
    base = [
        items("domain", [10.0] * 4, name="a", weight=3.0),
        items("domain", [10.0] * 4, name="b"),
        items("domain", [0, 1, 1, 0], name="b", unit="accuracy", weight=9.0),
        items("general", [1.0] * 4),
    ]
    after = [
        items("domain", [8.0] * 4, name="a", weight=3.0),
        items("domain", [10.0] * 4, name="b"),
        items("domain", [1, 1, 1, 0], name="b", unit="accuracy", weight=9.0),
        items("general", [1.0] * 4),
    ]
    split = compare_with_base(trial=after, base=base).select
    assert split.domain == pytest.approx(15.0)  # (3 · 20 + 1 · 0) / 4, without the accuracy
    assert [m.change for m in split.members if m.unit == "accuracy"] == [pytest.approx(50.0)]


def test_languages_are_weighted_means_with_errors_of_their_own():
    changed = (BITS * FACTORS).tolist()
    german: dict[str, Any] = {"language": "de", "name": "de", "weight": 3.0}
    base = [items("domain", BASE), items("domain", BASE, **german), items("general", BASE)]
    after = [items("domain", BASE), items("domain", changed, **german), items("general", BASE)]
    scores = compare_with_base(trial=after, base=base).select
    by_language = {(s.role, s.language): s for s in scores.languages}
    assert list(by_language) == [("domain", "en"), ("domain", "de"), ("general", "en")]
    member = scores.members[1]
    shown = by_language["domain", "de"]
    assert (shown.change, shown.change_se) == pytest.approx((member.change, member.change_se))
    assert (scores.domain, scores.domain_se) == pytest.approx(
        (0.75 * member.change, 0.75 * member.change_se)
    )


def test_other_items_than_the_base_are_refused():
    base = [items("domain", [1.0] * 4), items("general", [1.0] * 4)]
    sizes = items("domain", [1.0] * 4, size=[1.0, 1.0, 2.0, 1.0])
    elsewhere = items("domain", [1.0] * 4, document=documents("elsewhere", 4))
    renamed = base[0].model_copy(update={"name": "another"})
    accuracy = base[0].model_copy(update={"unit": "accuracy"})
    for other in (sizes, elsewhere, renamed, accuracy):
        with pytest.raises(ValueError, match="other items than the base"):
            compare_with_base(trial=[other, base[1]], base=base)


def test_scores_that_are_not_finite_are_refused():
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite number"):
            items("domain", [1.0, bad])


def test_a_suite_without_a_continuous_member_is_refused():
    only = [items("domain", [1.0] * 4, unit="accuracy"), items("general", [1.0] * 4)]
    with pytest.raises(InvalidInput, match="bits per byte") as error:
        compare_with_base(trial=only, base=only)
    assert error.value.key == "domain"


def test_a_half_of_one_document_is_refused():
    """Many items of one document have no standard error, nor have documents without bits."""
    general = items("general", [1.0] * 4)
    one = tuple(np.array(documents("one", 4))[[0, 0, 0, 0, 1, 3]].tolist())
    for member in (
        items("domain", [1.0] * 6, document=one),
        items("domain", [1.0, 1.0, 0.0, 1.0]),
        items("domain", [1.0] * 4, size=[1.0, 1.0, 0.0, 1.0]),
    ):
        with pytest.raises(InvalidInput) as error:
            check_splits([member, general])
        assert error.value.found == "documents in the selection half: 1"
        assert "held_out_domain" in error.value.key
    quiz = items("domain", [0.0] * 4, unit="accuracy")
    check_splits([items("domain", [1.0] * 4), quiz, general])


def test_splits_are_about_even_and_follow_from_the_text():
    flags = [in_select_split(document_id(f"document {i}")) for i in range(2000)]
    assert 900 < sum(flags) < 1100
    # The SHA-256 of "abc" ends in 0xad, which is odd.
    assert document_id("abc") == "b410ff61f20015ad"
    assert in_select_split("b410ff61f20015ad")
    assert not in_select_split("b410ff61f20015ac")


def test_items_are_read_as_they_were_written(tmp_path: Path):
    scores = [items("domain", BASE), items("general", BASE)]
    write_items(tmp_path / "items.json", scores)
    assert read_items(tmp_path / "items.json") == scores


def test_items_of_another_version_are_refused(tmp_path: Path):
    path = tmp_path / "items.json"
    older = items("domain", BASE).model_dump(mode="json", exclude={"document"})
    older["select"] = [True, False] * 4
    for content in ([older], {"format": 1, "members": []}, {"format": 2}):
        path.write_text(json.dumps(content))
        with pytest.raises(InvalidInput, match="this version of sweepcp") as error:
            read_items(path)
        assert error.value.file == str(path)


def test_items_have_documents_and_amounts_each():
    for bad in (("1" * 16,), ("1" * 16, "Document 2")):
        with pytest.raises(ValueError, match="document"):
            items("domain", [1.0, 2.0], document=bad)


def simulate_suite(
    rng: np.random.Generator, counts: np.ndarray, spread: float
) -> tuple[list[ItemScores], list[ItemScores]]:
    """Base and trial on held-out text, cloze and swap items and a quiz of the same documents.

    Args:
        rng: Draws everything but the counts.
        counts: Items of each document in a member that has several.
        spread: Standard deviation of the documents' effects on the relative change. Items add their
            own, and the base's bits per byte differ between documents and items.
    """
    count = len(counts)
    effects = rng.normal(0.03, spread, count)
    levels = rng.normal(1, 0.2, count)
    ids = np.array(documents("source", count))
    base, trial = [], []
    for name, per_document, noise in (
        ("held_out", np.ones(count, dtype=int), 0.01),
        ("cloze", counts, 0.1),
        ("swap", (counts + 1) // 2, 0.1),
    ):
        owner = np.repeat(np.arange(count), per_document)
        size = rng.integers(4, 12, len(owner)) if noise > 0.05 else 50 * counts
        bits = size * levels[owner] * np.exp(rng.normal(0, 0.2, len(owner)))
        change = effects[owner] + rng.normal(0, spread / 2, count)[owner]
        change += rng.normal(0, noise, len(owner))
        member = items(
            "domain", bits.tolist(), size.tolist(), name=name, document=tuple(ids[owner].tolist())
        )
        base.append(member)
        trial.append(member.model_copy(update={"amount": tuple(bits * (1 - change))}))
    owner = np.repeat(np.arange(count), counts)
    right = rng.uniform(size=(2, len(owner))) < 0.5 + 2 * np.array([0, 1])[:, None] * effects[owner]
    right[1] = np.where(rng.uniform(size=len(owner)) < 0.5, right[0], right[1])
    for scores, answers in ((base, right[0]), (trial, right[1])):
        owners = tuple(ids[owner].tolist())
        correct = answers.astype(float).tolist()
        scores.append(items("domain", correct, unit="accuracy", name="quiz", document=owners))
        scores.append(items("general", [1.0] * 4))
    return base, trial


@pytest.mark.parametrize(
    ("largest", "spread"),
    [("like the others", 0.05), ("a third of the items", 0.05), ("a third of the items", 0.0)],
)
def test_standard_errors_are_right_in_simulated_suites(largest: str, spread: float):
    """In 1,000 suites (the halves of 500) the mean error is the deviation of the estimates."""
    rng = np.random.default_rng(11)
    counts = rng.integers(1, 6, 30)
    if largest == "a third of the items":
        for half in (0, 1):
            counts[half] = counts[half + 2 :: 2].sum() // 2
    estimates: dict[str, list[tuple[float, float]]] = {}
    for _ in range(500):
        base, trial = simulate_suite(rng, counts, spread)
        card = compare_with_base(trial=trial, base=base)
        for scores in (card.select, card.report):
            estimates.setdefault("domain", []).append((scores.domain, scores.domain_se))
            for member in scores.members[:-1]:
                for kind in ("base", "value", "change"):
                    pair = getattr(member, kind), getattr(member, f"{kind}_se")
                    estimates.setdefault(f"{member.name} {kind}", []).append(pair)
    for name, pairs in estimates.items():
        values, errors = np.array(pairs).T
        assert errors.mean() / values.std() == pytest.approx(1, abs=0.1), name
