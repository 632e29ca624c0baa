"""Implementations of attention: documents packed and alone, the rule of `auto`, and refusals."""

import logging
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights
from transformers.models.llama.modeling_llama import repeat_kv

from sweepcp.config import attention as config_attention
from sweepcp.config.attention import check_attention, expected_attention
from sweepcp.data.stream import Batch
from sweepcp.errors import InvalidInput
from sweepcp.models import attention as models_attention
from sweepcp.models.architecture import build_model
from sweepcp.models.attention import (
    attention_of,
    resolve_attention,
    use_attention,
    use_row_attention,
)
from sweepcp.models.causal_attention import attend_one_by_one
from sweepcp.models.layers import compile_layers
from sweepcp.training.batches import to_micro_batch
from sweepcp.training.isolation import check_isolation
from sweepcp.training.loss import token_losses
from sweepcp.training.process_group import ProcessGroup
from tests.packed import documents_alone, packed_batch

CPU, CUDA, META = torch.device("cpu"), torch.device("cuda"), torch.device("meta")
TOKENS = 64
SIZES = {
    "vocab_size": TOKENS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": TOKENS}
NO_DROPOUT = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
WINDOW = {"sliding_window": 6, "head_dim": 8}
GEMMA3_LAYERS = {"layer_types": ["sliding_attention", "full_attention"], "pad_token_id": 0}
MODELS: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "llama with grouped keys": SIZES | {"num_key_value_heads": 2},
    "mistral": SIZES | WINDOW | {"num_key_value_heads": 2},
    "gemma3_text": SIZES | WINDOW | GEMMA3_LAYERS,
    "qwen2": SIZES | {"num_key_value_heads": 2},
    "qwen3": SIZES | {"num_key_value_heads": 1, "head_dim": 16},
    "gpt2": GPT2 | NO_DROPOUT,
}
"""Model type, with a word on what is special → the settings of a tiny configuration."""


def config_of(name: str) -> PretrainedConfig:
    return AutoConfig.for_model(name.split()[0], **MODELS[name])


def build(name: str, attention: str) -> PreTrainedModel:
    """Build a model whose weights are large enough for attention to matter."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        config_of(name), attn_implementation=attention
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5)
    return model


def losses(model: PreTrainedModel, batch: Batch) -> np.ndarray:
    with torch.no_grad():
        return token_losses(model, to_micro_batch(batch, device=CPU)).numpy()


def losses_alone(model: PreTrainedModel, batch: Batch) -> np.ndarray:
    """Return the losses of the batch's documents, each computed in a sequence of its own."""
    alone = np.zeros(batch.input_ids.shape, dtype=np.float32)
    for window, document in documents_alone(batch):
        alone[window] = losses(model, document)
    return alone


@pytest.mark.parametrize("attention", ["sdpa", "eager", "varlen"])
@pytest.mark.parametrize("name", MODELS)
def test_packed_documents_score_as_they_do_alone_under_sdpa(name: str, attention: str):
    model, batch = build(name, attention), packed_batch(tokens=TOKENS)
    for training in (False, True):
        model.train(training)
        packed = losses(model, batch)
        with use_attention(model, "sdpa"):
            alone = losses_alone(model, batch)
        np.testing.assert_allclose(packed, alone, atol=1e-5)
    changed = packed_batch(tokens=TOKENS)
    changed.input_ids[:, :3] = 0
    difference = np.abs(packed - losses(model, changed))
    assert (difference[0, 7:] == 0).all()
    assert difference[0, 3:6].max() > 0.1


@pytest.mark.parametrize("attention", ["sdpa", "varlen"])
def test_a_window_is_as_long_as_the_configuration_says(attention: str):
    """A token sees five tokens before it, and no sixth, through one layer."""
    config = AutoConfig.for_model("mistral", **SIZES | WINDOW | {"num_hidden_layers": 1})
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    batch = packed_batch(tokens=TOKENS)
    before = losses(model, batch)
    batch.input_ids[1, 3] = (batch.input_ids[1, 3] + 1) % TOKENS
    seen = np.flatnonzero(before[1] != losses(model, batch)[1])
    assert seen.tolist() == [3, 4, 5, 6, 7, 8]


def install_flash_attn(monkeypatch: pytest.MonkeyPatch, kernel: Any) -> None:
    """Put a stand-in for the package in its place."""
    package = ModuleType("flash_attn")
    package.flash_attn_varlen_func = kernel  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", package)


@pytest.mark.parametrize("name", ["llama with grouped keys", "mistral", "gemma3_text"])
def test_flash_attn_gets_what_varlen_gets(monkeypatch: pytest.MonkeyPatch, name: str):
    """The stand-in computes on the CPU what the kernel computes on a GPU."""
    seen = []

    def attend(*tensors: torch.Tensor, window_size: tuple[int, int], **arguments: Any) -> Any:
        seen.append(arguments)
        left, right = window_size
        assert (right, arguments["causal"]) == (0, True)
        assert torch.equal(arguments["cu_seqlens_q"], arguments["cu_seqlens_k"])
        assert arguments["max_seqlen_q"] == arguments["max_seqlen_k"]
        return attend_one_by_one(
            *tensors,
            cu_seq_lens=arguments["cu_seqlens_q"],
            longest=arguments["max_seqlen_q"],
            scale=arguments["softmax_scale"],
            window=None if left == -1 else left + 1,
        )

    install_flash_attn(monkeypatch, attend)
    model, batch = build(name, "sdpa"), packed_batch(tokens=TOKENS)
    alone = losses_alone(model, batch)
    with use_attention(model, "flash_attention_2"):
        assert attention_of(model) == "flash_attention_2"
        packed = losses(model, batch)
    np.testing.assert_allclose(packed, alone, atol=1e-5)
    assert len(seen) == 2
    assert seen[0]["cu_seqlens_q"].tolist() == [0, 7, 16, 32, 52, 64, 67, 72, 83, 96]
    assert type(seen[0]["max_seqlen_q"]) is int


def test_models_are_built_with_flash_attn_as_it_is_called_here():
    model = build_model(LLAMA, attention="flash_attention_2", dtype=torch.float32)
    assert attention_of(model) == "flash_attention_2"
    assert model.config._attn_implementation == models_attention.WITH_FLASH_ATTN


@pytest.mark.parametrize("name", ["llama with grouped keys", "mistral"])
def test_gradients_of_varlen_are_those_of_sdpa(name: str):
    gradients = []
    for attention in ("sdpa", "varlen"):
        model = build(name, attention)
        micro_batch = to_micro_batch(packed_batch(tokens=TOKENS), device=CPU)
        (token_losses(model, micro_batch).sum() / 80).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


class Recorder(TorchDispatchMode):
    """Records the operations of a context, and the arguments of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: set[str] = set()
        self.attention: list[tuple[Any, ...]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.operations.add(str(function))
        if "_varlen_attn.default" in str(function):
            self.attention.append(args)
        return function(*args, **kwargs or {})


@pytest.mark.parametrize(
    ("name", "window"), [("llama with grouped keys", [-1, 0]), ("mistral", [5, 0])]
)
@pytest.mark.parametrize("has_gqa", [True, False])
def test_a_pass_through_the_kernel_reads_nothing_from_the_device(
    monkeypatch: pytest.MonkeyPatch, name: str, window: list[int], has_gqa: bool
):
    """On the meta device, which has shapes and no numbers: an operation that needs one raises."""
    if has_gqa and not models_attention.HAS_GQA:
        pytest.skip("this torch has no enable_gqa")
    monkeypatch.setattr(models_attention, "HAS_GQA", has_gqa)
    with META, no_init_weights():
        model = AutoModelForCausalLM.from_config(
            config_of(name), attn_implementation="varlen", dtype=torch.bfloat16
        )
    batch = packed_batch(tokens=TOKENS)
    with Recorder() as recorder:
        nats = token_losses(model, to_micro_batch(batch, device=META))
        nats.sum().backward()
    assert (nats.dtype, nats.shape) == (torch.float32, (3, 32))
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert "torch_attn._varlen_attn_backward.default" in recorder.operations
    assert not {"aten._local_scalar_dense.default", "aten.nonzero.default"} & recorder.operations
    key_heads = 2 if has_gqa else 4
    for query, key, value, *others in recorder.attention:
        shapes = [tuple(tensor.shape) for tensor in (query, key, value)]
        assert shapes == [(96, 4, 8), (96, key_heads, 8), (96, key_heads, 8)]
        cu_seq_q, cu_seq_k, longest_q, longest_k, _, scale, passed_window = others[:7]
        assert {cu_seq_q.dtype, cu_seq_k.dtype} == {torch.int32}
        assert (len(cu_seq_q), longest_q, longest_k) == (10, 20, 20)
        assert (scale, passed_window) == (8**-0.5, window)


def test_the_kernel_gets_the_dtype_of_autocast(monkeypatch: pytest.MonkeyPatch):
    """Position embeddings leave queries and keys in fp32."""
    seen = []
    attend = attend_one_by_one

    def record(*tensors: torch.Tensor, **arguments: Any) -> torch.Tensor:
        seen.append({tensor.dtype for tensor in tensors})
        return attend(*tensors, **arguments)

    monkeypatch.setattr(models_attention, "attend_one_by_one", record)
    model = build("llama", "varlen")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses(model, packed_batch(tokens=TOKENS))
        # Where values are normalised, they are in fp32, too.
        AttentionInterface()["varlen"](model, *torch.zeros(3, 1, 2, 4, 8), None, **TWO_DOCUMENTS)
    assert seen == [{torch.bfloat16}] * 3


def test_heads_are_repeated_as_transformers_does():
    """For a torch whose kernel needs as many heads of keys as of queries."""
    tensor = torch.randn(5, 3, 8)
    expected = repeat_kv(tensor.transpose(0, 1)[None], 2)[0].transpose(0, 1)
    assert torch.equal(models_attention._repeat_heads(tensor, 2), expected)


attend: Any = AttentionInterface()["varlen"]
ARGUMENTS = {"cu_seq_lens_q": torch.tensor([0, 4], dtype=torch.int32), "max_length_q": 4}
TWO_DOCUMENTS = {"cu_seq_lens_q": torch.tensor([0, 1, 4], dtype=torch.int32), "max_length_q": 3}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 1, 3, 7])
@pytest.mark.parametrize("lengths", [[1, 7, 2, 1, 5], [1] * 6, [6, 6], [16]])
@pytest.mark.parametrize(("key_heads", "value_size"), [(4, 8), (2, 8), (4, 5)])
def test_documents_and_gradients_are_those_of_each_document_alone(
    lengths: list[int], window: int | None, key_heads: int, value_size: int, dtype: torch.dtype
):
    """The reference computes the scores of all pairs in fp64."""
    torch.manual_seed(0)
    total = sum(lengths)
    shapes = (4, 8), (key_heads, 8), (key_heads, value_size)
    tensors = [torch.randn(1, heads, total, size).to(dtype) for heads, size in shapes]
    packed = [tensor.clone().requires_grad_() for tensor in tensors]
    exact = [tensor.double().requires_grad_() for tensor in tensors]
    ends = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    output, _ = attend(
        SimpleNamespace(),
        *packed,
        None,
        cu_seq_lens_q=ends,
        max_length_q=max(lengths),
        sliding_window=window,
    )
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    distance = torch.arange(total)[:, None] - torch.arange(total)
    seen = (document[:, None] == document) & (distance >= 0)
    if window is not None:
        seen &= distance < window
    query, key, value = exact
    key, value = (tensor.repeat_interleave(4 // key_heads, dim=1) for tensor in (key, value))
    scores = (query @ key.transpose(2, 3)) * 8**-0.5
    expected = (scores.masked_fill(~seen, float("-inf")).softmax(-1) @ value).transpose(1, 2)
    factors = torch.randn(expected.shape)
    (output * factors).sum().backward()
    (expected * factors).sum().backward()
    tolerance: dict[str, Any] = (
        {"atol": 2e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.1, "rtol": 0.05}
    )
    torch.testing.assert_close(output.double(), expected, **tolerance)
    for one, other in zip(packed, exact, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad.double(), other.grad, **tolerance)


def attention_operations(lengths: list[int], window: int | None = None) -> Recorder:
    """Record a call with queries of so many documents on the meta device, as a GPU computes it."""
    tensor = torch.zeros(1, 2, sum(lengths), 8, device=META, dtype=torch.bfloat16)
    ends = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32).to(META)
    arguments = {"cu_seq_lens_q": ends, "max_length_q": max(lengths), "sliding_window": window}
    with Recorder() as recorder:
        attend(SimpleNamespace(), tensor, tensor, tensor, None, **arguments)
    return recorder


def test_whole_sequences_are_rows_of_sdpa():
    """Whose causal kernels are faster than those of several lengths; a window needs the latter."""
    kernel = "torch_attn._varlen_attn.default"
    assert kernel in attention_operations([4, 3]).operations
    assert kernel in attention_operations([4, 4], window=2).operations
    for window in (None, 4):
        rows = attention_operations([4, 4], window=window).operations
        assert kernel not in rows
        assert not {"aten._local_scalar_dense.default", "aten.nonzero.default"} & rows


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"softcap": 30.0}, "has no softcap"),
        ({"s_aux": torch.zeros(2)}, "has no s_aux"),
        ({"position_bias": torch.zeros(2)}, "has no position_bias"),
        ({"dropout": 0.1}, "has no dropout"),
        ({"attention_mask": torch.ones(1, 1, 4, 4)}, "has no attention_mask"),
        ({"is_causal": False}, "has no attention to later tokens"),
        ({"cu_seq_lens_q": None}, "got no boundaries of documents"),
        ({"max_length_q": None}, "got no boundaries of documents"),
    ],
)
def test_what_the_kernel_does_not_compute_is_refused(changes: dict[str, Any], message: str):
    tensor = torch.randn(1, 2, 4, 8)
    arguments = {"attention_mask": None} | ARGUMENTS | changes
    with pytest.raises(ValueError, match=message):
        attend(SimpleNamespace(), tensor, tensor, tensor, **arguments)


def test_values_may_be_shorter_than_keys():
    query, key, value = (torch.randn(1, 2, 4, size) for size in (8, 8, 6))
    output, _ = attend(SimpleNamespace(), query, key, value, None, **ARGUMENTS)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(output, expected.transpose(1, 2))


def find_flash(monkeypatch: pytest.MonkeyPatch, *, installed: bool) -> None:
    found = SimpleNamespace() if installed else None
    monkeypatch.setattr(config_attention, "find_spec", lambda name: found)
    if installed:
        monkeypatch.setattr(models_attention, "_flash_attn_kernel", lambda: None)


LLAMA = AutoConfig.for_model("llama", **SIZES)


@pytest.mark.parametrize(
    ("device", "in_bf16", "installed", "expected"),
    [
        (CUDA, True, True, "flash_attention_2"),
        (CUDA, True, False, "varlen"),
        (CUDA, False, True, "sdpa"),
        (CPU, True, True, "sdpa"),
        (CPU, False, True, "sdpa"),
    ],
)
def test_auto_is_the_first_that_can_run(
    monkeypatch: pytest.MonkeyPatch,
    device: torch.device,
    in_bf16: bool,
    installed: bool,
    expected: str,
):
    find_flash(monkeypatch, installed=installed)
    assert resolve_attention("auto", LLAMA, device=device, in_bf16=in_bf16) == expected


@pytest.mark.parametrize("in_bf16", [True, False])
@pytest.mark.parametrize(
    ("device", "seq_len", "isolated", "expected"),
    [
        (CPU, 128, True, "sdpa"),
        (CPU, 511, True, "sdpa"),
        (CPU, 512, True, "varlen"),
        (CPU, 2048, True, "varlen"),
        (CPU, 2048, False, "sdpa"),
        (CUDA, 128, False, "varlen"),
        (CUDA, 2048, False, "varlen"),
    ],
)
def test_auto_separates_long_sequences_by_documents(
    monkeypatch: pytest.MonkeyPatch,
    device: torch.device,
    seq_len: int,
    isolated: bool,
    in_bf16: bool,
    expected: str,
):
    """On a CPU; on a GPU, whole sequences are those of sdpa even where flash-attn is installed."""
    find_flash(monkeypatch, installed=True)
    if device == CUDA and not in_bf16:
        expected = "sdpa"
    sequence: dict[str, Any] = {"seq_len": seq_len, "isolated": isolated}
    assert resolve_attention("auto", LLAMA, device=device, in_bf16=in_bf16, **sequence) == expected
    precision = "bf16" if in_bf16 else "fp32"
    check: dict[str, Any] = {"device": device.type, "precision": precision}
    assert expected_attention("auto", **check, **sequence) == expected
    assert expected_attention("eager", **check, **sequence) == "eager"


def test_a_flash_attn_that_cannot_be_imported_is_not_chosen(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """As one that was built for another torch, or the package of another version."""
    monkeypatch.setattr(config_attention, "find_spec", lambda name: SimpleNamespace())
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    with caplog.at_level(logging.WARNING):
        assert resolve_attention("auto", LLAMA, device=CUDA, in_bf16=True) == "varlen"
    assert "cannot import name 'flash_attn_varlen_func'" in caplog.text
    with pytest.raises(InvalidInput, match="flash-attn cannot be imported"):
        resolve_attention("flash_attention_2", LLAMA, device=CUDA, in_bf16=True)


@pytest.mark.parametrize(
    ("model_type", "settings", "lack"),
    [
        ("openai-gpt", {}, "does not hand the boundaries of documents to its layers"),
        ("falcon", {}, "does not hand the boundaries of documents to its layers"),
        ("lfm2", {"layer_types": ["conv", "full_attention"] * 16}, "has layers of conv"),
        ("bert", {}, "attend to later ones"),
        ("bert-generation", {}, "attend to later ones"),
        ("llama", {"head_dim": 288}, "heads of size 288"),
        ("gpt2", {"n_embd": 36, "n_head": 3}, "heads of size 12"),
    ],
)
def test_an_architecture_without_support_gets_sdpa_or_is_refused(
    monkeypatch: pytest.MonkeyPatch, model_type: str, settings: dict[str, Any], lack: str
):
    find_flash(monkeypatch, installed=True)
    config = AutoConfig.for_model(model_type, **settings)
    assert resolve_attention("auto", config, device=CUDA, in_bf16=True) == "sdpa"
    for wanted in ("flash_attention_2", "varlen"):
        with pytest.raises(InvalidInput, match=lack):
            resolve_attention(wanted, config, device=CUDA, in_bf16=True)


def test_what_has_caps_and_sinks_is_computed_as_before_unless_asked_for(
    monkeypatch: pytest.MonkeyPatch,
):
    """`check_isolation` compares what was asked for with eager."""
    find_flash(monkeypatch, installed=True)
    config = AutoConfig.for_model("gemma2", **SIZES | WINDOW | {"pad_token_id": 0})
    assert resolve_attention("auto", config, device=CUDA, in_bf16=True) == "sdpa"
    assert resolve_attention("varlen", config, device=CPU, in_bf16=True) == "varlen"
    model = AutoModelForCausalLM.from_config(config, attn_implementation="varlen")
    with use_row_attention(model):
        assert attention_of(model) == "eager"
    with pytest.raises(InvalidInput, match="attention by boundaries has no softcap"):
        check_isolation(model, ProcessGroup(), seq_len=32, packed=True)


@pytest.mark.parametrize(
    ("wanted", "device", "precision", "installed", "found"),
    [
        ("flash_attention_2", "cpu", "bf16", True, "flash_attention_2 on a CPU"),
        ("flash_attention_2", "cuda", "fp32", True, "flash_attention_2 in fp32"),
        ("flash_attention_2", "cuda", "bf16", False, "flash-attn is not installed"),
        ("varlen", "cuda", "fp32", True, "varlen in fp32"),
        ("flash_attention_2", "cuda", "bf16", True, None),
        ("varlen", "cuda", "auto", False, None),
        ("varlen", "cpu", "fp32", False, None),
        ("auto", "cpu", "fp32", False, None),
        ("sdpa", "cuda", "fp32", False, None),
        ("eager", "cuda", "bf16", False, None),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_started(
    monkeypatch: pytest.MonkeyPatch,
    wanted: Any,
    device: str,
    precision: str,
    installed: bool,
    found: str | None,
):
    find_flash(monkeypatch, installed=installed)
    check = {"device": torch.device(device), "in_bf16": precision != "fp32"}
    if found is None:
        check_attention(wanted, device=device, precision=precision)
        if wanted != "auto":
            assert resolve_attention(wanted, LLAMA, **check) == wanted  # type: ignore[arg-type]
        return
    with pytest.raises(InvalidInput, match=found):
        check_attention(wanted, device=device, precision=precision)
    with pytest.raises(InvalidInput, match=found):
        resolve_attention(wanted, LLAMA, **check)  # type: ignore[arg-type]


def test_rows_are_computed_with_sdpa_and_the_model_has_its_own_again():
    for attention, expected in (("varlen", "sdpa"), ("eager", "eager"), ("sdpa", "sdpa")):
        model = build("llama", attention)
        with use_row_attention(model):
            assert attention_of(model) == expected
            assert model.model.config._attn_implementation == expected
        assert attention_of(model) == attention


def record_graphs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Return the operations of each graph that is compiled from now on."""
    graphs: list[list[str]] = []

    def backend(module: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append([str(node.target) for node in module.graph.nodes])
        return module.forward

    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module: compile_module(module, backend=backend)
    )
    return graphs


@pytest.mark.slow
def test_layers_are_not_compiled_for_every_micro_batch(monkeypatch: pytest.MonkeyPatch):
    """But once more for each number that changes; the kernel does not break the graph."""
    graphs = record_graphs(monkeypatch)
    with META, no_init_weights():
        model = AutoModelForCausalLM.from_config(
            LLAMA, attn_implementation="varlen", dtype=torch.bfloat16
        )
    compile_layers(model)
    compiled = []
    # Both the documents and the tokens of the longest differ in number.
    for start in (31, 5, 20, 9, 3, 12):
        batch = packed_batch(tokens=TOKENS)
        batch.position_ids[1] = np.arange(32)
        batch.position_ids[1, start:] = np.arange(32 - start)
        batch.position_ids[2, start:] = np.arange(32 - start)
        token_losses(model, to_micro_batch(batch, device=META)).sum().backward()
        compiled.append(len(graphs))
    assert compiled[-1] <= 3
    assert compiled[2:] == [compiled[-1]] * 4
    assert all(any("_varlen_attn" in target for target in graph) for graph in graphs)


@pytest.mark.slow
def test_layers_are_not_compiled_for_every_number_of_documents_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch,
):
    """Attention is not part of the graphs there."""
    graphs = record_graphs(monkeypatch)
    model, plain = (build("llama", "varlen") for _ in range(2))
    compile_layers(model)
    compiled = []
    for length in (31, 5, 20, 9, 3, 12):
        batch = packed_batch(tokens=TOKENS)
        batch.position_ids[1] = np.arange(32) % length
        micro_batch = to_micro_batch(batch, device=CPU)
        torch.testing.assert_close(
            token_losses(model, micro_batch), token_losses(plain, micro_batch)
        )
        token_losses(model, micro_batch).sum().backward()
        compiled.append(len(graphs))
    assert compiled[2:] == [compiled[-1]] * 4
    assert not any("scaled_dot_product" in target for graph in graphs for target in graph)
