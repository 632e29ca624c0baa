"""A model's configuration and its architecture, before weights are loaded."""

import functools
import logging
from pathlib import Path

import torch
from torch.nn.modules.dropout import _DropoutNd
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.models.auto.auto_factory import _get_model_class

from sweepcp.errors import InvalidInput
from sweepcp.models.randomness import is_random, make_deterministic, zeros_like

logger = logging.getLogger(__name__)


def read_model_config(folder: Path) -> PretrainedConfig:
    """Read the configuration of a model, with every dropout and router jitter set to 0.

    Raises:
        InvalidInput: transformers does not know it, or it is not that of a causal LM.
    """
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise _unknown_model(folder, str(error)) from None
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise _unknown_model(folder, config.model_type)
    make_deterministic(config)
    return config


def _unknown_model(folder: Path, found: str) -> InvalidInput:
    return InvalidInput(
        file=folder / "config.json",
        key="model_type",
        found=" ".join(found.split()),
        rule="a causal language model that transformers implements",
        fix="use such a model, or a version of transformers that has it",
    )


def supported_attention(config: PretrainedConfig, wanted: str) -> str:
    """Return the implementation of attention to load a model with: eager where sdpa is lacking."""
    architecture = _get_model_class(config, AutoModelForCausalLM._model_mapping)
    if wanted == "sdpa" and not architecture._supports_sdpa:
        _report_eager(architecture.__name__)
        return "eager"
    return wanted


@functools.cache  # A process builds a model several times, on the meta device first.
def _report_eager(architecture: str) -> None:
    logger.info("%s has no sdpa attention: loaded with eager", architecture)


def build_model(config: PretrainedConfig, *, attention: str, dtype: torch.dtype) -> PreTrainedModel:
    """Build a model of a configuration with random weights, without randomness in training.

    Raises:
        InvalidInput: The architecture lacks this implementation of attention.
    """
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=supported_attention(config, attention)
        )
    except (ValueError, ImportError) as error:
        raise InvalidInput(
            key=f"{config.model_type} with attention {attention}",
            found=" ".join(str(error).split()),
            rule="a configuration that transformers can build, with attention that it has",
            fix="name another implementation of attention, or correct config.json",
        ) from None
    remove_randomness(model)
    return model


def empty_model(config: PretrainedConfig) -> PreTrainedModel:
    """Build a model without memory for its weights, on the meta device."""
    with torch.device("meta"), no_init_weights():
        model = build_model(config, attention="sdpa", dtype=torch.float32)
    # transformers ties weights where it initialises them, which was switched off.
    model.tie_weights()
    return model


def remove_randomness(model: PreTrainedModel) -> None:
    """Set every dropout and router jitter of a built model to 0.

    Modules copy settings of the configuration, and some have constants of their own.
    """
    model_type = model.config.model_type
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        for key, value in list(vars(module).items()):
            if is_random(key, value, model_type):
                setattr(module, key, zeros_like(value))
