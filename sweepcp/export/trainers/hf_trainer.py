"""transformers' Trainer with DeepSpeed ZeRO-3: its arguments, DeepSpeed's configuration, and a script."""

import json
from string import Template
from typing import Any

import yaml

from sweepcp.export.export_plan import ExportInput, ExportPlan, python_literal, unwatched_notes
from sweepcp.export.transformers_keys import (
    flatten_settings,
    schedule_differences,
    training_arguments,
    zero_config,
)

SCRIPT = Template('''\
import os
import signal
import sys
import threading
from pathlib import Path

import deepspeed
import torch
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser
from transformers import Trainer, TrainerCallback, TrainingArguments

from sweepcp.data.store import Store
from sweepcp.data.stream import Stream
from sweepcp.promote.bundle import open_bundle

HERE = Path(__file__).parent
BUNDLE = $BUNDLE
BUNDLE_HASH = $BUNDLE_HASH
MODEL = $MODEL
REVISION = $REVISION
ATTENTION = $ATTENTION


class Sequences(Dataset):
    """The sequences of the run in the order of its stream: shares of tokens are met at every step."""

    def __init__(self, recipe, stores):
        self.stream, self.sequences, self.steps = Stream(recipe, stores), recipe.sequences, recipe.steps

    def __len__(self):
        return self.steps * self.sequences

    def __getitem__(self, number):
        step, row = divmod(number, self.sequences)
        batch = self.stream.batch(step + 1, row, self.sequences)
        return torch.tensor(batch.input_ids[0]), torch.tensor(batch.targets[0]), torch.tensor(batch.position_ids[0])


def collate(rows):
    """Positions that restart keep documents apart, which needs: no attention mask, and one row for flash attention."""
    inputs, targets, positions = (torch.stack(column) for column in zip(*rows))
    if "flash" in ATTENTION:
        inputs, targets, positions = (x.flatten()[None] for x in (inputs, targets, positions))
    return {"input_ids": inputs, "position_ids": positions, "labels": targets, "shift_labels": targets}


class SaveOnTerm(TrainerCallback):
    """Told to end, save after the step, on all ranks the same one.

    Not `enable_jit_checkpoint`: it saves before what it takes for the optimizer's step, which DeepSpeed has done by
    then, so that a step is done twice after it.
    """

    def __init__(self):
        self.told = False
        if threading.current_thread() is threading.main_thread():  # Ray Train starts from another one
            signal.signal(signal.SIGTERM, self.receive)

    def receive(self, number, frame):
        self.told = True

    def on_step_end(self, args, state, control, **kwargs):
        told = torch.tensor(float(self.told), device=args.device)
        torch.distributed.all_reduce(told)
        if told:
            control.should_save = control.should_training_stop = True


def last_complete(folder):
    """The last checkpoint that was written to its end, None without one."""
    found = [p.parent for p in Path(folder).glob("checkpoint-*/trainer_state.json")]
    return str(max(found, key=lambda p: int(p.name.split("-")[1]))) if found else None


def main():
    (args,) = HfArgumentParser((TrainingArguments,)).parse_yaml_file(str(HERE / "training_args.yaml"))
    deepspeed.init_distributed("gloo" if args.use_cpu else "nccl")  # before ZeRO spreads the model over the processes
    opened = open_bundle(Path(BUNDLE))
    if opened.id != BUNDLE_HASH:
        sys.exit(f"{BUNDLE} is not the bundle that was exported ({BUNDLE_HASH[:16]}); export again")
    recipe = opened.bundle.recipe
    stores = [Store(Path(str(corpus.store)), corpus.name) for corpus in opened.bundle.corpora]
    dtype = torch.bfloat16 if args.bf16 else torch.float32  # ZeRO keeps fp32 masters of them
    model = AutoModelForCausalLM.from_pretrained(MODEL, revision=REVISION, dtype=dtype, attn_implementation=ATTENTION)
    model.config.use_cache = False
    tokenizer = AutoTokenizer.from_pretrained(MODEL, revision=REVISION)
    trainer = Trainer(
        model=model,
        args=args,
        data_collator=collate,
        train_dataset=Sequences(recipe, stores),
        processing_class=tokenizer,
        callbacks=[SaveOnTerm()],
    )
    trainer.train(resume_from_checkpoint=last_complete(args.output_dir))
    if trainer.state.global_step < args.max_steps:  # a signal: what it saved is what the next start goes on from
        sys.exit(128 + signal.SIGTERM)
    trainer.save_model(os.path.join(args.output_dir, "model"))


if __name__ == "__main__":
    main()
''')


def write(source: ExportInput) -> ExportPlan:
    """`training_args.yaml`, `ds_config.json` and `train.py`; the script reads the bundle's stores through sweepcp."""
    bundle, config = source.bundle, zero_config(source)
    arguments = _arguments(source)
    constants = {
        "BUNDLE": str(source.opened.path),
        "BUNDLE_HASH": source.opened.id,
        "MODEL": source.model,
        "REVISION": bundle.model.revision,
        "ATTENTION": bundle.target.compute.attention,
    }
    return ExportPlan(
        files={
            "training_args.yaml": yaml.safe_dump(arguments, sort_keys=False),
            "ds_config.json": json.dumps(config, indent=1) + "\n",
            "train.py": SCRIPT.substitute(
                {name: python_literal(value) for name, value in constants.items()}
            ),
        },
        command=(f"{source.out}/train.py",),
        settings=arguments | flatten_settings("ds_config.json", config) | constants,
        differences=schedule_differences(bundle.recipe),
        notes=unwatched_notes(source),
        env={} if source.on_gpu else {"DS_ACCELERATOR": "cpu"},
        saves_on_term=True,
    )


def _arguments(source: ExportInput) -> dict[str, Any]:
    """`TrainingArguments`, by their names."""
    recipe, target = source.bundle.recipe, source.bundle.target
    arguments: dict[str, Any] = {
        **training_arguments(source),
        "activation_checkpointing": target.compute.recompute,
        "activation_checkpointing_kwargs": {"use_reentrant": False},
        "deepspeed": f"{source.out}/ds_config.json",
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "average_tokens_across_devices": True,
        "seed": recipe.seed,
        "save_strategy": "steps",
        "save_steps": target.checkpoints.every,
        "save_total_limit": target.checkpoints.keep,
        "logging_steps": 1,
        "report_to": list(target.tracking),
    }
    return arguments | ({} if source.on_gpu else {"use_cpu": True})
