"""Check, on the model itself, that documents packed into one sequence do not influence each other.

Positions that restart separate packed documents only if an architecture derives its masks from
them. State-space, recurrent and convolution layers carry a state across, and some attention masks
ignore positions; transformers does not report it. So a packed batch is compared with the same
documents alone, before anything is trained or scored.
"""

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel

from sweepcp.config.types import Attention
from sweepcp.data.stream import Batch, restarting_positions
from sweepcp.errors import InvalidInput
from sweepcp.models.attention import PACKED, attention_of, use_row_attention
from sweepcp.training.batches import to_micro_batches
from sweepcp.training.device import is_out_of_memory
from sweepcp.training.loss import token_losses
from sweepcp.training.process_group import ProcessGroup

logger = logging.getLogger(__name__)
Document = tuple[int, int, int]
"""A document of a packed batch: its row, its first position, and the one after its last."""

SECOND_STARTS = (1 / 6, 1 / 3, 1 / 2, 2 / 3)
"""Where the second document of each row starts, in row lengths."""
ROW_LENGTH = 128
PASS_TOKENS = 2048
"""Tokens in a forward pass, unless one row has more: logits of a large vocabulary take as much
memory as a step of training."""
REACH_KEY = re.compile(r"window|chunk|kernel|conv")
"""Found in the names of settings that limit how many tokens a layer looks back."""
TOKEN_KEY = re.compile(r"token_id|token_index")
"""Found in the names of settings that are ids of special tokens."""
SAME_SHAPE = 1e-6
"""Largest accepted difference of a document's loss between two batches of the same shape, in nats
per token. The same kernels compute both, so without experts it is exactly 0."""
SAME_SHAPE_EXPERTS = {torch.float32: 1e-5, torch.bfloat16: 0.05}
"""The same with experts: the tokens that each gets differ in number, hence in rounding, which may
send single tokens to another expert. What leaks changes every document, so the smallest difference
of all documents is compared in place of the largest."""
ALONE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest accepted difference between a packed document and the same one alone: kernels of other
shapes round differently."""
ROUNDING_FACTOR = 4.0
"""Accepted difference between two kernels in bf16, in multiples of that between bf16 and fp32."""
ALONE_FACTOR = 3.0
"""Accepted difference in multiples of that of the first documents, which nothing precedes: theirs
is rounding only."""


def check_isolation(
    model: PreTrainedModel,
    group: ProcessGroup,
    *,
    seq_len: int,
    packed: bool,
    training: bool = True,
) -> None:
    """Check that the losses of a document depend neither on other documents nor on chance.

    The model runs in the dtype of its weights: under autocast to bf16, rounding would hide small
    differences. Only where the kernels of attention take no fp32, it runs under autocast. Documents
    that are separated by boundaries are compared with each alone under sdpa, so that a wrong window
    or scale is found, too. Weights, gradients, random state and the mode of the model are
    unchanged.

    Args:
        model: The model, possibly partitioned over the ranks, which call this together.
        group: The ranks.
        seq_len: Tokens of a training sequence.
        packed: Whether documents are to be separated; otherwise only chance is excluded.
        training: Whether to compare in training mode, or in evaluation mode.

    Raises:
        InvalidInput: The losses differ. The error names no file.
    """
    probe = _Probe(model, group, _row_length(model.config, seq_len))
    with _unchanged(model, group, training=training), probe.arithmetic():
        reference = probe.packed_losses(probe.ids, seed=0)
        if not np.isfinite(reference).all():
            return  # Scoring reports a model whose loss is not finite.
        again = probe.packed_losses(probe.ids, seed=1)
        difference = max(probe.differences(reference, again, probe.documents))
        probe.refuse(difference, bound=probe.same_shape, error=_random)
        if not (packed or probe.has_boundaries) or not probe.later:
            return
        changed = probe.packed_losses(probe.ids_with_other_first_documents(), seed=0)
        difference = probe.difference(reference, changed, probe.later)
        probe.refuse(difference, bound=probe.same_shape, error=_leaking)
        if probe.has_boundaries:
            difference, bound = probe.compare_with_sdpa(reference)
            probe.refuse(difference, bound=bound, error=_unlike_sdpa)
            return
        alone = probe.losses_alone(reference.shape)
        rounding = probe.difference(reference, alone, probe.first)
        difference = probe.difference(reference, alone, probe.later)
        bound = max(ALONE[probe.dtype], ALONE_FACTOR * rounding)
        probe.refuse(difference, bound=bound, error=_leaking)


def ensure_isolation(
    model: PreTrainedModel,
    group: ProcessGroup,
    *,
    wanted: Attention,
    seq_len: int,
    packed: bool,
) -> None:
    """Check isolation, and have the model compute with sdpa if what `auto` chose does not pass.

    Args:
        model: See `check_isolation`.
        group: The ranks.
        wanted: The implementation of attention that was asked for.
        seq_len: Tokens of a training sequence.
        packed: Whether documents are to be separated.

    Raises:
        InvalidInput: What was asked for does not pass, or sdpa does not either.
    """
    try:
        check_isolation(model, group, seq_len=seq_len, packed=packed)
    except InvalidInput as error:
        if wanted != "auto" or attention_of(model) not in PACKED:
            raise
        logger.warning(
            "attention: sdpa in place of %s, which does not pass its check (%s)",
            attention_of(model),
            error.found,
        )
    else:
        return
    model.set_attn_implementation("sdpa")
    check_isolation(model, group, seq_len=seq_len, packed=packed)


class _Probe:
    """A batch of packed documents, and the losses of a model on it."""

    def __init__(self, model: PreTrainedModel, group: ProcessGroup, length: int) -> None:
        self.model, self.group = model, group
        self.has_boundaries = attention_of(model) in PACKED
        self.dtype = next(model.parameters()).dtype
        self.in_autocast = (
            self.has_boundaries and self.dtype == torch.float32 and not _takes_fp32(group.device)
        )
        if self.in_autocast:
            self.dtype = torch.bfloat16
        self.has_experts = _has_experts(model.config)
        self.same_shape = SAME_SHAPE_EXPERTS[self.dtype] if self.has_experts else SAME_SHAPE
        self.ids, self.other_ids = _random_tokens(model.config, length)
        self.documents = list(_documents(length))
        self.first = [document for document in self.documents if document[1] == 0]
        self.later = [document for document in self.documents if document[1] > 0]

    def arithmetic(self) -> AbstractContextManager[Any]:
        """Return the context that the model computes in."""
        if self.in_autocast:
            return torch.autocast(self.group.device.type, dtype=self.dtype)
        return nullcontext()

    def ids_with_other_first_documents(self) -> np.ndarray:
        ids = self.ids.copy()
        for row, first, end in self.first:
            ids[row, first:end] = self.other_ids[row, first:end]
        return ids

    def packed_losses(self, ids: np.ndarray, *, seed: int) -> np.ndarray:
        try:
            return _losses(self.model, self.group, ids, self.documents, seed=seed)
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            # Of a GPU that has no memory left, or fails, no model is to blame.
            if is_out_of_memory(error) or "CUDA error" in str(error):
                raise
            raise _unable(self.model, error) from error

    def losses_alone(self, shape: tuple[int, ...]) -> np.ndarray:
        losses = np.zeros(shape)
        for row, first, end in self.documents:
            window = slice(row, row + 1), slice(first, end)
            document = [(0, 0, end - first)]
            losses[window] = _losses(self.model, self.group, self.ids[window], document, seed=0)
        return losses

    def compare_with_sdpa(self, packed: np.ndarray) -> tuple[float, float]:
        """Return how much packed documents differ from each alone under sdpa, and the bound."""
        with use_row_attention(self.model):
            alone = self.losses_alone(packed.shape)
            bound = ALONE[self.dtype]
            if self.in_autocast and not self.has_experts:
                with torch.autocast(self.group.device.type, enabled=False):
                    exact = self.losses_alone(packed.shape)
                rounding = self.difference(alone, exact, self.documents)
                bound = max(ALONE[torch.float32], ROUNDING_FACTOR * rounding)
        return self.difference(packed, alone, self.documents), bound

    def differences(
        self, one: np.ndarray, other: np.ndarray, documents: Iterable[Document]
    ) -> list[float]:
        """Return how much the losses of each document differ, in nats per token."""
        difference = np.abs(one - other)
        return [
            # The last token of a document has no target.
            float(difference[row, first : max(first + 1, end - 1)].mean())
            for row, first, end in documents
        ]

    def difference(
        self, one: np.ndarray, other: np.ndarray, documents: Iterable[Document]
    ) -> float:
        """Return the difference by which a leak is recognised, see `SAME_SHAPE_EXPERTS`."""
        differences = self.differences(one, other, documents)
        return min(differences) if self.has_experts else max(differences)

    def refuse(
        self, difference: float, *, bound: float, error: Callable[[str, float], InvalidInput]
    ) -> None:
        """Raise the error, on all ranks or on none, if a difference is above its bound."""
        if self.group.all_reduce_any(not difference <= bound):
            raise error(type(self.model).__name__, difference)


@contextmanager
def _unchanged(model: PreTrainedModel, group: ProcessGroup, *, training: bool) -> Iterator[None]:
    """Run a model in a mode without any effect on it or on the random state."""
    was_training = model.training
    devices = [group.device] if group.device.type == "cuda" else []
    model.train(training)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            yield
    finally:
        model.train(was_training)


def _losses(
    model: PreTrainedModel,
    group: ProcessGroup,
    ids: np.ndarray,
    documents: Iterable[Document],
    *,
    seed: int,
) -> np.ndarray:
    """Return the loss at each position, 0 for the last of a document; the shape of `ids`."""
    torch.manual_seed(seed)
    starts = np.zeros(ids.shape, dtype=bool)
    is_last = np.zeros(ids.shape, dtype=bool)
    for row, first, end in documents:
        starts[row, first], is_last[row, end - 1] = True, True
    targets = np.roll(ids, -1, axis=1)
    batch = Batch(ids, targets, restarting_positions(starts), np.zeros(len(ids), dtype=np.int64))
    rows = max(1, PASS_TOKENS // ids.shape[1])
    passes = [
        token_losses(model, micro_batch)
        for micro_batch in to_micro_batches(batch, rows=rows, device=group.device)
    ]
    losses = torch.cat(passes).double().cpu().numpy()
    return np.where(is_last, 0.0, losses)


def _leaking(architecture: str, difference: float) -> InvalidInput:
    return InvalidInput(
        key="packed documents",
        found=f"{architecture}: the loss of a document changes by {difference:.2g} nats per token "
        "with the documents before it in a sequence",
        rule="documents do not influence each other (`cross_documents: false`)",
        fix="set `training.cross_documents: true`, so that training does not separate documents; "
        "or use an architecture or an implementation of attention that separates them",
    )


def _takes_fp32(device: torch.device) -> bool:
    """Return whether attention by boundaries computes in fp32 on a device."""
    return device.type == "cpu"


def _unlike_sdpa(architecture: str, difference: float) -> InvalidInput:
    return InvalidInput(
        key="attention",
        found=f"{architecture}: the loss of a document differs by {difference:.2g} nats per token "
        "from its loss under sdpa",
        rule="an implementation of attention that computes what sdpa does, but for rounding",
        fix="set the attention to sdpa",
    )


def _random(architecture: str, difference: float) -> InvalidInput:
    return InvalidInput(
        key="model_type",
        found=f"{architecture}: losses differ by {difference:.2g} nats per token between two "
        "passes over the same batch",
        rule="an architecture that draws no random numbers in training, with dropout and router "
        "jitter set to 0",
        fix="use another model",
    )


def _unable(model: PreTrainedModel, error: Exception) -> InvalidInput:
    attention = attention_of(model)
    others = f"set the attention to sdpa in place of {attention}, or " * (attention in PACKED)
    return InvalidInput(
        key="model_type",
        found=f"{type(model).__name__}: {type(error).__name__}: {error}",
        rule="a model that computes logits from token ids alone",
        fix=f"{others}use another model",
    )


def _has_experts(config: PretrainedConfig) -> bool:
    settings = vars(config.get_text_config())
    return any(
        "expert" in key and type(value) is int and value > 1 for key, value in settings.items()
    )


def _row_length(config: PretrainedConfig, seq_len: int) -> int:
    """Return a length at which every window that is shorter than `seq_len` is crossed."""
    reaches = [
        value
        for key, value in vars(config.get_text_config()).items()
        if REACH_KEY.search(key) and isinstance(value, int) and value < seq_len
    ]
    return min(seq_len, max([ROW_LENGTH, *(2 * reach for reach in reaches)]))


def _documents(length: int) -> Iterator[Document]:
    for row, fraction in enumerate(SECOND_STARTS):
        cuts = sorted({0, round(fraction * length), length})
        yield from ((row, first, end) for first, end in pairwise(cuts))


def _random_tokens(config: PretrainedConfig, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return two batches of tokens, the same at every call.

    Special tokens are left out: some architectures derive masks from them.
    """
    text = config.get_text_config()
    settings = {**vars(config), **vars(text)}
    special = {
        value for key, value in settings.items() if TOKEN_KEY.search(key) and type(value) is int
    }
    usable = np.setdiff1d(np.arange(text.vocab_size), list(special))
    generator = np.random.default_rng(0)
    shape = len(SECOND_STARTS), length
    return generator.choice(usable, shape), generator.choice(usable, shape)
