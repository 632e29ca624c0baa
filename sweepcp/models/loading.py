"""Models and tokenizers in memory, loaded from safetensors and without remote code."""

from pathlib import Path
from typing import Any

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
from sweepcp.config.types import Attention
from sweepcp.data.encoding import Encoder, byte_level_tokenizer, text_encoder
from sweepcp.errors import InvalidInput, located
from sweepcp.models.architecture import (
    empty_model,
    read_model_config,
    remove_randomness,
    supported_attention,
)
from sweepcp.models.attention import resolve_attention, transformers_name
from sweepcp.models.checkpoint import SAVE_AGAIN, match_tensors
from sweepcp.models.files import fetch_hub_model, read_config, read_shards

# Workers load models while the driver's own progress is on the terminal.
disable_progress_bar()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of 258 tokens: the 256 bytes of UTF-8, `<s>` (256) and `</s>` (257)."""
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer(), bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def load_tokenizer(base: BaseSpec) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a base, without truncation, padding and dropout that its file may have.

    Raises:
        InvalidInput: transformers cannot read it.
    """
    if base.tokenizer == "bytes":
        return byte_tokenizer()
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            base.tokenizer, revision=base.revision or "main", trust_remote_code=False
        )
    # What `tokenizers` does not understand, it reports by an Exception of no further type.
    except Exception as error:
        if base.path is not None:
            # transformers reads config.json too, and its values may be what it does not take.
            read_model_config(Path(base.path))
        raise InvalidInput(
            file=base.tokenizer,
            key="the tokenizer",
            found=(str(error).strip() or type(error).__name__).splitlines()[0],
            rule="a tokenizer that transformers can load, in the model's folder",
            fix="save it there with `save_pretrained`",
        ) from None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
        if getattr(backend.model, "dropout", None):
            backend.model.dropout = None
    return tokenizer


def make_encoder(tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """Return a tokenizer as the plain data that training and held-out text are encoded with.

    Before each document is BOS, or EOS if the tokenizer has no BOS; after it is EOS, or nothing.

    Raises:
        InvalidInput: It is not a fast tokenizer, or it has neither BOS nor EOS.
    """
    with located(tokenizer.name_or_path, "the tokenizer"):
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise InvalidInput(
                found=type(tokenizer).__name__,
                rule="a fast tokenizer (tokenizer.json)",
                fix="save a fast tokenizer with the model",
            )
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        start = bos if bos is not None else eos
        if start is None:
            raise InvalidInput(
                found="neither a BOS nor an EOS token",
                rule="a token that marks where documents begin",
                fix='name one of its tokens in tokenizer_config.json, such as "eos_token": "</s>"',
            )
    return text_encoder(backend.to_str(), prefix=[start], suffix=[] if eos is None else [eos])


def load_model(
    model: str,
    *,
    revision: str | None,
    device: torch.device,
    attention: Attention = "sdpa",
    in_bf16: bool = False,
    seq_len: int = 0,
    isolated: bool = True,
) -> PreTrainedModel:
    """Load a causal LM with fp32 weights and without randomness in training.

    Args:
        model: A folder or a hub id.
        revision: A commit, tag or branch of a hub id; None for `main`.
        device: Where to put the weights.
        attention: Implementation of attention, see `resolve_attention`.
        in_bf16: Whether the model is to compute in bf16.
        seq_len: Tokens of a training sequence; 0 where the model is not trained.
        isolated: Whether packed documents are separated.

    Raises:
        InvalidInput: Its files do not hold exactly the model's tensors, or it cannot compute with
            the implementation of attention.
    """
    folder = Path(model) if Path(model).is_dir() else fetch_hub_model(model, revision)
    check_model_files(folder)
    config = read_model_config(folder)
    with located(folder, "attention"):
        resolved = resolve_attention(
            attention,
            config,
            device=device,
            in_bf16=in_bf16,
            seq_len=seq_len,
            isolated=isolated,
        )
    try:
        loaded_and_info: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            attn_implementation=transformers_name(supported_attention(config, resolved)),
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except torch.OutOfMemoryError:
        raise
    # What it cannot use in the files, transformers reports by errors of many types.
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise _not_converted(folder, f"{type(error).__name__}: {error}") from None
    loaded, info = loaded_and_info
    # What is computed from several tensors of the files is known only now.
    problems = {kind: names for kind, names in info.items() if names}
    if problems:
        raise _not_converted(folder, str(problems))
    remove_randomness(loaded)
    return loaded.to(device)  # type: ignore[no-any-return]


def check_model_files(folder: Path) -> None:
    """Check that the files of a model hold exactly its tensors, from their headers.

    Raises:
        InvalidInput: They do not, see `match_tensors`.
    """
    with located(folder):
        read_config(folder)
        shards = read_shards(folder)
        match_tensors(shards, empty_model(read_model_config(folder)))


def _not_converted(folder: Path, found: str) -> InvalidInput:
    return InvalidInput(
        file=folder,
        key="the model",
        found=" ".join(found.split()),
        rule="files that transformers can load: tensors that it can convert to the model's "
        "parameters, all of them, and settings of generation",
        fix=f"copy the model from its origin again, or {SAVE_AGAIN}",
    )
