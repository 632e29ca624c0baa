"""A trial as a competent user writes it: HF Trainer, a held-out loss, and `simple_evaluate`.

The arms `plain` and `optuna` run it. What is read, trained and scored is that of sweepcp: see
`compare_parts.inputs`. One thread, as everywhere in the comparison.
"""

import math
import os
import time
from typing import Any

from compare_parts.inputs import Inputs

BATCH_SIZE = 64
"""Answers, or rows of held-out text, in a forward pass."""


def run_trial(inputs: Inputs, *, lr_fraction: float, domain_share: float) -> dict[str, Any]:
    """Train from the base and score; return the scores and what took how long."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    started = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(inputs.base)
    train(model, inputs, lr_fraction=lr_fraction, domain_share=domain_share)
    trained = time.perf_counter()
    scores = score(model, inputs)
    scored = time.perf_counter()
    return {
        "lr_fraction": lr_fraction,
        "domain_share": domain_share,
        **scores,
        "train_seconds": trained - started,
        "score_seconds": scored - trained,
        "finished": time.time(),
    }


def train(model: Any, inputs: Inputs, *, lr_fraction: float, domain_share: float) -> None:
    """Train a model in place on blocks of both roles, mixed by the share of the domain."""
    from datasets import interleave_datasets, load_from_disk
    from transformers import Trainer, TrainingArguments

    sources = [load_from_disk(inputs.train[role]) for role in ("domain", "general")]
    mixed = interleave_datasets(
        sources,
        probabilities=[domain_share, 1 - domain_share],
        seed=inputs.seed,
        stopping_strategy="first_exhausted",
    )
    arguments = TrainingArguments(
        "trainer",
        max_steps=inputs.steps,
        per_device_train_batch_size=inputs.sequences,
        learning_rate=lr_fraction * inputs.max_lr,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": inputs.final_fraction},
        warmup_steps=inputs.warmup_steps,
        weight_decay=0.1,
        adam_beta2=0.95,
        save_strategy="no",
        logging_steps=50,
        report_to=[],
        use_cpu=True,
        seed=inputs.seed,
        disable_tqdm=True,
    )
    blocks = mixed.select(range(inputs.steps * inputs.sequences)).with_format("torch")
    Trainer(model, arguments, train_dataset=blocks).train()


def score(model: Any, inputs: Inputs) -> dict[str, float]:
    """Return the bits per byte of held-out text by role, and the accuracy of each task."""
    model.eval()
    scores = {f"{role}_bpb": held_out_bpb(model, inputs, role) for role in inputs.held_out}
    for task, result in evaluate(model, inputs)["results"].items():
        scores[task] = result["acc,none"]
    return scores


def held_out_bpb(model: Any, inputs: Inputs, role: str) -> float:
    """Return the bits per byte of the held-out text of a role."""
    import torch
    from datasets import load_from_disk

    rows = load_from_disk(inputs.held_out[role]).with_format("torch")
    nats = 0.0
    with torch.no_grad():
        for batch in rows.iter(BATCH_SIZE):
            logits = model(
                input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
            ).logits
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum"
            )
            nats += loss.item()
    return nats / math.log(2) / inputs.held_out_bytes[role]


def evaluate(model: Any, inputs: Inputs, **options: Any) -> Any:
    """Return what stock `simple_evaluate` says of a model on the experiment's tasks."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(inputs.tokenizer)
    return lm_eval.simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH_SIZE),
        tasks=list(inputs.tasks),
        task_manager=TaskManager(include_path=inputs.task_folder, include_defaults=False),
        bootstrap_iters=0,
        **options,
    )
