"""Trials and the full run load the same files, train without chance, and isolate documents."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import OPTConfig, OPTForCausalLM

from sweepcp.corpora.experiment import load_experiment
from sweepcp.errors import InvalidInput
from sweepcp.models.loading import byte_tokenizer, check_model_files
from sweepcp.scoring.spec import ScoringSpec
from sweepcp.search.trial_runner import TrialRunner
from sweepcp.search.worker_io import WorkerSpec
from tests.integration.conftest import metrics, sweepcp, torchrun
from tests.make import write_bundle, write_corpora, write_model

ROOT = Path(__file__).parents[2]
ZERO_LOADS = """
import sys
from pathlib import Path
from sweepcp.errors import InvalidInput
from sweepcp.models.files import read_shards
from sweepcp.training.zero_engine import ZeroEngine, join_process_group
from tests.make import recipe

group = join_process_group("cpu")
config = {"train_batch_size": 2, "train_micro_batch_size_per_gpu": 2}
config |= {"gradient_accumulation_steps": 1, "zero_optimization": {"stage": 3}}
config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
config |= {"zero_force_ds_cpu_optimizer": False, "steps_per_print": 1 << 30}
for folder in sys.argv[1:]:
    try:
        settings = recipe(seq_len=32, batch_tokens=64, tokens=640)
        shards = read_shards(Path(folder))
        engine = ZeroEngine(shards, settings, config, group, attention="sdpa", recompute=False)
        stay = all(weight.ds_persist for weight in engine.model.parameters())
        print("RESULT loaded", "and gathered once" if stay else "", flush=True)
    except InvalidInput as error:
        print("RESULT", repr(str(error)), flush=True)
"""


def write_opt(folder: Path) -> Path:
    """Write an OPT, whose documents influence each other."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "ffn_dim": 64,
    }
    config = OPTConfig(**sizes, word_embed_proj_dim=32, vocab_size=258, max_position_embeddings=64)
    OPTForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def tampered(folder: Path) -> list[Path]:
    """Models of which a tensor is missing, or tied to another; and a sound one."""
    missing, tied, sound = folder / "missing", folder / "tied", folder / "sound"
    for path in (missing, tied, sound):
        write_model(path, tie_word_embeddings=path == tied, attention_dropout=0.1)
    tensors = load_file(missing / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, missing / "model.safetensors")
    tensors = load_file(tied / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, tied / "model.safetensors")
    return [missing, tied, sound]


@pytest.mark.slow
def test_a_full_run_refuses_what_trials_refuse_and_for_the_same_reason(tmp_path: Path):
    *refused, sound = tampered(tmp_path)
    script = tmp_path / "load.py"
    # The package is installed; its tests are found beside this file only.
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{ZERO_LOADS}")
    done = torchrun(1, script, *refused, sound, write_opt(tmp_path / "opt"))
    results = [
        line.partition("RESULT ")[2] for line in done.stdout.splitlines() if "RESULT" in line
    ]
    assert len(results) == 4, done.stderr
    for folder, result in zip(refused, results, strict=False):
        with pytest.raises(InvalidInput) as caught:
            check_model_files(folder)
        assert result == repr(str(caught.value))
    assert results[2] == "loaded and gathered once"
    assert "packed documents" in results[3]
    assert "cross_documents: true" in results[3]


@pytest.mark.slow
def test_dropout_in_the_configuration_changes_nothing_from_start_to_start(tmp_path: Path):
    """Two starts of one bundle are equal, and equal to those of a configuration without dropout."""
    runs = []
    for name, dropout in (("with", 0.1), ("without", 0.0)):
        folder = tmp_path / name
        write_model(folder / "model", attention_dropout=dropout)
        (folder / "stores").mkdir()
        write_corpora(folder / "stores", folder / "model")
        bundle = write_bundle(folder, hardware={"device": "cpu", "nodes": 1, "per_node": 1})
        for out in ("A", "B")[: 2 if dropout else 1]:
            done = torchrun(1, "-m", "sweepcp", "train", bundle, "--out", folder / out)
            assert done.returncode == 0, done.stderr
            reports = "config.json has attention_dropout 0.1: set to 0" in done.stdout + done.stderr
            assert reports == (dropout > 0)
            runs.append([(row["loss"], row["grad_norm"]) for row in metrics(folder / out)])
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.slow
def test_a_base_with_a_missing_tensor_is_refused_before_stores_are_built(tmp_path: Path):
    missing, *_ = tampered(tmp_path)
    text = "a few words of text, again and again. " * 40
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for _ in range(40)))
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"text": text[1:]}) for _ in range(40)))
    experiment = {
        "name": "missing",
        "base": {"path": str(missing), "max_lr": 1e-3},
        "sources": [
            {"name": name, "role": role, "language": "en", "files": [file], "held_out": 0.1}
            for name, role, file in (("a", "domain", "a.jsonl"), ("b", "general", "b.jsonl"))
        ],
        "suites": {"domain": [{"held_out": "a"}], "general": [{"held_out": "b"}]},
        "space": {"lr_fraction": {"choices": [0.1]}, "general_share": {"choices": [0.5]}},
        "training": {"seq_len": 32, "batch_tokens": 64},
        "budget": {"trials": 1, "tokens": 640},
        "choose": {"max_regression": 50},
    }
    (tmp_path / "e.yaml").write_text(json.dumps(experiment))
    done = sweepcp("search", tmp_path / "e.yaml", "--out", tmp_path / "run")
    assert done.returncode == 2, done.stderr
    assert "model.layers.1.mlp.up_proj.weight" in done.stderr
    assert "starting workers" not in done.stdout + done.stderr


def test_a_worker_refuses_a_base_that_cannot_isolate_documents(tmp_path: Path):
    """Unless documents are not to be separated."""
    folder = write_opt(tmp_path / "model")
    (tmp_path / "stores").mkdir()
    stores = write_corpora(tmp_path / "stores", folder)
    experiment, _ = load_experiment("quickstart")
    base = experiment.base.model_copy(update={"path": str(folder), "pretrain": None})
    scoring = ScoringSpec(
        suites=experiment.suites,
        stores=tuple(stores.values()),
        languages={},
        generated_tasks=None,
        seq_len=32,
        packed=True,
        precision="fp32",
    )
    spec = WorkerSpec(
        base=base,
        model=str(folder),
        stores=tuple(stores.values()),
        scoring=scoring,
        micro_batch="auto",
        precision="fp32",
        attention="auto",
        recompute=False,
        compile=False,
        threads=1,
        device="cpu",
        gpu_share=0.0,
    )
    with pytest.raises(InvalidInput, match="cross_documents: true") as caught:
        TrialRunner(spec)
    assert caught.value.file == str(folder)
    runner = TrialRunner(replace(spec, scoring=replace(scoring, packed=False)))
    assert all(not m.p for m in runner.model.modules() if isinstance(m, torch.nn.Dropout))
