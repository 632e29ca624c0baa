"""transformers' Trainer with DeepSpeed ZeRO-3: arguments, DeepSpeed configuration, and a script."""

import json
from string import Template
from typing import Any

import yaml

from sweepcp.export.export_plan import (
    ExportInput,
    ExportPlan,
    dropout_notes,
    monitoring_notes,
    python_literal,
)
from sweepcp.export.transformers_keys import (
    complete_checkpoint,
    deepspeed_config,
    flatten_settings,
    schedule_differences,
    training_arguments,
    transformers_attention,
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
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, HfArgumentParser
from transformers import Trainer, TrainerCallback, TrainingArguments

from sweepcp.data.stream import MixtureStream
from sweepcp.data.token_store import TokenStore
from sweepcp.models.randomness import make_deterministic
from sweepcp.promote.bundle import load_bundle

HERE = Path(__file__).parent
BUNDLE = $BUNDLE
BUNDLE_HASH = $BUNDLE_HASH
MODEL = $MODEL
REVISION = $REVISION
ATTENTION = $ATTENTION


class Sequences(Dataset):
    """The run's sequences in stream order, so that the token shares hold at every step."""

    def __init__(self, recipe, stores):
        self.stream, self.sequences, self.steps = (
            MixtureStream(recipe, stores),
            recipe.sequences,
            recipe.steps,
        )

    def __len__(self):
        return self.steps * self.sequences

    def __getitem__(self, number):
        step, row = divmod(number, self.sequences)
        batch = self.stream.batch(step + 1, row, self.sequences)
        return (
            torch.tensor(batch.input_ids[0]),
            torch.tensor(batch.targets[0]),
            torch.tensor(batch.position_ids[0]),
        )


def collate(rows):
    """Stack sequences into a batch in which documents do not attend to each other.

    Restarting positions isolate documents. This requires that there is no attention mask, and, for
    flash attention, that the batch is flattened into one row.
    """
    inputs, targets, positions = (torch.stack(column) for column in zip(*rows))
    if "flash" in ATTENTION:
        inputs, targets, positions = (x.flatten()[None] for x in (inputs, targets, positions))
    return {
        "input_ids": inputs,
        "position_ids": positions,
        "labels": targets,
        "shift_labels": targets,
    }


class SaveOnTerm(TrainerCallback):
    """On SIGTERM, save after the current step, at the same step on all ranks.

    `enable_jit_checkpoint` is not used: it saves before what it takes for the optimizer's step.
    With DeepSpeed that step has been taken by then, so it would be repeated after resuming.
    """

    def __init__(self):
        self.told = False
        # Ray Train runs this in another thread, where no handler can be installed.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.receive)

    def receive(self, number, frame):
        self.told = True

    def on_step_end(self, args, state, control, **kwargs):
        told = torch.tensor(float(self.told), device=args.device)
        torch.distributed.all_reduce(told)
        if told:
            control.should_save = control.should_training_stop = True


def last_complete(folder):
    """Return the last checkpoint that was written completely, or None."""
    found = [p.parent for p in Path(folder).glob("checkpoint-*/trainer_state.json")]
    return str(max(found, key=lambda p: int(p.name.split("-")[1]))) if found else None


def main():
    (args,) = HfArgumentParser((TrainingArguments,)).parse_yaml_file(
        str(HERE / "training_args.yaml")
    )
    # ZeRO-3 partitions the model while it is loaded, which needs the process group.
    deepspeed.init_distributed("gloo" if args.use_cpu else "nccl")
    opened = load_bundle(Path(BUNDLE))
    if opened.id != BUNDLE_HASH:
        sys.exit(f"{BUNDLE} is not the exported bundle ({BUNDLE_HASH[:16]}); export again")
    recipe = opened.bundle.recipe
    stores = [TokenStore(Path(str(corpus.store)), corpus.name) for corpus in opened.bundle.corpora]
    # ZeRO keeps fp32 master weights of bf16 parameters.
    dtype = torch.bfloat16 if args.bf16 else torch.float32
    config = AutoConfig.from_pretrained(MODEL, revision=REVISION)
    make_deterministic(config)
    model = AutoModelForCausalLM.from_pretrained(
        MODEL, revision=REVISION, config=config, dtype=dtype, attn_implementation=ATTENTION
    )
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
    # Stopped by a signal: the next start resumes from the checkpoint that was saved.
    if trainer.state.global_step < args.max_steps:
        sys.exit(128 + signal.SIGTERM)
    trainer.save_model(os.path.join(args.output_dir, "model"))


if __name__ == "__main__":
    main()
''')


def make_export_plan(export_input: ExportInput) -> ExportPlan:
    """Plan `training_args.yaml`, `ds_config.json` and `train.py`.

    The script reads the bundle's token stores through sweepcp's stream.
    """
    bundle = export_input.bundle
    arguments = _arguments(export_input)
    zero_config = deepspeed_config(export_input)
    constants = {
        "BUNDLE": str(export_input.loaded.path),
        "BUNDLE_HASH": export_input.loaded.id,
        "MODEL": export_input.model,
        "REVISION": bundle.model.revision,
        "ATTENTION": transformers_attention(export_input),
    }
    literals = {name: python_literal(value) for name, value in constants.items()}
    return ExportPlan(
        files={
            "training_args.yaml": yaml.safe_dump(arguments, sort_keys=False),
            "ds_config.json": json.dumps(zero_config, indent=1) + "\n",
            "train.py": SCRIPT.substitute(literals),
        },
        command=(f"{export_input.out}/train.py",),
        settings=arguments | flatten_settings("ds_config.json", zero_config) | constants,
        differences=schedule_differences(export_input),
        notes=(
            *monitoring_notes(export_input),
            *dropout_notes(export_input),
            *_attention_notes(export_input),
        ),
        env={} if export_input.on_gpu else {"DS_ACCELERATOR": "cpu"},
        saves_on_term=True,
        complete_checkpoint=complete_checkpoint(export_input),
    )


def _attention_notes(export_input: ExportInput) -> tuple[str, ...]:
    """Return the note that sdpa, in place of the target's attention, needs memory for its mask."""
    target = export_input.bundle.target
    attention = transformers_attention(export_input)
    isolated = not export_input.bundle.recipe.cross_documents
    if attention == target.compute.attention or not isolated or not export_input.on_gpu:
        return ()
    return (
        f"Attention is {attention}, with a mask of {target.seq_len:,} × {target.seq_len:,} for "
        "each sequence. `attention: flash_attention_2` in the target needs no mask, but flash-attn "
        "in the environment of the trainer.",
    )


def _arguments(export_input: ExportInput) -> dict[str, Any]:
    """Return `TrainingArguments` by name."""
    recipe, target = export_input.bundle.recipe, export_input.bundle.target
    arguments: dict[str, Any] = {
        **training_arguments(export_input),
        "activation_checkpointing": target.compute.recompute,
        "activation_checkpointing_kwargs": {"use_reentrant": False},
        "deepspeed": f"{export_input.out}/ds_config.json",
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
    return arguments if export_input.on_gpu else arguments | {"use_cpu": True}
