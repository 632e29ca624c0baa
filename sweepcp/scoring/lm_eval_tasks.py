"""lm-eval tasks on a resident model: built once, scored for every trial, item by item.

The model, its batches and the metrics are lm-eval's own, so scores equal those of `lm_eval.simple_evaluate`; what is
done once and not per trial is the building of tasks, requests and token ids.
"""

import functools
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sweepcp.config.suites import MemberSpec
from sweepcp.config.types import Role
from sweepcp.scoring.scorecard import ItemScores, in_select_split
from sweepcp.training.engine import computes_in_bf16

ACCURACIES = ("acc", "exact_match")
BATCH_SIZE = 32
"""Requests in a forward pass; fixed, so that scores are the same on every machine of a kind."""


class LmEvalTasks:
    """The lm-eval members of the suites, ready to score one model again and again.

    `made` is the folder of the tasks that were made from held-out text.
    """

    def __init__(
        self,
        members: list[tuple[Role, str, MemberSpec]],
        made: Path | None,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        precision: str,
    ) -> None:
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        self.lm = HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=BATCH_SIZE,
            mixed_precision_dtype=torch.bfloat16
            if computes_in_bf16(model.device, precision)
            else None,
        )
        self.lm._encode_pair = functools.cache(self.lm._encode_pair)
        self.tasks: list[tuple[Role, str, MemberSpec, list[Any]]] = []
        managers: dict[str, TaskManager] = {}
        for role, language, member in members:
            folder = str(member.path or (made if member.task is None else ""))
            if folder not in managers:
                managers[folder] = _task_manager(folder)
            tasks = list(managers[folder].load(member.name)["tasks"].values())
            for task in tasks:
                if member.few_shot:
                    task.set_config("num_fewshot", member.few_shot)
                    task.set_fewshot_seed(1234)  # lm-eval's default
                task.build_all_requests(limit=member.items if member.task else None)
            self.tasks.append((role, language, member, tasks))

    @torch.no_grad()
    def score(self) -> list[ItemScores]:
        """Items of every member: bits per byte of the gold answers, and accuracy where the task has one."""
        self.lm.model.eval()
        self._answer()
        result: list[ItemScores] = []
        for role, language, member, tasks in self.tasks:
            docs = [doc for task in tasks for doc in self._documents(task)]
            common = {
                "name": member.name,
                "role": role,
                "language": language,
                "weight": member.weight,
                "select": tuple(in_select_split(d["content"]) for d in docs),
            }
            for unit, amount, size in (
                ("bits per byte", "bits", "bytes"),
                ("accuracy", "correct", "one"),
            ):
                if docs[0][amount] is not None:
                    columns = {
                        "amount": tuple(d[amount] for d in docs),
                        "size": tuple(d[size] for d in docs),
                    }
                    result.append(ItemScores.model_validate(common | columns | {"unit": unit}))
        return result

    def _answer(self) -> None:
        """Answer the requests of all tasks, a kind at a time: the batches are those that lm-eval would make."""
        requests: dict[str, list[Any]] = {}
        for _, _, _, tasks in self.tasks:
            for instance in (i for task in tasks for i in task.instances):
                instance.resps = []
                instance.filtered_resps = {}
                requests.setdefault(instance.request_type, []).extend([instance] * instance.repeats)
        for kind, instances in requests.items():
            answers = getattr(self.lm, kind)(instances, disable_tqdm=True)
            for instance, answer in zip(instances, answers, strict=True):
                instance.resps.append(answer)

    def _documents(self, task: Any) -> list[dict[str, Any]]:
        """Per document of an answered task: content, gold bits and bytes, and whether it was right."""
        task.apply_filters()
        by_doc: dict[int, list[Any]] = {}
        for instance in sorted(task.instances, key=lambda i: i.idx):
            by_doc.setdefault(instance.doc_id, []).append(instance)
        key = next(iter(task.instances[0].filtered_resps))
        return [self._document(task, by_doc[i], key) for i in sorted(by_doc)]

    def _document(self, task: Any, instances: list[Any], key: str) -> dict[str, Any]:
        doc = instances[0].doc
        metrics = task.process_results(doc, [i.filtered_resps[key] for i in instances])
        correct = next((float(metrics[name]) for name in ACCURACIES if name in metrics), None)
        bits, size = _gold_bits(task, doc, instances)
        if correct is None and bits is None:
            raise ValueError(
                f"task {task.task_name} measures {', '.join(metrics)}, which sweepcp cannot use"
            )
        content = task.task_name + json.dumps(doc, sort_keys=True, default=str)
        return {"content": content, "bits": bits, "bytes": size, "correct": correct, "one": 1.0}


def _gold_bits(task: Any, doc: Any, instances: list[Any]) -> tuple[float | None, float | None]:
    """Bits and UTF-8 bytes of the gold answer as lm-eval asked for it, or of the text; None where text is generated."""
    kind = instances[0].request_type
    if kind == "loglikelihood_rolling":
        return -instances[0].resps[0] / math.log(2), float(
            task.count_bytes(task.doc_to_target(doc))
        )
    if kind != "loglikelihood":
        return None, None
    answer = instances[_gold_index(task, doc)]
    return -float(answer.resps[0][0]) / math.log(2), float(len(answer.args[1].encode()))


def _gold_index(task: Any, doc: Any) -> int:
    """Which of a document's requests asks for the right answer."""
    gold: Any = 0
    if task.OUTPUT_TYPE == "multiple_choice":
        gold = (
            task.doc_to_text(doc) if getattr(task, "multiple_input", 0) else task.doc_to_target(doc)
        )
    if isinstance(gold, list):  # several right answers: the first
        gold = gold[0]
    return task.doc_to_choice(doc).index(gold) if isinstance(gold, str) else int(gold)


def task_item_texts(member: MemberSpec) -> Iterator[tuple[str, str]]:
    """Name and text of each item of an lm-eval task: the question, and the right answer where there are choices."""
    for task in _task_manager(str(member.path or "")).load(str(member.task))["tasks"].values():
        task.build_all_requests(limit=member.items)
        of: dict[int, list[Any]] = {}
        for instance in sorted(task.instances, key=lambda i: i.idx):
            of.setdefault(instance.doc_id, []).append(instance)
        for number, instances in of.items():
            asked = instances[_gold_index(task, instances[0].doc)].args
            yield (
                f"{task.task_name}/{number}",
                "".join(text for text in asked if isinstance(text, str)),
            )


def _task_manager(folder: str) -> TaskManager:
    """lm-eval's index of one folder, or of its own tasks (slow to scan, so only when they are used)."""
    return TaskManager(include_path=folder, include_defaults=False) if folder else TaskManager()
