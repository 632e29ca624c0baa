"""Items and tokenizers that are hard to score, and what stock lm-eval makes of them.

The items are multiple-choice ones without a delimiter between context and answer.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sweepcp.config.suites import MemberSpec
from sweepcp.config.types import ScoringMode
from sweepcp.scoring.lm_eval_tasks import LmEvalTasks

CLOSE = 1e-4
"""Largest difference of a log-likelihood from lm-eval in shared mode, in nats."""
PLAIN = "The light of the river is near the"
LONG = "A stone beside the water, and the music of a cloud over the table. "
Item = tuple[str, list[str]]
"""A context and its choices, of which the second is right if there are two."""


def hostile_items(longest: int) -> list[Item]:
    """Return items for a model whose context has so many tokens, each at most a few bytes."""
    long = LONG * (3 * longest // len(LONG) + 1)
    lengths = [" a", " b and then much more of it, word after word, until it ends", " c d"]
    items: list[Item] = [
        (PLAIN, lengths),
        (PLAIN, [" A", " B", " C", " D"]),
        (PLAIN, [" same", " same", " other", " same"]),
        (PLAIN, [" in", " in the", " in the end", " in the end of it all"]),
        (PLAIN, [" only"]),
        (PLAIN, ["\n\n", "  two spaces", "\ttab", "."]),
        ("🙂 naïve 漢字", ["🙂", "é", "e\u0301", "漢字漢", " 👩\u200d👩\u200d👧 x"]),
        ("x", [" y", " z"]),
        (PLAIN, [PLAIN, PLAIN + PLAIN]),
        ("", ["The river", "A stone of the house", "Music"]),
        # The space at the end of a context is scored with the answer.
        (PLAIN + " ", ["river", "house of stone"]),
        # Contexts of which one is the start of another, with an answer behind it.
        (PLAIN + " on", [" the", " the end"]),
        (PLAIN, lengths),
        # The end of the context and the start of the answer are one token or several.
        *((PLAIN + cut, rest) for cut, rest in cut_words()),
        (PLAIN, [f" item {number}" for number in range(150)]),
        # The start of the context is cut, by an amount that depends on the answer.
        (long[: 2 * longest], lengths),
        # Together about as long as the longest input, from 3 tokens fewer to 3 more if a character
        # is a token.
        *((long[: longest - 12 + extra], [" stone", " the music"]) for extra in range(7)),
        # An answer of nearly all the tokens that the model takes.
        (PLAIN, [" " + long[: longest // 2], " " + long[: longest // 2 + 1]]),
    ]
    return items


SPLITS: list[Item] = [
    (PLAIN, [" in the end", " of it"]),
    (PLAIN + " in", [" the end", " it"]),
    (PLAIN + " in the", [" end", " house"]),
]
"""The first answers end one text, which is divided in several ways: lm-eval computes one row for
all, and reads the log-likelihoods of the shorter answers where the longest answer begins."""


def cut_words() -> Iterator[Item]:
    """Yield ends of a context within a word, with answers that continue it in several ways."""
    yield " wa", ["ter of the river", "ll of the house", "s"]
    yield " st", ["one table", "ar near the sky", "reet"]


def scorable(tokenizer: PreTrainedTokenizerBase, items: Iterable[Item]) -> Iterator[Item]:
    """Leave out the choices that stock lm-eval fails on: those of which no token is left."""
    for context, choices in items:
        count = len(tokenizer(context.rstrip())["input_ids"])
        kept = [each for each in choices if len(tokenizer(context + each)["input_ids"]) > count]
        if kept:
            yield context, kept


def write_hostile_task(
    folder: Path, tokenizer: PreTrainedTokenizerBase, items: Iterable[Item]
) -> None:
    """Write the items that lm-eval can score as its task `hostile`, with two accuracies."""
    docs = [
        {"context": context, "choices": choices, "label": min(1, len(choices) - 1)}
        for context, choices in scorable(tokenizer, items)
    ]
    file = folder / "hostile.jsonl"
    file.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    accuracy = {"aggregation": "mean", "higher_is_better": True}
    config = {
        "task": "hostile",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "target_delimiter": "",
        "metric_list": [accuracy | {"metric": name} for name in ("acc", "acc_norm")],
    }
    (folder / "hostile.yaml").write_text(json.dumps(config))


def trained_tokenizer(*, splits_words: bool, bos: bool) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer.

    Args:
        splits_words: Whether merges end at words, or else span them.
        bos: Whether it puts a start marker before every text.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=splits_words
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=298,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = ["the water of the river", "a wall of stone", "a star in the street", "it was the end"]
    tokenizer.train_from_iterator(words * 20, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
        )
    names = {"bos_token": "<s>"} if bos else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", **names)


@dataclass(frozen=True)
class Scored:
    """What one way of scoring makes of a member."""

    answers: np.ndarray
    """Log-likelihood in nats and whether the answer is the greedy one, shape (requests, 2)."""
    accuracies: dict[str, float]
    """Metric of lm-eval → its value."""


@dataclass(frozen=True)
class Verdict:
    """How the scores of a member compare with those of stock lm-eval."""

    scoring: str
    difference: float
    """Largest difference of a log-likelihood, in nats."""
    equal: bool
    """Whether accuracies and greedy answers are equal."""

    @property
    def holds(self) -> bool:
        """Whether it is what the mode promises."""
        return self.equal and self.difference <= (CLOSE if self.scoring == "shared" else 0.0)


def build_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    names: Sequence[str] = ("hostile",),
    *,
    scoring: ScoringMode = "shared",
    precision: str = "fp32",
) -> LmEvalTasks:
    """Build members of a suite, one of each task of a folder."""
    members: Any = [("general", "en", MemberSpec(task=name, path=str(folder))) for name in names]
    return LmEvalTasks(
        members, model, tokenizer, generated_tasks=None, precision=precision, scoring=scoring
    )


def score(tasks: LmEvalTasks) -> dict[str, tuple[str, Scored]]:
    """Score the model; return how each member was scored, and the scores."""
    metrics = {"accuracy": "acc", "normalised accuracy": "acc_norm"}
    modes: dict[str, str] = {}
    accuracies: dict[str, Any] = {}
    for items in tasks.score():
        modes[items.name] = str(items.scoring)
        if items.unit in metrics:
            value = float(np.mean(items.amount))
            accuracies.setdefault(items.name, {})[metrics[items.unit]] = value
    found = {}
    for member in tasks.members:
        answers = [
            instance.resps[0]
            for task in member.loaded.tasks
            for instances in task.instances
            for instance in instances
        ]
        name = member.spec.name
        found[name] = modes[name], Scored(np.array(answers, dtype=float), accuracies[name])
    return found


def stock_score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    name: str = "hostile",
    **options: Any,
) -> Scored:
    """Score a task with `lm_eval.simple_evaluate`; `options` are those of its model class."""
    evaluator.add_env_info = lambda _: None  # it takes seconds
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=32, **options)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    result = evaluator.simple_evaluate(lm, tasks=[name], task_manager=manager, bootstrap_iters=0)
    samples = sorted(result["samples"][name], key=lambda sample: sample["doc_id"])
    answers = [response[0] for sample in samples for response in sample["resps"]]
    accuracies = {
        metric: result["results"][name][f"{metric},none"]
        for metric in ("acc", "acc_norm")
        if f"{metric},none" in result["results"][name]
    }
    return Scored(np.array(answers, dtype=float), accuracies)


def compare(ours: tuple[str, Scored], stock: Scored) -> Verdict:
    """Compare the scores of a member with those of stock."""
    mode, found = ours
    difference = np.abs(found.answers[:, 0] - stock.answers[:, 0]).max()
    is_greedy = np.array_equal(found.answers[:, 1], stock.answers[:, 1])
    equal = is_greedy and found.accuracies == stock.accuracies
    return Verdict(mode, float(difference), equal)


def verdict_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, **options: Any
) -> Verdict:
    """Score the hostile items in shared mode and with stock, and compare."""
    model.eval()
    ours = score(build_tasks(model, tokenizer, folder, **options))["hostile"]
    return compare(ours, stock_score(model, tokenizer, folder))
