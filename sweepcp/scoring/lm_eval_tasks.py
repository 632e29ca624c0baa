"""lm-eval tasks on a model in memory: built once, scored for every trial, item by item.

Requests and metrics are lm-eval's own. In exact mode so are the batches of answers, and the scores
of a member equal those of `lm_eval.simple_evaluate` on it alone; only batches of very many logits
are divided. In shared mode a context is computed once for all of its answers, of all members. Text
and rolling log-likelihoods are computed by lm-eval in both. Tasks, requests, token ids and batches
are built once rather than per trial.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lm_eval.models.utils import normalize_gen_kwargs
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sweepcp.config.suites import MemberSpec
from sweepcp.config.types import Role, ScoringMode
from sweepcp.errors import InvalidInput, located
from sweepcp.models.attention import use_row_attention
from sweepcp.scoring.answer_model import AnswerModel
from sweepcp.scoring.answer_passes import Answer
from sweepcp.scoring.answer_plan import AnswerPlan
from sweepcp.scoring.evaluation import evaluation_mode
from sweepcp.scoring.lm_eval_answers import AnswerTokens, ItemAnswers, encode_item
from sweepcp.scoring.lm_eval_encoding import RequestEncoder
from sweepcp.scoring.lm_eval_items import gold_index
from sweepcp.scoring.lm_eval_loading import (
    LoadedMember,
    LoadedTask,
    MemberLoader,
    restricted_imports,
    stock_seeds,
)
from sweepcp.scoring.scorecard import ItemScores, Unit
from sweepcp.scoring.task_rules import RECORDED_METRICS, unsupported_metrics
from sweepcp.training.engine import computes_in_bf16
from sweepcp.training.process_group import ALONE, ProcessGroup
from sweepcp.util.json_values import digest

if TYPE_CHECKING:
    from sweepcp.scoring.lm_eval_model import GroupModel


@dataclass
class _Member:
    """A member of a suite, its tasks and the tokens of their answers."""

    role: Role
    language: str
    spec: MemberSpec
    loaded: LoadedMember
    answers: dict[int, list[ItemAnswers]] = field(default_factory=dict)
    """Index of a task → the answers of its items; only tasks with log-likelihoods of answers."""
    scoring: ScoringMode = "exact"
    """How the answers are computed."""

    @property
    def calls(self) -> list[list[AnswerTokens]]:
        """The tokens of all answers: those that lm-eval computes in one call, then `gold`s."""
        by_task = self.answers.values()
        requests = [request for items in by_task for item in items for request in item.requests]
        return [requests, *([item.gold for item in items if item.gold] for items in by_task)]


@dataclass
class _Scores:
    """The scores of the items of one task under one unit."""

    document: list[str] = field(default_factory=list)
    amount: list[float] = field(default_factory=list)
    size: list[float] = field(default_factory=list)


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
        scoring: ScoringMode = "exact",
        group: ProcessGroup = ALONE,
        working_folder: Path = Path(),
    ) -> None:
        """Build the tasks, their requests and the tokens of these.

        Args:
            members: Role, language and spec of each member.
            model: Its weights may change between calls of `score`.
            tokenizer: The model's.
            generated_tasks: Folder of the tasks that were generated from held-out text.
            precision: `fp32`, `bf16` or `auto`.
            scoring: How the answers are computed, see `Suites.scoring`.
            group: The ranks that call `score` together, as all must if the model is partitioned.
            working_folder: Where relative paths of data files start from.

        Raises:
            InvalidInput: A task cannot be loaded, or an item of it cannot be scored.
        """
        # What its warnings say of items is checked here, or reported in `notes`.
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        self.in_bf16 = computes_in_bf16(model.device, precision)
        self.model, self.tokenizer, self.group = model, tokenizer, group
        self.encoder = RequestEncoder(model, tokenizer)
        self.notes: list[str] = []
        """What the user should know of the items: contexts that are cut, options without effect."""
        self.members: list[_Member] = []
        loader = MemberLoader(model.device, working_folder)
        for role, language, spec in members:
            folder = str(spec.path or (generated_tasks if spec.task is None else "") or "")
            member = _Member(role, language, spec, loader.load(spec, folder))
            self._encode_answers(member)
            self.notes += [*member.loaded.notes, *self._cut_contexts(member)]
            self.members.append(member)
        self._plan = self._plan_answers(scoring)

    @cached_property
    def lm(self) -> "GroupModel":
        """lm-eval's wrapper of the model, for members of which it computes more than answers."""
        from sweepcp.scoring.lm_eval_model import GroupModel

        return GroupModel(self.model, self.tokenizer, self.group, in_bf16=self.in_bf16)

    def _plan_answers(self, scoring: ScoringMode) -> AnswerPlan:
        """Build the batches of answers; in shared mode check that contexts can be shared."""
        model = AnswerModel(
            self.model, self.group, max_length=self.encoder.max_length, in_bf16=self.in_bf16
        )
        with evaluation_mode(self.model), use_row_attention(self.model):
            plan = AnswerPlan(model, [member.calls for member in self.members], scoring)
        for number in plan.firsts:
            self.members[number].scoring = "shared"
        exact = [
            f"{self.members[number].spec.name} ({obstacle})"
            for number, obstacle in plan.obstacles.items()
        ]
        self.scoring = f"{scoring}; exact: {', '.join(exact)}" if exact else str(scoring)
        """How answers are computed: `exact` or `shared`, and the members that it does not cover,
        each with the reason."""
        return plan

    def _encode_answers(self, member: _Member) -> None:
        for index, task in enumerate(member.loaded.tasks):
            if task.instances[0][0].request_type != "loglikelihood":
                continue
            answers = []
            for number, instances in zip(task.numbers, task.instances, strict=True):
                requests = [instance.args for instance in instances]
                gold = gold_index(task.task, instances[0].doc)
                with located(f"task {task.name}", f"item {number}"):
                    answers.append(encode_item(self.encoder, requests, gold))
            member.answers[index] = answers

    def _cut_contexts(self, member: _Member) -> Iterator[str]:
        """Yield a note if the model takes less than the whole context of items."""
        cut = total = 0
        for index, task in enumerate(member.loaded.tasks):
            total += len(task.instances)
            if index in member.answers:
                for answers in member.answers[index]:
                    longest = max(request.length for request in answers.requests)
                    cut += longest > self.encoder.max_length + 1
            elif task.instances[0][0].request_type == "generate_until":
                cut += self._cut_prompts(task)
        if cut:
            yield (
                f"{cut} of {total} items of {member.spec.name} lose the start of their context "
                f"(the model takes {self.encoder.max_length} tokens)"
            )

    def _cut_prompts(self, task: LoadedTask) -> int:
        """Count the items whose prompt and generated text are longer than the model's context."""
        cut = 0
        for number, instances in zip(task.numbers, task.instances, strict=True):
            context, options = instances[0].args[:2]
            generated = normalize_gen_kwargs(options, self.encoder.max_gen_toks)["max_gen_toks"]
            room = self.encoder.max_length - generated
            if room <= 0:
                raise InvalidInput(
                    file=f"task {task.name}",
                    key=f"item {number}.generation_kwargs.max_gen_toks",
                    found=generated,
                    rule=f"below {self.encoder.max_length}, the longest context of the model",
                    fix="lower it in the task's file",
                )
            cut += len(self.encoder.tok_encode(context)) > room
        return cut

    @property
    def prompts(self) -> str:
        """16 hex digits that change with any prompt or answer that is scored."""
        requests = [
            [instance.request_type, *map(ascii, instance.args)]
            for member in self.members
            for task in member.loaded.tasks
            for instances in task.instances
            for instance in instances
        ]
        return digest(requests)

    @property
    def items(self) -> str:
        """16 hex digits that change with any item, such as with its right answer."""
        return digest([task.documents for member in self.members for task in member.loaded.tasks])

    @torch.no_grad()
    def score(self) -> list[ItemScores]:
        """Score every member: bits per byte of gold answers, and the accuracies of its tasks.

        Raises:
            InvalidInput: A task measures nothing that can be recorded.
        """
        scores: list[ItemScores] = []
        with evaluation_mode(self.model):
            with use_row_attention(self.model):
                answers = self._plan.compute_shared()
            for number, member in enumerate(self.members):
                # Generation may draw random numbers. One member's scores do not depend on the
                # others.
                with (
                    stock_seeds(self.model.device),
                    restricted_imports(member.spec),
                    use_row_attention(self.model),
                ):
                    if number not in answers:
                        answers[number] = self._plan.compute_exact(number)
                    computed = iter(answers[number])
                    self._answer_requests(member, computed)
                    scores += self._score_member(member, computed)
        return scores

    def _answer_requests(self, member: _Member, answers: Iterator[Answer]) -> None:
        """Hand the requests of a member their answers, and have lm-eval compute the others."""
        others: dict[str, list[Any]] = {}
        for index, task in enumerate(member.loaded.tasks):
            for instances in task.instances:
                for instance in instances:
                    instance.filtered_resps = {}
                    if index in member.answers:
                        instance.resps = [next(answers)] * instance.repeats
                        continue
                    # Without this the answers of the previous model would be kept beside the new.
                    instance.resps = []
                    of_type = others.setdefault(instance.request_type, [])
                    of_type += [instance] * instance.repeats
        for request_type, instances in others.items():
            responses = getattr(self.lm, request_type)(instances, disable_tqdm=True)
            for instance, response in zip(instances, responses, strict=True):
                instance.resps.append(response)

    def _score_member(self, member: _Member, golds: Iterator[Answer]) -> Iterator[ItemScores]:
        """Yield the scores of a member under each unit that its tasks measure.

        Args:
            member: Its requests are answered.
            golds: The answers to the `gold` of its items.
        """
        by_task = [
            self._score_task(task, member.answers.get(index), golds)
            for index, task in enumerate(member.loaded.tasks)
        ]
        for unit in RECORDED_METRICS:
            columns = [scores[unit] for scores in by_task if unit in scores]
            if not columns:
                continue
            if len(columns) < len(by_task):
                note = (
                    f"{member.spec.name}: {unit} counts {len(columns)} of its {len(by_task)} "
                    "tasks; the others do not measure it"
                )
                self.notes += [note] if note not in self.notes else []
            merged = _merge(columns, member.loaded.by_size.get(unit))
            yield ItemScores(
                name=member.spec.name,
                role=member.role,
                language=member.language,
                unit=unit,
                weight=member.spec.weight,
                scoring=member.scoring,
                document=tuple(merged.document),
                amount=tuple(merged.amount),
                size=tuple(merged.size),
            )

    def _score_task(
        self, task: LoadedTask, answers: list[ItemAnswers] | None, golds: Iterator[Answer]
    ) -> dict[Unit, _Scores]:
        """Score the items of a task whose requests are answered, in the order of the data."""
        task.task.apply_filters()
        # A task may have several filters of generated text; its first one counts.
        key = next(iter(task.instances[0][0].filtered_resps))
        scores: dict[Unit, _Scores] = {}
        for item, instances in enumerate(task.instances):
            responses = [instance.filtered_resps[key] for instance in instances]
            metrics = task.task.process_results(instances[0].doc, responses)
            values = _accuracies(metrics)
            if answers is not None:
                gold = instances[gold_index(task.task, instances[0].doc)].resps[0]
                nats = next(golds) if answers[item].gold else gold
                values["bits per byte"] = -nats[0] / math.log(2), float(answers[item].gold_bytes)
            elif instances[0].request_type == "loglikelihood_rolling":
                values["bits per byte"] = _rolling_bits(task.task, instances[0], metrics)
            if not values:
                raise unsupported_metrics(f"task {task.name}", "metric_list", list(metrics))
            for unit, (amount, size) in values.items():
                column = scores.setdefault(unit, _Scores())
                column.document.append(task.documents[item])
                column.amount.append(amount)
                column.size.append(size)
        return scores


def task_item_texts(member: MemberSpec) -> Iterator[tuple[str, str]]:
    """Yield the id and the text of each item of an lm-eval task.

    The text is the question with its right answer, where there are choices.

    Raises:
        InvalidInput: A task cannot be loaded, or an item of it cannot be scored.
    """
    loader = MemberLoader(torch.device("cpu"))
    for task in loader.load(member, str(member.path or "")).tasks:
        for number, instances in zip(task.numbers, task.instances, strict=True):
            arguments = instances[gold_index(task.task, instances[0].doc)].args
            text = "".join(argument for argument in arguments if isinstance(argument, str))
            yield f"{task.name}/{number}", text


def _accuracies(metrics: dict[str, Any]) -> dict[Unit, tuple[float, float]]:
    """Return the amount and size of an item under each accuracy that its task measures."""
    values: dict[Unit, tuple[float, float]] = {}
    for unit, names in RECORDED_METRICS.items():
        found = [metrics[name] for name in names if name in metrics]
        if unit != "bits per byte" and found and isinstance(found[0], int | float | np.number):
            values[unit] = float(found[0]), 1.0
    return values


def _rolling_bits(task: Any, instance: Any, metrics: dict[str, Any]) -> tuple[float, float]:
    """Return the bits of a text, and its bytes as the task counts them."""
    for name in RECORDED_METRICS["bits per byte"]:
        value = metrics.get(name)
        if isinstance(value, tuple):  # wikitext counts the bytes before it changes the text
            nats, size = value
            return -nats / math.log(2), float(size)
    size = task.count_bytes(task.doc_to_target(instance.doc))
    return -instance.resps[0] / math.log(2), float(size)


def _merge(columns: list[_Scores], by_size: bool | None) -> _Scores:  # noqa: FBT001  # not a switch
    """Concatenate the items of several tasks so that Σ amount / Σ size is the group's value.

    Args:
        columns: The items of each task.
        by_size: Whether the group's value is the mean of the tasks' values over items, or over
            tasks. None pools the items, and so is it with one task.
    """
    merged = _Scores()
    sizes = [math.fsum(column.size) for column in columns]
    items = sum(len(column.size) for column in columns)
    for column, size in zip(columns, sizes, strict=True):
        factor = 1.0
        if by_size is not None and len(columns) > 1 and size:
            weight = len(column.size) / items if by_size else 1 / len(columns)
            factor = weight / (size / math.fsum(sizes))
        merged.document += column.document
        merged.amount += [factor * amount for amount in column.amount]
        merged.size += [factor * size for size in column.size]
    return merged
