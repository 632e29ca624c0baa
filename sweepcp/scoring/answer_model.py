"""A model as it computes answers: exactly as lm-eval does, or a context once for all its answers.

Whether a model can share contexts depends on its architecture. What is known of it is checked
first; then a sample of the answers is computed in both ways.
"""

import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel

from sweepcp.scoring.answer_passes import (
    Answer,
    AnswerPass,
    Branches,
    compute_answers,
    exact_passes,
)
from sweepcp.scoring.lm_eval_answers import AnswerTokens
from sweepcp.scoring.shared_contexts import branch_mask, shared_passes
from sweepcp.training.device import is_out_of_memory
from sweepcp.training.isolation import ROUNDING_FACTOR
from sweepcp.training.process_group import ProcessGroup

BOUND = 1e-4
"""Largest accepted difference of a log-likelihood from that of lm-eval, in nats."""
SAMPLE_CONTEXTS = 8
"""Contexts of a member whose answers are compared."""
SAMPLE_ANSWERS = 8
"""Answers to such a context that are compared, at most."""
PASS_TOKENS, GPU_PASS_TOKENS = 2048, 16_384
"""Tokens in a forward pass of shared contexts, at most, on a CPU and on a GPU. They are fixed, so
that the scores are the same on every machine of a kind."""
MOST_TOKENS = 8192
"""Tokens of a text, at most: a mask of so many is 256 MiB, and takes the square of more."""
REACH_KEY = re.compile(r"(window|chunk)(_size)?$")
"""Found in the names of settings that limit how many tokens a layer looks back."""
LENGTH_DEPENDENT = ("dynamic", "longrope")
"""Kinds of position embedding that change for all rows of a pass with the longest of them."""


class AnswerModel:
    """Computes passes with a model whose weights may change between calls."""

    def __init__(
        self, model: PreTrainedModel, group: ProcessGroup, *, max_length: int, in_bf16: bool
    ) -> None:
        """Keep a model.

        Args:
            model: In evaluation mode at each call, with attention for rows.
            group: The ranks that call together.
            max_length: Tokens that the model takes.
            in_bf16: Whether it computes under autocast to bf16.
        """
        self.model, self.group = model, group
        self.max_length, self.in_bf16 = max_length, in_bf16
        self.vocab_size = int(model.config.get_text_config(decoder=True).vocab_size)
        accepted = inspect.signature(model.forward).parameters
        self.takes_positions = "position_ids" in accepted
        self.most_columns = _most_columns(model, max_length)
        self.keeps_logits = "logits_to_keep" in accepted
        self.keeps_exactly = False
        """Whether exact passes compute the logits of the columns that are needed only."""
        # A cache is of no use here. Recurrent layers may compute in another way without one.
        self.has_state = bool(getattr(model, "_is_stateful", False))
        no_cache = "use_cache" in accepted and not self.has_state
        self.options: dict[str, Any] = {"use_cache": False} if no_cache else {}

    def exact_passes(self, requests: Sequence[AnswerTokens], *, first: int = 0) -> list[AnswerPass]:
        """Return the passes of `sweepcp.scoring.answer_passes.exact_passes` for this model."""
        return exact_passes(
            requests, max_length=self.max_length, vocab_size=self.vocab_size, first=first
        )

    @torch.no_grad()
    def keep_logits(self, passes: Sequence[AnswerPass]) -> None:
        """Compute only the logits that exact passes need from now on, if that changes no bit.

        The passes with the fewest and the most logits are computed in both ways. On a GPU, which
        chooses its kernels by the number of positions, and on several ranks all are computed.
        """
        if not self.keeps_logits or self.model.device.type != "cpu" or self.group.world_size > 1:
            return
        by_size = sorted(passes, key=lambda one: len(one.input_ids) * one.kept)
        for one in (*by_size[:1], *by_size[-1:]):
            self.keeps_exactly = False
            every = self._logits(one)
            self.keeps_exactly = True
            if not torch.equal(self._logits(one), every):
                self.keeps_exactly = False
                return

    def shared_passes(self, requests: Sequence[AnswerTokens]) -> list[AnswerPass]:
        """Return the passes of `sweepcp.scoring.shared_contexts.shared_passes` for this model."""
        return shared_passes(
            requests,
            max_length=self.max_length,
            vocab_size=self.vocab_size,
            pass_tokens=GPU_PASS_TOKENS if self.model.device.type == "cuda" else PASS_TOKENS,
            keeps_logits=self.keeps_logits,
            most_columns=self.most_columns,
        )

    def compute(self, passes: Sequence[AnswerPass], *, count: int) -> list[Answer]:
        """Return the answers of passes, see `compute_answers`."""
        return compute_answers(passes, self._logits, self.group, count=count)

    def _logits(self, one: AnswerPass) -> torch.Tensor:
        """Return the logits of the last columns of a pass that are needed."""
        device, options = self.model.device, dict(self.options)
        if one.branches is not None:
            options["attention_mask"] = self._mask(one.branches)
            options["position_ids"] = one.branches.position.to(device)
        if self.keeps_exactly if one.branches is None else self.keeps_logits:
            options["logits_to_keep"] = one.kept
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.in_bf16):
            logits: torch.Tensor = self.model(one.input_ids.to(device), **options).logits
        return logits[:, -one.kept :]

    def _mask(self, branches: Branches) -> torch.Tensor:
        """Return what is added to the scores of attention, shape (rows, 1, length, length)."""
        # Every implementation of attention adds it; of booleans each layer would make its own.
        seen = branch_mask(branches.last.to(self.model.device))
        dtype = self.model.dtype
        unseen = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=seen.device)
        return torch.where(seen, torch.zeros_like(unseen), unseen)

    def obstacle(self, requests: Sequence[AnswerTokens]) -> str:
        """Return why contexts of requests cannot be shared; empty if they can.

        The same model, requests and kind of machine give the same answer.
        """
        longest = max(min(request.length - 1, self.max_length) for request in requests)
        if _is_divided_twice(requests):
            return "a text with two divisions into context and answer"
        return self._structural_obstacle(longest) or self._difference(_sample(requests))

    def _structural_obstacle(self, longest: int) -> str:
        """Return what the architecture says against it.

        Args:
            longest: Tokens of the longest text.
        """
        config = self.model.config.get_text_config(decoder=True)
        if self.has_state:
            return "recurrent layers"
        if not self.takes_positions:
            return "no positions of tokens"
        if longest > MOST_TOKENS:
            return f"a text of more than {MOST_TOKENS} tokens"
        for key, reach in _reaches(config):
            if reach < longest:
                return f"{key} {reach} is shorter than a text"
        settings = vars(config)
        scaling = settings.get("rope_parameters") or {}
        # Some architectures have one for each type of layers.
        nested = [value for value in scaling.values() if isinstance(value, dict)]
        for parameters in nested or [scaling]:
            limits = (
                parameters.get("original_max_position_embeddings"),
                settings.get("original_max_position_embeddings"),
                settings.get("max_position_embeddings"),
            )
            limit = next(filter(None, limits), 0)
            if parameters.get("rope_type") in LENGTH_DEPENDENT and limit < longest:
                return "positions that depend on the longest text"
        return ""

    def _difference(self, sample: Sequence[AnswerTokens]) -> str:
        """Return what the answers of a sample say against it."""
        passes = self.exact_passes(sample)
        exact = self._log_likelihoods(passes, len(sample))
        try:
            shared = self._log_likelihoods(self.shared_passes(sample), len(sample))
        except Exception as error:
            # Of a GPU that has no memory left, or fails, no model is to blame.
            if is_out_of_memory(error) or "CUDA error" in str(error):
                raise
            return "no masks of branches"
        bound = BOUND
        if self.in_bf16:
            self.in_bf16 = False
            try:
                rounding = np.abs(self._log_likelihoods(passes, len(sample)) - exact).max()
            finally:
                self.in_bf16 = True
            bound = max(bound, ROUNDING_FACTOR * rounding)
        return "" if np.abs(shared - exact).max() <= bound else "other answers in its check"

    def _log_likelihoods(self, passes: Sequence[AnswerPass], count: int) -> np.ndarray:
        return np.array([nats for nats, _ in self.compute(passes, count=count)])


def _reaches(config: PretrainedConfig) -> Iterator[tuple[str, int]]:
    """Yield the settings that limit how many tokens a layer looks back, each with its value."""
    layers = config.per_layer_config if config.is_heterogeneous else ()
    for layer in (config, *layers):
        # Not its attributes: of those that differ between layers, access raises.
        for key, reach in vars(layer).items():
            if REACH_KEY.search(key) and type(reach) is int and reach > 0:
                yield key, reach


def _most_columns(model: PreTrainedModel, max_length: int) -> int:
    """Return the columns that rows and passes may have.

    Where a layer keeps a causal mask of its own, as those of GPT-Neo do, it cuts off what is far
    away in columns rather than in positions, and has no more columns than the model has positions.
    """
    masks = [each for each in model.buffers() if each.dtype == torch.bool and each.ndim >= 2]
    if not masks:
        return sys.maxsize
    config = model.config.get_text_config(decoder=True)
    return min([max_length, *(reach for _, reach in _reaches(config))])


def _is_divided_twice(requests: Sequence[AnswerTokens]) -> bool:
    """Return whether answers of different lengths end one text, see `exact_passes`."""
    lengths: dict[tuple[int, ...], int] = {}
    return any(
        lengths.setdefault((*context, *scored[:-1]), len(scored)) != len(scored)
        for context, scored in requests
    )


def _sample(requests: Sequence[AnswerTokens]) -> list[AnswerTokens]:
    """Return some of the answers to some of the contexts.

    Among them are the longest text and the answers that differ most in length.
    """
    by_context: dict[tuple[int, ...], list[AnswerTokens]] = {}
    for request in requests:
        by_context.setdefault(tuple(request.context), []).append(request)
    contexts = list(by_context.values())
    for answers in contexts:
        answers.sort(key=lambda request: request.length)
        del answers[SAMPLE_ANSWERS // 2 : -SAMPLE_ANSWERS // 2]
    longest = max(contexts, key=lambda answers: answers[-1].length)
    uneven = max(contexts, key=lambda answers: answers[-1].length - answers[0].length)
    step = -(-len(contexts) // (SAMPLE_CONTEXTS - 2))
    return [request for answers in (longest, uneven, *contexts[::step]) for request in answers]
