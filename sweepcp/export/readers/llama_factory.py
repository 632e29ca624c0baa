"""LLaMA-Factory: its own parser of training arguments, and DeepSpeed's configuration by DeepSpeed."""

import os

from common import answer, mix_shares, plain, read_deepspeed, read_transformers

os.environ |= {
    "DS_ACCELERATOR": "cpu",
    "DISABLE_VERSION_CHECK": "1",
    "RANK": "0",
    "WORLD_SIZE": "1",
}
os.environ |= {
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29598",
    "HF_HUB_OFFLINE": "1",
}


def peer():
    import llamafactory.extras.env
    import llamafactory.hparams.parser
    import transformers.training_args
    from transformers.training_args import ParallelMode

    transformers.training_args.is_torch_bf16_gpu_available = lambda: True  # nothing is trained here
    transformers.TrainingArguments.parallel_mode = property(lambda self: ParallelMode.DISTRIBUTED)
    return f"LLaMA-Factory {llamafactory.extras.env.VERSION}"


def read(folder, record):
    import yaml
    from llamafactory.hparams.parser import get_train_args

    content = yaml.safe_load((folder / "llama_factory.yaml").read_text(encoding="utf-8"))
    model, data, args, tuning, _ = get_train_args(dict(content))
    world = record["nodes"] * record["per_node"]
    zero, batch = read_deepspeed(args.deepspeed, world)
    facts = read_transformers(args, world, batch, data.cutoff_len)
    mix = data.tokenized_path == f"{folder}/mix" and not data.streaming
    facts |= {
        "seq_len": data.cutoff_len,
        "shares": mix_shares(folder / "mix") if mix else {},
        "attention": "across",
        "targets": "across, but for the last of each sequence",
        "order": "the stream" if tuning.disable_shuffling and mix else "shuffled",
        "model": model.model_name_or_path,
    }
    if tuning.stage != "pt" or tuning.finetuning_type != "full" or not args.do_train:
        raise ValueError(f"{tuning.stage} of {tuning.finetuning_type} weights is no pretraining")
    parsed = {}
    for part in (model, data, tuning, args):
        parsed |= {
            name: plain(getattr(part, name)) for name in vars(part) if not name.startswith("_")
        }
    return {"settings": parsed | zero, "facts": facts}


if __name__ == "__main__":
    answer(peer, read)
