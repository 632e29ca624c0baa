"""Dimensions of models whose configurations do not have Llama's names and sections."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from sweepcp.config.target import load_target
from sweepcp.errors import InvalidInput
from sweepcp.models.architecture import built_dimensions, empty_model
from sweepcp.models.dimensions import read_dimensions
from sweepcp.models.loading import byte_tokenizer
from sweepcp.promote.bundle import load_bundle
from sweepcp.promote.candidate import candidate_from_publication
from sweepcp.promote.translate import promote
from tests.make import write_bundle, write_corpora, write_model

TEXT = {
    "vocab_size": 258,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
}
VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 28,
    "patch_size": 14,
}


def gpt2(**changes: Any) -> PreTrainedModel:
    sizes = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128, "vocab_size": 258}
    return GPT2LMHeadModel(GPT2Config(**sizes | changes))


def gemma3() -> PreTrainedModel:
    config = Gemma3Config(text_config=TEXT, vision_config=VISION, mm_tokens_per_image=4)
    return Gemma3ForConditionalGeneration(config)


def saved(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def keep_keys(folder: Path, *keys: str) -> None:
    """Leave only these keys in config.json, as published files that state no defaults."""
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({key: content[key] for key in keys}))


def test_gpt2_is_read_by_its_own_names(tmp_path: Path):
    folder = saved(gpt2(), tmp_path / "gpt2")
    keep_keys(folder, "model_type", "n_embd", "n_layer", "n_head", "n_positions", "vocab_size")
    dimensions = read_dimensions(folder)
    sizes = (dimensions.hidden_size, dimensions.num_hidden_layers, dimensions.num_attention_heads)
    assert sizes == (32, 3, 4)
    assert (dimensions.intermediate_size, dimensions.num_key_value_heads) == (128, 4)
    assert (dimensions.vocab_size, dimensions.max_position_embeddings) == (258, 128)
    # Embeddings of tokens and positions, which are tied to the output; then per layer attention,
    # MLP, their biases and two norms; and the last norm.
    layer = (32 * 96 + 96) + (32 * 32 + 32) + (32 * 128 + 128) + (128 * 32 + 32) + 4 * 32
    count = 258 * 32 + 128 * 32 + 3 * layer + 2 * 32
    assert dimensions.parameter_count == count == sum(p.numel() for p in gpt2().parameters())
    assert dimensions.flops_per_token(16) == 6 * count + 12 * 3 * 32 * 16


def test_masks_in_an_old_checkpoint_are_no_parameters(tmp_path: Path):
    """The published files of GPT-2 hold a mask per layer, and an MLP may state its inner size."""
    from safetensors.torch import load_file, save_file

    folder = saved(gpt2(n_inner=96), tmp_path / "gpt2")
    expected = sum(p.numel() for p in gpt2(n_inner=96).parameters())
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.h.0.attn.bias"] = tensors["transformer.wpe.weight"].new_ones(
        1, 1, 128, 128
    )
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    dimensions = read_dimensions(folder)
    assert (dimensions.parameter_count, dimensions.intermediate_size) == (expected, 96)


def test_sizes_of_the_language_model_are_read_from_its_section(tmp_path: Path):
    """Memory is needed for the towers, too; text is computed without them."""
    model = gemma3()
    folder = saved(model, tmp_path / "gemma3")
    dimensions = read_dimensions(folder)
    assert {name: getattr(dimensions, name) for name in TEXT} == TEXT
    assert dimensions.model_type == "gemma3"
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert dimensions.parameter_count == sum(p.numel() for p in loaded.parameters())
    text = sum(p.numel() for p in model.model.language_model.parameters())
    assert dimensions.text_parameters == text < dimensions.parameter_count
    assert dimensions.flops_per_token(16) == 6 * text + 12 * 3 * 32 * 16


def test_values_that_only_transformers_knows_are_read_by_it(tmp_path: Path):
    """Published configurations of Gemma 3 leave out what has its default."""
    folder = saved(gemma3(), tmp_path / "gemma3")
    keep_keys(folder, "model_type", "text_config", "vision_config", "mm_tokens_per_image")
    content = json.loads((folder / "config.json").read_text())
    del content["text_config"]["max_position_embeddings"]
    (folder / "config.json").write_text(json.dumps(content))
    assert read_dimensions(folder).max_position_embeddings == 131_072


def test_the_size_of_heads_is_that_of_the_configuration():
    """Heads of Qwen 3 and Gemma 3 together are larger than the residual stream."""
    config = AutoConfig.for_model("qwen3", **TEXT | {"head_dim": 24})
    assert built_dimensions(empty_model(config)).head_dim == 24
    assert built_dimensions(gpt2()).head_dim is None


@pytest.mark.parametrize("make_model", [gpt2, gemma3])
def test_promote_takes_what_search_takes(tmp_path: Path, make_model: Any):
    model = saved(make_model(), tmp_path / "model")
    (tmp_path / "stores").mkdir()
    write_corpora(tmp_path / "stores", model)
    bundle = load_bundle(write_bundle(tmp_path)).bundle
    assert bundle.model.parameters == sum(p.numel() for p in make_model().parameters())
    # Two processes: fp32 weights, master weights, gradients and two moments.
    assert bundle.memory.weights == 4 * -(-bundle.model.parameters // 2)
    tokens = bundle.recipe.tokens
    per_token = bundle.model.shape.flops_per_token(bundle.recipe.seq_len)
    assert bundle.expense.flops == per_token * tokens
    # Sequences of 32 tokens; the model takes 128.
    content = json.loads((tmp_path / "target.yaml").read_text())
    content |= {"seq_len": 256, "tokens": 512 * 20, "compute": {"precision": "fp32"}}
    (tmp_path / "target.yaml").write_text(json.dumps(content))
    target, file = load_target(str(tmp_path / "target.yaml"))
    candidate = candidate_from_publication(str(tmp_path / "recipe.yaml"))
    with pytest.raises(InvalidInput, match=r"seq_len\n  found: 256\n  rule:  at most 128 tokens"):
        promote(candidate, target, file=file, out=tmp_path / "long")


def test_a_llama_is_read_without_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import sweepcp.models.architecture

    folder = write_model(tmp_path / "model")
    monkeypatch.delattr(sweepcp.models.architecture, "built_dimensions")
    assert read_dimensions(folder).parameter_count > 0
