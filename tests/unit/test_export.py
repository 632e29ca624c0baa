"""Files for trainers and launchers: golden files, their headers, and their formats."""

import json
import os
import shlex
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from torch.distributed.run import config_from_args, parse_args

from sweepcp.config.site import Site
from sweepcp.errors import InvalidInput
from sweepcp.export.text_checks import check_file_names
from sweepcp.export.write import LAUNCHERS, TRAINERS, choose_targets, write_export
from sweepcp.promote.bundle import load_bundle
from sweepcp.util.files import shipped_folder
from tests.exports import at_fixed_paths, make_input, promoted, rendered
from tests.make import write_bundle, write_corpora, write_model

GOLDEN = Path(__file__).parents[1] / "golden" / "exports"
PAIRS = [
    ("megatron-lm", "slurm"),
    ("torchtitan", "kubeflow"),
    ("deepspeed", "slurm"),
    ("axolotl", "skypilot"),
    ("llama-factory", "torchrun"),
    ("hf-trainer", "ray"),
]
CRDS = os.environ.get("SWEEPCP_CRDS")


@pytest.fixture(scope="module")
def e_llama(tmp_path_factory: pytest.TempPathFactory):
    """e-Llama's recipe for Llama 3.1 70B on 60 × 8 GPUs."""
    return at_fixed_paths(promoted(tmp_path_factory.mktemp("e-llama"), "llama-3.1-70b-60x8"))


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_files_equal_the_golden_files(e_llama, pair):
    folder = GOLDEN / "+".join(pair)
    files = rendered(e_llama, *pair)
    if os.environ.get("SWEEPCP_WRITE_GOLDEN"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)
    assert files == {path.name: path.read_text() for path in folder.iterdir()}


def test_golden_files_cover_every_trainer_and_launcher():
    assert {name for pair in PAIRS for name in pair} == {*TRAINERS, *LAUNCHERS}


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_file_states_recipe_bundle_status_and_start_command(e_llama, trainer, launcher):
    files = rendered(e_llama, trainer, launcher)
    for name, text in files.items():
        assert e_llama.bundle.recipe_id in text, name
        assert e_llama.loaded.id in text, name
        assert "NOT VERIFIED" in text, name
        assert name == "export.json" or LAUNCHERS[launcher].start_command(e_llama) in text, name
        for secret in ("HF_TOKEN", "WANDB_API_KEY"):
            assert f"{secret}=" not in text
    for name in files:
        if name.endswith(("sh", "sbatch")):
            subprocess.run(["bash", "-n"], input=files[name], text=True, check=True)
        if name.endswith("yaml"):
            assert yaml.safe_load(files[name])
        if name.endswith(".py"):
            compile(files[name], name, "exec")


def test_a_batch_that_only_replicas_divide_is_exported_with_parallelism_alone(tmp_path: Path):
    """48 sequences on 32 GPUs, which hold 16 replicas of the model."""
    shipped = shipped_folder("experiments") / "targets" / "llama-3.1-8b-4x8.yaml"
    content = yaml.safe_load(shipped.read_text())
    content |= {"batch_tokens": 48 * 8192, "tokens": 100 * 48 * 8192}
    (tmp_path / "target.yaml").write_text(yaml.safe_dump(content))
    loaded = promoted(tmp_path, str(tmp_path / "target.yaml"))
    export_input = make_input(loaded, tmp_path / "export")
    keys = {"megatron-lm": "--global-batch-size", "torchtitan": "training.global_batch_size"}
    for trainer, key in keys.items():
        assert TRAINERS[trainer].make_export_plan(export_input).settings[key] == 48
    for trainer in ("deepspeed", "axolotl", "llama-factory", "hf-trainer"):
        with pytest.raises(InvalidInput, match="48 sequences for 32 devices"):
            TRAINERS[trainer].make_export_plan(export_input)


def test_a_trainer_alone_gets_torchrun_and_a_launcher_alone_gets_sweepcp_train():
    assert choose_targets(["axolotl"]) == ("axolotl", "torchrun")
    assert choose_targets(["slurm"]) == ("deepspeed", "slurm")
    assert choose_targets(["kubeflow", "torchtitan"]) == ("torchtitan", "kubeflow")


@pytest.mark.parametrize("names", [[], ["axolotl", "torchtitan"], ["slurm", "ray"], ["nanotron"]])
def test_unknown_and_ambiguous_names_are_refused(names):
    with pytest.raises(InvalidInput, match=r"rule:.*(one of each|megatron-lm)"):
        choose_targets(names)


def final_command(script: str) -> list[str]:
    """Return the words of the command that a script ends with."""
    command = script[script.index("exec ") + 5 :].replace("\\\n", " ")
    head = '$(echo "$SKYPILOT_NODE_IPS" | head -n 1)'
    return shlex.split(command.replace(head, "10.0.0.1").replace("$SKYPILOT_NODE_RANK", "0"))


@pytest.mark.parametrize("trainer", TRAINERS)
def test_torchrun_parses_its_arguments(e_llama, trainer):
    python, module, run, *arguments = final_command(
        rendered(e_llama, trainer, "torchrun")["run.sh"]
    )
    assert (python, module, run) == ("/shared/venv/bin/python", "-m", "torch.distributed.run")
    args = parse_args(arguments)
    config, _, _ = config_from_args(args)
    assert (config.min_nodes, config.max_nodes, config.nproc_per_node, config.max_restarts) == (
        60,
        60,
        8,
        3,
    )
    assert config.rdzv_backend == "c10d"
    assert args.training_script or args.module


def test_skypilot_and_kubeflow_start_the_same_command(e_llama):
    sky = yaml.safe_load(rendered(e_llama, "torchtitan", "skypilot")["task.yaml"])
    trainer = yaml.safe_load(rendered(e_llama, "torchtitan", "kubeflow")["trainjob.yaml"])["spec"][
        "trainer"
    ]
    ours = parse_args(final_command(sky["run"])[3:])
    theirs = parse_args(trainer["args"][2:])
    assert (ours.module, ours.training_script, ours.training_script_args) == (
        theirs.module,
        theirs.training_script,
        theirs.training_script_args,
    )
    assert (ours.nnodes, ours.nproc_per_node) == ("60", "8")
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (60, 8)


def strict_json_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a structural schema of Kubernetes as a JSON schema that refuses unknown fields."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    result = {
        key: value for key, value in schema.items() if not key.startswith("x-") and key != "format"
    }
    if properties := result.get("properties"):
        result["properties"] = {name: strict_json_schema(p) for name, p in properties.items()}
    for key in ("items", "additionalProperties"):
        if isinstance(result.get(key), dict):
            result[key] = strict_json_schema(result[key])
    if "properties" in result and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    return result


@cache
def load_definition(name: str) -> dict[str, Any]:
    """Load a CRD with libyaml: some have more than a megabyte."""
    return yaml.load((Path(str(CRDS)) / name).read_text(), yaml.CSafeLoader)


@pytest.mark.skipif(
    CRDS is None,
    reason="set SWEEPCP_CRDS to a folder with the CRDs of KubeRay and Kubeflow Trainer",
)
@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize(
    ("launcher", "file", "definition"),
    [
        ("kubeflow", "trainjob.yaml", "trainer.kubeflow.org_trainjobs.yaml"),
        ("ray", "rayjob.yaml", "ray.io_rayjobs.yaml"),
    ],
)
def test_kubernetes_accepts_the_files_and_refuses_unknown_fields(
    e_llama, trainer, launcher, file, definition
):
    content = yaml.safe_load(rendered(e_llama, trainer, launcher)[file])
    versions = load_definition(definition)["spec"]["versions"]
    name = content["apiVersion"].split("/")[1]
    (schema,) = (v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == name)
    schema["properties"]["metadata"] = {
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": True,
    }
    validator = Draft202012Validator(strict_json_schema(schema))
    validator.validate(content)
    content["spec"]["unknown"] = 1
    assert not validator.is_valid(content)


def test_torchtitan_refuses_models_without_a_flavor(tmp_path):
    loaded = promoted(tmp_path, "llama-3.1-70b-60x8")
    shape = loaded.bundle.model.shape.model_copy(update={"num_hidden_layers": 79})
    model = loaded.bundle.model.model_copy(update={"shape": shape})
    object.__setattr__(loaded, "bundle", loaded.bundle.model_copy(update={"model": model}))
    with pytest.raises(InvalidInput, match="model of torchtitan's sizes"):
        rendered(make_input(loaded, tmp_path / "out"), "torchtitan")


@pytest.mark.parametrize("key", ["rope_theta", "rms_norm_eps"])
def test_megatron_refuses_unstated_values_whose_default_differs(tmp_path, key):
    loaded = promoted(tmp_path, "llama-3.1-70b-60x8")
    shape = loaded.bundle.model.shape.model_copy(update={key: None})
    model = loaded.bundle.model.model_copy(update={"shape": shape})
    object.__setattr__(loaded, "bundle", loaded.bundle.model_copy(update={"model": model}))
    with pytest.raises(InvalidInput, match=key):
        rendered(make_input(loaded, tmp_path / "out"), "megatron-lm")


def test_strict_refuses_a_difference_and_writes_nothing(tmp_path):
    loaded = promoted(tmp_path, "llama-3.1-8b-4x8")
    site, out = Site(), tmp_path / "out"
    with pytest.raises(InvalidInput, match="documents attend to earlier documents"):
        write_export(loaded, ["llama-factory"], out, site=site, strict=True)
    assert not out.exists()
    export = write_export(loaded, ["torchtitan"], out, site=site, strict=True)
    assert export.plan.differences == ()
    assert set(export.file_names) == {path.name for path in out.iterdir()}
    with pytest.raises(InvalidInput, match="exists"):
        write_export(loaded, ["torchtitan"], out, site=site, strict=True)


def test_differences_are_in_the_summary_and_in_the_record(e_llama):
    files = rendered(e_llama, "llama-factory")
    assert "attention across documents: documents attend" in files["SUMMARY.md"]
    assert json.loads(files["export.json"])["differences"]["attention"].startswith(
        "documents attend"
    )


@pytest.mark.parametrize("trainer", ["axolotl", "megatron-lm", "torchtitan"])
def test_trackers_without_support_are_a_difference(tmp_path, trainer):
    loaded = promoted(tmp_path, "llama-3.1-8b-4x8")
    target = loaded.bundle.target.model_copy(update={"tracking": ("wandb", "clearml")})
    object.__setattr__(loaded, "bundle", loaded.bundle.model_copy(update={"target": target}))
    summary = rendered(make_input(loaded, tmp_path / "out"), trainer)["SUMMARY.md"]
    assert "- experiment trackers: does not report to clearml" in summary


@pytest.mark.parametrize(
    ("attention", "written", "llama_factory"),
    [
        ("auto", "sdpa", "sdpa"),
        ("varlen", "sdpa", "sdpa"),
        ("sdpa", "sdpa", "sdpa"),
        ("eager", "eager", "disabled"),
        ("flash_attention_2", "flash_attention_2", "fa2"),
    ],
)
def test_attention_is_one_that_the_trainer_has(tmp_path, attention, written, llama_factory):
    loaded = promoted(tmp_path, "llama-3.1-8b-4x8")
    target = loaded.bundle.target
    compute = target.compute.model_copy(update={"attention": attention})
    target = target.model_copy(update={"compute": compute})
    object.__setattr__(loaded, "bundle", loaded.bundle.model_copy(update={"target": target}))
    export_input = make_input(loaded, tmp_path / "out")
    trainer = rendered(export_input, "hf-trainer")
    assert f'\nATTENTION = "{written}"\n' in trainer["train.py"]
    with_mask = "Attention is sdpa, with a mask of 8,192 × 8,192"
    assert (with_mask in trainer["SUMMARY.md"]) == (attention in ("auto", "varlen"))
    axolotl = yaml.safe_load(rendered(export_input, "axolotl")["axolotl.yaml"])
    assert axolotl["attn_implementation"] == written
    factory = yaml.safe_load(rendered(export_input, "llama-factory")["llama_factory.yaml"])
    assert factory["flash_attn"] == llama_factory


def test_exports_carry_the_deepspeed_keys_of_the_target(tmp_path):
    loaded = promoted(tmp_path, "llama-3.1-70b-60x8")
    export_input = make_input(loaded, tmp_path / "out")
    for trainer in ("hf-trainer", "axolotl", "llama-factory"):
        config = json.loads(rendered(export_input, trainer)["ds_config.json"])
        assert config["zero_optimization"]["zero_hpz_partition_size"] == 8
    plan = TRAINERS["deepspeed"].make_export_plan(export_input)
    assert plan.settings["ds_config.json.zero_optimization.zero_hpz_partition_size"] == 8


def test_file_names_outside_the_folder_are_refused():
    for name in ("../x.sh", "/etc/x", "a/b", "", "-x"):
        with pytest.raises(ValueError, match="not a plain file name"):
            check_file_names([name])


@pytest.mark.parametrize(
    "trainer", ["deepspeed", "hf-trainer", "axolotl", "llama-factory", "megatron-lm"]
)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_model_with_dropout_is_trained_without_or_the_difference_is_stated(
    tmp_path, trainer, dropout
):
    write_model(tmp_path / "model", attention_dropout=dropout)
    (tmp_path / "stores").mkdir()
    write_corpora(tmp_path / "stores", tmp_path / "model")
    export_input = make_input(load_bundle(write_bundle(tmp_path)), tmp_path / "out")
    files = rendered(export_input, trainer)
    summary = files["SUMMARY.md"]
    difference = "dropout and router jitter: attention_dropout 0.1, as config.json states"
    note = "config.json has attention_dropout 0.1: trained with 0, as the trials were."
    keeps = trainer == "llama-factory"
    assert (difference in summary) == (dropout > 0 and keeps)
    assert (note in summary) == (dropout > 0 and not keeps)
    if trainer == "axolotl":
        overrides = yaml.safe_load(files["axolotl.yaml"]).get("overrides_of_model_config")
        assert overrides == ({"attention_dropout": 0.0} if dropout else None)
    if trainer == "megatron-lm":
        assert '"--attention-dropout", "0.0"' in files["pretrain.py"]
        assert '"--hidden-dropout", "0.0"' in files["pretrain.py"]
    if trainer == "hf-trainer":
        assert "make_deterministic(config)" in files["train.py"]


def test_dropout_of_a_nested_configuration_cannot_be_set_by_axolotl(tmp_path):
    bundle = load_bundle(write_bundle(tmp_path))
    file = tmp_path / "model" / "config.json"
    content = json.loads(file.read_text()) | {"text_config": {"dropout": 0.2}}
    file.write_text(json.dumps(content))
    files = rendered(make_input(bundle, tmp_path / "out"), "axolotl")
    assert "overrides_of_model_config" not in files["axolotl.yaml"]
    assert "dropout and router jitter: text_config.dropout 0.2" in files["SUMMARY.md"]
