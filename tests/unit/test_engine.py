"""Steps on one device: micro batches, shortage of memory, what is read from the device."""

import logging
import weakref
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from sweepcp.data.stream import IGNORED
from sweepcp.errors import InvalidInput
from sweepcp.training import engine as engine_module
from sweepcp.training.batches import to_micro_batch
from sweepcp.training.engine import PlainEngine, build_adamw, computes_in_bf16
from sweepcp.training.loss import token_losses
from tests.make import SMALL, recipe
from tests.packed import packed_batch

CPU = torch.device("cpu")
SETTINGS = recipe(seq_len=32, batch_tokens=96, tokens=96)


def small_model(attention: str = "sdpa") -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=256, **SMALL))
    model.set_attn_implementation(attention)
    return model


def take_step(engine: PlainEngine, seed: int = 0) -> tuple[np.ndarray, float]:
    """Take a step over a batch whose rows have unequal numbers of targets."""
    batch = packed_batch(seed=seed)
    batch.targets[0, :20] = IGNORED
    return engine.step(batch, target_tokens=int((batch.targets != IGNORED).sum()), lr=0.01)


@pytest.mark.parametrize("attention", ["sdpa", "varlen"])
def test_micro_batches_are_weighted_by_their_targets(attention: str):
    """Weights and losses do not depend on how a batch of unequal numbers of targets is split."""
    results = []
    for micro_batch in (3, 2, 1):
        model = small_model(attention)
        engine = PlainEngine(model, SETTINGS, micro_batch=micro_batch, precision="fp32")
        results.append((*take_step(engine), model.lm_head.weight.detach()))
    whole_losses, whole_norm, whole_weights = results[0]
    for losses, grad_norm, weights in results[1:]:
        np.testing.assert_allclose(whole_losses, losses, rtol=1e-6)
        assert whole_norm == pytest.approx(grad_norm, rel=1e-5)
        assert torch.allclose(whole_weights, weights, atol=2e-6)


class Device:
    """Runs out of memory in passes of more than so many rows, as a GPU does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fits: int, when: str) -> None:
        self.passes: list[int] = []

        def compute(model: Any, micro_batch: Any) -> torch.Tensor:
            rows = len(micro_batch.input_ids)
            self.passes.append(rows)
            losses = token_losses(model, micro_batch)
            if rows > fits:
                if when == "forward":
                    raise torch.OutOfMemoryError("CUDA out of memory")
                losses.register_hook(run_out_of_memory)
            return losses

        def run_out_of_memory(gradient: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(engine_module, "token_losses", compute)


@pytest.mark.parametrize("when", ["forward", "backward"])
@pytest.mark.parametrize(("fits", "passes"), [(2, [3, 2, 1]), (1, [3, 2, 1, 1, 1])])
def test_a_step_that_does_not_fit_is_repeated_in_halves(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    when: str,
    fits: int,
    passes: list[int],
):
    model, cut, whole = small_model(), small_model(), small_model()
    expected = take_step(PlainEngine(whole, SETTINGS, micro_batch=None, precision="fp32"))
    take_step(PlainEngine(cut, SETTINGS, micro_batch=fits, precision="fp32"))
    device = Device(monkeypatch, fits=fits, when=when)
    engine = PlainEngine(model, SETTINGS, micro_batch=None, precision="fp32", halves=True)
    with caplog.at_level(logging.WARNING):
        losses, grad_norm = take_step(engine)
    assert device.passes == passes
    assert engine.micro_batch == fits
    assert f"the step is repeated with {fits}" in caplog.messages[-1]
    np.testing.assert_allclose(losses, expected[0], rtol=1e-6)
    assert grad_norm == pytest.approx(expected[1], rel=1e-5)
    for one, other in zip(model.parameters(), cut.parameters(), strict=True):
        assert torch.equal(one, other)
    take_step(engine, seed=1)
    assert device.passes == passes + [fits] * (3 // fits) + [1] * (3 % fits)


def test_a_failed_pass_leaves_no_gradient_behind(monkeypatch: pytest.MonkeyPatch):
    """The first micro batch of two rows fits and adds its gradient; the second does not."""
    model, whole = small_model(), small_model()
    expected = take_step(PlainEngine(whole, SETTINGS, micro_batch=1, precision="fp32"))
    calls = []

    def compute(model: Any, micro_batch: Any) -> torch.Tensor:
        calls.append(len(micro_batch.input_ids))
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return token_losses(model, micro_batch)

    monkeypatch.setattr(engine_module, "token_losses", compute)
    engine = PlainEngine(model, SETTINGS, micro_batch=2, precision="fp32", halves=True)
    assert take_step(engine)[1] == expected[1]
    assert calls == [2, 1, 1, 1, 1]
    assert torch.equal(model.lm_head.weight, whole.lm_head.weight)


@pytest.mark.parametrize(
    ("error", "halved"),
    [
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublas`"), False),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False),
    ],
)
def test_memory_that_runs_out_outside_of_the_allocator_counts(
    monkeypatch: pytest.MonkeyPatch, error: Exception, halved: bool
):
    def compute(model: Any, micro_batch: Any) -> torch.Tensor:
        if len(micro_batch.input_ids) > 1:
            raise error
        return token_losses(model, micro_batch)

    monkeypatch.setattr(engine_module, "token_losses", compute)
    engine = PlainEngine(small_model(), SETTINGS, micro_batch=2, precision="fp32", halves=True)
    if halved:
        take_step(engine)
    else:
        with pytest.raises(type(error)):
            take_step(engine)
    assert engine.micro_batch == (1 if halved else 2)


def test_on_a_gpu_cached_memory_is_returned_and_the_peak_begins_again(
    monkeypatch: pytest.MonkeyPatch,
):
    """The peak that a trial records is that of the size it was trained at."""
    calls: list[str] = []
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, partial(calls.append, name))
    engine = PlainEngine(small_model(), SETTINGS, micro_batch=3, precision="fp32", halves=True)
    engine._halve_micro_batch()
    assert calls == []
    engine.device = torch.device("cuda")
    engine._halve_micro_batch()
    assert calls == ["empty_cache", "reset_peak_memory_stats"]


def test_memory_of_a_failed_pass_is_free_when_the_step_is_repeated(
    monkeypatch: pytest.MonkeyPatch,
):
    """Also where objects refer to each other, as frames and errors may."""
    freed: list[bool] = []

    class Activations:
        def __init__(self) -> None:
            self.itself = self

    def compute(model: Any, micro_batch: Any) -> torch.Tensor:
        if len(micro_batch.input_ids) > 1:
            weakref.finalize(Activations(), freed.append, True)
            raise torch.OutOfMemoryError("CUDA out of memory")
        assert freed
        return token_losses(model, micro_batch)

    monkeypatch.setattr(engine_module, "token_losses", compute)
    take_step(PlainEngine(small_model(), SETTINGS, micro_batch=2, precision="fp32", halves=True))


@pytest.mark.parametrize(("fits", "halves", "passes"), [(0, True, [3, 2, 1]), (2, False, [3])])
def test_what_cannot_be_halved_is_an_error(
    monkeypatch: pytest.MonkeyPatch, fits: int, halves: bool, passes: list[int]
):
    device = Device(monkeypatch, fits=fits, when="forward")
    engine = PlainEngine(small_model(), SETTINGS, micro_batch=None, precision="fp32", halves=halves)
    with pytest.raises(torch.OutOfMemoryError):
        take_step(engine)
    assert device.passes == passes


class Reads(TorchDispatchMode):
    """Counts operations that read numbers of the device, for which a program waits."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = str(function)
        if any(key in name for key in ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_s")):
            self.found.append(name)
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_reads_its_results_at_once(monkeypatch: pytest.MonkeyPatch, precision: str):
    """Of the device it reads the losses of all rows and the norm of the gradient, in one copy."""
    copies = []
    to_host = torch.Tensor.cpu

    def copy(tensor: torch.Tensor) -> torch.Tensor:
        copies.append(tuple(tensor.shape))
        return to_host(tensor)

    engine = PlainEngine(small_model("varlen"), SETTINGS, micro_batch=1, precision=precision)
    monkeypatch.setattr(torch.Tensor, "cpu", copy)
    with Reads() as reads:
        losses, grad_norm = take_step(engine)
    assert reads.found == []
    assert copies == [(4,)]
    assert losses.dtype == np.float64
    assert losses.sum() > 0
    assert grad_norm > 0


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("auto", torch.float32), ("bf16", torch.bfloat16)],
)
def test_the_forward_pass_computes_in_the_precision(precision: str, dtype: torch.dtype):
    """Losses and gradients are fp32 in both."""
    model = small_model()
    seen = []
    model.lm_head.register_forward_hook(lambda module, inputs, logits: seen.append(logits.dtype))
    take_step(PlainEngine(model, SETTINGS, micro_batch=None, precision=precision))
    assert seen == [dtype]
    assert model.lm_head.weight.dtype == torch.float32


class Recorder(torch.nn.Module):
    """A model that records the shapes of what it is given, with logits in bf16."""

    def __init__(self, attention: str) -> None:
        super().__init__()
        self.config = SimpleNamespace(_attn_implementation=attention)
        self.table = torch.nn.Parameter(torch.randn(256, 256).bfloat16())
        self.seen: list[tuple[tuple[int, ...], list[int]]] = []
        self.boundaries: list[tuple[Any, ...]] = []

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        use_cache: bool,
        **boundaries: Any,
    ) -> SimpleNamespace:
        assert not use_cache
        if boundaries:
            cu_seq_lens = [boundaries[f"cu_seq_lens_{side}"].tolist() for side in "qk"]
            longest = [boundaries[f"max_length_{side}"] for side in "qk"]
            self.boundaries.append((*cu_seq_lens, *longest))
        self.seen.append((tuple(input_ids.shape), position_ids.flatten().tolist()))
        return SimpleNamespace(logits=self.table[input_ids])


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2", "varlen"])
def test_a_packed_implementation_gets_one_sequence_with_the_boundaries_of_all(attention: str):
    batch, model = packed_batch(), Recorder(attention)
    losses = token_losses(model, to_micro_batch(batch, device=CPU))
    shape = (3, 32) if attention == "sdpa" else (1, 96)
    assert model.seen == [(shape, batch.position_ids.flatten().tolist())]
    boundaries = [0, 7, 16, 32, 52, 64, 67, 72, 83, 96]
    assert model.boundaries == [] if attention == "sdpa" else [(boundaries, boundaries, 20, 20)]
    assert losses.shape == (3, 32)
    log_probabilities = model.table.double().log_softmax(-1)
    expected = -log_probabilities[batch.input_ids, batch.targets].detach().numpy()
    expected[batch.targets == IGNORED] = 0
    # In bf16 the difference would be a hundred times as large.
    np.testing.assert_allclose(losses.detach().numpy(), expected, atol=1e-4)


@pytest.mark.parametrize(("micro_batch", "rows"), [(2, [2, 1]), (1, [1, 1, 1]), (None, [3])])
def test_a_forward_pass_has_the_rows_of_a_micro_batch(micro_batch: int | None, rows: list[int]):
    model = Recorder("sdpa").eval()
    engine = PlainEngine(model, SETTINGS, micro_batch=micro_batch, precision="fp32")  # type: ignore[arg-type]
    assert model.training
    engine.step(packed_batch(), target_tokens=80, lr=0.01)
    assert [shape for shape, _ in model.seen] == [(count, 32) for count in rows]


@pytest.mark.parametrize(
    ("device", "capability", "precision", "expected"),
    [
        ("cpu", None, "auto", False),
        ("cpu", None, "bf16", True),
        ("cpu", None, "fp32", False),
        ("cuda", (8, 0), "auto", True),
        ("cuda", (9, 0), "bf16", True),
        ("cuda", (9, 0), "fp32", False),
        ("cuda", (7, 5), "auto", False),
        ("cuda", (7, 5), "fp32", False),
    ],
)
def test_auto_is_bf16_on_a_gpu_that_computes_in_it(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    capability: tuple[int, int] | None,
    precision: str,
    expected: bool,
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert computes_in_bf16(torch.device(device), precision) == expected


def test_bf16_is_refused_on_a_gpu_without_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(InvalidInput, match=r"bf16 on a GPU of compute capability 7\.5") as caught:
        computes_in_bf16(torch.device("cuda"), "bf16")
    assert caught.value.fix == "set the precision to fp32 or auto"


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
