"""Packed documents against the same documents alone, for each implementation of attention; weights of micro batches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from sweepcp.data.stream import IGNORED, Batch, restarting_positions
from sweepcp.training.engine import PlainEngine, token_losses
from tests.make import recipe, write_model

ATTENTION = ("sdpa", "eager", "flash_attention_2")
ROWS = [[7, 9, 16], [20, 12], [3, 5, 11, 13]]
"""Lengths of the documents of each sequence of 32 tokens."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("engine") / "model")


def packed(seed: int = 0) -> Batch:
    """Three sequences of several documents each."""
    ids = np.random.default_rng(seed).integers(0, 256, (len(ROWS), 32))
    begins = np.zeros((len(ROWS), 33), dtype=bool)
    for row, lengths in enumerate(ROWS):
        begins[row, np.cumsum([0, *lengths])] = True
    targets = np.where(begins[:, 1:], IGNORED, np.roll(ids, -1, 1))
    return Batch(
        ids, targets, restarting_positions(begins[:, :-1]), np.zeros(len(ROWS), dtype=np.int32)
    )


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("training", [False, True])
def test_packed_documents_do_not_see_each_other(folder: Path, attention: str, training: bool):
    device, dtype = torch.device("cpu"), torch.float32
    if attention == "flash_attention_2":
        pytest.importorskip("flash_attn", reason="flash-attn is not installed")
        if not torch.cuda.is_available():
            pytest.skip("flash attention needs a GPU")
        device, dtype = torch.device("cuda"), torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation=attention, dtype=dtype
    ).to(device)
    model.train(training)
    batch = packed()
    with torch.no_grad():
        together = token_losses(model, device, batch, slice(None)).cpu().numpy()
        apart = np.zeros_like(together)
        for row, lengths in enumerate(ROWS):
            for first, last in zip(np.cumsum([0, *lengths[:-1]]), np.cumsum(lengths), strict=True):
                arrays = (batch.input_ids, batch.targets, batch.position_ids)
                alone = Batch(
                    *(array[row : row + 1, first:last] for array in arrays), batch.source[:1]
                )
                apart[row, first:last] = (
                    token_losses(model, device, alone, slice(None)).cpu().numpy()
                )
        other = packed()
        other.input_ids[1] = np.random.default_rng(5).integers(0, 256, 32)
        other.input_ids[:, : ROWS[0][0]] = 0  # another first document, of the other rows as well
        changed = token_losses(model, device, other, slice(None)).cpu().numpy()
    assert np.abs(together - apart).max() < (2e-5 if dtype == torch.float32 else 0.2)
    np.testing.assert_array_equal(together[0, ROWS[0][0] :], changed[0, ROWS[0][0] :])
    assert np.abs(together[0, : ROWS[0][0]] - changed[0, : ROWS[0][0]]).max() > 0.1


def test_micro_batches_weigh_by_their_targets(folder: Path):
    """Weights and losses do not depend on how a batch of unequal numbers of targets is cut."""
    batch = packed()
    batch.targets[0, :20] = IGNORED
    results = []
    for micro in (3, 1):
        model = AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="sdpa", dtype=torch.float32
        )
        engine = PlainEngine(model, recipe(seq_len=32, batch_tokens=96, tokens=96), micro, "fp32")
        losses, norm = engine.step(batch, int((batch.targets != IGNORED).sum()), 0.01)
        results.append((losses, norm, model.lm_head.weight.detach().clone()))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-6)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-5)
    assert torch.allclose(results[0][2], results[1][2], atol=2e-6)
