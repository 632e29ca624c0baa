"""What `plan` and `search` find out before a store is built."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sweepcp.corpora.experiment import load_experiment
from sweepcp.corpora.task_files import task_fingerprint
from sweepcp.errors import InvalidInput
from sweepcp.search import cluster, readiness
from sweepcp.search.base_model import check_base
from sweepcp.search.readiness import check_readiness
from tests.unit.test_task_code import CONFIG, GENERATE, ITEM, write


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two sources, a task `quiz` and its data; also the working folder."""
    for name in ("dom", "gen"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "some words"}\n' * 20)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "items.jsonl").write_text((json.dumps(ITEM) + "\n") * 3)
    write(tmp_path / "tasks", CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def experiment(folder: Path, domain: list[dict[str, Any]], **changes: Any) -> Path:
    """Write an experiment whose general suite is held-out text."""
    source = {"role": "domain", "language": "en", "held_out": 0.4, "files": ["dom.jsonl"]}
    training = {"seq_len": 64, "batch_tokens": 128}
    llama = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32}
    llama |= {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64}
    pretrain = {
        "config": llama,
        "mixture": {"gen": 1.0},
        "tokens": 1280,
        "training": training,
    }
    content = {
        "name": "mine",
        "base": {"pretrain": pretrain, "max_lr": 1e-3},
        "sources": [
            source | {"name": "dom"},
            source | {"name": "gen", "role": "general", "files": ["gen.jsonl"]},
        ],
        "suites": {"domain": domain, "general": [{"held_out": "gen"}]},
        "space": "lr-mix",
        "training": training,
        "budget": {"trials": 2, "tokens": 1280},
        "choose": {"max_regression": 1.0},
    }
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(content | changes))
    return path


def check(folder: Path, domain: list[dict[str, Any]], *, may_fetch: bool = False) -> list[str]:
    path = experiment(folder, domain)
    return check_readiness(load_experiment(str(path))[0], may_fetch=may_fetch)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the work of the process of its own be done in this one."""
    monkeypatch.setattr(readiness, "call_in_child", lambda work, item: work(item))


QUIZ = {"task": "quiz", "path": "tasks"}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("domain", "found", "fix"),
    [
        ([{"task": "quizz", "path": "tasks"}], "quizz", "quiz"),
        ([{"task": "hellaswaq"}], "hellaswaq", "hellaswag"),
        ([{"task": "mmlu_sterm"}], "mmlu_sterm", "mmlu_stem"),
        ([{"task": "hellaswag", "path": "tasks"}], "hellaswag", "remove `path`"),
        ([{"task": "rouge", "path": "tasks"}], "bleu, chrf", "add such a metric"),
        ([{"task": "wmt16-en-de"}], "bleu, ter, chrf", "add such a metric"),
        ([{"task": "exact", "path": "tasks"}], "no member", "held-out text"),
        ([{"task": "lost", "path": "tasks"}], "nowhere.jsonl", "correct the path"),
        ([{"task": "gone", "path": "tasks"}], "./nowhere", "correct the path"),
        ([{"task": "typo", "path": "tasks"}], "doc_to_txt", "doc_to_text"),
        ([{"task": "empty", "path": "tasks"}], [], "list the tasks"),
        ([{"task": "loop", "path": "tasks"}], "loop > loop", "remove the group"),
        ([{"task": "near", "path": "tasks"}], "quiz_", "quiz"),
        ([{"task": "stock", "path": "tasks"}], "arc_eazy", "arc_easy"),
        ([QUIZ | {"few_shot": 9}], 9, "few_shot"),
    ],
)
def test_what_a_search_would_end_with_is_found_before(
    folder: Path, domain: list[dict[str, Any]], found: object, fix: str
):
    tasks = folder / "tasks"
    bleu = [{"metric": "bleu"}, {"metric": "chrf"}]
    lost = {"data_files": {"test": "nowhere.jsonl"}}
    variants: dict[str, dict[str, Any]] = {
        "rouge": GENERATE | {"metric_list": bleu},
        "exact": GENERATE,
        "lost": CONFIG | {"dataset_kwargs": lost},
        "gone": CONFIG | {"dataset_path": "./nowhere"},
        "typo": CONFIG | {"doc_to_txt": "q"},
    }
    for name, config in variants.items():
        write(tasks, config | {"task": name}, name=f"{name}.yaml")
    write(tasks, {"group": "empty", "task": []}, name="empty.yaml")
    write(tasks, {"group": "loop", "task": ["loop"]}, name="loop.yaml")
    write(tasks, {"group": "near", "task": ["quiz_"]}, name="near.yaml")
    write(tasks, {"group": "stock", "task": ["quiz", "arc_eazy"]}, name="stock.yaml")
    write(tasks, CONFIG | {"fewshot_split": "test"})
    with pytest.raises(InvalidInput) as refused:
        check(folder, domain)
    error = refused.value
    if isinstance(found, str):
        assert found in str(error.found)
    else:
        assert error.found == found
    assert fix in error.fix
    assert error.file or error.key == "suites.domain"
    assert error.key


@pytest.mark.usefixtures("here")
def test_answers_longer_than_the_context_are_found(folder: Path):
    item = ITEM | {"choices": ["red", "blue" * 20]}
    (folder / "items.jsonl").write_text(json.dumps(item) + "\n")
    with pytest.raises(InvalidInput, match="at most 64 tokens"):
        check(folder, [QUIZ])


@pytest.mark.usefixtures("here")
def test_contexts_that_are_cut_are_noted(folder: Path):
    (folder / "items.jsonl").write_text(json.dumps(ITEM | {"q": "w" * 70}) + "\n")
    (note,) = check(folder, [QUIZ])
    assert note.startswith("1 of 1 items of quiz lose the start of their context")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("written", "place"),
    [
        ("items.jsonl", "."),
        ("items.jsonl", "tasks"),
        ("../items.jsonl", "."),
        ("it*.jsonl", "."),
        ("**/it*.jsonl", "tasks"),
    ],
)
def test_data_files_are_relative_to_the_working_folder_or_the_task_file(
    folder: Path, written: str, place: str
):
    item = ITEM | {"q": "w" * 70}
    (folder / "items.jsonl").unlink()
    (folder / place / "items.jsonl").write_text(json.dumps(item) + "\n")
    write(folder / "tasks", CONFIG | {"dataset_kwargs": {"data_files": {"test": written}}})
    (note,) = check(folder, [QUIZ])
    assert note.startswith("1 of 1 items")


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"model_type": "llamaa"}, "base.pretrain.config"),
        ({"model_type": "bert_generation_x"}, "base.pretrain.config"),
        ({"num_attention_heads": 0}, "base.pretrain.config"),
        ({"hidden_size": "wide"}, "base.pretrain.config"),
        ({"bos_token_id": 7}, "base.pretrain.config.bos_token_id"),
        ({"bos_token_id": 256, "pad_token_id": None}, ""),
    ],
)
def test_a_base_that_cannot_be_built_is_found_before_stores(
    folder: Path, config: dict[str, Any], key: str, monkeypatch: pytest.MonkeyPatch
):
    experiment(folder, [{"held_out": "dom"}])
    overrides = [f"base.pretrain.config.{name}={json.dumps(v)}" for name, v in config.items()]
    made = load_experiment("mine.yaml", overrides)[0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(cluster, "run_in_task", lambda work, **_: work())
    if not key:
        check_base(made, {"gen": "x"}, device="cpu")
        return
    with pytest.raises(InvalidInput) as refused:
        check_base(made, {"gen": "x"}, device="cpu")
    assert refused.value.key.startswith(key)


@pytest.mark.usefixtures("here")
def test_data_files_may_be_in_a_folder_with_brackets(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "run[v2]").mkdir()
    monkeypatch.chdir(folder / "run[v2]")
    item = ITEM | {"q": "w" * 70}
    Path("items.jsonl").write_text(json.dumps(item) + "\n")
    before = task_fingerprint(folder / "tasks", "quiz")
    (note,) = check(folder, [QUIZ])
    assert note.startswith("1 of 1 items")
    Path("items.jsonl").write_text(json.dumps(item | {"label": 0}) + "\n")
    assert task_fingerprint(folder / "tasks", "quiz") != before


@pytest.mark.usefixtures("here")
def test_the_working_folder_comes_first(folder: Path):
    (folder / "tasks" / "items.jsonl").write_text("no JSON")
    assert check(folder, [QUIZ]) == []


def test_data_of_a_hub_are_not_checked_by_a_plan(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(readiness, "call_in_child", lambda *_: pytest.fail("a process began"))
    (note,) = check(folder, [{"task": "hellaswag"}, {"task": "ai2_arc"}])
    assert note == "not checked: hellaswag, ai2_arc; a search fetches their data"


@pytest.mark.usefixtures("here")
def test_data_that_cannot_be_fetched_end_a_search(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    write(folder / "tasks", CONFIG | {"dataset_path": "org/no-such-data", "dataset_kwargs": {}})
    assert check(folder, [QUIZ]) == ["not checked: quiz; a search fetches their data"]
    with pytest.raises(InvalidInput, match="org/no-such-data"):
        check(folder, [QUIZ], may_fetch=True)


@pytest.mark.usefixtures("here")
def test_groups_may_name_tasks_that_are_installed_with_lm_eval(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    group = {"group": "both", "task": ["quiz", "hellaswag", {"task": "piqa", "num_fewshot": 2}]}
    write(folder / "tasks", group, name="both.yaml")
    both = {"task": "both", "path": "tasks"}
    assert check(folder, [both]) == ["not checked: both; a search fetches their data"]


def test_a_plan_of_generated_tasks_needs_no_process(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(readiness, "call_in_child", lambda *_: pytest.fail("a process began"))
    monkeypatch.setattr(readiness, "stock_tasks", lambda: pytest.fail("lm-eval was indexed"))
    assert check(folder, [{"held_out": "dom"}, {"cloze": "dom", "items": 8}]) == []


def test_a_plan_imports_neither_torch_nor_lm_eval(folder: Path):
    """What needs them is left to a process of its own, which is another test's."""
    experiment(folder, [QUIZ])
    script = (
        "import sys; from sweepcp.cli.entry import main; from sweepcp.search import readiness\n"
        "readiness.call_in_child = lambda *_: ['rehearsed']\n"
        "sys.argv = ['sweepcp', 'plan', 'mine.yaml']\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print(sorted({'torch', 'ray', 'lm_eval', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert "warning: rehearsed" in done.stdout


@pytest.mark.slow
def test_a_process_of_its_own_rehearses_the_tasks(folder: Path):
    experiment(folder, [QUIZ])
    command = [sys.executable, "-m", "sweepcp", "plan", "mine.yaml"]
    (folder / "items.jsonl").write_text(json.dumps(ITEM | {"q": "w" * 70}) + "\n")
    # Python would import it in place of its own in a process that is started here.
    (folder / "multiprocessing.py").write_text("raise ValueError('code of the working folder')")
    done = subprocess.run(command, capture_output=True, text=True)
    assert "warning: 1 of 1 items of quiz lose the start" in done.stdout
    assert (done.returncode, done.stderr) == (0, "")
    (folder / "items.jsonl").write_text(json.dumps(ITEM | {"label": 2}) + "\n")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: task quiz: item 0.doc_to_target\n  found: 2\n")
    assert "Warning" not in done.stderr
