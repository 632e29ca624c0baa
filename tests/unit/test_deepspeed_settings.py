"""The `deepspeed` section of a target: what passes to DeepSpeed, and what is refused, and where."""

import json
import shutil
import sys
import typing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import deepspeed
import pytest
import torch
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.offload_config import (
    DeepSpeedZeroOffloadOptimizerConfig,
    DeepSpeedZeroOffloadParamConfig,
)

from sweepcp.config.deepspeed_settings import DeepSpeedSettings, OffloadSettings, ZeroSettings
from sweepcp.config.target import Target, load_target
from sweepcp.config.validation import ConfigModel, validate
from sweepcp.errors import InvalidInput
from sweepcp.full_run.preflight import ds_config_for
from sweepcp.promote.bundle import load_bundle
from sweepcp.promote.candidate import candidate_from_publication
from sweepcp.promote.estimates import estimate_memory
from sweepcp.promote.translate import promote
from sweepcp.training import zero_engine
from sweepcp.training.deepspeed_config import check_deepspeed, config_of_process, zero_config
from sweepcp.training.process_group import ALONE
from sweepcp.training.zero_engine import ZeroEngine
from tests.make import recipe, target_content, write_bundle

GPUS = {"device": "cuda", "nodes": 2, "per_node": 4}
READ_BY_MEMBERSHIP = {
    *("optimizer", "scheduler", "aio", "autotuning", "flops_profiler", "activation_checkpointing"),
    *("sequence_parallel_size", "gradient_clipping", "data_efficiency"),
}
"""Keys that DeepSpeed finds in other ways than `get` and `in`."""


def target(folder: Path, settings: dict[str, Any], **changes: Any) -> Target:
    content = target_content(folder, deepspeed=settings, **changes)
    return validate(Target, content, folder / "target.yaml")


def refusal(folder: Path, settings: dict[str, Any], **changes: Any) -> InvalidInput:
    """Promote a target with a section, which is refused before anything is written."""
    with pytest.raises(InvalidInput) as refused:
        write_bundle(folder, deepspeed=settings, **changes)
    assert not (folder / "bundle").exists()
    assert str(refused.value.file).startswith(str(folder / "target.yaml"))
    return refused.value


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model and the corpora of all bundles."""
    path = tmp_path_factory.mktemp("bundles")
    write_bundle(path)
    return path


@pytest.fixture(autouse=True)
def no_bundle(folder: Path) -> None:
    shutil.rmtree(folder / "bundle", ignore_errors=True)


# What DeepSpeed has.

of_the_listed_version = pytest.mark.skipif(
    not deepspeed.__version__.startswith("0.19.8"), reason="the lists are those of 0.19.8"
)


def keys(model: type[ConfigModel]) -> set[str]:
    assert not set(model.model_fields) & set(model.refused_keys)
    return set(model.model_fields) | set(model.refused_keys)


@of_the_listed_version
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (ZeroSettings, [DeepSpeedZeroConfig]),
        (
            OffloadSettings,
            [DeepSpeedZeroOffloadOptimizerConfig, DeepSpeedZeroOffloadParamConfig],
        ),
    ],
)
def test_every_key_of_a_section_passes_or_is_refused_with_its_reason(
    ours: type[ConfigModel], theirs: list[Any]
):
    fields = [field for section in theirs for field in section.model_fields.items()]
    assert keys(ours) == {field.alias or name for name, field in fields}


@of_the_listed_version
def test_every_key_that_deepspeed_reads_passes_or_is_refused_with_its_reason():
    read: set[str] = set()

    class Recorder(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            read.add(key)
            return super().get(key, default)

        def __contains__(self, key: object) -> bool:
            read.add(str(key))
            return super().__contains__(key)

        def __copy__(self) -> "Recorder":
            return Recorder(self)

    DeepSpeedConfig(Recorder(train_batch_size=1, zero_optimization={"stage": 3}))
    assert {"bf16", "zero_optimization", "compile"} <= read
    assert keys(DeepSpeedSettings) == read | READ_BY_MEMBERSHIP


def sample(annotation: Any) -> Any:
    """A value of a type."""
    kinds = {*typing.get_args(annotation)} - {type(None)}
    return True if bool in kinds else 2


def test_what_passes_is_what_deepspeed_then_has(tmp_path: Path):
    stated = {
        name: sample(field.annotation)
        for name, field in ZeroSettings.model_fields.items()
        if not name.startswith("offload")
    }
    made = target(tmp_path, {"zero_optimization": stated, "memory_breakdown": True})
    config = zero_config(recipe(), made, world_size=2)
    theirs = DeepSpeedZeroConfig(**config["zero_optimization"])
    dumped = theirs.model_dump(mode="json", by_alias=True)
    assert {name: dumped[name] for name in stated} == stated
    assert config["memory_breakdown"] is True


# What a target may state.


def test_nested_keys_are_merged_and_not_replaced(tmp_path: Path):
    plain = zero_config(recipe(), target(tmp_path, {}), world_size=2)
    stated = {"zero_optimization": {"zero_hpz_partition_size": 2, "reduce_bucket_size": 1000}}
    changed = zero_config(recipe(), target(tmp_path, stated), world_size=2)
    assert changed["zero_optimization"] == plain["zero_optimization"] | {
        "zero_hpz_partition_size": 2,
        "reduce_bucket_size": 1000,
    }
    assert changed["zero_optimization"]["stage"] == 3
    assert {**changed, "zero_optimization": None} == {**plain, "zero_optimization": None}


def test_an_offload_keeps_its_device(tmp_path: Path):
    stated = {"zero_optimization": {"offload_optimizer": {"pin_memory": True}}}
    compute = {"micro_batch": 2, "precision": "fp32", "offload": "all"}
    zero = zero_config(recipe(), target(tmp_path, stated, compute=compute), world_size=2)[
        "zero_optimization"
    ]
    assert zero["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert zero["offload_param"] == {"device": "cpu", "pin_memory": False}


@pytest.mark.parametrize(
    ("settings", "key", "found", "fix"),
    [
        ({"train_batch_size": 8}, "train_batch_size", 8, "use `batch_tokens`"),
        ({"fp16": {"enabled": True}}, "fp16", {"enabled": True}, "use `compute.precision`"),
        ({"optimizer": {"type": "Adam"}}, "optimizer", {"type": "Adam"}, "remove it"),
        ({"gradient_clipping": 2.0}, "gradient_clipping", 2.0, "remove it"),
        ({"autotuning": {}}, "autotuning", {}, "remove it"),
        ({"wandb": {}}, "wandb", {}, "use `tracking`"),
        ({"zero_optimisation": {}}, "zero_optimisation", {}, "mean `zero_optimization`"),
        ({"zero_optimization": {"stage": 2}}, "zero_optimization.stage", 2, "remove it"),
        (
            {"zero_optimization": {"zero_hpz_partion_size": 2}},
            "zero_optimization.zero_hpz_partion_size",
            2,
            "did you mean `zero_hpz_partition_size`?",
        ),
        (
            {"zero_optimization": {"max_live_parameters": 2}},
            "zero_optimization.max_live_parameters",
            2,
            "did you mean `stage3_max_live_parameters`?",
        ),
        (
            {"zero_optimization": {"zero_quantized_gradients": True}},
            "zero_optimization.zero_quantized_gradients",
            True,
            "remove it",
        ),
        (
            {"zero_optimization": {"overlap_comm": 1}},
            "zero_optimization.overlap_comm",
            1,
            "change the value",
        ),
        (
            {"zero_optimization": {"reduce_bucket_size": 0}},
            "zero_optimization.reduce_bucket_size",
            0,
            "change the value",
        ),
        (
            {"zero_optimization": {"offload_param": {"device": "nvme"}}},
            "zero_optimization.offload_param.device",
            "nvme",
            "use `compute.offload`",
        ),
        (
            {"zero_optimization": {"offload_param": {"pin_memory": True}}},
            "zero_optimization.offload_param",
            {"pin_memory": True},
            "change compute.offload",
        ),
        (
            {"zero_optimization": {"zero_hpz_partition_size": 3}},
            "zero_optimization.zero_hpz_partition_size",
            3,
            "use the 2 processes of a node",
        ),
        (
            {"zero_optimization": {"zero_quantized_weights": True}},
            "zero_optimization.zero_quantized_weights",
            True,
            "remove it",
        ),
    ],
    ids=str,
)
def test_keys_that_sweepcp_owns_are_refused_at_promotion(
    folder: Path, settings: dict[str, Any], key: str, found: object, fix: str
):
    refused = refusal(folder, settings)
    assert (refused.key, refused.found) == (f"deepspeed.{key}", found)
    assert refused.rule
    assert fix in refused.fix


def test_a_bundle_carries_the_keys_and_older_ones_have_none(folder: Path):
    settings = {"zero_optimization": {"zero_hpz_partition_size": 2}, "memory_breakdown": True}
    loaded = load_bundle(write_bundle(folder, deepspeed=settings))
    assert loaded.bundle.target.deepspeed.stated() == settings
    assert loaded.ds_config is not None
    assert loaded.ds_config["zero_optimization"]["zero_hpz_partition_size"] == 2
    assert loaded.ds_config["memory_breakdown"] is True
    content = json.loads(loaded.bundle.target.model_dump_json())
    del content["deepspeed"]
    assert Target.model_validate_json(json.dumps(content)).deepspeed == DeepSpeedSettings()


def test_another_number_of_processes_must_be_divided_too(folder: Path):
    settings = {"zero_optimization": {"zero_hpz_partition_size": 2}}
    loaded = load_bundle(write_bundle(folder, deepspeed=settings))
    with pytest.raises(InvalidInput, match="divides the 1 processes of the run") as refused:
        ds_config_for(loaded, 1)
    assert refused.value.key == "target.deepspeed.zero_optimization.zero_hpz_partition_size"
    assert ds_config_for(loaded, 4)["zero_optimization"]["zero_hpz_partition_size"] == 2


# What follows from hierarchical partitioning and quantised weights.


def test_the_shipped_target_gathers_the_weights_of_70b_within_its_nodes():
    made, _ = load_target("llama-3.1-70b-60x8")
    assert made.deepspeed.stated() == {"zero_optimization": {"zero_hpz_partition_size": 8}}
    shape = made.model.shape
    assert shape is not None
    with_copy = estimate_memory(shape, made, isolated=True)
    without = estimate_memory(
        shape, made.model_copy(update={"deepspeed": DeepSpeedSettings()}), isolated=True
    )
    copy = with_copy.weights - without.weights
    # An eighth of the weights in bf16.
    assert copy == pytest.approx(70_553_706_496 / 8 * 2, abs=2)
    assert with_copy.total - without.total == copy
    assert made.hardware.memory_gib is not None
    assert with_copy.total / 2**30 < made.hardware.memory_gib


def test_a_group_of_one_process_has_no_copy(tmp_path: Path):
    made, _ = load_target("llama-3.1-8b-4x8")
    stated = validate(DeepSpeedSettings, {"zero_optimization": {"zero_hpz_partition_size": 1}}, "")
    assert made.model.shape is not None
    one = estimate_memory(
        made.model.shape, made.model_copy(update={"deepspeed": stated}), isolated=True
    )
    assert one == estimate_memory(made.model.shape, made, isolated=True)
    check_deepspeed(made, world_size=1)


def test_weights_are_read_without_padding_and_without_a_copy_made_before(
    monkeypatch: pytest.MonkeyPatch,
):
    """What zero.Init has put there is not initialised."""
    parameter = SimpleNamespace(
        ds_tensor=torch.full((4,), torch.nan), ds_secondary_tensor=torch.full((8,), torch.nan)
    )
    engine = ZeroEngine.__new__(ZeroEngine)
    engine.parameters, engine.trained, engine.group = {"w": parameter}, [], ALONE
    values = torch.tensor([1.0, 2.0, 3.0])
    monkeypatch.setattr(zero_engine, "read_weights", lambda _, __, put: put("w", values))
    engine._load_base()
    assert parameter.ds_tensor.tolist() == [1, 2, 3, 0]
    assert parameter.ds_secondary_tensor is None


def test_quantised_weights_are_an_assumption(tmp_path: Path):
    made, file = load_target("llama-3.1-8b-4x8")
    settings = {"zero_optimization": {"zero_quantized_weights": True}}
    made = made.model_copy(update={"deepspeed": validate(DeepSpeedSettings, settings, "")})
    candidate = candidate_from_publication("e-llama")
    bundle = promote(candidate, made, file=file, out=tmp_path / "bundle")
    (sentence,) = [text for text in bundle.assumptions if "quantized" in text]
    assert sentence.startswith("zero_quantized_weights: weights are gathered in 8 bits")


@pytest.mark.parametrize(
    ("world_size", "offload", "zero", "stays"),
    [
        (1, "none", {}, True),
        (1, "optimizer", {}, True),
        (2, "none", {}, False),
        (1, "all", {}, False),
        (1, "none", {"zero_quantized_weights": True}, False),
        (1, "none", {"stage3_allgather_sequential": True}, False),
    ],
)
def test_a_single_process_fetches_its_weights_once_where_that_copies_nothing(
    tmp_path: Path, world_size: int, offload: str, zero: dict[str, object], *, stays: bool
):
    made = target(tmp_path, {"zero_optimization": zero}, compute={"offload": offload})
    config = zero_config(recipe(), made, world_size=world_size)
    used = config_of_process(config, world_size=world_size)
    key = "stage3_param_persistence_threshold"
    assert used["zero_optimization"][key] == (sys.maxsize if stays else 100_000)
    assert config["zero_optimization"][key] == 100_000
    assert used | {"zero_optimization": config["zero_optimization"]} == config | {
        "timers": {"throughput": {"enabled": False}}
    }
