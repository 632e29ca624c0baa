"""Bits of held-out documents, against transformers alone and independent code."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from sweepcp.config.suites import MemberSpec
from sweepcp.data.token_store import TokenStore
from sweepcp.errors import InvalidInput
from sweepcp.models.attention import use_attention
from sweepcp.models.loading import byte_tokenizer, make_encoder
from sweepcp.scoring.held_out import HeldOutText, pack_windows
from sweepcp.scoring.scorecard import document_id
from sweepcp.training.loss import token_losses
from sweepcp.training.process_group import ProcessGroup

SEQ_LEN = 16
BOS = 256
DOCUMENTS = [
    "A document of more than two windows, cut from its own start.",
    "x",
    "Größe: 3 m² – 価格",
    "sixteen bytes ok",
    "short one",
    "seventeen bytes !",
]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(3)
    if request.param == "llama":
        llama = LlamaConfig(
            vocab_size=258,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.4,
        )
        return LlamaForCausalLM(llama).eval()
    gpt2 = GPT2Config(
        vocab_size=258, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.4
    )
    return GPT2LMHeadModel(gpt2).eval()


def ids(text: str) -> list[int]:
    return byte_tokenizer()(text)["input_ids"]


def held_out(
    folder: Path,
    documents: list[str],
    *,
    packed: bool = True,
    chars: int | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> HeldOutText:
    folder.mkdir(exist_ok=True)
    lines = [json.dumps(document) + "\n" for document in documents]
    (folder / "held_out.jsonl").write_text("".join(lines))
    return HeldOutText(
        TokenStore(folder, "docs"),
        MemberSpec(held_out="docs", chars=chars),
        make_encoder(tokenizer or byte_tokenizer()),
        seq_len=SEQ_LEN,
        packed=packed,
    )


def bits(text: HeldOutText, model: PreTrainedModel, rows: int = 2) -> np.ndarray:
    group = ProcessGroup(device=torch.device("cpu"))
    return text.bits(model, group, rows=rows, precision="fp32")


@torch.no_grad()
def bits_alone(model: PreTrainedModel, document: str) -> float:
    """Return the bits of a document, window by window, each in a call of its own."""
    tokens = [BOS, *ids(document)]
    total = 0.0
    for first in range(0, len(tokens) - 1, SEQ_LEN):
        window = torch.tensor([tokens[first : first + SEQ_LEN + 1]])
        probabilities = model(window[:, :-1]).logits[0].double().softmax(-1)
        for position, token in enumerate(window[0, 1:].tolist()):
            total -= math.log2(float(probabilities[position, token]))
    return total


@pytest.mark.parametrize("packed", [True, False])
def test_bits_are_those_of_each_document_alone(
    tmp_path: Path, model: PreTrainedModel, packed: bool
):
    text = held_out(tmp_path, DOCUMENTS, packed=packed)
    expected = [bits_alone(model, document) for document in DOCUMENTS]
    np.testing.assert_allclose(bits(text, model), expected, rtol=1e-5)
    assert text.bytes.tolist() == [len(document.encode()) for document in DOCUMENTS]
    assert len(set(np.round(expected, 3))) == len(DOCUMENTS)


@pytest.mark.parametrize("packed", [True, False])
def test_bits_by_boundaries_are_those_of_each_document_alone(
    tmp_path: Path, model: PreTrainedModel, packed: bool
):
    expected = [bits_alone(model, document) for document in DOCUMENTS]
    with use_attention(model, "varlen"):
        values = bits(held_out(tmp_path, DOCUMENTS, packed=packed), model)
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_bits_are_read_from_the_device_after_the_last_pass(
    tmp_path: Path, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
):
    """A copy to the host between passes would have a GPU wait for the next one."""
    events: list[str] = []
    to_host = torch.Tensor.cpu

    def record_pass(*arguments: Any) -> torch.Tensor:
        events.append("pass")
        return token_losses(*arguments)

    def record_copy(tensor: torch.Tensor) -> torch.Tensor:
        events.append("copy")
        return to_host(tensor)

    monkeypatch.setattr("sweepcp.scoring.held_out.token_losses", record_pass)
    monkeypatch.setattr(torch.Tensor, "cpu", record_copy)
    bits(held_out(tmp_path, DOCUMENTS), model)
    passes = events.count("pass")
    assert passes > 1
    assert events == ["pass"] * passes + ["copy"] * passes


def test_bits_do_not_depend_on_the_other_documents(tmp_path: Path, model: PreTrainedModel):
    together = dict(zip(DOCUMENTS, bits(held_out(tmp_path, DOCUMENTS), model), strict=True))
    for order in (DOCUMENTS[::-1], DOCUMENTS[3:] + DOCUMENTS[:2]):
        for rows in (1, 8):
            values = bits(held_out(tmp_path, order), model, rows)
            for document, value in zip(order, values, strict=True):
                assert value == pytest.approx(together[document], rel=2e-6)


def test_a_model_is_scored_in_evaluation_mode(tmp_path: Path, model: PreTrainedModel):
    text = held_out(tmp_path, DOCUMENTS[:1])
    expected = bits(text, model.eval())
    model.train()  # with dropout, where the model has it
    np.testing.assert_array_equal(bits(text, model), expected)
    assert model.training


def test_held_out_text_that_the_tokenizer_drops_is_refused(tmp_path: Path):
    """The bits of the rest would be divided by the bytes of all."""
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    tokenizer.add_special_tokens(["<s>"])
    dropping = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")
    assert dropping("abcd")["input_ids"] == [0, 1]
    assert held_out(tmp_path, ["abab"], tokenizer=dropping).bytes.tolist() == [4]
    with pytest.raises(InvalidInput, match="held-out text of docs"):
        held_out(tmp_path, ["abab", "abcd"], tokenizer=dropping)


class OneOfThree(ProcessGroup):
    """A rank whose sums are twice its own part, which a test adds up."""

    def all_reduce_sum(self, array: np.ndarray) -> np.ndarray:
        assert self.world_size == 3
        return 2 * array


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_ranks_score_every_row_once(tmp_path: Path, model: PreTrainedModel, rows: int):
    """With 10 rows some ranks have fewer, or none."""
    text = held_out(tmp_path, DOCUMENTS, packed=False)
    parts = [
        text.bits(model, OneOfThree(rank=rank, world_size=3), rows=rows, precision="fp32")
        for rank in range(3)
    ]
    np.testing.assert_allclose(sum(parts), 2 * bits(text, model), rtol=1e-5)


def test_every_token_is_predicted_once(tmp_path: Path):
    for packed in (True, False):
        text = held_out(tmp_path, DOCUMENTS, packed=packed)
        predicted = text.batch.targets != -100
        for index, document in enumerate(DOCUMENTS):
            targets = text.batch.targets[predicted & (text.document == index)]
            assert sorted(targets.tolist()) == sorted(ids(document))


def test_a_later_window_begins_with_the_last_token_of_the_one_before(tmp_path: Path):
    document = "0123456789abcdefghij"
    batch = held_out(tmp_path, [document]).batch
    assert batch.input_ids[1, :4].tolist() == ids("fghi")
    assert batch.targets[1, :4].tolist() == ids("ghij")
    assert batch.position_ids[1, :4].tolist() == [0, 1, 2, 3]
    assert batch.input_ids[0, 0] == BOS


def test_the_ids_are_those_of_the_whole_documents(tmp_path: Path):
    text = held_out(tmp_path, DOCUMENTS, chars=4)
    assert text.document_ids == tuple(document_id(document) for document in DOCUMENTS)
    assert text.bytes.tolist() == [len(document[:4].encode()) for document in DOCUMENTS]


def test_windows_fill_rows_without_being_cut():
    lengths = [3, 8, 5, 2, 8, 6, 1]
    rows = pack_windows(lengths, capacity=8, shared=True)
    assert sorted(window for row in rows for window in row) == list(range(7))
    assert sorted(sum(lengths[window] for window in row) for row in rows) == [1, 8, 8, 8, 8]
    assert pack_windows(lengths, capacity=8, shared=False) == [[1], [4], [5], [2], [0], [3], [6]]
