"""Models and tokenizers in memory, loaded from safetensors and without remote code."""

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

# Workers load models while the driver's own progress is on the terminal.
disable_progress_bar()


def default_device() -> torch.device:
    """Return the GPU if one is visible, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of 258 tokens: the 256 bytes of UTF-8, `<s>` (256) and `</s>` (257)."""
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer(), bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def load_tokenizer(base: BaseSpec) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a base.

    Raises:
        InvalidInput: transformers cannot read it.
    """
    if base.tokenizer == "bytes":
        return byte_tokenizer()
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            base.tokenizer, revision=base.revision or "main", trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise InvalidInput(
            file=base.tokenizer,
            key="the tokenizer",
            found=str(error).strip().splitlines()[0],
            rule="a tokenizer that transformers can load, in the model's folder",
            fix="save it there with `save_pretrained`",
        ) from None
    return tokenizer


def load_encoder(base: BaseSpec) -> Encoder:
    """Load the tokenizer of a base as plain data, which is passed to worker processes.

    Raises:
        InvalidInput: transformers cannot read the tokenizer, or it is not a fast one.
    """
    tokenizer = load_tokenizer(base)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InvalidInput(
            file=base.tokenizer,
            key="the tokenizer",
            found=type(tokenizer).__name__,
            rule="a fast tokenizer (tokenizer.json)",
            fix="save a fast tokenizer with the model",
        )
    prefix, suffix = boundary_tokens(tokenizer)
    return Encoder(
        tokenizer_json=backend.to_str(),
        prefix=tuple(prefix),
        suffix=tuple(suffix),
        vocab_size=len(tokenizer),
    )


def load_model(model: str, *, revision: str | None, device: torch.device) -> PreTrainedModel:
    """Load a causal LM with fp32 weights.

    Args:
        model: A folder or a hub id.
        revision: A commit, tag or branch of a hub id; None for `main`.
        device: Where to put the weights.
    """
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        model,
        revision=revision or "main",
        dtype=torch.float32,
        attn_implementation="sdpa",
        trust_remote_code=False,
        use_safetensors=True,
    )
    return loaded.to(device)  # type: ignore[arg-type, no-any-return]
