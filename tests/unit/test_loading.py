"""One strict loader: which files of a model are accepted, by trials and by the full run alike."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaModel,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from sweepcp.errors import InvalidInput
from sweepcp.models import architecture
from sweepcp.models.architecture import empty_model, read_model_config, supported_attention
from sweepcp.models.checkpoint import match_tensors
from sweepcp.models.files import read_shards
from sweepcp.models.loading import check_model_files, load_model
from tests.make import SMALL, write_model

CPU = torch.device("cpu")
UP = "model.layers.1.mlp.up_proj.weight"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
SMALL_GPT2 = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=64)
Tensors = dict[str, torch.Tensor]


def load(folder: Path) -> PreTrainedModel:
    return load_model(str(folder), revision=None, device=CPU)


def rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> Path:
    file = folder / "model.safetensors"
    tensors = change(load_file(file))
    save_file({name: values.contiguous() for name, values in tensors.items()}, file)
    return folder


def set_config(folder: Path, **changes: object) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {k: v for k, v in tensors.items() if k not in names}


REFUSED: dict[str, tuple[Callable[[Tensors], Tensors], str, str]] = {
    "missing": (without(UP), UP, "'missing'"),
    "missing head of an untied model": (without(HEAD), HEAD, "'missing'"),
    "many missing": (
        lambda t: {k: v for k, v in t.items() if "mlp" not in k},
        "model.layers.0.mlp.gate_proj.weight, model.layers.0.mlp.up_proj.weight, "
        "model.layers.0.mlp.down_proj.weight and 3 more",
        "'missing'",
    ),
    "unexpected": (lambda t: t | {"model.extra": torch.zeros(3)}, "model.extra", "'unexpected'"),
    "a layer more": (
        lambda t: t | {UP.replace("1", "2"): t[UP].clone()},
        UP.replace("1", "2"),
        "'unexpected'",
    ),
    "another shape": (lambda t: t | {UP: t[UP].T}, UP, r"shape \[64, 32\]"),
    "a head of another vocabulary": (
        lambda t: t | {HEAD: torch.zeros(300, 32)},
        HEAD,
        r"shape \[258, 32\], as config.json states",
    ),
    "float64": (lambda t: t | {UP: t[UP].double()}, UP, "'F64'"),
    "float8": (lambda t: t | {UP: t[UP].to(torch.float8_e4m3fn)}, UP, "'F8_E4M3'"),
    "integers": (lambda t: t | {UP: t[UP].to(torch.int8)}, UP, "'I8'"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_files_that_do_not_hold_exactly_the_tensors_are_refused(tmp_path: Path, kind: str):
    change, key, rule = REFUSED[kind]
    folder = rewrite(write_model(tmp_path / "model"), change)
    with pytest.raises(InvalidInput, match=rule) as caught:
        load(folder)
    assert caught.value.key == key
    assert caught.value.file.startswith(str(folder))
    assert caught.value.fix
    with pytest.raises(InvalidInput) as by_headers:
        check_model_files(folder)
    assert str(by_headers.value) == str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_is_loaded_in_fp32_and_as_it_is_stored(tmp_path: Path, dtype: torch.dtype):
    folder = write_model(tmp_path / "model", shard="20KB" if dtype == torch.float32 else "5GB")
    if dtype != torch.float32:
        rewrite(folder, lambda tensors: {k: v.to(dtype) for k, v in tensors.items()})
    stored: Tensors = {}
    for path in folder.glob("*.safetensors"):
        stored |= load_file(path)
    loaded = load(folder).state_dict()
    assert loaded.keys() == stored.keys()
    for name, values in stored.items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], values.float())


@pytest.mark.parametrize("stored", [(HEAD,), (EMBEDDING,), (HEAD, EMBEDDING)])
def test_tied_weights_may_be_stored_under_either_name_or_both(
    tmp_path: Path, stored: tuple[str, ...]
):
    folder = write_model(tmp_path / "model", tie_word_embeddings=True)
    values = load_file(folder / "model.safetensors")[EMBEDDING]
    rewrite(folder, lambda t: without(EMBEDDING)(t) | {name: values.clone() for name in stored})
    model = load(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, values)


def test_tied_weights_with_different_values_are_refused(tmp_path: Path):
    folder = write_model(tmp_path / "model", tie_word_embeddings=True)

    def differ_in_the_last_value(tensors: Tensors) -> Tensors:
        head = tensors[EMBEDDING].clone()
        head[-1, -1] += 1e-3
        return tensors | {HEAD: head}

    rewrite(folder, differ_in_the_last_value)
    with pytest.raises(InvalidInput, match="ties the two") as caught:
        load(folder)
    assert {caught.value.key, str(caught.value.found).split()[-1]} == {HEAD, EMBEDDING}
    set_config(folder, tie_word_embeddings=False)
    assert not torch.equal(load(folder).lm_head.weight, load(folder).model.embed_tokens.weight)


def test_what_an_architecture_declares_ignorable_is_left_out(tmp_path: Path):
    """GPT-2's files of the hub have masks; Llama's old ones have rotary frequencies."""
    gpt2 = tmp_path / "gpt2"
    GPT2LMHeadModel(SMALL_GPT2).save_pretrained(gpt2)
    mask = {"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8)}
    load(rewrite(gpt2, lambda tensors: tensors | mask))
    llama = write_model(tmp_path / "llama")
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    load(rewrite(llama, lambda tensors: tensors | frequencies))


def test_a_tensor_is_stored_once(tmp_path: Path):
    folder = write_model(tmp_path / "model", shard="20KB")
    first, second, *_ = sorted(folder.glob("*.safetensors"))
    tensors = load_file(first)
    name = next(iter(tensors))
    save_file(load_file(second) | {name: tensors[name] + 1}, second)
    with pytest.raises(InvalidInput, match=f"one tensor for {name}"):
        load(folder)


def test_one_file_or_an_index_but_not_both_and_no_other_name(tmp_path: Path):
    sharded = write_model(tmp_path / "sharded", shard="20KB")
    single = write_model(tmp_path / "single")
    other = single / "weights.safetensors"
    (single / "model.safetensors").rename(other)
    with pytest.raises(InvalidInput, match=r"weights in model\.safetensors"):
        load(single)
    other.rename(sharded / "model.safetensors")
    with pytest.raises(InvalidInput, match="which of the two is meant"):
        load(sharded)


def test_weights_beside_the_model_are_not_read(tmp_path: Path):
    folder = write_model(tmp_path / "model")
    save_file({"step": torch.zeros(1)}, folder / "optimizer.safetensors")
    load(folder)


@pytest.mark.parametrize("case", ["adapter", "quantised", "unknown", "not causal"])
def test_other_kinds_of_models_are_refused(tmp_path: Path, case: str):
    folder = write_model(tmp_path / "model")
    if case == "adapter":
        (folder / "adapter_config.json").write_text("{}")
    elif case == "quantised":
        set_config(folder, quantization_config={"quant_method": "fp8"})
    elif case == "unknown":
        set_config(folder, model_type="nothing_like_it")
    else:
        BertConfig().save_pretrained(folder)
        set_config(folder, model_type="vit")
    message = {
        "adapter": "merge the adapter",
        "quantised": "dequantise",
        "unknown": "a causal language model that transformers implements",
        "not causal": "a causal language model that transformers implements",
    }
    with pytest.raises(InvalidInput, match=message[case]):
        load(folder)


def test_files_of_the_model_without_its_prefix_need_the_head(tmp_path: Path):
    """`LlamaModel` saves its tensors without `model.`, and has no head."""
    folder = tmp_path / "body"
    for tied in (True, False):
        config = LlamaConfig(**SMALL, vocab_size=64, tie_word_embeddings=tied)
        body = LlamaModel(config)
        body.save_pretrained(folder)
        if tied:
            loaded = load(folder).model.state_dict()
            assert all(torch.equal(loaded[name], v) for name, v in body.state_dict().items())
        else:
            with pytest.raises(InvalidInput, match="'missing'") as caught:
                load(folder)
            assert caught.value.key == HEAD


@pytest.mark.parametrize("lost", ["w1", "w2"])
def test_an_expert_of_which_a_part_is_missing_is_refused(tmp_path: Path, lost: str):
    folder = tmp_path / "moe"
    MixtralForCausalLM(MixtralConfig(**SMALL, vocab_size=64, num_local_experts=4)).save_pretrained(
        folder
    )
    load(folder)
    rewrite(folder, without(f"model.layers.0.block_sparse_moe.experts.1.{lost}.weight"))
    with pytest.raises(InvalidInput, match="save_pretrained"):
        load(folder)


def test_a_missing_buffer_is_an_error_too(tmp_path: Path):
    """DeepSeek's experts are chosen with a bias that is stored as a buffer."""
    folder = tmp_path / "deepseek"
    sizes: dict[str, Any] = {
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
    }
    sizes |= {"v_head_dim": 8, "n_routed_experts": 4, "n_group": 1, "topk_group": 1}
    sizes |= {"num_experts_per_tok": 2, "moe_intermediate_size": 8, "first_k_dense_replace": 1}
    config = DeepseekV3Config(**SMALL | sizes, vocab_size=64)
    DeepseekV3ForCausalLM(config).save_pretrained(folder, save_original_format=False)
    load(folder)
    bias = "model.layers.1.mlp.gate.e_score_correction_bias"
    with pytest.raises(InvalidInput, match="'missing'") as caught:
        load(rewrite(folder, without(bias)))
    assert caught.value.key == bias


def test_a_model_without_sdpa_is_loaded_with_eager_attention(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    architecture._report_eager.cache_clear()
    folder = tmp_path / "gemma2"
    Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=8, vocab_size=64)).save_pretrained(folder)
    with caplog.at_level(logging.INFO, logger="sweepcp"):
        assert load(folder).config._attn_implementation == "eager"
    assert "Gemma2ForCausalLM has no sdpa attention: loaded with eager" in caplog.messages
    llama = read_model_config(write_model(tmp_path / "llama"))
    for wanted in ("sdpa", "eager", "flash_attention_2"):
        assert supported_attention(llama, wanted) == wanted


def test_dropout_of_the_configuration_and_of_modules_is_0(tmp_path: Path):
    folder = tmp_path / "gpt2"
    GPT2LMHeadModel(SMALL_GPT2).save_pretrained(folder)
    model = load(folder).train()
    config = model.config
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0, 0, 0)
    assert [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)] == [0.0] * 4
    ids = torch.arange(8)[None]
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_dropout_of_modules_is_0_whatever_the_configuration_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Some modules have constants of their own."""
    folder = tmp_path / "gpt2"
    GPT2LMHeadModel(SMALL_GPT2).save_pretrained(folder)
    monkeypatch.setattr(architecture, "make_deterministic", lambda _: None)
    model = load(folder)
    assert model.config.resid_pdrop == 0.1
    assert [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)] == [0.0] * 4


def test_headers_are_matched_with_a_model_that_takes_no_memory(tmp_path: Path):
    folder = write_model(tmp_path / "model", tie_word_embeddings=True)
    model = empty_model(read_model_config(folder))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    matched = match_tensors(read_shards(folder), model)
    assert {tensor.name for tensor in matched} == set(load_file(folder / "model.safetensors"))
    assert not any(tensor.converted for tensor in matched)
