"""Checks of the items of lm-eval tasks.

lm-eval itself fails on some of these without naming the item, and scores others wrongly: it takes
the label -1 for the last choice in few-shot examples, and for no choice in items.
"""

from collections.abc import Iterable
from typing import Any

from sweepcp.errors import InvalidInput, located

FIX = "correct the item in the task's data, or leave it out with `process_docs`"


def check_items(task: Any, items: Iterable[tuple[int, Any]]) -> None:
    """Check the texts, the answers and the label of each item.

    Args:
        task: A task of lm-eval.
        items: Number of the item in the task's data, from 0, and the item.

    Raises:
        InvalidInput: An item cannot be scored. It names the task and the item.
    """
    for number, item in items:
        with located(f"task {task.config.task}", f"item {number}"):
            _apply(_check_item, task, item)


def check_examples(task: Any) -> None:
    """Check the labels of the examples that few-shot prompts are drawn from.

    Raises:
        InvalidInput: The label of an example is none of its choices.
    """
    if not task.config.num_fewshot or not hasattr(task, "fewshot_cfg"):
        return
    if not task.fewshot_cfg.doc_to_choice:
        return
    for number, example in enumerate(task.sampler.fewshot_docs()):
        with located(f"task {task.config.task}", f"few-shot example {number}"):
            _apply(_check_example, task, example)


def check_example_count(task: Any) -> None:
    """Check that there are as many examples as a few-shot prompt needs.

    Raises:
        InvalidInput: There are fewer.
    """
    shots = task.config.num_fewshot
    if not shots or not hasattr(task, "fewshot_cfg") or not hasattr(task, "sampler"):
        return
    # As lm-eval decides whether the examples are the items themselves.
    among_items = task.fewshot_cfg.split == task.config.test_split
    available = len(task.sampler.fewshot_docs()) - among_items
    if shots > available:
        besides = " besides the item itself" if among_items else ""
        raise InvalidInput(
            file=f"task {task.config.task}",
            key="few_shot",
            found=shots,
            rule=f"at most the {max(0, available)} examples that there are{besides}",
            fix="lower few_shot of the member, or num_fewshot in the task's file",
        )


def gold_index(task: Any, item: Any) -> int:
    """Return which of the requests of an item asks for the right answer; the first if several."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return 0
    # With several inputs (Winogrande) it is the context that differs between the requests.
    several_inputs = getattr(task, "multiple_input", 0)
    label = task.doc_to_text(item) if several_inputs else task.doc_to_target(item)
    if isinstance(label, list):
        label = label[0]
    return task.doc_to_choice(item).index(label) if isinstance(label, str) else int(label)


def _apply(check: Any, task: Any, item: Any) -> None:
    try:
        check(task, item)
    except InvalidInput:
        raise
    except Exception as error:
        raise InvalidInput(
            found=f"{type(error).__name__}: {error}",
            rule="an item to which the templates of the task file apply",
            fix=FIX,
        ) from error


def _check_item(task: Any, item: Any) -> None:
    if getattr(task, "multiple_input", None) == 0:
        _check_text("doc_to_text", task.doc_to_text(item), empty=True)
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = task.doc_to_choice(item)
        _check_choices(choices)
        if getattr(task, "multiple_input", 0):
            _check_text("doc_to_target", str(task.doc_to_target(item)))
            _check_label("doc_to_text", task.doc_to_text(item), choices)
        elif getattr(task, "multiple_target", 0):
            _check_labels(task.doc_to_target(item), choices)
        else:
            _check_label("doc_to_target", task.doc_to_target(item), choices)
    elif task.OUTPUT_TYPE == "loglikelihood":
        _check_text("doc_to_target", task.doc_to_target(item))
    elif task.OUTPUT_TYPE == "loglikelihood_rolling":
        _check_text("doc_to_target", task.doc_to_target(item), empty=True)
    elif task.config.doc_to_choice is not None:
        choices = task.doc_to_choice(item)
        _check_index("doc_to_target", task.doc_to_target(item), choices)


def _check_example(task: Any, example: Any) -> None:
    config = task.fewshot_cfg
    choices = task.doc_to_choice(example, config.doc_to_choice)
    if task.multiple_input:
        _check_index("doc_to_text", task.doc_to_text(example, config.doc_to_text), choices)
        return
    label = task.doc_to_target(example, config.doc_to_target)
    if not isinstance(label, str):
        label = label[0] if isinstance(label, list) and label else label
        _check_index("doc_to_target", label, choices)


def _check_choices(choices: Any) -> None:
    if not isinstance(choices, list) or not choices:
        rule = "a list of at least one answer"
        raise InvalidInput(key="doc_to_choice", found=choices, rule=rule, fix=FIX)
    for index, choice in enumerate(choices):
        _check_text(f"doc_to_choice.{index}", choice)


def _check_text(key: str, text: Any, *, empty: bool = False) -> None:
    if not isinstance(text, str) or not (text or empty):
        rule = "text" if empty else "text of at least one character"
        raise InvalidInput(key=key, found=text, rule=rule, fix=FIX)


def _check_labels(labels: Any, choices: list[str]) -> None:
    if not isinstance(labels, list) or not labels:
        rule = "a list of at least one label, as the first item of the task has"
        raise InvalidInput(key="doc_to_target", found=labels, rule=rule, fix=FIX)
    for label in labels:
        _check_index("doc_to_target", label, choices)


def _check_label(key: str, label: Any, choices: list[str]) -> None:
    if not isinstance(label, str):
        _check_index(key, label, choices)
    elif label not in choices:
        rule = f"an index from 0 to {len(choices) - 1}, or one of the choices {choices}"
        raise InvalidInput(key=key, found=label, rule=rule, fix=FIX)


def _check_index(key: str, label: Any, choices: list[str]) -> None:
    if not isinstance(label, int) or not 0 <= label < len(choices):
        rule = f"an index from 0 to {len(choices) - 1}, for there are {len(choices)} choices"
        raise InvalidInput(key=key, found=label, rule=rule, fix=FIX)
