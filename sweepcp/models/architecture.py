"""A model's configuration and its architecture, before weights are loaded."""

import functools
import logging
from pathlib import Path

import torch
from torch.nn.modules.dropout import _DropoutNd
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights
from transformers.models.auto.auto_factory import _get_model_class

from sweepcp.config.model_dimensions import MAX_SIZE, ModelDimensions
from sweepcp.errors import InvalidInput, located
from sweepcp.models.attention import transformers_name
from sweepcp.models.base import LENGTH_KEYS
from sweepcp.models.files import read_config
from sweepcp.models.randomness import is_random, make_deterministic, zeros_like
from sweepcp.util.environment import check_docstrings

logger = logging.getLogger(__name__)
MLP_KEYS = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff")
"""Names of the inner size of an MLP."""


def read_model_config(folder: Path) -> PretrainedConfig:
    """Read the configuration of a model, with every dropout and router jitter set to 0.

    Raises:
        InvalidInput: transformers does not know it, it is not that of a causal LM, or the model
            brings its own code.
    """
    check_docstrings()
    with located(folder / "config.json"):
        content = read_config(folder)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    # A configuration checks its values by errors of many types.
    except Exception as error:
        if str(content.get("model_type")) in CONFIG_MAPPING:
            raise InvalidInput(
                file=folder / "config.json",
                key="the values",
                found=" ".join(str(error).split()),
                rule=f"a configuration that transformers takes for {content['model_type']}",
                fix="use the model's own config.json",
            ) from None
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
    check_docstrings()
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config,
            dtype=dtype,
            attn_implementation=transformers_name(supported_attention(config, attention)),
        )
    # Sizes that do not fit together are found by the exceptions that they lead to.
    except Exception as error:
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


def built_dimensions(model: PreTrainedModel) -> ModelDimensions:
    """Return the dimensions of a built model; its parameters are counted.

    Raises:
        InvalidInput: Its configuration has no such size. The error names no file.
    """
    config = model.config.get_text_config(decoder=True)
    hidden_size = _size(config, "hidden_size")
    # State-space models have no heads, of which only the cost of attention depends.
    heads = _size(config, "num_attention_heads", default=1)
    return ModelDimensions(
        model_type=model.config.model_type,
        hidden_size=hidden_size,
        num_hidden_layers=_size(config, "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=_size(config, "num_key_value_heads", default=heads),
        # Those that state none, as GPT-2, have MLPs of four times the hidden size.
        intermediate_size=_size(config, *MLP_KEYS, default=4 * hidden_size),
        vocab_size=_size(config, "vocab_size"),
        # Models without positions (ALiBi, state-space models) have no limit.
        max_position_embeddings=_size(config, *LENGTH_KEYS, default=MAX_SIZE),
        tie_word_embeddings=bool(getattr(config, "tie_word_embeddings", False)),
        head_dim=_head_size(config),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        text_parameters=None if config is model.config else _count_text_parameters(model),
    )


def _head_size(config: PretrainedConfig) -> int | None:
    # Not its attribute: where sizes differ between layers, access raises.
    value = vars(config).get("head_dim")
    return value if type(value) is int and value > 0 else None


def _size(config: PretrainedConfig, *keys: str, default: int | None = None) -> int:
    """Return the first of some sizes that a configuration states; the largest of a list."""
    for key in keys:
        value = getattr(config, key, None)
        if isinstance(value, list | tuple) and value and all(type(item) is int for item in value):
            value = max(value)
        if type(value) is int and value > 0:
            return value
    if default is None:
        raise InvalidInput(
            key=keys[0],
            found=None,
            rule="the sizes of a decoder, from which memory and cost are estimated",
            fix="use a model whose configuration states them",
        )
    return default


def _count_text_parameters(model: PreTrainedModel) -> int:
    """Count the parameters of the decoder and of the output embeddings.

    Others are those of the towers and projectors for images or sound, which see no text.
    """
    modules = [model.get_decoder(), model.get_output_embeddings()]
    parameters = {
        id(parameter): parameter.numel()
        for module in modules
        if module is not None
        for parameter in module.parameters()
    }
    return sum(parameters.values())


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
