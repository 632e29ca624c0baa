# sweepcp recipe: 16494d4c2447810c
# sweepcp bundle: bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb
# sweepcp for: hf-trainer on ray
# sweepcp status: NOT VERIFIED
# sweepcp run: kubectl apply -f /shared/export/rayjob.yaml
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
BUNDLE = "/shared/bundle"
BUNDLE_HASH = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
MODEL = "meta-llama/Llama-3.1-70B"
REVISION = "main"
ATTENTION = "flash_attention_2"


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
