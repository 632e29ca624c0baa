"""The estimate of training memory against counted tensors and measured peaks."""

import weakref
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, LlamaConfig

from sweepcp.config.model_dimensions import ModelDimensions
from sweepcp.models import memory as estimates
from sweepcp.models.memory import (
    CONTEXT_BYTES,
    RESERVED_SHARE,
    Arithmetic,
    largest_micro_batch,
    peak_of_step,
    training_memory,
)
from sweepcp.training import loss as losses

GIB = 2**30
MEASURED_MODEL = ModelDimensions(
    hidden_size=576,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    intermediate_size=1536,
    vocab_size=49_152,
    max_position_embeddings=2048,
    tie_word_embeddings=True,
)
"""The model of `experiments/LOG.md`, "First runs on a GPU"; micro batches of 16 × 2,048 tokens."""
SHAPES = [
    {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2}
    | {"intermediate_size": 256, "tie_word_embeddings": True},
    {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32}
    | {"intermediate_size": 128, "tie_word_embeddings": False},
]
DTYPES = {"fp32": torch.float32, "autocast": torch.float32, "bf16": torch.bfloat16}
ROWS, LENGTH, VOCABULARY = 4, 64, 4096


@pytest.mark.parametrize(
    ("arithmetic", "isolated", "kept", "state_bytes", "measured", "within"),
    [
        ("autocast", True, 0, 16, 53.5, 0.01),  # steps of a trial
        ("autocast", False, 1, 16, 48.4, 0.06),  # a plain PyTorch loop
        ("bf16", True, 0, 18, 48.4, 0.01),  # steps under ZeRO-3 in one process
    ],
)
def test_measured_peaks(
    arithmetic: Arithmetic,
    isolated: bool,
    kept: int,
    state_bytes: int,
    measured: float,
    within: float,
):
    """All attend by sdpa, and had all logits in fp32: their log-softmax and two gradients.

    The plain loop has a variable that kept its bf16 logits (`kept`) through the backward pass.
    """
    step = peak_of_step(
        MEASURED_MODEL,
        micro_batch=16,
        seq_len=2048,
        arithmetic=arithmetic,
        attention="sdpa",
        recompute=False,
        isolated=isolated,
    )
    states = state_bytes * MEASURED_MODEL.parameter_count
    logits = (3 * 4 + 2 * kept) * 16 * 2048 * 49_152
    total = states + step.copies + step.activations + step.masks + logits
    assert total / GIB == pytest.approx(measured, rel=within)


def test_memory_of_a_trial_by_hand():
    """The measured model with documents by their boundaries, and logits in fp32 by chunks."""
    memory = training_memory(
        MEASURED_MODEL,
        micro_batch=16,
        seq_len=2048,
        in_bf16=True,
        attention="varlen",
        recompute=False,
        isolated=True,
    )
    tokens, parameters = 32_768, 134_515_008
    norms = 2 * (4 + 4) * 576 + 2 * 4
    casts = (3 + 2) * 2 * 576
    attention = 2 * (576 + 192 + 192 + 576) + 4 * 9
    mlp = 4 * 2 * 1536
    # The last norm with its cast, cosines and sines in fp32, ids and positions.
    outside = (4 + 4 + 2) * 576 + 4 + 2 * 4 * 64 + 16
    assert norms + casts + attention + mlp == 30_380
    kept = 30 * (norms + casts + attention + mlp) + outside
    assert memory.states == 16 * parameters
    assert memory.step.copies == 2 * parameters
    assert memory.step.activations == tokens * kept
    assert memory.step.masks == 0
    # Logits and their gradient.
    assert memory.step.logits == 2 * 2 * tokens * 49_152
    total = 18 * parameters + tokens * kept + memory.step.logits
    assert memory.total == total
    assert memory.required == round(total * (1 + RESERVED_SHARE)) + CONTEXT_BYTES


def _model(shape: dict[str, Any], arithmetic: Arithmetic, attention: str, layers: int) -> Any:
    config = LlamaConfig(
        **shape,
        num_hidden_layers=layers,
        vocab_size=VOCABULARY,
        max_position_embeddings=LENGTH,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        config, dtype=DTYPES[arithmetic], attn_implementation=attention
    ).train()


def _dimensions(model: Any) -> ModelDimensions:
    names = ModelDimensions.model_fields.keys() & model.config.to_dict().keys()
    return ModelDimensions(**{name: getattr(model.config, name) for name in names})


def _logits(model: Any, arithmetic: Arithmetic, *, isolated: bool) -> torch.Tensor:
    """Return the logits of rows of two documents each, or of one."""
    positions = torch.arange(LENGTH) % (LENGTH // 2 if isolated else LENGTH)
    ids = torch.zeros((ROWS, LENGTH), dtype=torch.int64)
    autocast = torch.autocast("cpu", dtype=torch.bfloat16) if arithmetic == "autocast" else None
    with autocast or nullcontext():
        logits: torch.Tensor = model(
            input_ids=ids, position_ids=positions.expand(ROWS, -1), use_cache=False
        ).logits
    return logits


@pytest.mark.parametrize("arithmetic", DTYPES)
@pytest.mark.parametrize(
    ("shape", "attention", "isolated"),
    [(SHAPES[1], "sdpa", False), (SHAPES[0], "sdpa", True), (SHAPES[0], "eager", True)],
)
def test_activations_are_what_autograd_saves(
    shape: dict[str, Any], arithmetic: Arithmetic, attention: str, isolated: bool
):
    model = _model(shape, arithmetic, attention, layers=2)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _logits(model, arithmetic, isolated=isolated)
    counted = sum(storage.nbytes() for storage in saved.values())
    step = peak_of_step(
        _dimensions(model),
        micro_batch=ROWS,
        seq_len=LENGTH,
        arithmetic=arithmetic,
        attention=attention,
        recompute=False,
        isolated=isolated,
    )
    # The mask that sdpa makes its own from, and positions, exist without being saved.
    unsaved = ROWS * LENGTH * 8
    if isolated:
        unsaved += step.masks if attention == "eager" else ROWS * LENGTH**2
    expected = step.copies + step.activations + step.masks - unsaved
    assert counted == pytest.approx(expected, rel=0.003)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that exist, and the most that did."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.live:
            self.live[key] = storage.nbytes()
            self.now += storage.nbytes()
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self.live.pop(key)


@pytest.mark.parametrize(
    ("arithmetic", "recompute", "chunk"),
    [
        ("fp32", False, 2**28),
        ("autocast", False, 2**28),
        ("autocast", True, 2**28),
        ("bf16", False, 2**20),
        ("bf16", True, 2**20),
    ],
)
def test_a_step_needs_what_is_estimated(
    arithmetic: Arithmetic, recompute: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
):
    """Forward and backward pass, the chunked loss included, with gradients that exist before."""
    monkeypatch.setattr(estimates, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(losses, "CHUNK_BYTES", chunk)
    model = _model(SHAPES[0], arithmetic, "sdpa", layers=2)
    if recompute:
        model.activation_checkpointing_enable({"use_reentrant": False})
    existing = []
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
        existing += [parameter.untyped_storage(), parameter.grad.untyped_storage()]
    live = LiveBytes()
    for storage in existing:
        live._add(storage)
    before = live.now
    with live:
        # The copies of weights that autocast made exist until its context is left.
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=arithmetic == "autocast"):
            logits = _logits(model, arithmetic, isolated=True).flatten(0, 1)
            targets = torch.zeros(len(logits), dtype=torch.int64)
            summed = losses.chunked_cross_entropy(logits, targets).sum()
        del logits
        summed.backward()
    step = peak_of_step(
        _dimensions(model),
        micro_batch=ROWS,
        seq_len=LENGTH,
        arithmetic=arithmetic,
        attention="sdpa",
        recompute=recompute,
        isolated=True,
    )
    assert live.peak - before == pytest.approx(step.total, rel=0.02)


@pytest.mark.parametrize(("fitting", "expected"), [(5, 5), (4, 3), (3, 3), (2, 2), (1, 1), (0, 1)])
def test_the_batch_is_halved_until_it_fits(fitting: int, expected: int):
    def required(micro_batch: int) -> int:
        return training_memory(MEASURED_MODEL, micro_batch=micro_batch, **settings).required

    settings: dict[str, Any] = {"seq_len": 2048, "in_bf16": True, "attention": "varlen"}
    settings |= {"recompute": False, "isolated": True}
    available = required(fitting) if fitting else required(1) - 1
    memory_of = partial(training_memory, MEASURED_MODEL, **settings)
    micro_batch = largest_micro_batch(memory_of, sequences=5, available_bytes=available)
    assert micro_batch == expected


def test_masks_are_counted_where_attention_has_them():
    masks = {}
    for in_bf16 in (True, False):
        for attention in ("sdpa", "varlen", "flash_attention_2"):
            for isolated in (True, False):
                memory = training_memory(
                    MEASURED_MODEL,
                    micro_batch=2,
                    seq_len=2048,
                    in_bf16=in_bf16,
                    attention=attention,
                    recompute=False,
                    isolated=isolated,
                )
                masks[in_bf16, attention, isolated] = memory.step.masks
    counted = {key: size for key, size in masks.items() if size}
    assert counted == {
        (True, "sdpa", True): 2 * 2048**2 * (1 + 2 * 30),
        (False, "sdpa", True): 2 * 2048**2 * (1 + 4 * 30),
    }


def test_documents_that_a_cpu_attends_to_one_by_one_are_joined():
    """Keys are not repeated, and there is no mask; each output is kept twice."""
    kept = {}
    for attention, isolated in (("varlen", True), ("varlen", False), ("sdpa", False)):
        memory = training_memory(
            MEASURED_MODEL,
            micro_batch=1,
            seq_len=512,
            in_bf16=False,
            attention=attention,
            recompute=False,
            isolated=isolated,
        )
        kept[attention, isolated] = memory.step.activations
    joined = kept["varlen", True] - kept["varlen", False]
    assert joined == 512 * 30 * 4 * 576
    assert kept["varlen", False] == kept["sdpa", False]


def test_with_recomputation_one_layer_has_its_mask():
    memory = training_memory(
        MEASURED_MODEL,
        micro_batch=2,
        seq_len=2048,
        in_bf16=True,
        attention="sdpa",
        recompute=True,
        isolated=True,
    )
    assert memory.step.masks == 2 * 2048**2 * (1 + 2)
