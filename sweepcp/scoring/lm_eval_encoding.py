"""lm-eval's encoding of requests, without its model wrapper."""

import copy
from functools import cached_property
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    _add_special_kwargs,
    configure_pad_token,
    has_bos_prefix,
    resolve_max_length,
)
from transformers import PreTrainedModel, PreTrainedTokenizerBase

KEPT_TEXTS = 32
"""How many texts have their tokens kept: enough for the context of an item and its answers."""


class RequestEncoder:
    """Encodes texts as `lm_eval.models.huggingface.HFLM` does for a causal model in memory.

    What that class needs besides is imported only for tasks that generate text or that are scored
    by rolling log-likelihoods.
    """

    backend = "causal"
    max_gen_toks = 256
    """Tokens that lm-eval generates where a task does not limit them."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        # lm-eval may add a padding token to it, which texts are then encoded with, too.
        self.tokenizer = configure_pad_token(copy.deepcopy(tokenizer), model_config=model.config)
        self.max_length: int = resolve_max_length(model.config, self.tokenizer)
        """Tokens that the model takes."""
        bos = self.tokenizer.bos_token_id
        self.prefix_token_id: int = self.tokenizer.eos_token_id if bos is None else bos
        """The context of an answer that has none."""
        self._kept: dict[tuple[str, bool | None], list[int]] = {}

    def tok_encode(self, text: str, add_special_tokens: bool | None = None) -> list[int]:  # noqa: FBT001  # lm-eval's signature
        """Return the tokens of a text. Do not change the list: the next call may return it."""
        # lm-eval encodes a context again for each of its answers.
        key = text, add_special_tokens
        if key not in self._kept:
            if len(self._kept) == KEPT_TEXTS:
                self._kept.clear()
            self._kept[key] = self._encode(text, add_special_tokens)
        return self._kept[key]

    def _encode(self, text: str, add_special_tokens: bool | None) -> list[int]:  # noqa: FBT001  # as above
        options: dict[str, bool] = _add_special_kwargs(add_special_tokens)
        if add_special_tokens is None and has_bos_prefix(text, self._prefix_text):
            options = {"add_special_tokens": False}
        tokens: list[int] = self.tokenizer.encode(text, **options)
        return tokens

    @cached_property
    def _prefix_text(self) -> Any:
        return self.tokenizer.decode(self.prefix_token_id)

    _encode_pair = TemplateLM._encode_pair
