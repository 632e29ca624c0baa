"""Models and tokenizers in memory: loading a base, and pretraining a small one."""

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar

from sweepcp.config.base_model import BaseSpec
from sweepcp.data.encoding import Encoder, byte_level_tokenizer
from sweepcp.data.token_store import boundary_tokens
from sweepcp.errors import InvalidInput

disable_progress_bar()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of 258 tokens: the 256 bytes of UTF-8, `<s>` (256) and `</s>` (257)."""
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer(), bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def load_tokenizer(base: BaseSpec) -> PreTrainedTokenizerBase:
    """The base's tokenizer."""
    if base.tokenizer == "bytes":
        return byte_tokenizer()
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            base.tokenizer, revision=base.revision or "main", trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        rule = "a tokenizer that transformers reads, beside the model"
        said = str(error).strip().splitlines()[0]
        raise InvalidInput(
            file=base.tokenizer,
            key="the tokenizer",
            found=said,
            rule=rule,
            fix="save it there with `save_pretrained`",
        ) from None
    return tokenizer


def load_encoder(base: BaseSpec) -> Encoder:
    """The base's tokenizer as plain data; `BadInput` when it is not a fast one."""
    tokenizer = load_tokenizer(base)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rule = "a fast tokenizer (tokenizer.json)"
        raise InvalidInput(
            file=base.tokenizer,
            key="the tokenizer",
            found=type(tokenizer).__name__,
            rule=rule,
            fix="save one with the model",
        )
    before, after = boundary_tokens(tokenizer)
    return Encoder(backend.to_str(), tuple(before), tuple(after), len(tokenizer))


def load_model(model: str, revision: str | None, device: torch.device) -> PreTrainedModel:
    """A causal LM with fp32 weights from a folder or the hub; safetensors only, no remote code."""
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        model,
        revision=revision or "main",
        dtype=torch.float32,
        attn_implementation="sdpa",
        trust_remote_code=False,
        use_safetensors=True,
    )
    return loaded.to(device)  # type: ignore[arg-type, no-any-return]
