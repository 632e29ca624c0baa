import pytest
from pydantic import TypeAdapter, ValidationError

from sweepcp.config.template import Template
from sweepcp.data.rendering import render_record

LISTING = """
{title}
Category: {category}
{attributes}
Price: {price} {currency}
Sold by {seller.name}

{description}
"""


def test_a_whole_listing():
    record = {
        "title": "Lamp",
        "category": ["Home", "Lighting"],
        "attributes": {"colour": "red", "watts": 40, "dimmable": True, "note": None},
        "price": 12.5,
        "currency": "EUR",
        "seller": {"name": "Ann"},
        "description": "A lamp.\nBright.",
    }
    assert render_record(LISTING, record) == (
        "Lamp\nCategory: Home, Lighting\ncolour: red, watts: 40, dimmable: yes\nPrice: 12.5 EUR\nSold by Ann\n\n"
        "A lamp.\nBright."
    )


def test_missing_fields_vanish_with_their_lines():
    assert (
        render_record(
            LISTING, {"title": "Lamp", "price": 3, "currency": None, "attributes": {}, "seller": {}}
        )
        == "Lamp"
    )
    assert render_record(LISTING, {"title": "Lamp", "description": "Bright."}) == "Lamp\n\nBright."
    assert render_record(LISTING, {"rating": 5}) == ""
    assert render_record("{rating} of 5: {text}", {"rating": 0, "text": "bad"}) == "0 of 5: bad"


def test_braces_keys_with_dots_and_texts_with_braces():
    assert render_record('{{"a": {a}}}', {"a": "{b}"}) == '{"a": {b}}'
    assert render_record("{a.b}", {"a.b": 1, "a": {"b": 2}}) == "1"
    assert render_record("{a.b}", {"a": {"b": 2}}) == "2"


@pytest.mark.parametrize("template", ["no key", "{", "{a b}", "{}", "a } b {c}", "{a..b}"])
def test_bad_templates_are_refused(template: str):
    with pytest.raises(ValidationError, match="fix:"):
        TypeAdapter(Template).validate_python(template)
