"""Implementations of attention: which one a model computes with, and kernels for documents.

Packed documents are separated in two ways. sdpa and eager derive a mask of every pair of positions
from position ids that restart. The implementations in `PACKED` get all sequences as one, with the
boundaries of its documents as keyword arguments of the model, which transformers hands to every
layer: they need no mask, and no layer has to look the boundaries up. Both are called from here:
transformers' own use of flash-attn looks for documents in the positions of every batch, for which
the host waits for the GPU, and leaves out what a version of the kernel does not compute.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.amp import is_autocast_available
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import pad
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.auto_factory import _get_model_class

from sweepcp.config.attention import PACKED, best_attention, check_attention
from sweepcp.config.types import Attention
from sweepcp.errors import InvalidInput
from sweepcp.models.causal_attention import attend_by_rows, attend_one_by_one

__all__ = [
    "PACKED",
    "attention_of",
    "resolve_attention",
    "transformers_name",
    "use_attention",
    "use_row_attention",
]
logger = logging.getLogger(__name__)
WITH_FLASH_ATTN = "documents_fa2"
"""The name under which transformers finds `flash_attention_2` here."""

LAYER_TYPES = {"full_attention", "sliding_attention"}
"""Types of layers that these implementations compute; others carry a state or cut text in
chunks."""
HEAD_SIZE_KEYS = ("head_dim", "global_head_dim", "qk_head_dim")
MAX_HEAD_SIZE = 256
HAS_GQA = "enable_gqa" in signature(varlen_attn).parameters
"""torch 2.11 has no switch for fewer heads of keys than of queries."""
UNSUPPORTED = ("softcap", "s_aux", "position_bias", "attention_mask", "dropout")
"""Arguments of a layer that would change what attention computes."""


def resolve_attention(
    wanted: Attention,
    config: PretrainedConfig,
    *,
    device: torch.device,
    in_bf16: bool,
    seq_len: int = 0,
    isolated: bool = True,
) -> str:
    """Return the implementation of attention to load a model with.

    Args:
        wanted: The implementation that is asked for. `auto` is the `best_attention` that the
            architecture supports; where it lacks sdpa, it is loaded with eager.
        config: The model's configuration.
        device: Where the model computes.
        in_bf16: Whether it computes in bf16.
        seq_len: Tokens of a training sequence; 0 where the model is not trained.
        isolated: Whether packed documents are separated.

    Raises:
        InvalidInput: What is asked for is not installed, cannot run on the device or in the
            precision, or is not supported by the architecture. The error names neither file nor
            key.
    """
    precision = "bf16" if in_bf16 else "fp32"
    check = partial(_check_kernel, device=device.type, precision=precision)
    if wanted != "auto":
        check(wanted)
        if wanted in PACKED and (lack := _lack_of_support(config)):
            raise InvalidInput(
                found=f"{wanted} for a {config.model_type}: {lack}",
                rule="an implementation that the architecture supports",
                fix="set it to auto or sdpa",
            )
        return wanted
    # Where there is no sdpa, attention has terms that some kernels would leave out: caps, sinks.
    if _lack_of_support(config) or not _architecture(config)._supports_sdpa:
        return "sdpa"
    return best_attention(check, device=device.type, seq_len=seq_len, isolated=isolated)


def _check_kernel(wanted: Attention, *, device: str, precision: str) -> None:
    """Check what `check_attention` does, and that flash-attn can be imported."""
    check_attention(wanted, device=device, precision=precision)
    if wanted != "flash_attention_2":
        return
    try:
        _flash_attn_kernel()
    except ImportError as error:
        reason = " ".join(str(error).split())
        logger.warning("flash-attn is installed and cannot be imported: %s", reason)
        raise InvalidInput(
            found=f"{wanted}, and flash-attn cannot be imported: {reason}",
            rule="a version of flash-attn 2 that was built for the installed torch",
            fix="install it in the environment of every process, or set it to auto",
        ) from None


def _flash_attn_kernel() -> Callable[..., torch.Tensor]:
    from flash_attn import flash_attn_varlen_func

    kernel: Callable[..., torch.Tensor] = flash_attn_varlen_func
    return kernel


def _architecture(config: PretrainedConfig) -> type[PreTrainedModel]:
    architecture: type[PreTrainedModel] = _get_model_class(
        config, AutoModelForCausalLM._model_mapping
    )
    return architecture


def _lack_of_support(config: PretrainedConfig) -> str:
    """Return why an architecture cannot compute with those in `PACKED`; empty if it can."""
    architecture = _architecture(config)
    if not (architecture._supports_flash_attn and architecture._supports_attention_backend):
        return "it does not hand the boundaries of documents to its layers"
    text = config.get_text_config(decoder=True)
    # BERT and those after it can be encoders, and say so; GPT-NeoX has the flag without a meaning.
    if hasattr(text, "add_cross_attention") and not getattr(text, "is_decoder", True):
        return "its tokens attend to later ones"
    others = set(getattr(text, "layer_types", None) or ()) - LAYER_TYPES
    if others:
        return f"it has layers of {', '.join(sorted(others))}"
    for size in _head_sizes(text):
        if size > MAX_HEAD_SIZE or size % 8:
            return f"it has heads of size {size}, not a multiple of 8 up to {MAX_HEAD_SIZE}"
    return ""


def _head_sizes(config: PretrainedConfig) -> list[int]:
    # Not its attributes: of those that differ between layers, access raises.
    settings = vars(config)
    stated = [settings[key] for key in HEAD_SIZE_KEYS if settings.get(key)]
    return stated or [config.hidden_size // config.num_attention_heads]


def attention_of(model: nn.Module) -> str:
    """Return the implementation of attention that a model computes with."""
    name = str(getattr(getattr(model, "config", None), "_attn_implementation", ""))
    return "flash_attention_2" if name == WITH_FLASH_ATTN else name


def transformers_name(attention: str) -> str:
    """Return the name under which transformers finds an implementation of attention."""
    return WITH_FLASH_ATTN if attention == "flash_attention_2" else attention


def use_row_attention(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Compute with an implementation for batches of rows, as lm-eval makes them, in the context.

    They have padding, and generation has caches, which boundaries of documents do not describe.
    """
    if attention_of(model) not in PACKED:
        return nullcontext()
    return use_attention(model, "sdpa" if model._supports_sdpa else "eager")


@contextmanager
def use_attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Compute with another implementation of attention within the context."""
    before = attention_of(model)
    model.set_attn_implementation(transformers_name(name))
    try:
        yield
    finally:
        model.set_attn_implementation(transformers_name(before))


def _attend_within_documents(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    attend: Callable[..., torch.Tensor],
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """Compute causal attention within documents, as a layer of transformers calls it.

    Args:
        module: The layer.
        query: Shape (1, heads, tokens, head size).
        key: Shape (1, key heads, tokens, head size).
        value: The shape of `key`.
        attention_mask: None: boundaries take its place.
        attend: The kernel.
        dropout: 0.
        scaling: Factor of the products of queries and keys.
        sliding_window: How many tokens a token attends to, itself included; None for all before.
        is_causal: None or True.
        cu_seq_lens_q: Where documents start, and the end of the last; shape (documents + 1,).
        max_length_q: Tokens of the longest document.
        arguments: Others, which must not change the result.

    Returns:
        Shape (1, tokens, heads, head size).

    Raises:
        ValueError: It was called with what it does not compute.
    """
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    _refuse_unsupported(
        arguments | {"attention_mask": attention_mask, "dropout": dropout or None},
        is_causal=bool(is_causal),
    )
    if cu_seq_lens_q is None or max_length_q is None:
        raise ValueError(
            "attention got no boundaries of documents: the architecture does not hand cu_seq_lens "
            "to its layers"
        )
    head_size, value_size = query.shape[3], value.shape[3]
    if value_size < head_size:
        # The kernel has one head size; latent attention has shorter values.
        value = pad(value, (0, head_size - value_size))
    output = attend(
        *_tokens_first(query, key, value),
        cu_seq_lens=cu_seq_lens_q,
        longest=max_length_q,
        scale=scaling,
        window=sliding_window,
    )
    return output[..., :value_size].unsqueeze(0), None


def _refuse_unsupported(arguments: dict[str, Any], *, is_causal: bool) -> None:
    unsupported = [name for name in UNSUPPORTED if arguments.get(name) is not None]
    unsupported += [] if is_causal else ["attention to later tokens"]
    if unsupported:
        raise ValueError(f"attention by boundaries has no {', '.join(unsupported)}")


def _tokens_first(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> list[torch.Tensor]:
    """Return tensors in the shape (tokens, heads, head size) and in the dtype of the kernels."""
    if len(query) != 1 or key.shape[2] != query.shape[2]:
        raise ValueError(
            "attention by boundaries takes one sequence, with as many keys as queries: "
            f"{tuple(query.shape)}, {tuple(key.shape)}"
        )
    # Position embeddings and norms leave queries and keys in fp32, which the kernels do not take.
    device = query.device.type
    in_autocast = is_autocast_available(device) and torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if in_autocast else value.dtype
    return [tensor.to(dtype).transpose(1, 2).flatten(0, 1) for tensor in (query, key, value)]


def _attend_with_torch(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    cu_seq_lens: torch.Tensor,
    longest: int,
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    """Compute attention of shape (tokens, heads, head size) with PyTorch's kernels.

    Documents of one length, such as whole sequences, are rows of a batch for sdpa, whose causal
    kernels are the fastest. A CPU has no kernel for several lengths, and computes document by
    document.
    """
    documents = len(cu_seq_lens) - 1
    # No document is longer than the longest, so all have its length. Both numbers are on the host.
    if documents * longest == len(query) and (window is None or longest <= window):
        return attend_by_rows(query, key, value, documents=documents, scale=scale)
    if query.device.type == "cpu":
        attended: torch.Tensor = attend_one_by_one(
            query,
            key,
            value,
            cu_seq_lens=cu_seq_lens,
            longest=longest,
            scale=scale,
            window=window,
        )
        return attended
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and not HAS_GQA:
        key, value = (_repeat_heads(tensor, groups) for tensor in (key, value))
    kernel: Any = partial(varlen_attn, enable_gqa=groups > 1) if HAS_GQA else varlen_attn
    output: torch.Tensor = kernel(
        query,
        key,
        value,
        cu_seq_lens,
        cu_seq_lens,
        longest,
        longest,
        scale=scale,
        window_size=_kernel_window(window),
    )
    return output


def _repeat_heads(tensor: torch.Tensor, groups: int) -> torch.Tensor:
    """Repeat each head for the query heads of its group; shape (tokens, heads, head size)."""
    return tensor.repeat_interleave(groups, dim=1)


def _attend_with_flash_attn(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    cu_seq_lens: torch.Tensor,
    longest: int,
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    """Compute the same with the kernel of flash-attn."""
    return _flash_attn_kernel()(
        query,
        key,
        value,
        cu_seqlens_q=cu_seq_lens,
        cu_seqlens_k=cu_seq_lens,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        softmax_scale=scale,
        causal=True,
        window_size=_kernel_window(window),
    )


def _kernel_window(window: int | None) -> tuple[int, int]:
    """Return how many tokens before and after it a token attends to, -1 for all."""
    # transformers counts the token itself, too.
    return (-1 if window is None else window - 1), 0


# A name that transformers has no mask function for gets no mask.
AttentionInterface.register("varlen", partial(_attend_within_documents, attend=_attend_with_torch))
AttentionInterface.register(
    WITH_FLASH_ATTN, partial(_attend_within_documents, attend=_attend_with_flash_attn)
)
