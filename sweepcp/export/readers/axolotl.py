"""Axolotl: its own parser, the training arguments that it derives, and DeepSpeed's parser."""

import json
import os
from pathlib import Path
from typing import Any

from common import (
    config_dropout,
    flatten,
    mix_shares,
    read_deepspeed,
    run_reader,
    to_json_value,
    transformers_facts,
)

os.environ |= {"DS_ACCELERATOR": "cpu", "AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}


def load_peer() -> str:
    """Import Axolotl, and return its version."""
    from importlib.metadata import version

    import axolotl.cli.config  # noqa: F401  (raises here if a dependency is missing)
    import axolotl.utils.config
    import transformers
    import transformers.training_args

    # Nothing is trained here, so the checks for a GPU with bf16 do not apply.
    transformers.training_args.is_torch_bf16_gpu_available = lambda: True
    axolotl.utils.config.is_torch_bf16_gpu_available = lambda: True
    # The model may be on another machine.
    axolotl.utils.config.load_model_config = lambda cfg: transformers.LlamaConfig()
    return f"axolotl {version('axolotl')}"


def read_folder(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Read `axolotl.yaml` and `ds_config.json`, and the mix if it has been written."""
    world_size = record["nodes"] * record["per_node"]
    cfg = load_config(folder / "axolotl.yaml", world_size=world_size)
    args = training_arguments(cfg)
    batch_size = world_size * cfg.micro_batch_size * cfg.gradient_accumulation_steps
    if args.max_steps != cfg.max_steps or cfg.batch_size != batch_size:
        raise ValueError(
            f"parsed as {args.max_steps} steps of {cfg.batch_size} sequences, "
            f"written as {cfg.max_steps} steps of {batch_size}"
        )
    zero_settings, deepspeed = read_deepspeed(folder / "ds_config.json", world_size)
    facts = transformers_facts(args, deepspeed, world_size=world_size, seq_len=cfg.sequence_len)
    facts |= data_facts(cfg, folder)
    facts["seq_len"] = cfg.sequence_len
    facts["model"] = cfg.base_model
    overrides = dict(cfg.overrides_of_model_config or {})
    facts["dropout"] = config_dropout(cfg.base_model, overrides)
    return {"settings": config_settings(cfg, folder) | zero_settings, "facts": facts}


def load_config(path: Path, *, world_size: int) -> Any:
    """Parse a file as Axolotl does on one of `world_size` processes."""
    import axolotl.utils.distributed
    from accelerate.state import AcceleratorState
    from axolotl.cli.config import load_cfg

    # State that the folder before has left.
    AcceleratorState._reset_state(reset_partial_state=True)
    axolotl.utils.distributed.distributed_state = None
    os.environ["WORLD_SIZE"] = str(world_size)
    cfg = load_cfg(str(path))
    os.environ["WORLD_SIZE"] = "1"
    return cfg


def training_arguments(cfg: Any) -> Any:
    """Return the training arguments that Axolotl's builder derives, without model and data."""
    from axolotl.core.builders import HFCausalTrainerBuilder
    from axolotl.core.training_args import AxolotlTrainingArguments

    builder = HFCausalTrainerBuilder.__new__(HFCausalTrainerBuilder)
    builder.cfg, builder._eval_dataset, builder._train_dataset = cfg, None, None
    kwargs, _ = builder._set_base_training_args(cfg.max_steps)
    return AxolotlTrainingArguments(**kwargs, use_cpu=True)


def config_settings(cfg: Any, folder: Path) -> dict[str, Any]:
    """Return what was parsed, by the keys of `axolotl.yaml`."""
    settings = flatten("", cfg.to_dict())
    # Unflattened, as they are written.
    for name in (
        "lr_scheduler_kwargs",
        "gradient_checkpointing_kwargs",
        "overrides_of_model_config",
    ):
        settings[name] = to_json_value(cfg[name])
    # Axolotl replaces the path by the file's content.
    zero_file = folder / "ds_config.json"
    if to_json_value(cfg.deepspeed) == json.loads(zero_file.read_text(encoding="utf-8")):
        settings["deepspeed"] = str(zero_file)
    (data,) = cfg.datasets
    for key, value in dict(data).items():
        settings[f"datasets.{key}"] = to_json_value(value)
    return settings


def data_facts(cfg: Any, folder: Path) -> dict[str, Any]:
    """Return shares, isolation of documents, and order."""
    (data,) = cfg.datasets
    packed_in_order = (
        cfg.sample_packing
        and cfg.sample_packing_sequentially
        and cfg.curriculum_sampling
        and cfg.min_sample_len == 1
    )
    reads_mix = data.path == f"{folder}/mix" and not cfg.shuffle_merged_datasets
    shares = mix_shares(folder / "mix") if reads_mix else {}
    if isinstance(shares, dict) and shares:
        check_packs(cfg, folder / "mix")
    isolated = packed_in_order and cfg.attn_decontaminates_packing
    return {
        "shares": shares,
        "attention": "within" if isolated else "across",
        "targets": "within, except for the last of each sequence",
        "order": "stream order" if packed_in_order and reads_mix else "shuffled",
    }


def check_packs(cfg: Any, mix: Any) -> None:
    """Raise `ValueError` unless Axolotl's sampler restores the stream's sequences.

    Every pack must be full, and every row must be in one.
    """
    import numpy as np
    from axolotl.utils.samplers.multipack import MultipackBatchSampler
    from datasets import load_from_disk
    from torch.utils.data import SequentialSampler

    rows = load_from_disk(str(mix))
    lengths = np.array([len(row) for row in rows["input_ids"]])
    capacity = cfg.micro_batch_size * cfg.sequence_len
    sampler = MultipackBatchSampler(
        SequentialSampler(rows),
        1,
        capacity,
        lengths,
        bin_size=len(lengths),
        sequential=True,
        drop_last=True,
    )
    packs = [pack for batch in sampler.generate_batches() for pack in batch]
    all_full = all(lengths[pack].sum() == capacity for pack in packs)
    if not all_full or sum(map(len, packs)) != len(lengths):
        raise ValueError(f"the rows of {mix} do not fill packs of {capacity} tokens")


if __name__ == "__main__":
    run_reader(load_peer, read_folder)
