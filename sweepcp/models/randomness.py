"""Settings of a model that draw random numbers in training: dropouts and router jitter.

A recipe states all that a run consists of, so nothing in it is random: trials, pretraining and the
full run set these to 0. Two starts of one recipe are then equal, and so is a run that resumes.
"""

import re
from collections.abc import Iterator
from typing import Any

RANDOM_KEY = re.compile(r"drop|jitter")
"""Found in the names of all such settings in transformers: `attention_dropout`, `resid_pdrop`,
`layerdrop`, `drop_path_rate`, `hidden_dropout_prob`, `router_jitter_noise`, ..."""
OTHER_TASKS = re.compile(r"^(classifier|summary|pooler|qa|seq_classif)_")
"""Begin the settings of heads that a causal LM does not have."""
NOT_RANDOM = {"phimoe": "router_jitter_noise"}
"""Model type → a key that is none: PhiMoE masks experts by this threshold, in evaluation, too."""
_BERT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
_GPT = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
_SEQ2SEQ = {"dropout": 0.1}
_XLM = {"dropout": 0.1, "attention_dropout": 0.1}
DEFAULTS: dict[str, dict[str, float]] = {
    **dict.fromkeys(("bert", "bert-generation", "big_bird", "biogpt", "camembert"), _BERT),
    **dict.fromkeys(("data2vec-text", "electra", "ernie", "git", "megatron-bert"), _BERT),
    **dict.fromkeys(("roberta", "roberta-prelayernorm", "roc_bert", "roformer"), _BERT),
    **dict.fromkeys(("xlm-roberta", "xlm-roberta-xl", "xmod"), _BERT),
    **dict.fromkeys(("gpt2", "gpt-sw3", "gpt_bigcode", "openai-gpt"), _GPT),
    **dict.fromkeys(("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small"), _SEQ2SEQ),
    **dict.fromkeys(("marian", "mbart", "mvp", "opt", "pegasus", "trocr", "xlnet"), _SEQ2SEQ),
    **dict.fromkeys(("plbart", "xglm", "xlm"), _XLM),
    "ctrl": {"resid_pdrop": 0.1, "embd_pdrop": 0.1},
    "emu3_text_model": {"attention_dropout": 0.1},
    "gpt_neox_japanese": {"attention_dropout": 0.1},
    "prophetnet": {"activation_dropout": 0.1, "attention_dropout": 0.1, "dropout": 0.1},
    "reformer": {"hidden_dropout_prob": 0.05, "local_attention_probs_dropout_prob": 0.05},
    "seed_oss": {"attention_dropout": 0.1, "residual_dropout": 0.1},
}
"""Model type → settings that are not 0 where its configuration does not state them."""


def random_settings(config: dict[str, Any]) -> dict[str, float]:
    """Return the dropouts and jitters of a `config.json` that are not 0, by dotted key.

    Settings that the file leaves out count with transformers' default.
    """
    model_type = str(config.get("model_type", ""))
    stated = DEFAULTS.get(model_type, {}) | config
    found: dict[str, float] = {}
    for key, value in stated.items():
        if isinstance(value, dict):
            nested = random_settings(value)
            found |= {f"{key}.{inner}": number for inner, number in nested.items()}
        elif is_random(key, value, model_type):
            found[key] = max(map(abs, _numbers(value)))
    return found


def format_settings(settings: dict[str, float]) -> str:
    """Return settings as `key value` pairs."""
    return ", ".join(f"{key} {value:g}" for key, value in settings.items())


def make_deterministic(config: Any) -> None:
    """Set every dropout and jitter of a transformers configuration to 0, nested ones included."""
    model_type = getattr(config, "model_type", "")
    for key, value in list(vars(config).items()):
        if hasattr(value, "to_dict"):
            make_deterministic(value)
        elif is_random(key, value, model_type):
            setattr(config, key, zeros_like(value))


def is_random(key: str, value: Any, model_type: str) -> bool:
    """Return whether a setting makes training random as long as it has this value."""
    if not RANDOM_KEY.search(key) or OTHER_TASKS.search(key) or NOT_RANDOM.get(model_type) == key:
        return False
    return any(_numbers(value))


def zeros_like(value: Any) -> Any:
    """Return 0 for a number, and as many zeros for a list or tuple of numbers."""
    return type(value)(0.0 for _ in value) if isinstance(value, list | tuple) else 0.0


def _numbers(value: Any) -> Iterator[float]:
    for number in value if isinstance(value, list | tuple) else (value,):
        if isinstance(number, int | float) and not isinstance(number, bool):
            yield number
