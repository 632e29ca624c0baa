"""lm-eval tasks of all kinds against `lm_eval.simple_evaluate`."""

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from sweepcp.config.suites import MemberSpec
from sweepcp.scoring import task_selection
from sweepcp.scoring.lm_eval_loading import MemberLoader
from sweepcp.scoring.lm_eval_tasks import LmEvalTasks
from sweepcp.scoring.task_files import TaskFolder, read_task_folder, stock_tasks
from tests.integration.conftest import torchrun
from tests.lm_eval_suite import (
    FEW_SHOT,
    MEMBERS,
    MODELS,
    describe,
    load,
    make_tasks,
    save_model,
    write_tasks,
)
from tests.make import write_bundle

FEW = (
    "zero_shot",
    "shots_of_file",
    "shots_fixed_at_zero",
    "sampled_shots",
    "normalised",
    "several_targets",
    "group_by_task",
    "rolling",
    "generated",
)
"""At least one member of each kind."""
COMPUTED_BY_LM_EVAL = {"rolling", "generated", "generated_targets"}
"""Members without answers that could share a context."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lm_eval")
    write_tasks(path / "tasks")
    for name in MODELS:
        save_model(path / name, name)
    return path


@pytest.fixture(
    scope="module",
    params=[
        (MODELS[0], FEW),
        pytest.param((MODELS[0], MEMBERS), marks=pytest.mark.slow),
        pytest.param((MODELS[1], MEMBERS), marks=pytest.mark.slow),
    ],
    ids=lambda case: f"{case[0]}-{len(case[1])}",
)
def case(request: pytest.FixtureRequest, folder: Path) -> tuple[Path, tuple[str, ...]]:
    """The folder of a model, and the members that it is scored on."""
    name, members = request.param
    return folder / name, members


@pytest.fixture(scope="module")
def model(case: tuple[Path, tuple[str, ...]]) -> Path:
    return case[0]


@pytest.fixture(scope="module")
def tasks(folder: Path, case: tuple[Path, tuple[str, ...]]) -> LmEvalTasks:
    return make_tasks(folder / "tasks", *case)


@pytest.fixture(scope="module")
def scores(tasks: LmEvalTasks) -> dict[str, Any]:
    return describe(tasks)


def stock_results(folder: Path, model: Path, tasks: LmEvalTasks) -> dict[str, dict[str, Any]]:
    """Return what `simple_evaluate` makes of each member alone."""
    loaded, tokenizer = load(model)
    lm = HFLM(pretrained=loaded, tokenizer=tokenizer, batch_size=32)
    evaluator.add_env_info = lambda _: None  # it takes seconds
    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    results = {}
    for member in tasks.members:
        sampled = {t.name: list(t.numbers) for t in member.loaded.tasks}
        results[member.spec.name] = evaluator.simple_evaluate(
            lm,
            tasks=[member.spec.name],
            num_fewshot=FEW_SHOT.get(member.spec.name),
            samples=sampled if member.spec.items else None,
            task_manager=manager,
            bootstrap_iters=0,
        )
    return results


def stock_requests(result: dict[str, Any]) -> list[list[Any]]:
    """Return task, number, arguments and responses of each request, as `describe` does."""
    requests = []
    for task, samples in result["samples"].items():
        # With several filters there is a sample for each of them.
        by_number = {sample["doc_id"]: sample for sample in samples}
        for number, sample in sorted(by_number.items()):
            for arguments, responses in zip(sample["arguments"], sample["resps"], strict=True):
                requests.append([task, number, list(arguments), responses])
    plain: list[list[Any]] = json.loads(json.dumps(requests))
    return plain


def value(scores: dict[str, Any], member: str, unit: str) -> float:
    items = scores[member]["items"][unit]
    return math.fsum(items["amount"]) / math.fsum(items["size"])


@pytest.fixture(scope="module")
def stock(folder: Path, model: Path, tasks: LmEvalTasks) -> dict[str, dict[str, Any]]:
    return stock_results(folder, model, tasks)


def test_prompts_and_responses_are_those_of_lm_eval(
    scores: dict[str, Any], stock: dict[str, dict[str, Any]]
):
    for name in scores:
        ours, theirs = scores[name]["requests"], stock_requests(stock[name])
        assert [request[:3] for request in ours] == [request[:3] for request in theirs], name
        for (*_, response), (*_, stock_response) in zip(ours, theirs, strict=True):
            assert response == stock_response, name


def test_values_are_those_of_lm_eval(scores: dict[str, Any], stock: dict[str, dict[str, Any]]):
    filters = {"generated": "first-word"}
    metrics = {"accuracy": "acc", "normalised accuracy": "acc_norm"}
    for name in scores:
        results = stock[name]["results"][name]
        for unit in scores[name]["items"]:
            metric = metrics.get(unit, "bits_per_byte")
            metric = "exact_match" if name.startswith("generated") else metric
            key = f"{metric},{filters.get(name, 'none')}"
            if unit != "bits per byte" or name == "rolling":
                assert value(scores, name, unit) == pytest.approx(results[key], rel=1e-12), name


def test_with_shared_contexts_all_kinds_are_close_to_lm_eval(
    folder: Path,
    case: tuple[Path, tuple[str, ...]],
    scores: dict[str, Any],
    stock: dict[str, dict[str, Any]],
):
    """Likelihoods of answers within 1e-4, equal accuracies; text and rolling ones bit for bit."""
    tasks = make_tasks(folder / "tasks", *case, scoring="shared")
    assert tasks.scoring == "shared"
    shared = describe(tasks)
    for name, exact in scores.items():
        is_shared = tasks.members[list(scores).index(name)].scoring == "shared"
        assert is_shared is (name not in COMPUTED_BY_LM_EVAL)
        ours, theirs = shared[name]["requests"], stock_requests(stock[name])
        for (*_, responses), (*_, stock_responses) in zip(ours, theirs, strict=True):
            if not is_shared:
                assert responses == stock_responses
                continue
            for (nats, greedy), (stock_nats, stock_greedy) in zip(
                responses, stock_responses, strict=True
            ):
                assert greedy == stock_greedy, name
                assert nats == pytest.approx(stock_nats, abs=1e-4, rel=0), name
        for unit, items in exact["items"].items():
            found = shared[name]["items"][unit]
            if unit == "bits per byte":
                assert found["amount"] == pytest.approx(items["amount"], abs=1.5e-4), name
            else:
                assert found["amount"] == items["amount"], name
            assert found["scoring"] == ("shared" if is_shared else "exact")


def test_bits_are_those_of_the_right_answer(
    scores: dict[str, Any], stock: dict[str, dict[str, Any]]
):
    names = {"zero_shot", "shots_of_file", "string_labels", "several_targets"}
    for name in names & set(scores):
        items = scores[name]["items"]["bits per byte"]
        samples = sorted(stock[name]["samples"][name], key=lambda sample: sample["doc_id"])
        for sample, bits, size in zip(samples, items["amount"], items["size"], strict=True):
            target = sample["target"]
            target = target[0] if isinstance(target, list) else target
            choices = sample["doc"]["choices"]
            index = target if isinstance(target, int) else choices.index(target)
            assert bits == pytest.approx(-sample["resps"][index][0][0] / math.log(2), rel=1e-12)
            # lm-eval scores the space at the end of a context with the answer.
            spaces = "  " if name == "string_labels" else " "
            assert size == len(f"{spaces}{choices[index]}")


def test_samples_are_drawn_from_the_whole_file(tasks: LmEvalTasks):
    by_name = {member.spec.name: member.loaded.tasks[0] for member in tasks.members}
    for name in {"sampled", "sampled_shots"} & set(by_name):
        numbers = by_name[name].numbers
        assert len(numbers) == 7
        # The first seven of the twelve would miss the last labels.
        assert max(numbers) > 8


@pytest.mark.slow
def test_scores_do_not_depend_on_order_or_random_state(
    folder: Path, model: Path, scores: dict[str, Any]
):
    random.seed(5)
    np.random.seed(5)
    backwards = make_tasks(folder / "tasks", model, tuple(scores)[::-1])
    before = random.getstate()
    assert describe(backwards) == scores
    assert random.getstate() == before
    # A model that did not change gets the same scores again.
    assert describe(backwards) == scores


def test_a_group_may_name_tasks_of_lm_eval(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """With what it passes on to them, and as lm-eval itself reads both folders."""
    own = folder / "own"
    own.mkdir()
    shots = {"task": "shots_asked_for", "num_fewshot": 1}
    inner = {"group": "inner", "task": ["zero_shot", "group_by_task"], "target_delimiter": ": "}
    group = {"group": "mine", "task": [shots, inner, "rolling"], "description": "{{question}}\n"}
    (own / "mine.yaml").write_text(json.dumps(group))
    stock = TaskFolder(folder / "tasks", read_task_folder(folder / "tasks").entries, {}, True)
    monkeypatch.setattr(task_selection, "stock_tasks", lambda: stock)
    spec = MemberSpec(task="mine", path=str(own))
    tasks = MemberLoader(torch.device("cpu")).load(spec, str(own)).tasks
    manager = TaskManager(include_path=[str(stock.path), str(own)], include_defaults=False)
    theirs = manager.load("mine")["tasks"]
    assert [task.name for task in tasks] == list(theirs)
    assert len(theirs) == 5
    for task in tasks:
        other = theirs[task.name]
        other.set_config("num_fewshot", other.config.num_fewshot or 0)
        other.set_fewshot_seed(1234)
        other.build_all_requests()
        ours = [instance.args for requests in task.instances for instance in requests]
        assert ours == [instance.args for instance in other.instances]


@pytest.mark.slow
def test_the_tasks_of_lm_eval_are_those_that_it_finds_itself():
    theirs = TaskManager().task_index
    ours = stock_tasks().entries
    assert ours.keys() == theirs.keys()
    for name, entry in ours.items():
        other = theirs[name]
        assert entry.kind == other.kind.name.removeprefix("PY_").lower()
        assert entry.files[:1] == ((other.yaml_path,) if other.yaml_path else ())
        assert entry.kind != "tag" or set(entry.tasks) == other.tags


def test_what_has_no_effect_is_noted(tasks: LmEvalTasks):
    assert tasks.notes == [
        "shots_fixed_at_zero has no few-shot examples: its file states num_fewshot: 0, which "
        "lm-eval never overrides"
    ]


@pytest.mark.slow
def test_fresh_processes_score_the_same(folder: Path, model: Path, scores: dict[str, Any]):
    command = [sys.executable, "-m", "tests.lm_eval_suite", str(folder / "tasks"), str(model)]
    # Another number of threads divides products of matrices in another way.
    threads = str(torch.get_num_threads())
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        fresh = json.loads(done.stdout.splitlines()[-1])
        assert {name: fresh[name] for name in scores} == scores


@pytest.mark.slow
def test_two_ranks_score_what_one_process_does(
    folder: Path, case: tuple[Path, tuple[str, ...]], tmp_path: Path
):
    """Log-likelihoods, rolling ones and generated text; every pass waits for both ranks."""
    model, members = case
    for world_size in (1, 2):
        out = tmp_path / str(world_size)
        out.mkdir()
        arguments = (folder / "tasks", model, out, *members)
        done = torchrun(world_size, "-m", "tests.lm_eval_suite", *arguments)
        assert done.returncode == 0, done.stderr
    expected = json.loads((tmp_path / "1" / "rank-0.json").read_text())
    assert set(expected) == set(members)
    for rank in range(2):
        assert json.loads((tmp_path / "2" / f"rank-{rank}.json").read_text()) == expected


@pytest.mark.slow
def test_two_ranks_score_a_partitioned_model_as_one_process_does(folder: Path, tmp_path: Path):
    settings = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    bundle = write_bundle(tmp_path, deepspeed=settings)
    for world_size in (1, 2):
        done = torchrun(
            world_size,
            *("-m", "tests.partitioned_scores", bundle, folder / "tasks", tmp_path),
            *("zero_shot", "normalised", "rolling", "generated"),
        )
        assert done.returncode == 0, done.stderr
    first, *others = [
        json.loads((tmp_path / f"{name}.json").read_text())
        for name in ("0-of-1", "0-of-2", "1-of-2")
    ]
    assert set(first) == {"zero_shot", "normalised", "rolling", "generated"}
    assert others == [first, first]
