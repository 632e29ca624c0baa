"""Axolotl: its own loading of a configuration, the training arguments that it makes of it, and DeepSpeed's parser."""

import json
import os

from common import answer, flat, mix_shares, plain, read_deepspeed, read_transformers

os.environ |= {"DS_ACCELERATOR": "cpu", "AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}


def peer():
    from importlib.metadata import version

    import axolotl.cli.config
    import axolotl.utils.config
    import transformers
    import transformers.training_args

    transformers.training_args.is_torch_bf16_gpu_available = lambda: True  # nothing is trained here
    axolotl.utils.config.is_torch_bf16_gpu_available = lambda: True
    axolotl.utils.config.load_model_config = lambda cfg: (
        transformers.LlamaConfig()
    )  # the model may be elsewhere
    return f"axolotl {version('axolotl')}"


def read(folder, record):
    import axolotl.utils.distributed
    from accelerate.state import AcceleratorState
    from axolotl.cli.config import load_cfg
    from axolotl.core.builders import HFCausalTrainerBuilder
    from axolotl.core.training_args import AxolotlTrainingArguments

    AcceleratorState._reset_state(reset_partial_state=True)  # of the folder before
    axolotl.utils.distributed.distributed_state = None
    path, world = folder / "ds_config.json", record["nodes"] * record["per_node"]
    os.environ["WORLD_SIZE"] = str(world)
    cfg = load_cfg(str(folder / "axolotl.yaml"))
    os.environ["WORLD_SIZE"] = "1"
    builder = HFCausalTrainerBuilder.__new__(HFCausalTrainerBuilder)
    builder.cfg, builder._eval_dataset, builder._train_dataset = cfg, None, None
    kwargs, _ = builder._set_base_training_args(cfg.max_steps)
    args = AxolotlTrainingArguments(**kwargs, use_cpu=True)
    if (
        args.max_steps != cfg.max_steps
        or cfg.batch_size != world * cfg.micro_batch_size * cfg.gradient_accumulation_steps
    ):
        raise ValueError(
            f"{args.max_steps} steps of {cfg.batch_size} sequences are not what the file says"
        )
    zero, batch = read_deepspeed(path, world)
    facts = read_transformers(args, world, batch, cfg.sequence_len)
    parsed = flat("", cfg.to_dict())
    parsed |= {
        name: plain(cfg[name]) for name in ("lr_scheduler_kwargs", "gradient_checkpointing_kwargs")
    }
    if plain(cfg.deepspeed) == json.loads(path.read_text(encoding="utf-8")):
        parsed["deepspeed"] = str(path)
    (data,) = cfg.datasets
    parsed |= {f"datasets.{key}": plain(value) for key, value in dict(data).items()}
    packed = (
        cfg.sample_packing
        and cfg.sample_packing_sequentially
        and cfg.curriculum_sampling
        and cfg.min_sample_len == 1
    )
    mix = data.path == f"{folder}/mix" and not cfg.shuffle_merged_datasets
    shares = mix_shares(folder / "mix") if mix else {}
    if isinstance(shares, dict) and shares:
        full_packs(cfg, folder / "mix")
    facts |= {
        "seq_len": cfg.sequence_len,
        "shares": shares,
        "attention": "within" if packed and cfg.attn_decontaminates_packing else "across",
        "targets": "within, but for the last of each sequence",
        "order": "the stream" if packed and mix else "shuffled",
        "model": cfg.base_model,
    }
    return {"settings": parsed | zero, "facts": facts}


def full_packs(cfg, place):
    """Axolotl's sampler must give the sequences of the stream again: every pack full, every row in one."""
    import numpy as np
    from axolotl.utils.samplers.multipack import MultipackBatchSampler
    from datasets import load_from_disk
    from torch.utils.data import SequentialSampler

    rows = load_from_disk(str(place))
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
    if any(lengths[pack].sum() != capacity for pack in packs) or sum(map(len, packs)) != len(
        lengths
    ):
        raise ValueError(f"packs of {capacity} tokens are not filled by the rows of {place}")


if __name__ == "__main__":
    answer(peer, read)
