"""transformers: TrainingArguments by HfArgumentParser, DeepSpeed's configuration by DeepSpeed."""

from pathlib import Path
from typing import Any

from common import (
    config_dropout,
    flatten,
    read_deepspeed,
    read_recipe,
    run_reader,
    script_constants,
    stream_facts,
    to_json_value,
    transformers_facts,
    use_one_process,
)

use_one_process()


def load_peer() -> str:
    """Import transformers and DeepSpeed, and return their versions."""
    import deepspeed
    import transformers
    import transformers.training_args

    # Nothing is trained here, so the check for a GPU with bf16 does not apply.
    transformers.training_args.is_torch_bf16_gpu_available = lambda: True
    return f"transformers {transformers.__version__}, deepspeed {deepspeed.__version__}"


def read_folder(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Read `training_args.yaml`, `ds_config.json` and the constants of `train.py`."""
    from transformers import HfArgumentParser, TrainingArguments

    world_size = record["nodes"] * record["per_node"]
    (args,) = HfArgumentParser((TrainingArguments,)).parse_yaml_file(
        str(folder / "training_args.yaml")
    )
    zero_settings, deepspeed = read_deepspeed(args.deepspeed, world_size)
    constants = script_constants(folder / "train.py")
    recipe = read_recipe(constants["BUNDLE"], expected_hash=constants["BUNDLE_HASH"])
    settings = flatten("", {name: getattr(args, name) for name in vars(args)})
    # Unflattened, as they are written.
    for name in ("lr_scheduler_kwargs", "activation_checkpointing_kwargs"):
        settings[name] = to_json_value(getattr(args, name))
    sequential = to_json_value(args.train_sampling_strategy) == "sequential"
    facts = stream_facts(recipe)
    facts |= transformers_facts(args, deepspeed, world_size=world_size, seq_len=recipe["seq_len"])
    facts["order"] = "stream order" if sequential else "shuffled"
    facts["model"] = constants["MODEL"]
    script = (folder / "train.py").read_text(encoding="utf-8")
    removed = "make_deterministic(config)" in script and "config=config" in script
    facts["dropout"] = 0.0 if removed else config_dropout(constants["MODEL"], {})
    return {"settings": settings | zero_settings | constants, "facts": facts}


if __name__ == "__main__":
    run_reader(load_peer, read_folder)
