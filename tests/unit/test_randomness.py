"""Dropouts and router jitter of a configuration: found, and set to 0."""

import json
from typing import Any

import pytest
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sweepcp.models.randomness import format_settings, make_deterministic, random_settings

REFUSES_DEFAULTS = "gemma4_assistant"
"""transformers builds no configuration of it without values."""


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"attention_dropout": 0.1}, {"attention_dropout": 0.1}),
        ({"attention_dropout": 0.0, "hidden_dropout": 0}, {}),
        ({"text_config": {"dropout": 0.2}}, {"text_config.dropout": 0.2}),
        (
            {"layerdrop": 0.3, "router_jitter_noise": 1},
            {"layerdrop": 0.3, "router_jitter_noise": 1},
        ),
        ({"drop_path_rate": [0.0, 0.1]}, {"drop_path_rate": 0.1}),
        ({"model_type": "gpt2", "attn_pdrop": 0.0}, {"resid_pdrop": 0.1, "embd_pdrop": 0.1}),
        ({"token_dropout": True, "classifier_dropout": 0.5, "ffn_dropout": None}, {}),
        ({"model_type": "phimoe", "router_jitter_noise": 0.01, "input_jitter_noise": 0.0}, {}),
    ],
)
def test_random_settings_are_those_that_are_not_0(
    config: dict[str, Any], expected: dict[str, float]
):
    assert random_settings(config) == expected


def test_settings_are_shown_in_one_line():
    assert format_settings({"a.b": 0.1, "c": 1}) == "a.b 0.1, c 1"


def test_left_out_settings_are_those_of_transformers_and_all_are_set_to_0():
    """The table of defaults is complete for every causal architecture that is installed."""
    tabled: dict[str, dict[str, float]] = {}
    actual: dict[str, dict[str, float]] = {}
    left: dict[str, float] = {}
    for model_type in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        if model_type == REFUSES_DEFAULTS:
            continue
        config = AutoConfig.for_model(model_type)
        found = random_settings(json.loads(config.to_json_string(use_diff=False)))
        actual[model_type] = {key: value for key, value in found.items() if "." not in key}
        tabled[model_type] = random_settings({"model_type": model_type})
        make_deterministic(config)
        left |= random_settings(json.loads(config.to_json_string(use_diff=False)))
    assert tabled == actual
    assert left == {}
    assert len(tabled) > 150
