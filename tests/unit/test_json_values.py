"""JSON values: one text for equal values, and the differences between two."""

import pytest

from sweepcp.util.json_values import canonical_json, digest, json_differences


def test_equal_values_have_one_text():
    assert canonical_json({"b": [1, 2.5], "a": "ü"}) == '{"a":"ü","b":[1,2.5]}'
    assert digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert (len(digest(1)), len(digest(1, length=64))) == (16, 64)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_json_does_not_have_are_refused(number: float):
    with pytest.raises(ValueError, match="Out of range float"):
        canonical_json({"a": number})


def test_differences_name_the_keys_that_either_value_has():
    before = {"same": 1, "inner": {"a": 1, "b": [1, 2]}, "gone": "x"}
    after = {"same": 1, "inner": {"a": 2, "b": [1, 2]}, "new": True}
    assert json_differences(before=before, after=after) == [
        "inner.a: 1 → 2",
        'gone: "x" → null',
        "new: null → true",
    ]
    assert json_differences(before=before, after=before) == []
    assert json_differences(before=[1, 2], after=[2, 1], key="k") == ["k: [1, 2] → [2, 1]"]


def test_differences_of_mappings_in_a_list_name_their_index():
    before = [{"name": "a", "n": 1}, {"name": "b", "n": 1}]
    after = [{"name": "a", "n": 1}, {"name": "b", "n": 2}]
    assert json_differences(before=before, after=after, key="k") == ["k.1.n: 1 → 2"]
    (difference,) = json_differences(before=before, after=after[:1], key="k")
    assert difference.startswith("k: [")
    assert json_differences(before=[], after=[], key="k") == []
