import pytest
from pydantic import ValidationError

from sweepcp.config.recipe import Mixture, Recipe, SourceShare
from tests.make import mixture, recipe


def test_shares_by_role_and_language():
    portions = [
        ("a", "domain", "en", 0.4),
        ("b", "general", "en", 0.45),
        ("c", "general", "de", 0.15),
    ]
    m = Mixture(
        portions=tuple(
            SourceShare(source=s, role=r, language=lang, share=x) for s, r, lang, x in portions
        )
    )  # type: ignore[arg-type]
    assert m.share("domain") == pytest.approx(0.4)
    assert m.share("general") == pytest.approx(0.6)
    assert m.non_english_share == pytest.approx(0.25)
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
        {"cross_documents": True},
    ]
    assert len({recipe(**c).id for c in changes} | {first.id}) == len(changes) + 1


def test_id_is_the_same_in_every_version():
    assert recipe().id == "b42b00abc4bdc2d7"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 81}, "use 80"),
        ({"batch_tokens": 10}, "use 8"),
        ({"lr_fraction": 0.0}, "greater than 0"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_fix(changes: dict[str, object], message: str):
    with pytest.raises(ValidationError, match=message):
        recipe(**changes)


def test_steps_and_sequences():
    assert (recipe().steps, recipe().sequences) == (10, 2)
