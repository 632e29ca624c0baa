"""Packed documents score as they do alone, for each implementation of attention; micro batches."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from sweepcp.data.stream import IGNORED, Batch, restarting_positions
from sweepcp.training.engine import PlainEngine, build_adamw, computes_in_bf16, token_losses
from tests.make import recipe, write_model

ATTENTION = ("sdpa", "eager", "flash_attention_2")
DOCUMENT_LENGTHS = [[7, 9, 16], [20, 12], [3, 5, 11, 13]]
"""Lengths of the documents of each sequence of 32 tokens."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("engine") / "model")


def packed_batch(seed: int = 0) -> Batch:
    """Three sequences of several documents each."""
    rows = len(DOCUMENT_LENGTHS)
    ids = np.random.default_rng(seed).integers(0, 256, (rows, 32))
    begins = np.zeros((rows, 33), dtype=bool)
    for row, lengths in enumerate(DOCUMENT_LENGTHS):
        begins[row, np.cumsum([0, *lengths])] = True
    targets = np.where(begins[:, 1:], IGNORED, np.roll(ids, -1, 1))
    positions = restarting_positions(begins[:, :-1])
    return Batch(ids, targets, positions, np.zeros(rows, dtype=np.int32))


def losses_one_by_one(model: torch.nn.Module, device: torch.device, batch: Batch) -> np.ndarray:
    """Losses of the batch's documents, each computed in a sequence of its own."""
    losses = np.zeros(batch.input_ids.shape, dtype=np.float32)
    for row, lengths in enumerate(DOCUMENT_LENGTHS):
        first = 0
        for length in lengths:
            window = slice(row, row + 1), slice(first, first + length)
            document = Batch(
                batch.input_ids[window],
                batch.targets[window],
                batch.position_ids[window],
                batch.source[:1],
            )
            losses[window] = token_losses(model, device, document, slice(None)).cpu().numpy()
            first += length
    return losses


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("training", [False, True])
def test_packed_documents_do_not_attend_to_each_other(folder: Path, attention: str, training: bool):
    device, dtype = torch.device("cpu"), torch.float32
    if attention == "flash_attention_2":
        pytest.importorskip("flash_attn", reason="flash-attn is not installed")
        if not torch.cuda.is_available():
            pytest.skip("flash attention needs a GPU")
        device, dtype = torch.device("cuda"), torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation=attention, dtype=dtype, device_map=device
    )
    model.train(training)
    batch = packed_batch()
    first_document = DOCUMENT_LENGTHS[0][0]
    changed_batch = packed_batch()
    changed_batch.input_ids[1] = np.random.default_rng(5).integers(0, 256, 32)
    changed_batch.input_ids[:, :first_document] = 0
    with torch.no_grad():
        packed = token_losses(model, device, batch, slice(None)).cpu().numpy()
        alone = losses_one_by_one(model, device, batch)
        changed = token_losses(model, device, changed_batch, slice(None)).cpu().numpy()
    assert np.abs(packed - alone).max() < (2e-5 if dtype == torch.float32 else 0.2)
    np.testing.assert_array_equal(packed[0, first_document:], changed[0, first_document:])
    assert np.abs(packed[0, :first_document] - changed[0, :first_document]).max() > 0.1


def test_micro_batches_are_weighted_by_their_targets(folder: Path):
    """Weights and losses do not depend on how a batch of unequal numbers of targets is split."""
    batch = packed_batch()
    batch.targets[0, :20] = IGNORED
    target_tokens = int((batch.targets != IGNORED).sum())
    results = []
    for micro_batch in (3, 1):
        model = AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="sdpa", dtype=torch.float32
        )
        engine = PlainEngine(
            model,
            recipe(seq_len=32, batch_tokens=96, tokens=96),
            micro_batch=micro_batch,
            precision="fp32",
        )
        losses, grad_norm = engine.step(batch, target_tokens=target_tokens, lr=0.01)
        results.append((losses, grad_norm, model.lm_head.weight.detach().clone()))
    (whole_losses, whole_norm, whole_weights), (losses, grad_norm, weights) = results
    np.testing.assert_allclose(whole_losses, losses, rtol=1e-6)
    assert whole_norm == pytest.approx(grad_norm, rel=1e-5)
    assert torch.allclose(whole_weights, weights, atol=2e-6)


class Recorder(torch.nn.Module):
    """A model that records the shapes of what it is given, with logits in bf16."""

    def __init__(self, attention: str) -> None:
        super().__init__()
        self.config = SimpleNamespace(_attn_implementation=attention)
        self.table = torch.nn.Parameter(torch.randn(256, 256).bfloat16())
        self.seen: list[tuple[tuple[int, ...], list[int]]] = []

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, use_cache: bool
    ) -> SimpleNamespace:
        assert not use_cache
        self.seen.append((tuple(input_ids.shape), position_ids.flatten().tolist()))
        return SimpleNamespace(logits=self.table[input_ids])


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2", "kernels-community/flash-attn"])
def test_flash_attention_gets_one_sequence_with_the_positions_of_all(attention: str):
    """It reads the boundaries of documents from positions only there."""
    batch, model = packed_batch(), Recorder(attention)
    losses = token_losses(model, torch.device("cpu"), batch, slice(1, 3))
    shape = (1, 64) if "flash" in attention else (2, 32)
    assert model.seen == [(shape, batch.position_ids[1:3].flatten().tolist())]
    assert losses.shape == (2, 32)
    log_probabilities = model.table.double().log_softmax(-1)
    expected = -log_probabilities[batch.input_ids[1:3], batch.targets[1:3]].detach().numpy()
    expected[batch.targets[1:3] == IGNORED] = 0
    # In bf16 the difference would be a hundred times as large.
    np.testing.assert_allclose(losses.detach().numpy(), expected, atol=1e-4)


@pytest.mark.parametrize(("micro_batch", "rows"), [(2, [2, 1]), (1, [1, 1, 1]), (None, [3])])
def test_a_forward_pass_has_the_rows_of_a_micro_batch(micro_batch: int | None, rows: list[int]):
    model = Recorder("sdpa").eval()
    settings = recipe(seq_len=32, batch_tokens=96, tokens=96)
    engine = PlainEngine(model, settings, micro_batch=micro_batch, precision="fp32")  # type: ignore[arg-type]
    assert model.training
    engine.step(packed_batch(), target_tokens=80, lr=0.01)
    assert [shape for shape, _ in model.seen] == [(count, 32) for count in rows]


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [
        ("cpu", "auto", False),
        ("cuda", "auto", True),
        ("cpu", "bf16", True),
        ("cuda", "bf16", True),
        ("cpu", "fp32", False),
        ("cuda", "fp32", False),
    ],
)
def test_auto_is_bf16_on_a_gpu_only(device: str, precision: str, expected: bool):
    assert computes_in_bf16(torch.device(device), precision) == expected


def test_of_partitioned_parameters_the_whole_shape_decides_what_decays():
    """Under ZeRO-3 every parameter is an empty vector."""
    model = torch.nn.Module()
    for name, shape in (("matrix", (4, 4)), ("vector", (4,))):
        parameter = torch.nn.Parameter(torch.empty(0))
        parameter.ds_shape = torch.Size(shape)  # type: ignore[attr-defined]
        setattr(model, name, parameter)
    decayed, undecayed = build_adamw(model, recipe(weight_decay=0.3)).param_groups
    assert [decayed["weight_decay"], undecayed["weight_decay"]] == [0.3, 0.0]
    assert decayed["params"] == [model.matrix]
    assert undecayed["params"] == [model.vector]
