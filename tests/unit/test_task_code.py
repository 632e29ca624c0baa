"""Task files run no Python unless that is allowed, in whatever way they name it.

Each case would write the file RAN if it ran; lm-eval itself runs most of them.
"""

import importlib.util
import json
import os
import pickle
import py_compile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
import torch
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
from lm_eval.api.registry import filter_registry, metric_registry
from lm_eval.config.group import GroupConfig
from lm_eval.config.task import TaskConfig

from sweepcp.config.suites import MemberSpec
from sweepcp.errors import InvalidInput
from sweepcp.scoring import lm_eval_loading, task_rules
from sweepcp.scoring.lm_eval_loading import MemberLoader
from sweepcp.scoring.task_data import BUILDERS
from sweepcp.scoring.task_files import MAX_DEPTH, read_task_folder, stock_tasks
from sweepcp.scoring.task_rules import checked_tasks
from sweepcp.scoring.task_selection import GROUP_KEYS

STOCK = Path(lm_eval.tasks.__file__).parent
ITEM = {"q": "Which?", "choices": ["red", "blue"], "label": 1, "answer": "blue"}
CONFIG = {
    "task": "quiz",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "items.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "q",
    "doc_to_choice": "choices",
    "doc_to_target": "label",
    "metric_list": [{"metric": "acc"}],
}
GENERATE = CONFIG | {
    "output_type": "generate_until",
    "doc_to_choice": None,
    "doc_to_target": "answer",
    "metric_list": [{"metric": "exact_match"}],
}
CODE = """
from pathlib import Path
def run(*args, **kwargs):
    Path({marker!r}).write_text("ran")
    return args[0] if args else None
run()
"""
METRIC = """
import evaluate
from pathlib import Path
Path({marker!r}).write_text("ran")
class Metric(evaluate.Metric): pass
"""
ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ lipsum.__globals__['os'].system('touch RAN') }}",
    "{{ cycler.__init__.__globals__.os.system('touch RAN') }}",
    "{{ (q|attr('__class__')).__mro__ }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(q) }}",
    "{{ self.__init__.__globals__.__builtins__.open('RAN', 'w') }}",
    "{% for c in [].__class__.__base__.__subclasses__() %}{{ c }}{% endfor %}",
)
"""Templates that lead from a value to any Python."""


class _Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def write(folder: Path, config: Any, name: str = "quiz.yaml", encoding: str = "utf-8") -> None:
    """Write a task file: settings, or its text."""
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / name).write_bytes(text.encode(encoding))


def with_tag(tag: str, head: str = "") -> str:
    """Return a task file in which `process_docs` has a tag."""
    body = json.dumps(CONFIG)[:-1]
    return f"{head}{body}, \"process_docs\": {tag} 'utils.run'}}\n"


def include(folder: Path, name: str) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(with_tag("!function"))
    (path.parent / "utils.py").write_text((folder / "utils.py").read_text())
    write(folder, {"task": "quiz", "include": name})


def chained_include(folder: Path) -> None:
    include(folder, "_last")
    (folder / "_first").write_text("include: [_last]\n")
    write(folder, {"task": "quiz", "include": ["_first"]})


def absolute_include(folder: Path) -> None:
    outside = folder.parent / "outside"
    include(folder, str(outside / "template"))


def linked_file(folder: Path) -> None:
    write(folder, with_tag("!function"), name="elsewhere")
    (folder / "quiz.yaml").symlink_to(folder / "elsewhere")


def metric_folder(folder: Path, name: str) -> Path:
    module = folder / name / f"{name}.py"
    module.parent.mkdir()
    module.write_text(METRIC.format(marker=str(folder / "RAN")))
    return module.parent


def metric_by_path(folder: Path) -> None:
    path = str(metric_folder(folder, "mine"))
    write(folder, GENERATE | {"metric_list": [{"metric": path}, {"metric": "exact_match"}]})


def metric_by_name(folder: Path) -> None:
    metric_folder(folder, "mine")
    write(folder, GENERATE | {"metric_list": [{"metric": "mine"}, {"metric": "exact_match"}]})


def metric_of_evaluate(folder: Path) -> None:
    metric_folder(folder, "exact_match")
    write(folder, GENERATE | {"metric_list": [{"metric": "exact_match", "hf_evaluate": True}]})


def pickled_data(folder: Path) -> None:
    (folder / "items.pkl").write_bytes(pickle.dumps(_Evil(folder / "RAN")))
    data = {"data_files": {"test": str(folder / "items.pkl")}}
    write(folder, CONFIG | {"dataset_path": "pandas", "dataset_kwargs": data})


def data_set_script(folder: Path) -> None:
    (folder / "script.py").write_text((folder / "utils.py").read_text())
    write(folder, CONFIG | {"dataset_path": str(folder / "script.py"), "dataset_kwargs": {}})


def inline_task(folder: Path) -> None:
    inner = with_tag("!function").replace('"quiz"', '"inner"').strip()
    write(folder, f"group: quiz\ntask: [{inner}]\n")


def nested_group(folder: Path) -> None:
    inner = with_tag("!function").replace('"quiz"', '"inner"').strip()
    write(folder, f"group: quiz\ntask: [{{group: g, task: [{inner}]}}]\n")


def group_of_files(folder: Path) -> None:
    write(folder, with_tag("!function").replace('"quiz"', '"other"'), name="other.yaml")
    write(folder, {"group": "quiz", "task": ["other"]})


def tag_of_files(folder: Path) -> None:
    content = with_tag("!function").replace('"quiz"', '"other"')
    write(folder, content.replace("{", '{"tag": "quiz", ', 1), name="other.yaml")


def settings_for_all(folder: Path) -> None:
    write(folder, CONFIG | {"task": "other"}, name="other.yaml")
    write(folder, "group: quiz\ntask: [other]\nprocess_docs: !function utils.run\n")


def function(key: str, config: Any = None) -> Callable[[Path], None]:
    def lay(folder: Path) -> None:
        body = json.dumps((CONFIG if config is None else config) | {key: "@"})
        write(folder, body.replace('"@"', "!function utils.run"))

    return lay


def nested_function(key: str, value: Any) -> Callable[[Path], None]:
    def lay(folder: Path) -> None:
        body = json.dumps(GENERATE | {key: value})
        write(folder, body.replace('"@"', "!function utils.run"))

    return lay


def settings(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: write(folder, GENERATE | changes)


def text(content: str, encoding: str = "utf-8") -> Callable[[Path], None]:
    return lambda folder: write(folder, content, encoding=encoding)


WAYS: dict[str, Callable[[Path], None]] = {
    "plain": text(with_tag("!function")),
    "tag handle": text(with_tag("!t!ction", "%TAG !t! !fun\n---\n")),
    "primary handle": text(with_tag("!ction", "%TAG ! !fun\n---\n")),
    "verbatim tag": text(with_tag("!<!function>")),
    "escaped tag": text(with_tag("!f%75nction")),
    "python object": text(with_tag("!!python/object/apply:os.system")),
    "python name": text(with_tag("!!python/name:os.system")),
    "UTF-16": text(with_tag("!function"), "utf-16"),
    "UTF-16 big-endian": text("\ufeff" + with_tag("!function"), "utf-16-be"),
    "included without ending": lambda folder: include(folder, "_default_template_yaml"),
    "included from a folder": lambda folder: include(folder, "shared/base.yml"),
    "included from above": lambda folder: include(folder, "../above"),
    "included through another": chained_include,
    "included by absolute path": absolute_include,
    "a link": linked_file,
    "stock file included": lambda folder: write(
        folder, {"task": "quiz", "include": str(STOCK / "hellaswag" / "hellaswag.yaml")}
    ),
    "class": function("class", {"task": "quiz"}),
    "custom_dataset": function("custom_dataset"),
    "process_docs": function("process_docs"),
    "process_results": function("process_results"),
    "doc_to_text": function("doc_to_text"),
    "doc_to_target": function("doc_to_target"),
    "doc_to_choice": function("doc_to_choice"),
    "doc_to_image": function("doc_to_image"),
    "metadata": function("metadata"),
    "few-shot samples": nested_function("fewshot_config", {"samples": "@"}),
    "few-shot sampler": nested_function("fewshot_config", {"sampler": "@"}),
    "metric": nested_function("metric_list", [{"metric": "@"}]),
    "aggregation": nested_function("metric_list", [{"metric": "exact_match", "aggregation": "@"}]),
    "filter": nested_function(
        "filter_list", [{"name": "f", "filter": [{"function": "custom", "filter_fn": "@"}]}]
    ),
    "metric in a folder": metric_by_path,
    "metric by name": metric_by_name,
    "metric of evaluate": metric_of_evaluate,
    "pickled data": pickled_data,
    "data set script": data_set_script,
    "database": settings(dataset_path="sql", dataset_kwargs={"con": "sqlite://"}),
    "chained file system": settings(dataset_kwargs={"data_files": "reference::x.json"}),
    "file system": settings(dataset_kwargs={"data_files": "reference://x"}),
    "custom generation": settings(
        generation_kwargs={"custom_generate": "./mine", "trust_remote_code": True}
    ),
    "assistant": settings(generation_kwargs={"assistant_model": "org/name"}),
    "prompt file": settings(use_prompt="prompts.yaml:mine"),
    "prompt package": settings(use_prompt="promptsource:mine"),
    "unsafe_code": settings(unsafe_code=True),
    "inline task": inline_task,
    "nested group": nested_group,
    "task of a group": group_of_files,
    "task of a tag": tag_of_files,
    "settings of a group": settings_for_all,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of tasks, which is also the working folder."""
    path = tmp_path / "tasks"
    path.mkdir()
    (path / "utils.py").write_text(CODE.format(marker=str(path / "RAN")))
    (path / "items.jsonl").write_text(json.dumps(ITEM) + "\n" + json.dumps(ITEM) + "\n")
    monkeypatch.chdir(path)
    return path


def load(folder: Path, *, allow_code: bool = False) -> Any:
    member = MemberSpec(task="quiz", path=str(folder), allow_code=allow_code)
    return MemberLoader(torch.device("cpu"), folder).load(member, str(folder))


@pytest.mark.parametrize("way", WAYS)
def test_no_code_of_task_files_runs(folder: Path, way: str):
    WAYS[way](folder)
    with pytest.raises(InvalidInput):
        load(folder)
    assert not (folder / "RAN").exists()


@pytest.mark.parametrize("way", ["plain", "tag handle", "verbatim tag", "escaped tag", "UTF-16"])
def test_code_that_is_allowed_runs(folder: Path, way: str):
    WAYS[way](folder)
    load(folder, allow_code=True)
    assert (folder / "RAN").exists()


def test_only_the_source_of_code_that_is_allowed_runs(folder: Path):
    """Python prefers compiled code beside a module, and need not compare it with the source."""
    hidden = folder / "hidden.py"
    (folder / "utils.py").rename(hidden)
    source = folder / "utils.py"
    source.write_text("def run(documents):\n    return documents\n")
    compiled = importlib.util.cache_from_source(str(source))
    py_compile.compile(
        str(hidden), compiled, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )
    write(folder, with_tag("!function"))
    assert len(load(folder, allow_code=True).tasks) == 1
    assert not (folder / "RAN").exists()


@pytest.mark.parametrize("template", ESCAPES)
@pytest.mark.parametrize(
    "key", ["doc_to_text", "doc_to_target", "doc_to_choice", "description", "gen_prefix"]
)
def test_templates_are_rendered_in_a_sandbox(folder: Path, key: str, template: str):
    write(folder, CONFIG | {key: template})
    with pytest.raises(InvalidInput):
        load(folder)
    assert not (folder / "RAN").exists()


def test_templates_of_examples_are_rendered_in_the_sandbox(folder: Path):
    shots = {"split": "test", "doc_to_text": ESCAPES[1]}
    write(folder, CONFIG | {"fewshot_config": shots, "num_fewshot": 1})
    with pytest.raises(InvalidInput):
        load(folder)
    assert not (folder / "RAN").exists()


def test_templates_in_the_data_are_text(folder: Path):
    question = "{{ 6 * 7 }} " + ESCAPES[1]
    item = ITEM | {"q": question, "choices": ["{{ 1 }}", "{{ q }}"]}
    (folder / "items.jsonl").write_text(json.dumps(item) + "\n")
    write(folder, CONFIG | {"description": "{{q}}", "doc_to_text": "{{q}}"})
    (task,) = load(folder).tasks
    assert task.instances[0][1].args == (question + question, " {{ q }}")


def test_a_path_is_no_name_of_a_task(folder: Path):
    """lm-eval also loads a task by the path of its file."""
    write(folder, with_tag("!function"))
    for spec in (
        MemberSpec(task=str(folder / "quiz.yaml")),
        MemberSpec(task=str(folder / "quiz.yaml"), path=str(folder)),
    ):
        with pytest.raises(InvalidInput, match="a task, tag or group"):
            MemberLoader(torch.device("cpu")).load(spec, str(spec.path or ""))
    assert not (folder / "RAN").exists()


@pytest.mark.parametrize("allow_code", [False, True])
def test_tasks_of_lm_eval_find_no_metric_in_the_working_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, allow_code: bool
):
    """`evaluate.load("rouge")`, which some call, runs `rouge/rouge.py` if there is such a file."""
    folders = []
    build = lm_eval_loading._task_manager

    def task_manager(selection: Any) -> Any:
        folders.append(Path.cwd())
        return build(selection)

    monkeypatch.setattr(lm_eval_loading, "_task_manager", task_manager)
    write(folder, CONFIG)
    member = MemberSpec(task="quiz", path=str(folder), allow_code=allow_code)
    assert len(MemberLoader(torch.device("cpu")).load(member, str(folder)).tasks) == 1
    assert folders == [folder if allow_code else Path("/")]
    assert Path.cwd() == folder


def test_functions_of_lm_eval_get_no_other_data(folder: Path):
    """Some of them evaluate what they read, or hand it to a shell."""
    changes = {"task": "hellaswag", "dataset_path": "json"}
    write(folder, {"group": "quiz", "task": [changes | {"num_fewshot": 2}]})
    with pytest.raises(InvalidInput, match=r"hellaswag\.dataset_path") as refused:
        checked_tasks(MemberSpec(task="quiz", path=str(folder)), read_task_folder(folder), folder)
    assert "allow_code" in refused.value.rule


def test_tasks_that_run_what_the_model_writes_need_permission():
    member = MemberSpec(task="humaneval")
    with pytest.raises(InvalidInput, match=r"humaneval\.unsafe_code"):
        checked_tasks(member, stock_tasks(), Path())
    allowed = member.model_copy(update={"allow_code": True})
    assert len(checked_tasks(allowed, stock_tasks(), Path()).leaves) == 1


def test_files_that_are_not_asked_for_need_no_permission(folder: Path):
    write(folder, with_tag("!function").replace('"quiz"', '"other"'), name="other.yaml")
    write(folder, CONFIG)
    assert len(load(folder).tasks) == 1
    assert not (folder / "RAN").exists()


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        "{a: " * (MAX_DEPTH + 1) + "1" + "}" * (MAX_DEPTH + 1),
        "task: quiz\nmetadata: &a [*a]\n",
        "task: quiz\nmetadata: [&a0 [x, x], "
        + ", ".join(f"&a{i + 1} [*a{i}, *a{i}]" for i in range(40))
        + "]\n",
        'task: !!int ""\n',
        "task: 2024-99-99\n",
        "? [a, b]\n: c\n",
        "include: quiz.yaml\ntask: quiz\n",
        'include: "\\0"\ntask: quiz\n',
        "",
    ],
    ids=range(10),
)
def test_files_that_cannot_be_read_are_no_tasks(folder: Path, content: str):
    write(folder, content)
    read = read_task_folder(folder)
    assert not read.entries or read.entries.keys() == {"2024-99-99"}
    assert read.unread
    with pytest.raises(InvalidInput, match=r"quiz\.yaml"):
        checked_tasks(MemberSpec(task="quiz", path=str(folder)), read, folder)


def test_no_file_system_is_reached_through_one_that_is_allowed(folder: Path):
    data = {"data_files": {"test": ["https://example.org/x::reference://y"]}}
    write(folder, CONFIG | {"dataset_kwargs": data})
    with pytest.raises(InvalidInput, match="known to run no Python code"):
        load(folder)


def test_an_option_that_has_no_effect_any_more_needs_no_permission(folder: Path):
    """Hundreds of the task files that people copy have it."""
    options = {"data_files": {"test": "items.jsonl"}, "trust_remote_code": True}
    write(folder, CONFIG | {"dataset_kwargs": options})
    assert len(load(folder).tasks) == 1


@pytest.mark.parametrize("key", ["dataset_kwargs", "generation_kwargs"])
@pytest.mark.parametrize("value", [[{"until": "x"}], ["x"], "x", 5])
def test_options_are_a_mapping(folder: Path, key: str, value: Any):
    write(folder, GENERATE | {key: value})
    with pytest.raises(InvalidInput, match="a mapping of options"):
        load(folder)


@pytest.mark.parametrize("tag", [5, {"a": 1}, [["a"], 5], True])
def test_a_tag_that_is_no_name_is_none(folder: Path, tag: Any):
    write(folder, CONFIG | {"tag": tag})
    assert read_task_folder(folder).entries.keys() == {"quiz"}


def test_what_is_known_of_lm_eval_and_datasets_is_what_is_installed():
    """Otherwise a setting that runs code may be taken for another, or a good one is refused."""
    assert set(task_rules.TASK_KEYS) == {*TaskConfig.__dataclass_fields__, "class", "task_list"}
    assert set(GROUP_KEYS) == set(GroupConfig.__dataclass_fields__)
    assert set(task_rules.METRICS) == set(metric_registry.keys())
    assert {*task_rules.FILTERS, "custom"} == set(filter_registry.keys())
    builders = {*BUILDERS, *task_rules.OTHER_BUILDERS}
    assert set(_PACKAGED_DATASETS_MODULES) <= builders


def test_a_task_file_that_is_a_named_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "t.yaml").write_text("include: pipe\ntask: t\n")
    with pytest.raises(InvalidInput, match="a named pipe"):
        checked_tasks(MemberSpec(task="t"), read_task_folder(tmp_path), tmp_path)
