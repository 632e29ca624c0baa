"""What makes sweepcp fast, one lever at a time: how each is switched off, by patching a module.

A patch replaces what the lever does by what one writes without it. `suites.scoring` and the cached
scores of the base need none: the first is an option, and the second are a folder.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from compare_parts.trial import BATCH_SIZE

Patch = Callable[[Any], None]


def use_cold_workers(module: Any) -> None:
    """Have Ray Tune start a process for every trial, as it does by default."""
    make = module.tune.TuneConfig

    def make_cold(**options: Any) -> Any:
        return make(**options | {"reuse_actors": False})

    module.tune.TuneConfig = make_cold


def use_own_imports(module: Any) -> None:
    """Have every worker import its libraries once Ray has started it."""
    module.worker_python = lambda _budget, _address: nullcontext()


def use_stock_scoring(module: Any) -> None:
    """Score lm-eval tasks by `simple_evaluate`, which builds tasks and requests in every trial.

    The worker still builds them once, to state what its scores depend on.
    """
    module.Scorer.score = _score_by_stock


def _score_by_stock(scorer: Any) -> list[Any]:
    # Held-out text is scored as ever.
    members = [(role, member) for role, member in scorer.spec.suites.members if not member.held_out]
    samples = evaluate_samples(
        scorer.model,
        scorer.tokenizer,
        folder=scorer.spec.generated_tasks,
        tasks=[member.name for _, member in members],
        batch_size=BATCH_SIZE,
    )
    scores: list[Any] = scorer.score_held_out()
    for role, member in members:
        language = scorer.spec.languages[member.source]
        scores += _item_scores(member, role, language, samples[member.name])
    return scores


def evaluate_samples(
    model: Any, tokenizer: Any, *, folder: Path, tasks: list[str], batch_size: int
) -> dict[str, list[dict[str, Any]]]:
    """Return what stock `simple_evaluate` says of every item of generated tasks, in their order."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model.eval()
    results = lm_eval.simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
        tasks=tasks,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    return {
        task: sorted(samples, key=lambda sample: sample["doc_id"])
        for task, samples in results["samples"].items()
    }


def gold_bits(sample: dict[str, Any]) -> float:
    """Return the bits of the right answer of an item that `evaluate_samples` returned."""
    return -float(sample["filtered_resps"][sample["doc"]["gold"]][0]) / math.log(2)


def _item_scores(
    member: Any, role: Any, language: str, samples: list[dict[str, Any]]
) -> Iterator[Any]:
    from sweepcp.scoring.scorecard import ItemScores

    make = partial(ItemScores, name=member.name, role=role, language=language, weight=member.weight)
    documents = tuple(sample["doc"]["document"] for sample in samples)
    golds = [sample["doc"]["choices"][sample["doc"]["gold"]] for sample in samples]
    yield make(
        unit="bits per byte",
        document=documents,
        amount=tuple(map(gold_bits, samples)),
        size=tuple(float(len(gold.encode())) for gold in golds),
    )
    yield make(
        unit="accuracy",
        document=documents,
        amount=tuple(float(sample["acc"]) for sample in samples),
        size=(1.0,) * len(samples),
    )


def use_trainer(module: Any) -> None:
    """Train by HF Trainer, on the same batches."""
    module.run_training = train_by_trainer


def train_by_trainer(engine: Any, recipe: Any, stream: Any, *, max_lr: float) -> Iterator[Any]:
    """Train the model of an engine by HF Trainer, and yield the last step's metrics.

    The batches are those of the stream, in its order.
    """
    from torch.utils.data import SequentialSampler
    from transformers import Trainer, TrainingArguments

    from sweepcp.data.stream import tokens_by_source
    from sweepcp.training.loop import StepMetrics

    class OrderedTrainer(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
            return SequentialSampler(train_dataset)

    rows: list[dict[str, Any]] = []
    for batch in stream.batches():
        columns = {
            "input_ids": batch.input_ids,
            "position_ids": batch.position_ids,
            "labels": batch.targets,
            "shift_labels": batch.targets,
        }
        rows += [
            {key: column[row] for key, column in columns.items()}
            for row in range(len(batch.input_ids))
        ]
    arguments = TrainingArguments(
        "trainer",
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.sequences,
        learning_rate=recipe.lr_fraction * max_lr,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": recipe.final_fraction},
        warmup_steps=recipe.warmup_length,
        weight_decay=recipe.weight_decay,
        adam_beta1=recipe.betas[0],
        adam_beta2=recipe.betas[1],
        max_grad_norm=recipe.clip,
        remove_unused_columns=False,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    result = OrderedTrainer(engine.model, arguments, train_dataset=rows).train()
    yield StepMetrics(
        step=recipe.steps,
        lr=recipe.lr(recipe.steps, max_lr=max_lr),
        loss=result.training_loss,
        grad_norm=0.0,
        tokens=tokens_by_source(recipe, recipe.steps),
        losses={},
    )


LEVERS: dict[str, dict[str, Patch]] = {
    "imports": {"sweepcp.search.search": use_own_imports},
    "cold": {"sweepcp.search.ray_driver": use_cold_workers},
    "stock": {"sweepcp.scoring.scorer": use_stock_scoring},
    "trainer": {"sweepcp.search.trial_runner": use_trainer},
}
"""Lever → module → what is changed in it once it has been imported."""
