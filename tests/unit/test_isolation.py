"""The check that packed documents do not influence each other, on models made to break it."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from sweepcp.config.types import Attention
from sweepcp.errors import InvalidInput
from sweepcp.models import attention
from sweepcp.models.causal_attention import attend_one_by_one
from sweepcp.training import isolation
from sweepcp.training.isolation import check_isolation, ensure_isolation
from sweepcp.training.process_group import ProcessGroup
from tests.make import SMALL


class Stub(nn.Module):
    """A model of one embedding whose logits take up what a kind of fault lets in."""

    def __init__(self, fault: str = "none", *, size: float = 1.0, **settings: Any) -> None:
        super().__init__()
        self.config = LlamaConfig(vocab_size=64, **settings)
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(64, 64, generator=generator))
        self.fault, self.size = fault, size

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, use_cache: bool
    ) -> SimpleNamespace:
        assert not use_cache
        logits = self.table[input_ids]
        columns = torch.arange(input_ids.shape[1])
        if self.fault == "state":
            logits = logits + self.size * self.table[input_ids].cumsum(1) / (1 + columns)[:, None]
        elif self.fault == "first tokens":
            # As a convolution: a document's first token sees the token before it.
            before = self.table[input_ids.roll(1, 1)] * (columns > 0)[:, None]
            logits = logits + self.size * before * (position_ids == 0)[..., None]
        elif self.fault == "column":
            logits = logits * (1 + self.size * (columns / 128))[:, None]
        elif self.fault == "chance" and self.training:
            logits = nn.functional.dropout(logits, 0.1)
        elif self.fault == "nan":
            logits = logits * float("nan")
        elif self.fault == "no positions":
            raise ValueError("give me images")
        return SimpleNamespace(logits=logits)


def check(model: nn.Module, **changes: Any) -> None:
    settings: dict[str, Any] = {"seq_len": 64, "packed": True} | changes
    check_isolation(model, ProcessGroup(), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("seq_len", [1, 2, 3, 4, 7, 64, 4096])
def test_a_model_that_isolates_documents_passes_at_any_length(seq_len: int):
    check(Stub(), seq_len=seq_len)
    check(LlamaForCausalLM(LlamaConfig(vocab_size=64, **SMALL)), seq_len=min(seq_len, 64))


@pytest.mark.parametrize("fault", ["state", "first tokens", "column"])
@pytest.mark.parametrize("experts", [1, 8])
def test_every_way_in_which_documents_influence_each_other_is_found(fault: str, experts: int):
    model = Stub(fault, size=0.1, num_experts=experts)
    with pytest.raises(InvalidInput, match="cross_documents: true") as caught:
        check(model)
    assert caught.value.key == "packed documents"
    assert "Stub: the loss of a document changes by 0.0" in str(caught.value.found)
    check(model, packed=False)


def test_the_smallest_influence_is_found_without_experts():
    with pytest.raises(InvalidInput, match="nats per token"):
        check(Stub("first tokens", size=1e-4))


def test_chance_in_training_is_found_whether_documents_are_packed_or_not():
    for packed in (True, False):
        with pytest.raises(InvalidInput, match="between two passes over the same batch"):
            check(Stub("chance"), packed=packed)
    check(Stub("chance"), training=False)


def test_dropout_of_a_configuration_counts_as_chance_unless_it_is_removed():
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64))
    with pytest.raises(InvalidInput, match="between two passes"):
        check(model)


def varlen_model(**settings: Any) -> MistralForCausalLM:
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(vocab_size=64, **SMALL | settings))
    model.set_attn_implementation("varlen")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5)
    return model


def change_kernel(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Have the kernel get other arguments than it is called with."""
    attend = attend_one_by_one

    def attend_otherwise(*tensors: torch.Tensor, **arguments: Any) -> torch.Tensor:
        other = {key: change(arguments[key]) for key, change in changes.items()}
        return attend(*tensors, **arguments | other)

    monkeypatch.setattr(attention, "attend_one_by_one", attend_otherwise)


WINDOW = {"sliding_window": 8}


def test_boundaries_in_place_of_a_mask_pass():
    check(varlen_model(**WINDOW))
    check(varlen_model(sliding_window=None))


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"window": lambda window: window + 1}, "from its loss under sdpa"),
        ({"window": lambda window: window - 1}, "from its loss under sdpa"),
        ({"window": lambda window: None}, "from its loss under sdpa"),
        ({"scale": lambda scale: 1.1 * scale}, "from its loss under sdpa"),
        ({"cu_seq_lens": lambda ends: ends[[0, -1]]}, "with the documents before it"),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_a_kernel_that_computes_something_else_than_sdpa_is_found(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], found: str, packed: bool
):
    change_kernel(monkeypatch, **changes)
    model = varlen_model(**WINDOW)
    with pytest.raises(InvalidInput, match=found):
        check(model, packed=packed)
    assert model.config._attn_implementation == "varlen"
    model.set_attn_implementation("sdpa")
    check(model)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, None),
        ({"window": lambda window: window + 1}, "from its loss under sdpa"),
        ({"window": lambda window: None}, "from its loss under sdpa"),
        ({"scale": lambda scale: 1.3 * scale}, "from its loss under sdpa"),
        ({"cu_seq_lens": lambda ends: ends[[0, -1]]}, "with the documents before it"),
    ],
)
def test_in_bf16_too_it_is_told_from_rounding(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], found: str | None
):
    """As on a GPU; the bound follows from the rounding of the same model under sdpa."""
    monkeypatch.setattr(isolation, "_takes_fp32", lambda device: False)
    change_kernel(monkeypatch, **changes)
    model = varlen_model(**WINDOW)
    if found is None:
        check(model)
        return
    with pytest.raises(InvalidInput, match=found):
        check(model)


def test_a_kernel_that_rounds_otherwise_than_sdpa_passes(monkeypatch: pytest.MonkeyPatch):
    """The difference is above the bound of fp32, and below that of the model's own rounding."""
    monkeypatch.setattr(isolation, "_takes_fp32", lambda device: False)
    attend = attend_one_by_one

    def attend_in_fp32(*tensors: torch.Tensor, **arguments: Any) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            return attend(*(tensor.float() for tensor in tensors), **arguments).bfloat16()

    monkeypatch.setattr(attention, "attend_one_by_one", attend_in_fp32)
    model = varlen_model(**WINDOW)
    check(model)
    monkeypatch.setattr(isolation, "ROUNDING_FACTOR", 0.1)
    with pytest.raises(InvalidInput, match="from its loss under sdpa"):
        check(model)


def test_where_kernels_take_no_fp32_it_computes_under_autocast(monkeypatch: pytest.MonkeyPatch):
    for name in ("is_available", "is_bf16_supported"):
        monkeypatch.setattr(torch.cuda, name, lambda *args: True)
    on_gpu = ProcessGroup(device=torch.device("cuda"))
    model = varlen_model(**WINDOW)
    for group, implementation, in_autocast in (
        (on_gpu, "varlen", True),
        (on_gpu, "sdpa", False),
        (ProcessGroup(), "varlen", False),
    ):
        model.set_attn_implementation(implementation)
        probe = isolation._Probe(model, group, 64)
        assert probe.dtype == (torch.bfloat16 if in_autocast else torch.float32)
        with probe.arithmetic():
            assert torch.is_autocast_enabled("cuda") is in_autocast


def test_a_model_that_is_not_finite_is_left_to_scoring():
    check(Stub("nan"))


def test_a_model_that_cannot_be_called_with_token_ids_alone_is_refused():
    with pytest.raises(InvalidInput, match="ValueError: give me images"):
        check(Stub("no positions"))


@pytest.mark.parametrize("wanted", ["auto", "varlen"])
def test_what_auto_chose_gives_way_to_sdpa_if_it_does_not_pass(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, wanted: Attention
):
    """What was asked for does not."""
    model = varlen_model(**WINDOW)
    settings: dict[str, Any] = {"wanted": wanted, "seq_len": 64, "packed": True}
    ensure_isolation(model, ProcessGroup(), **settings)
    assert (model.config._attn_implementation, caplog.messages) == ("varlen", [])
    change_kernel(monkeypatch, window=lambda window: None)
    if wanted == "auto":
        ensure_isolation(model, ProcessGroup(), **settings)
        assert model.config._attn_implementation == "sdpa"
        assert "attention: sdpa in place of varlen, which does not pass" in caplog.text
        return
    with pytest.raises(InvalidInput, match="from its loss under sdpa"):
        ensure_isolation(model, ProcessGroup(), **settings)


def test_a_model_that_does_not_pass_under_sdpa_is_refused():
    with pytest.raises(InvalidInput, match="with the documents before it"):
        ensure_isolation(
            Stub("state"),  # type: ignore[arg-type]
            ProcessGroup(),
            wanted="auto",
            seq_len=64,
            packed=True,
        )


def test_a_kernel_that_cannot_run_leaves_sdpa(monkeypatch: pytest.MonkeyPatch):
    def attend(*tensors: torch.Tensor, **arguments: Any) -> torch.Tensor:
        raise RuntimeError("not compiled for this GPU")

    monkeypatch.setattr(attention, "attend_one_by_one", attend)
    with pytest.raises(InvalidInput, match="not compiled for this GPU") as caught:
        check(varlen_model())
    assert caught.value.fix.startswith("set the attention to sdpa in place of varlen, or use")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
        torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
    ],
)
def test_a_gpu_that_fails_is_not_the_models_fault(error: Exception):
    model = Stub()
    model.register_forward_pre_hook(lambda *_: raise_error(error))
    with pytest.raises(type(error), match=str(error)[:20]):
        check(model)


def raise_error(error: Exception) -> None:
    raise error


def test_nothing_is_changed():
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, attention_dropout=0.0, **SMALL))
    model(torch.arange(8)[None]).logits.sum().backward()
    before = {name: (p.clone(), p.grad) for name, p in model.named_parameters()}
    for training in (True, False):
        model.train(training)
        torch_state, numpy_state = torch.get_rng_state(), str(np.random.get_state())
        check(model)
        assert model.training is training
        assert torch.equal(torch.get_rng_state(), torch_state)
        assert str(np.random.get_state()) == numpy_state
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter.grad is before[name][1]


@pytest.mark.parametrize(
    ("settings", "seq_len", "expected"),
    [
        ({}, 64, 64),
        ({}, 4096, isolation.ROW_LENGTH),
        ({"sliding_window": 512}, 4096, 1024),
        ({"sliding_window": 512}, 600, 600),
        ({"sliding_window": 4096}, 4096, isolation.ROW_LENGTH),
        ({"mamba_d_conv": 4, "attention_chunk_size": 300}, 4096, 600),
    ],
)
def test_rows_are_longer_than_every_window(settings: dict[str, Any], seq_len: int, expected: int):
    assert isolation._row_length(LlamaConfig(**settings), seq_len) == expected


def test_special_tokens_are_not_used():
    config = LlamaConfig(vocab_size=8, bos_token_id=0, eos_token_id=1, pad_token_id=2)
    config.image_token_index = 3
    for ids in isolation._random_tokens(config, 64):
        assert set(np.unique(ids)) == {4, 5, 6, 7}
