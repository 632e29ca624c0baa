"""A folder with small, valid files of every kind that the program reads or writes."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from sweepcp.data.encoding import byte_level_tokenizer
from sweepcp.full_run.ending import Ending, claim_folder, record_ending
from sweepcp.promote.bundle import load_bundle
from sweepcp.util.files import file_sha256, shipped_folder, write_json
from tests.make import SMALL, jsonl, target_content, write_bundle, write_corpora
from tests.make_run import write_run

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 258,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "tie_word_embeddings": False,
    "attention_dropout": 0.1,
    **SMALL,
}
EXPERIMENT: dict[str, Any] = {
    "name": "small",
    "base": {
        "max_lr": 0.003,
        "pretrain": {
            "config": {"model_type": "llama", **SMALL},
            "tokenizer": "bytes",
            "mixture": {"docs": 1.0},
            "tokens": 640,
            "training": {"seq_len": 32, "batch_tokens": 64},
        },
    },
    "sources": [
        {
            "name": "code",
            "role": "domain",
            "files": ["data/code.jsonl"],
            "held_out": 0.2,
            "filters": {"min_chars": 2},
            "max_epochs": 100.0,
        },
        {
            "name": "docs",
            "role": "general",
            "files": ["data/docs.jsonl"],
            "held_out": 0.2,
            "template": "{title}\n{text}",
            "max_epochs": 100.0,
        },
        {
            "name": "web",
            "role": "general",
            "language": "de",
            "files": ["data/web.jsonl"],
            "held_out": 0.2,
            "max_epochs": 100.0,
        },
    ],
    "suites": {
        "domain": [{"held_out": "code", "items": 5}],
        "general": [{"held_out": "docs", "items": 5, "weight": 2.0}],
    },
    "space": "space.yaml",
    "training": {"seq_len": 32, "batch_tokens": 64},
    "budget": {"trials": 4, "tokens": 640},
    "choose": {"max_regression": 2.0},
}
SPACE: dict[str, Any] = {
    "lr_fraction": {"low": 0.01, "high": 1.0, "scale": "log"},
    "general_share": {"low": 0.0, "high": 0.8, "scale": "linear"},
    "anchors": [{"lr_fraction": 0.1, "general_share": 0.5}],
}


def make_workspace(folder: Path) -> None:
    """Write models, stores, a run, a bundle, a full run, and copies of the shipped files."""
    write_small_model(folder / "model")
    write_small_model(folder / "sharded", shards=2)
    (folder / "stores").mkdir()
    write_corpora(folder / "stores", folder / "model")
    bundle = load_bundle(write_bundle(folder))
    write_run(folder / "run", 3, documents=8, steps=4, t0001="diverged")
    corpora = {
        f"python-{name}": {"store": f"stores/{name}", "max_epochs": 99.0}
        for name in ("code", "docs")
    }
    content = target_content(folder, corpora=corpora)
    (folder / "run_target.yaml").write_text(json.dumps(content))
    full_run = folder / "full_run"
    claim_folder(full_run, bundle.id)
    ending = Ending(bundle=bundle.id, status=0, step=20, reason="finished")
    record_ending(full_run, ending)
    make_checkpoint(full_run)
    for kind in ("experiments", "search_spaces"):
        for file in shipped_folder(kind).rglob("*.yaml"):
            copy = folder / "shipped" / kind / file.relative_to(shipped_folder(kind))
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
    (folder / "data").mkdir()
    for name in ("code", "docs", "web"):
        texts = [f"{name} text {number} " + "abcdefgh " * (number % 7) for number in range(60)]
        jsonl(folder / "data" / f"{name}.jsonl", [{"text": t, "title": "A"} for t in texts])
    (folder / "experiment.yaml").write_text(json.dumps(EXPERIMENT))
    based = EXPERIMENT | {"base": {"path": "model", "max_lr": 0.003}}
    (folder / "model_experiment.yaml").write_text(json.dumps(based))
    (folder / "space.yaml").write_text(json.dumps(SPACE))
    for name in ("lr-mix", "lr-mix-schedule"):
        content = EXPERIMENT | {"space": f"shipped/search_spaces/{name}.yaml"}
        (folder / f"{name}.yaml").write_text(json.dumps(content))


def make_checkpoint(full_run: Path) -> None:
    """Write the log of a full run, and a checkpoint of one rank."""
    rows = [{"step": step, "loss": 2.0, "tokens": {"code": 8}} for step in (1, 2, 3)]
    jsonl(full_run / "metrics.jsonl", rows)
    checkpoint = full_run / "checkpoints" / "step-00000002"
    checkpoint.mkdir(parents=True)
    file = checkpoint / "rank-00000.safetensors"
    sizes = {"master/a": 6, "exp_avg/a": 6, "exp_avg_sq/a": 6}
    save_file({name: np.ones(size, np.float32) for name, size in sizes.items()}, file)
    manifest = {
        "bundle": "bundle",
        "step": 2,
        "tokens": {"code": 8},
        "ranks": 1,
        "sizes": sizes,
        "files": {file.name: file_sha256(file)},
    }
    write_json(checkpoint / "manifest.json", manifest)
    (full_run / "checkpoints" / "latest").write_text(f"{checkpoint.name}\n")


def write_small_model(folder: Path, *, shards: int = 1) -> None:
    """Write a Llama over bytes with weights of 0, without torch."""
    folder.mkdir()
    hidden, inner = SMALL["hidden_size"], SMALL["intermediate_size"]
    matrices = {"model.embed_tokens": (258, hidden), "lm_head": (258, hidden)}
    vectors = ["model.norm"]
    for layer in range(SMALL["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        vectors += [f"{prefix}.input_layernorm", f"{prefix}.post_attention_layernorm"]
        for name, rows in (("q", hidden), ("k", hidden // 2), ("v", hidden // 2), ("o", hidden)):
            matrices[f"{prefix}.self_attn.{name}_proj"] = (rows, hidden)
        for name, shape in (("gate", (inner, hidden)), ("up", (inner, hidden))):
            matrices[f"{prefix}.mlp.{name}_proj"] = shape
        matrices[f"{prefix}.mlp.down_proj"] = (hidden, inner)
    tensors = {f"{name}.weight": np.zeros(shape, np.float32) for name, shape in matrices.items()}
    tensors |= {f"{name}.weight": np.ones(hidden, np.float32) for name in vectors}
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    else:
        files = [f"model-{number:05}-of-{shards:05}.safetensors" for number in range(1, shards + 1)]
        weight_map = {name: files[index % shards] for index, name in enumerate(names)}
        for file in files:
            part = {name: tensors[name] for name in names if weight_map[name] == file}
            save_file(part, folder / file, {"format": "pt"})
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tokenizer = byte_level_tokenizer()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "model_max_length": 10**30,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 257}))
