"""transformers: TrainingArguments by HfArgumentParser, and DeepSpeed's configuration by DeepSpeed."""

import ast
import os

from common import answer, flat, plain, read_deepspeed, read_transformers, recipe_of, stream_facts

os.environ |= {"DS_ACCELERATOR": "cpu", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29599"}


def peer():
    import deepspeed
    import transformers
    import transformers.training_args

    transformers.training_args.is_torch_bf16_gpu_available = lambda: True  # nothing is trained here
    return f"transformers {transformers.__version__}, deepspeed {deepspeed.__version__}"


def constants(path):
    """The constants of a script, which is not run."""
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            found[node.targets[0].id] = node.value.value
    return found


def read(folder, record):
    from transformers import HfArgumentParser, TrainingArguments

    world = record["nodes"] * record["per_node"]
    (args,) = HfArgumentParser((TrainingArguments,)).parse_yaml_file(
        str(folder / "training_args.yaml")
    )
    zero, batch = read_deepspeed(args.deepspeed, world)
    script = constants(folder / "train.py")
    recipe = recipe_of(script["BUNDLE"], script["BUNDLE_HASH"])
    facts = stream_facts(recipe)
    facts |= read_transformers(args, world, batch, recipe["seq_len"])
    order = "the stream" if plain(args.train_sampling_strategy) == "sequential" else "shuffled"
    settings = flat("", {name: getattr(args, name) for name in vars(args)})
    settings |= {
        name: plain(getattr(args, name))
        for name in ("lr_scheduler_kwargs", "activation_checkpointing_kwargs")
    }
    return {
        "settings": settings | zero | script,
        "facts": facts | {"order": order, "model": script["MODEL"]},
    }


if __name__ == "__main__":
    answer(peer, read)
