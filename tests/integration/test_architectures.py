"""Which architectures of transformers isolate packed documents: each is built tiny and checked.

`python -m tests.integration.test_architectures` prints the table for the installed transformers.
"""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sweepcp.config import attention
from sweepcp.errors import InvalidInput
from sweepcp.models.architecture import build_model
from sweepcp.models.attention import resolve_attention
from sweepcp.models.randomness import make_deterministic
from sweepcp.training.isolation import check_isolation
from sweepcp.training.process_group import ProcessGroup

SEQ_LEN = 64
SIZES: dict[str, int] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 300),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size"), 32),
    **dict.fromkeys(("word_embed_proj_dim", "lru_width", "linear_key_head_dim"), 32),
    **dict.fromkeys(("linear_value_head_dim", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "rotary_dim", "time_step_rank"), 4),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    "moe_num_experts": 4,
    **dict.fromkeys(("num_key_value_heads", "linear_num_value_heads", "linear_num_key_heads"), 2),
    **dict.fromkeys(("num_experts_per_tok", "top_k", "moe_topk", "moe_k", "moe_top_k"), 2),
    **dict.fromkeys(("mamba_expand", "expand", "eos_token_id"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim"), 64),
    **dict.fromkeys(("n_inner", "dff", "d_inner", "ffn_hidden_size", "d_ff", "mamba_d_ssm"), 64),
    "shared_intermediate_size": 64,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 256),
    "max_sequence_length": 256,
    **dict.fromkeys(("head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("mamba_d_state", "ssm_state_size", "state_size"), 8),
    **dict.fromkeys(("qk_head_dim", "q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "sliding_window"), 16),
    **dict.fromkeys(("attention_window_size", "window_size", "attention_chunk_size"), 16),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
    **dict.fromkeys(("mamba_n_groups", "n_groups", "bos_token_id"), 1),
    "pad_token_id": 0,
    "hidden_size_per_layer_input": 32,
}
"""Setting → its value in a tiny configuration; windows are shorter than the documents."""
CHANGES: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots3_note_text": {"num_key_value_heads": 4},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "reformer": {"is_decoder": True},
    "zaya": {"num_experts_per_tok": 1},
}
"""Model type → settings that follow no rule."""
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def names(text: str) -> list[str]:
    """Return the words of a text."""
    return text.split()


ISOLATED = names("""
apertus arcee aria_text axk1 axk2 beam bitnet codegen cohere cohere2 cohere2_moe ctrl cwm
deepseek_v2 deepseek_v3 deepseek_v32 diffllama doge emu3 ernie4_5 ernie4_5_moe exaone4
exaone_moe flex_olmo flint fuyu gemma gemma2 gemma3 gemma3_text gemma4_text gemma4_unified
gemma4_unified_text git glm glm4 glm4_moe glm4_moe_lite glm_moe_dsa gpt-sw3 gpt2 gpt_bigcode
gpt_neo gpt_neox gpt_neox_japanese gptj granite granite_swa granitemoe granitemoe_swa
granitemoeshared helium hrm_text hy_v3 hy_v4 hyperclovax internlm3 iquestcoder jais2 jetmoe
kolibri1 laguna llama llama4 llama4_text mellum mimo_v2_flash minicpm3 minimax_m2
minimax_m3_vl_text ministral3 mistral mixtral mllama modernbert-decoder moshi nanochat olmo
olmo2 olmo3 olmoe persimmon phi phi3 qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3
solar_open stablelm starcoder2 vaultgemma youtu
""")
"""The losses of a document do not depend on the others in its sequence."""
LEAKING = names("""
afmoe bamba bart bert bert-generation big_bird bigbird_pegasus biogpt blenderbot
blenderbot-small bloom camembert data2vec-text electra ernie falcon falcon_h1 falcon_mamba
gpt_oss granitemoehybrid inkling2_text inkling_text jamba lfm2 lfm2_moe lfm3 mamba mamba2
marian mbart megatron-bert minimax moss_transcribe_diarize mpt mvp nemotron_h olmo_hybrid
openai-gpt opt pegasus plbart prophetnet qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text
qwen3_next recurrent_gemma rembert roberta roberta-prelayernorm roformer rwkv trocr whisper
xglm xlm xlm-roberta xlm-roberta-xl xlnet xlstm zamba2 zaya
""")
"""Documents influence each other: a state that is carried over, or masks without positions."""
EAGER = names("""
big_bird bigbird_pegasus bloom codegen falcon_mamba flint gemma2 git gpt_neo gpt_neox_japanese
gpt_oss gptj granite_swa granitemoe_swa hy_v4 inkling2_text mamba mamba2 megatron-bert
mimo_v2_flash mpt mvp openai-gpt prophetnet rembert roformer rwkv trocr vaultgemma xglm xlm
xlnet xlstm
""")
"""Those of both that have no sdpa attention."""
OTHERS = {"phimoe": "random", "xmod": "unable"}
"""PhiMoE samples its experts in training. XMOD needs to be told the language of its input."""
EXPECTED = dict.fromkeys(ISOLATED, "isolated") | dict.fromkeys(LEAKING, "leaks") | OTHERS
VARLEN = set(ISOLATED) - set(
    names("""
axk2 codegen deepseek_v32 doge flint gemma2 git glm_moe_dsa gpt_neo gpt_neox_japanese gptj
granite_swa granitemoe_swa hy_v4 llama4 llama4_text mimo_v2_flash minimax_m3_vl_text mllama
stablelm vaultgemma
""")
)
"""Those that `auto` computes with their boundaries on a GPU."""
FAST = ("llama", "qwen2", "gpt2", "gemma2", "opt", "lfm2", "mixtral", "phimoe")


def tiny_config(model_type: str) -> PretrainedConfig:
    """Return a configuration of a few ten thousand parameters, with a layer of each kind."""
    settings = AutoConfig.for_model(model_type).to_dict()
    return AutoConfig.for_model(model_type, **shrink(settings) | CHANGES.get(model_type, {}))


def shrink(settings: dict[str, Any]) -> dict[str, Any]:
    # With compressed keys and values, sizes of heads follow from other settings.
    kept = {"head_dim", "num_key_value_heads"} if "qk_rope_head_dim" in settings else set()
    tiny: dict[str, Any] = {}
    layers = next((settings[key] for key in LAYER_COUNTS if key in settings), None)
    for key, value in settings.items():
        if isinstance(value, dict) and "model_type" in value:
            tiny[key] = shrink(value) | {"model_type": value["model_type"]}
        elif isinstance(value, list) and len(value) == layers:
            kinds = sorted(
                set(value),
                key=lambda kind: (kind in ("full_attention", "attention"), value.index(kind)),
            )
            tiny[key] = (kinds * 2)[:2]
        elif key in SIZES and key not in kept and value is not None:
            tiny[key] = SIZES[key]
    return tiny


def build_tiny(model_type: str, *, attention: str = "sdpa") -> PreTrainedModel:
    """Build a tiny model whose weights are large enough for attention to matter."""
    config = tiny_config(model_type)
    make_deterministic(config)
    torch.manual_seed(0)
    model = build_model(config, attention=attention, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(3)
    return model


def classify(model: PreTrainedModel) -> str:
    """Return `isolated`, `leaks`, `random`, or `unable` with the error of the architecture."""
    try:
        check_isolation(model, ProcessGroup(), seq_len=SEQ_LEN, packed=True)
    except InvalidInput as error:
        if error.key == "packed documents":
            return "leaks"
        return "random" if "two passes" in str(error.found) else "unable"
    return "isolated"


@pytest.mark.parametrize(
    "model_type",
    [
        pytest.param(name, marks=[] if name in FAST else pytest.mark.slow)
        for name in sorted(EXPECTED)
    ],
)
def test_an_architecture_isolates_packed_documents_or_is_refused(model_type: str):
    model = build_tiny(model_type)
    expected_attention = "eager" if model_type in EAGER else "sdpa"
    assert model.config._attn_implementation == expected_attention
    assert classify(model) == EXPECTED[model_type]


@pytest.mark.parametrize(
    "model_type",
    [
        pytest.param(name, marks=[] if name in FAST else pytest.mark.slow)
        for name in sorted(EXPECTED)
    ],
)
def test_where_auto_takes_an_implementation_by_boundaries_it_isolates(
    monkeypatch: pytest.MonkeyPatch, model_type: str
):
    monkeypatch.setattr(attention, "find_spec", lambda name: None)
    config = tiny_config(model_type)
    on_gpu = {"device": torch.device("cuda"), "in_bf16": True}
    resolved = resolve_attention("auto", config, **on_gpu)  # type: ignore[arg-type]
    if resolved == "sdpa":
        assert model_type not in VARLEN
        return
    assert resolved == "varlen"
    expected = OTHERS.get(model_type, "isolated")
    assert classify(build_tiny(model_type, attention=resolved)) == expected
    assert model_type in VARLEN or model_type not in ISOLATED


def test_the_table_covers_the_issue():
    assert len(ISOLATED) > 60
    assert len(EXPECTED) > 130


def main() -> None:
    """Print the class of every causal architecture, or why it cannot be built tiny."""
    for name in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        try:
            model = build_tiny(name)
            print(name, classify(model), model.config._attn_implementation, flush=True)
        except Exception as error:
            print(name, "NOT BUILT", type(error).__name__, error, flush=True)


if __name__ == "__main__":
    main()
