from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from sweepcp.config.template import Template
from sweepcp.data.rendering import render_template, template_values

LISTING = """
{title}
Category: {category}
{attributes}
Price: {price} {currency}
Sold by {seller.name}

{description}
"""


def render_record(template: str, record: dict[str, Any]) -> str:
    return render_template(template, template_values(template, record))


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
        "Lamp\nCategory: Home, Lighting\ncolour: red, watts: 40, dimmable: yes\n"
        "Price: 12.5 EUR\nSold by Ann\n\nA lamp.\nBright."
    )


def test_lines_with_missing_fields_are_dropped():
    assert (
        render_record(
            LISTING, {"title": "Lamp", "price": 3, "currency": None, "attributes": {}, "seller": {}}
        )
        == "Lamp"
    )
    assert render_record(LISTING, {"title": "Lamp", "description": "Bright."}) == "Lamp\n\nBright."
    assert render_record(LISTING, {"rating": 5}) == ""
    assert render_record("{rating} of 5: {text}", {"rating": 0, "text": "bad"}) == "0 of 5: bad"


def test_escaped_braces_dotted_keys_and_braces_in_values():
    assert render_record('{{"a": {a}}}', {"a": "{b}"}) == '{"a": {b}}'
    assert render_record("{a.b}", {"a.b": 1, "a": {"b": 2}}) == "1"
    assert render_record("{a.b}", {"a": {"b": 2}}) == "2"


@pytest.mark.parametrize(
    "template", ["no key", "{", "{ a}", "{a\n}", '{"a": 1}', "{}", "a } b {c}", "{a..b}"]
)
def test_invalid_templates_are_refused(template: str):
    with pytest.raises(ValidationError, match="fix:"):
        TypeAdapter(Template).validate_python(template)
