"""Memory that training takes on one device.

Every term is that of a Llama-like model as transformers computes it: gated MLP, RMSNorm, rotary
positions, grouped key and value heads. Other architectures are estimated as if they were one. The
activations were counted: `tests/unit/test_memory.py` compares them with the tensors that autograd
saves. The whole was measured on an H100, in three runs of a Llama of 135 M parameters with all
logits in fp32: for a trial and for a full run the formula is within 1 %, for a plain PyTorch loop
it is 6 % too high (`experiments/LOG.md`, "First runs on a GPU").

Bytes per token that the backward pass keeps of a layer, with H the hidden size, I that of the MLP,
Q and K the sizes of all query and of all key heads, A query heads:

| what | fp32 | autocast | bf16 |
|---|---|---|---|
| two norms: input in fp32, normalised input, output; inverse root mean square | 24 H + 8 | 16 H + 8 | 16 H + 8 |
| casts of the norms' outputs, one for each of the five products | – | 10 H | – |
| queries, keys, values, output; logsumexp | 8 (Q + K) + 4 A | 4 (Q + K) + 4 A | 4 (Q + K) + 4 A |
| MLP: gate, its SiLU, up, their product | 16 I | 8 I | 8 I |

With a mask, keys and values are repeated, so that K = Q. Attention document by document, on a CPU,
keeps its output twice, which is counted in fp32, as a GPU has it in bf16 only. The eager implementation keeps its scores
in place of the logsumexp: per head and position 4 bytes in fp32, else 6.
"""  # noqa: E501

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from sweepcp.config.attention import PACKED
from sweepcp.config.model_dimensions import ModelDimensions

Arithmetic = Literal["fp32", "autocast", "bf16"]
"""`autocast`: fp32 weights, and products in bf16 (trials). `bf16`: bf16 weights (full runs)."""
CHUNK_BYTES = 2**28
"""What the loss has in fp32 at a time: a chunk of logits and its softmax."""
STATE_BYTES = 16
"""Bytes per parameter of a trial: weights, gradients and two moments of AdamW in fp32."""
RESERVED_SHARE = 0.05
"""Assumed: what the allocator holds in blocks that fit no request, as a share of the rest."""
CONTEXT_BYTES = 2**29
"""Assumed: CUDA's context and the libraries' kernels, which the allocator does not count."""


@dataclass(frozen=True)
class StepMemory:
    """Bytes at one moment of a step, besides weights, gradients and optimizer state."""

    copies: int
    """Copies of weights in bf16 that autocast made."""
    activations: int
    """What the backward pass keeps of the forward pass, and its own largest tensors."""
    masks: int
    """Masks of the attention."""
    logits: int
    """Logits, their gradients, and the parts of both that exist in fp32."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.copies + self.activations + self.masks + self.logits


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on one device at the moment of a step that needs the most."""

    states: int
    """Weights, gradients and optimizer state."""
    step: StepMemory

    @property
    def total(self) -> int:
        """What `torch.cuda.max_memory_allocated` is expected to return."""
        return self.states + self.step.total

    @property
    def required(self) -> int:
        """What the device must have: the total, the allocator's overhead and CUDA's context."""
        return with_overhead(self.total)


def with_overhead(total: int) -> int:
    """Return what a device must have: allocated bytes, the allocator's overhead, CUDA's context."""
    return round(total * (1 + RESERVED_SHARE)) + CONTEXT_BYTES


def training_memory(
    dimensions: ModelDimensions,
    *,
    micro_batch: int,
    seq_len: int,
    in_bf16: bool,
    attention: str,
    recompute: bool,
    isolated: bool,
) -> TrainingMemory:
    """Estimate the memory of one process that trains fp32 weights with AdamW.

    All gradients count, as from the second micro batch on. Compiled layers keep less.

    Args:
        dimensions: Of the model.
        micro_batch: Sequences per forward pass.
        seq_len: Tokens per sequence.
        in_bf16: Whether it computes under bf16 autocast.
        attention: Implementation of attention, see `expected_attention`.
        recompute: Whether activations are checkpointed.
        isolated: Whether packed documents are separated.
    """
    step = peak_of_step(
        dimensions,
        micro_batch=micro_batch,
        seq_len=seq_len,
        arithmetic="autocast" if in_bf16 else "fp32",
        attention=attention,
        recompute=recompute,
        isolated=isolated,
    )
    return TrainingMemory(states=STATE_BYTES * dimensions.parameter_count, step=step)


def largest_micro_batch(
    memory_of: Callable[..., TrainingMemory], *, sequences: int, available_bytes: float
) -> int:
    """Return the first of all sequences, half of them, rounded up, … that fits; 1 if none does.

    Args:
        memory_of: `training_memory` of a model and its settings, for a `micro_batch`.
        sequences: Those of a step.
        available_bytes: What the device has.
    """
    micro_batch = sequences
    while micro_batch > 1 and memory_of(micro_batch=micro_batch).required > available_bytes:
        micro_batch = -(-micro_batch // 2)
    return micro_batch


def peak_of_step(
    dimensions: ModelDimensions,
    *,
    micro_batch: int,
    seq_len: int,
    arithmetic: Arithmetic,
    attention: str,
    recompute: bool,
    isolated: bool,
) -> StepMemory:
    """Return the memory at the moment of a step that needs the most, see `training_memory`."""
    step = _Step(
        dimensions=dimensions,
        micro_batch=micro_batch,
        seq_len=seq_len,
        arithmetic=arithmetic,
        attention=attention,
        recompute=recompute,
        isolated=isolated,
    )
    moments = (step.end_of_forward(), step.gradient_of_logits(), step.gradient_of_a_layer())
    return max(moments, key=lambda moment: moment.total)


@dataclass(frozen=True, kw_only=True)
class _Step:
    dimensions: ModelDimensions
    micro_batch: int
    seq_len: int
    arithmetic: Arithmetic
    attention: str
    recompute: bool
    isolated: bool

    def end_of_forward(self) -> StepMemory:
        """Return the memory while the losses are computed, with every copy of a weight."""
        logits = self.width * self.tokens * self.dimensions.vocab_size
        return self._moment(self._products, self.kept, logits + self.chunk)

    def gradient_of_logits(self) -> StepMemory:
        """Return the memory while the gradient of the logits or of the output weights is made."""
        size = self.dimensions
        all_logits = self.width * self.tokens * size.vocab_size
        loss = 2 * all_logits
        if self.arithmetic == "fp32":
            # On a CPU the loss is computed at once: its log-softmax, and two gradients.
            loss = 3 * all_logits
        # The gradient of the weights has the dtype of the product before it is cast.
        cast = 4 if self.arithmetic == "autocast" else 0
        head = all_logits + (self.width + cast) * size.vocab_size * size.hidden_size
        copied = size.vocab_size * size.hidden_size if self.recompute else self._products
        return self._moment(copied, self.kept, max(loss, head))

    def gradient_of_a_layer(self) -> StepMemory:
        """Return the memory in the backward pass of the last layer."""
        size = self.dimensions
        # Counted: the gradients of SiLU's factors, or those within a norm, which are in fp32.
        gradients = 2 * self.width * size.intermediate_size
        if self.recompute:
            activations = self.kept + (self.layer + gradients) * self.tokens
            return self._moment(size.layer_parameters, activations, 0)
        gradients = max(gradients, 20 * size.hidden_size)
        return self._moment(self._products, self.kept + gradients * self.tokens, 0)

    def _moment(self, copied: int, activations: int, logits: int) -> StepMemory:
        copies = 2 * copied if self.arithmetic == "autocast" else 0
        return StepMemory(copies, activations, self.masks, logits)

    @property
    def tokens(self) -> int:
        return self.micro_batch * self.seq_len

    @property
    def width(self) -> int:
        """Bytes of a value that a product returns."""
        return 4 if self.arithmetic == "fp32" else 2

    @property
    def stream(self) -> int:
        """Bytes of a value of the residual stream."""
        return 2 if self.arithmetic == "bf16" else 4

    @property
    def chunk(self) -> int:
        return min(CHUNK_BYTES, 2 * 4 * self.tokens * self.dimensions.vocab_size)

    @property
    def _products(self) -> int:
        """Parameters that are factors of a product: all but the input embeddings."""
        size = self.dimensions
        embeddings = 0 if size.tie_word_embeddings else size.vocab_size * size.hidden_size
        return size.parameter_count - embeddings

    @property
    def masked(self) -> bool:
        """Whether attention gets a mask, which sdpa does not need where it is causal."""
        if self.attention in PACKED:
            return False
        return self.isolated or self.attention == "eager"

    @property
    def output_copies(self) -> int:
        """How often the output of attention is kept: varlen in fp32 joins those of documents."""
        joins = self.attention == "varlen" and self.arithmetic == "fp32" and self.isolated
        return 2 if joins else 1

    @cached_property
    def layer(self) -> int:
        """Bytes per token that are kept of one layer."""
        size = self.dimensions
        heads = size.num_attention_heads
        head_dim = size.head_dim or size.hidden_size // heads
        key_heads = heads if self.masked else size.num_key_value_heads
        norms = {"fp32": 24, "autocast": 26, "bf16": 16}[self.arithmetic] * size.hidden_size + 8
        # Of each head and position: the logsumexp, or the scores of all positions.
        of_heads = 4
        if self.attention == "eager":
            of_heads = (4 if self.arithmetic == "fp32" else 6) * self.seq_len
        values = (1 + self.output_copies) * heads + 2 * key_heads
        attention = self.width * head_dim * values + of_heads * heads
        return norms + attention + 4 * self.width * size.intermediate_size

    @cached_property
    def kept(self) -> int:
        """Bytes of activations that are kept until the backward pass begins."""
        size = self.dimensions
        head_dim = size.head_dim or size.hidden_size // size.num_attention_heads
        layer = self.stream * size.hidden_size if self.recompute else self.layer
        # The last norm, as two in a layer; cosines and sines; token ids and positions.
        norm = {"fp32": 12, "autocast": 10, "bf16": 8}[self.arithmetic] * size.hidden_size + 4
        outside = norm + 2 * self.stream * head_dim + 16
        return self.tokens * (layer * size.num_hidden_layers + outside)

    @property
    def masks(self) -> int:
        """Bytes of the model's mask, and of the one in the dtype of products that sdpa makes of it.

        sdpa keeps its own in every layer, or of the layer that is recomputed.
        """
        if not self.masked:
            return 0
        size = self.micro_batch * self.seq_len**2
        if self.attention == "eager":
            return self.stream * size
        layers = 1 if self.recompute else self.dimensions.num_hidden_layers
        return size * (1 + self.width * layers)
