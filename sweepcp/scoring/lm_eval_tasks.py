"""lm-eval tasks on a model in memory: built once, scored for every trial, item by item.

The model wrapper, its batches and the metrics are lm-eval's own, so the scores equal those of
`lm_eval.simple_evaluate`. Tasks, requests and token ids are built once rather than per trial.
"""

import functools
import json
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sweepcp.config.suites import MemberSpec
from sweepcp.config.types import Role
from sweepcp.scoring.scorecard import ItemScores, in_select_split
from sweepcp.training.engine import computes_in_bf16

ACCURACIES = ("acc", "exact_match")
"""Metrics of lm-eval that are recorded as the accuracy of a task."""
BATCH_SIZE = 32
"""Requests in a forward pass. It is fixed, so that the scores are the same on every machine of a
kind."""
FEW_SHOT_SEED = 1234
"""lm-eval's default."""


class _DocumentScore(NamedTuple):
    """What a model made of one document of a task."""

    content: str
    """Identifies the document; decides its split."""
    bits: float | None
    """Of the gold answer; None where text is generated."""
    bytes: float | None
    """UTF-8 bytes of the gold answer."""
    correct: float | None
    """1 or 0; None for a task without an accuracy."""


class LmEvalTasks:
    """The lm-eval members of the suites, ready to score one model many times."""

    def __init__(
        self,
        members: Sequence[tuple[Role, str, MemberSpec]],
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        generated_tasks: Path | None,
        precision: str,
    ) -> None:
        """Build the tasks and their requests.

        Args:
            members: Role, language and spec of each member.
            model: Its weights may change between calls of `score`.
            tokenizer: The model's.
            generated_tasks: Folder of the tasks that were generated from held-out text.
            precision: `fp32`, `bf16` or `auto`.
        """
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        in_bf16 = computes_in_bf16(model.device, precision)
        self.lm = HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=BATCH_SIZE,
            mixed_precision_dtype=torch.bfloat16 if in_bf16 else None,
        )
        # lm-eval tokenises every request again in each evaluation; the pairs never change.
        self.lm._encode_pair = functools.cache(self.lm._encode_pair)
        self.tasks: list[tuple[Role, str, MemberSpec, list[Any]]] = []
        managers: dict[str, TaskManager] = {}
        for role, language, member in members:
            folder = str(member.path or (generated_tasks if member.task is None else ""))
            if folder not in managers:
                managers[folder] = _task_manager(folder)
            tasks = list(managers[folder].load(member.name)["tasks"].values())
            for task in tasks:
                if member.few_shot:
                    task.set_config("num_fewshot", member.few_shot)
                    task.set_fewshot_seed(FEW_SHOT_SEED)
                task.build_all_requests(limit=member.items if member.task else None)
            self.tasks.append((role, language, member, tasks))

    @torch.no_grad()
    def score(self) -> list[ItemScores]:
        """Score every member: bits per byte of gold answers, and accuracy if the task has one."""
        self.lm.model.eval()
        self._answer_requests()
        scores: list[ItemScores] = []
        for role, language, member, tasks in self.tasks:
            documents: list[_DocumentScore] = []
            for task in tasks:
                documents += _score_documents(task)
            columns: dict[str, tuple[list[float | None], Sequence[float | None]]] = {
                "bits per byte": ([d.bits for d in documents], [d.bytes for d in documents]),
                "accuracy": ([d.correct for d in documents], [1.0] * len(documents)),
            }
            select = tuple(in_select_split(document.content) for document in documents)
            for unit, (amount, size) in columns.items():
                if amount[0] is None:
                    continue
                fields = {
                    "name": member.name,
                    "role": role,
                    "language": language,
                    "unit": unit,
                    "weight": member.weight,
                    "select": select,
                    "amount": tuple(amount),
                    "size": tuple(size),
                }
                scores.append(ItemScores.model_validate(fields))
        return scores

    def _answer_requests(self) -> None:
        """Answer the requests of all tasks."""
        # lm-eval sorts the requests of one type by length and batches them across tasks. Answering
        # per type gives the batches that `simple_evaluate` makes, hence the same last bits.
        requests: dict[str, list[Any]] = {}
        for _, _, _, tasks in self.tasks:
            for task in tasks:
                for instance in task.instances:
                    # Without this the answers of the previous model would be kept beside the new.
                    instance.resps = []
                    instance.filtered_resps = {}
                    repeated = [instance] * instance.repeats
                    requests.setdefault(instance.request_type, []).extend(repeated)
        for request_type, instances in requests.items():
            answers = getattr(self.lm, request_type)(instances, disable_tqdm=True)
            for instance, answer in zip(instances, answers, strict=True):
                instance.resps.append(answer)


def task_item_texts(member: MemberSpec) -> Iterator[tuple[str, str]]:
    """Yield the id and the text of each item of an lm-eval task.

    The text is the question with its right answer, where there are choices.
    """
    for task in _task_manager(str(member.path or "")).load(str(member.task))["tasks"].values():
        task.build_all_requests(limit=member.items)
        for doc_id, instances in _instances_by_document(task).items():
            arguments = instances[_gold_index(task, instances[0].doc)].args
            text = "".join(argument for argument in arguments if isinstance(argument, str))
            yield f"{task.task_name}/{doc_id}", text


def _task_manager(folder: str) -> TaskManager:
    """Index the tasks of a folder or, where it is empty, those that lm-eval ships."""
    # Indexing lm-eval's own thousands of tasks takes many seconds, so it is done only when needed.
    return TaskManager(include_path=folder, include_defaults=False) if folder else TaskManager()


def _score_documents(task: Any) -> list[_DocumentScore]:
    """Score the documents of a task whose requests are answered, in the order of the data set."""
    task.apply_filters()
    key = next(iter(task.instances[0].filtered_resps))
    by_document = _instances_by_document(task)
    return [_score_document(task, by_document[doc_id], key) for doc_id in sorted(by_document)]


def _instances_by_document(task: Any) -> dict[int, list[Any]]:
    """Group the requests of a task by document, each in the order in which they were built."""
    by_document: dict[int, list[Any]] = {}
    for instance in sorted(task.instances, key=lambda i: i.idx):
        by_document.setdefault(instance.doc_id, []).append(instance)
    return by_document


def _score_document(task: Any, instances: list[Any], key: str) -> _DocumentScore:
    doc = instances[0].doc
    metrics = task.process_results(doc, [i.filtered_resps[key] for i in instances])
    correct = next((float(metrics[name]) for name in ACCURACIES if name in metrics), None)
    bits, size = _gold_bits(task, doc, instances)
    if correct is None and bits is None:
        raise ValueError(
            f"task {task.task_name} measures {', '.join(metrics)}, none of which sweepcp supports; "
            f"it needs answers with a likelihood, or one of {', '.join(ACCURACIES)}"
        )
    content = task.task_name + json.dumps(doc, sort_keys=True, default=str)
    return _DocumentScore(content, bits, size, correct)


def _gold_bits(task: Any, doc: Any, instances: list[Any]) -> tuple[float | None, float | None]:
    """Return the bits and UTF-8 bytes of the gold answer, or of the text where there is no answer.

    Both are None for a task whose answers are generated.
    """
    request_type = instances[0].request_type
    if request_type == "loglikelihood_rolling":
        size = float(task.count_bytes(task.doc_to_target(doc)))
        return -instances[0].resps[0] / math.log(2), size
    if request_type != "loglikelihood":
        return None, None
    answer = instances[_gold_index(task, doc)]
    return -float(answer.resps[0][0]) / math.log(2), float(len(answer.args[1].encode()))


def _gold_index(task: Any, doc: Any) -> int:
    """Return which of the requests of a document asks for the right answer."""
    gold: Any = 0
    if task.OUTPUT_TYPE == "multiple_choice":
        # With several inputs (Winogrande) it is the context that differs between the requests.
        several_inputs = getattr(task, "multiple_input", 0)
        gold = task.doc_to_text(doc) if several_inputs else task.doc_to_target(doc)
    if isinstance(gold, list):  # several right answers: the first counts
        gold = gold[0]
    return task.doc_to_choice(doc).index(gold) if isinstance(gold, str) else int(gold)
