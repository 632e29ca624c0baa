"""LLaMA-Factory: its own parser of training arguments, DeepSpeed's configuration by DeepSpeed."""

import os
from pathlib import Path
from typing import Any

from common import (
    config_dropout,
    mix_shares,
    read_deepspeed,
    run_reader,
    to_json_value,
    transformers_facts,
    use_one_process,
)

use_one_process()
os.environ |= {"DISABLE_VERSION_CHECK": "1", "HF_HUB_OFFLINE": "1"}


def load_peer() -> str:
    """Import LLaMA-Factory, and return its version."""
    import llamafactory.extras.env
    import llamafactory.hparams.parser  # noqa: F401  (raises here if a dependency is missing)
    import transformers.training_args
    from transformers.training_args import ParallelMode

    # Nothing is trained here: its checks for a GPU with bf16 and for torchrun do not apply.
    transformers.training_args.is_torch_bf16_gpu_available = lambda: True
    transformers.TrainingArguments.parallel_mode = property(lambda self: ParallelMode.DISTRIBUTED)
    return f"LLaMA-Factory {llamafactory.extras.env.VERSION}"


def read_folder(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Read `llama_factory.yaml` and `ds_config.json`."""
    import yaml
    from llamafactory.hparams.parser import get_train_args
    from llamafactory.train.trainer_utils import create_custom_scheduler

    content = yaml.safe_load((folder / "llama_factory.yaml").read_text(encoding="utf-8"))
    model, data, args, tuning, _ = get_train_args(dict(content))
    if tuning.stage != "pt" or tuning.finetuning_type != "full" or not args.do_train:
        raise ValueError(f"{tuning.stage} of {tuning.finetuning_type} weights is no pretraining")
    # What its trainer does to the schedule's arguments before transformers builds the schedule.
    create_custom_scheduler(args, args.max_steps)
    world_size = record["nodes"] * record["per_node"]
    zero_settings, deepspeed = read_deepspeed(args.deepspeed, world_size)
    reads_mix = data.tokenized_path == f"{folder}/mix" and not data.streaming
    in_order = tuning.disable_shuffling and reads_mix
    facts = transformers_facts(args, deepspeed, world_size=world_size, seq_len=data.cutoff_len)
    facts |= {
        "seq_len": data.cutoff_len,
        "shares": mix_shares(folder / "mix") if reads_mix else {},
        "attention": "across",
        "targets": "across, except for the last of each sequence",
        "order": "stream order" if in_order else "shuffled",
        "model": model.model_name_or_path,
        "dropout": config_dropout(model.model_name_or_path, {}),
    }
    settings = {}
    for arguments in (model, data, tuning, args):
        names = [name for name in vars(arguments) if not name.startswith("_")]
        settings |= {name: to_json_value(getattr(arguments, name)) for name in names}
    return {"settings": settings | zero_settings, "facts": facts}


if __name__ == "__main__":
    run_reader(load_peer, read_folder)
