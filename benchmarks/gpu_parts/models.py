"""The models of the parts: Llamas with random weights."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from gpu_parts.machine import device
from gpu_parts.settings import SHAPE, Skipped
from sweepcp.config.model_dimensions import ModelDimensions
from sweepcp.errors import InvalidInput
from sweepcp.models.attention import resolve_attention, transformers_name
from sweepcp.models.loading import byte_tokenizer

DIMENSIONS = ModelDimensions(**SHAPE, tie_word_embeddings=True)
"""Of the model whose steps are measured."""


def make_config(shape: dict[str, Any]) -> LlamaConfig:
    """Return a configuration for the tokenizer of bytes, or a larger vocabulary."""
    special = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 257}
    return LlamaConfig(**{"vocab_size": 258} | shape | special, tie_word_embeddings=True)


def make_model(attention: str) -> Any:
    """Build the model that is measured on the device, with an implementation of attention."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        make_config(SHAPE), attn_implementation=transformers_name(attention), dtype=torch.float32
    )
    return model.to(device())


def write_model(folder: Path, shape: dict[str, Any]) -> Path:
    """Save a model and the tokenizer of bytes, unless they are there."""
    if not (folder / "tokenizer.json").exists():
        torch.manual_seed(0)
        LlamaForCausalLM(make_config(shape)).save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
    return folder


def resolved(attention: Any, *, in_bf16: bool) -> str:
    """Return the implementation that `attention` means here.

    Raises:
        Skipped: It cannot run here.
    """
    try:
        return resolve_attention(attention, make_config(SHAPE), device=device(), in_bf16=in_bf16)
    except InvalidInput as error:
        raise Skipped(str(error.found)) from None
