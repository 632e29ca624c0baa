"""What task files may say: settings that run no code, data that is there, metrics that count.

A setting that is not known to be data needs `allow_code: true`.
"""

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sweepcp.config.suites import MemberSpec
from sweepcp.errors import InvalidInput, located
from sweepcp.scoring.scorecard import Unit
from sweepcp.scoring.task_data import is_remote, with_local_data
from sweepcp.scoring.task_files import TaskEntry, TaskFolder, TaskFunction, walk
from sweepcp.scoring.task_selection import (
    GROUP_KEYS,
    LeafTask,
    TaskSelection,
    raw_settings,
    select_tasks,
)

TASK_KEYS = (
    "task",
    "task_alias",
    "tag",
    "task_list",
    "class",
    "custom_dataset",
    "dataset_path",
    "dataset_name",
    "dataset_kwargs",
    "training_split",
    "validation_split",
    "test_split",
    "fewshot_split",
    "process_docs",
    "doc_to_text",
    "doc_to_target",
    "doc_to_image",
    "doc_to_audio",
    "unsafe_code",
    "doc_to_choice",
    "process_results",
    "use_prompt",
    "description",
    "target_delimiter",
    "fewshot_delimiter",
    "fewshot_config",
    "num_fewshot",
    "metric_list",
    "output_type",
    "generation_kwargs",
    "repeats",
    "filter_list",
    "should_decontaminate",
    "doc_to_decontamination_query",
    "gen_prefix",
    "metadata",
)
"""Settings of a task in lm-eval."""
METRICS = (
    "acc",
    "acc_all",
    "acc_bytes",
    "acc_mutual_info",
    "acc_norm",
    "bits_per_byte",
    "bleu",
    "brier_score",
    "bypass",
    "byte_perplexity",
    "chrf",
    "chrf++",
    "exact_match",
    "f1",
    "likelihood",
    "mcc",
    "perplexity",
    "ter",
    "word_perplexity",
)
"""Metrics of lm-eval. It looks for others in `evaluate`, which runs Python of a folder or a hub."""
FILTERS = (
    "format_span",
    "lowercase",
    "majority_vote",
    "map",
    "multi_choice_regex",
    "regex",
    "regex_pos",
    "remove_whitespace",
    "take_first",
    "take_first_k",
    "uppercase",
)
"""Filters of lm-eval other than `custom`."""
OTHER_BUILDERS = (
    "audiofolder",
    "cache",
    "conll",
    "eval",
    "fasta",
    "fastq",
    "genbank",
    "generator",
    "harbor",
    "hdf5",
    "iceberg",
    "imagefolder",
    "lance",
    "meshfolder",
    "mmcif",
    "niftifolder",
    "pandas",
    "pdb",
    "pdffolder",
    "spark",
    "sql",
    "tsfile",
    "videofolder",
    "vortex",
    "webdataset",
)
"""Values of `dataset_path` with which `datasets` does more than read text or tables: it connects to
a database, or unpickles a file."""
DATASET_OPTIONS = (
    "data_files",
    "data_dir",
    "revision",
    "verification_mode",
    "download_mode",
    "streaming",
    "field",
    "encoding",
    "delimiter",
    "sep",
    "quotechar",
    "header",
    "names",
    "column_names",
    "skiprows",
    "columns",
    "keep_linebreaks",
    "sample_by",
    "trust_remote_code",
)
"""Options of `load_dataset`. Since version 4 it never runs code of data sets."""
GENERATION_OPTIONS = (
    "until",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "num_beams",
    "early_stopping",
    "length_penalty",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "max_gen_toks",
    "max_new_tokens",
    "max_tokens",
    "max_completion_tokens",
    "max_length",
    "min_new_tokens",
)
"""Options of generation. Others of transformers load code from a hub, such as `custom_generate`."""
CHANGEABLE = (
    *GROUP_KEYS,
    "tag",
    "task_alias",
    "task_list",
    "num_fewshot",
    "description",
    "target_delimiter",
    "fewshot_delimiter",
)
"""What a group may change in a task of lm-eval that has functions: some of them evaluate data."""
PROTOCOLS = ("http", "https", "hf")
PROMPTS = "qa-basic:"
"""The prompts that lm-eval holds itself; it reads others from files and packages."""
RECORDED_METRICS: dict[Unit, tuple[str, ...]] = {
    "bits per byte": ("bits_per_byte", "byte_perplexity"),
    "accuracy": ("acc", "exact_match"),
    "normalised accuracy": ("acc_norm",),
}
"""Metrics of lm-eval that are recorded under a unit; the first that a task measures counts."""
LIKELIHOODS = ("multiple_choice", "loglikelihood", "loglikelihood_rolling")
"""Kinds of task whose right answers have bits."""


def checked_tasks(member: MemberSpec, folder: TaskFolder, working_folder: Path) -> TaskSelection:
    """Return what lm-eval is to build for a member of a suite.

    Args:
        member: Its `task`, or the task that was generated for it, is one of the folder.
        folder: A folder of task files, or those that are installed with lm-eval.
        working_folder: Where relative paths of data files start from, see `with_local_data`.

    Raises:
        InvalidInput: There is no such task, a setting of it needs `allow_code` and the member does
            not have it, a data file is missing, or nothing that is recorded would be measured.
    """
    selection = select_tasks(member.name, folder)
    for name, entry in selection.entries.items():
        check_settings(entry, allow_code=member.allow_code)
        selection.entries[name] = with_local_data(entry, working_folder)
    for leaf in selection.leaves:
        check_stock_task(leaf, allow_code=member.allow_code)
        check_metrics(leaf)
    return selection


def check_settings(entry: TaskEntry, *, allow_code: bool) -> None:
    """Check that lm-eval knows the settings of a file, and that none of them runs code.

    Raises:
        InvalidInput: A setting is not lm-eval's, or needs `allow_code`.
    """
    if not entry.files:
        return
    with located(entry.files[0]):
        for settings in raw_settings(entry):
            _check_keys(settings, entry)
            if not allow_code:
                _check_harmless(settings)


def check_stock_task(leaf: LeafTask, *, allow_code: bool) -> None:
    """Check that a task that is installed with lm-eval runs no code but its own.

    Raises:
        InvalidInput: It runs what the model writes, or a group gives its functions other data.
    """
    if allow_code or not leaf.is_stock:
        return
    with located(leaf.file):
        if leaf.config.get("unsafe_code"):
            raise _runs_code(f"{leaf.name}.unsafe_code", leaf.config["unsafe_code"])
        if any(isinstance(value, TaskFunction) for value in walk(leaf.config)):
            for key in leaf.changes:
                _check_one_of(f"{leaf.name}.{key}", key, CHANGEABLE)


def _check_keys(settings: dict[str, Any], entry: TaskEntry) -> None:
    known = {*TASK_KEYS, *GROUP_KEYS}
    for key in settings:
        # What is handed to a class of Python may have any name.
        if key not in known and "class" not in entry.config:
            near = get_close_matches(str(key), known, n=1)
            fix = f"write {near[0]}" if near else "remove it"
            rule = "a setting of a task in lm-eval"
            raise InvalidInput(key=str(key), found=key, rule=rule, fix=fix)


def _check_harmless(settings: dict[str, Any]) -> None:
    for key, value in settings.items():
        # The mappings in a group's list are settings of their own.
        values = [] if key == "task" and isinstance(value, list) else walk(value)
        for inner in values:
            if isinstance(inner, TaskFunction):
                raise _runs_code(key, f"!function {inner.name}")
    for key in ("class", "custom_dataset", "unsafe_code"):
        if settings.get(key):
            raise _runs_code(key, settings[key])
    for key, check in _CHECKS.items():
        if settings.get(key) is not None:
            check(key, settings[key])


def _runs_code(key: str, found: object) -> InvalidInput:
    return InvalidInput(
        key=key,
        found=found,
        rule="settings that are known to run no Python code, unless `allow_code` is set",
        fix="read the code; if it is safe to run, set `allow_code: true`",
    )


def _mappings(key: str, value: Any) -> Iterator[dict[str, Any]]:
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, dict):
            fix = "correct the list"
            raise InvalidInput(key=key, found=item, rule="a list of mappings", fix=fix)
        yield item


def _check_one_of(key: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise _runs_code(key, value)


def _check_metrics(key: str, value: Any) -> None:
    for metric in _mappings(key, value):
        _check_one_of(f"{key}.metric", metric.get("metric"), METRICS)
        if metric.get("hf_evaluate"):
            raise _runs_code(f"{key}.hf_evaluate", metric["hf_evaluate"])


def _check_filters(key: str, value: Any) -> None:
    for pipeline in _mappings(key, value):
        for step in _mappings(f"{key}.filter", pipeline.get("filter")):
            _check_one_of(f"{key}.filter.function", step.get("function"), FILTERS)


def _check_options(key: str, value: Any, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, dict):
        fix = "write each option in a line of its own, as `name: value`"
        raise InvalidInput(key=key, found=value, rule="a mapping of options", fix=fix)
    for name in value:
        if name not in allowed:
            raise _runs_code(f"{key}.{name}", value[name])


def _check_dataset_path(key: str, value: Any) -> None:
    is_script = isinstance(value, str) and value.endswith(".py")
    if not isinstance(value, str) or value in OTHER_BUILDERS or is_script or "::" in value:
        raise _runs_code(key, value)


def _check_dataset_options(key: str, value: Any) -> None:
    _check_options(key, value, DATASET_OPTIONS)
    for name in (*walk(value.get("data_files")), value.get("data_dir")):
        if isinstance(name, str) and "::" in name:  # a file system within another one
            raise _runs_code(f"{key}.data_files", name)
        if isinstance(name, str) and is_remote(name):
            protocol, _, _ = name.partition("://")
            _check_one_of(f"{key}.data_files", protocol, PROTOCOLS)


def _check_generation(key: str, value: Any) -> None:
    _check_options(key, value, GENERATION_OPTIONS)


def _check_prompt(key: str, value: Any) -> None:
    if not (isinstance(value, str) and value.startswith(PROMPTS)):
        raise _runs_code(key, value)


_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "metric_list": _check_metrics,
    "filter_list": _check_filters,
    "dataset_path": _check_dataset_path,
    "dataset_kwargs": _check_dataset_options,
    "generation_kwargs": _check_generation,
    "use_prompt": _check_prompt,
}


def check_metrics(leaf: LeafTask) -> None:
    """Check that a task measures something that is recorded, as far as its file says.

    Raises:
        InvalidInput: It generates text, and measures it by other metrics only.
    """
    metrics = metrics_of(leaf)
    if metrics is None or is_continuous(leaf) is not False:
        return
    if not any(metric in names for names in RECORDED_METRICS.values() for metric in metrics):
        raise unsupported_metrics(leaf.file, f"{leaf.name}.metric_list", metrics)


def metrics_of(leaf: LeafTask) -> list[str] | None:
    """Return the metrics that a task names, or None if Python decides them."""
    config = leaf.config
    if config.get("class") or config.get("process_results"):
        return None
    if config.get("metric_list") is None:
        return ["exact_match"]
    metrics = [metric.get("metric") for metric in _mappings("metric_list", config["metric_list"])]
    return None if any(isinstance(m, TaskFunction) for m in metrics) else list(map(str, metrics))


def is_continuous(leaf: LeafTask) -> bool | None:
    """Return whether a task's right answers have bits; None if Python decides."""
    if leaf.config.get("class"):
        return None
    return leaf.config.get("output_type", "generate_until") in LIKELIHOODS


def unsupported_metrics(file: object, key: str, metrics: list[str]) -> InvalidInput:
    """Return the error of a task that measures nothing that is recorded."""
    recorded = [metric for names in RECORDED_METRICS.values() for metric in names]
    return InvalidInput(
        file=file,
        key=key,
        found=", ".join(metrics),
        rule=f"answers with a likelihood, or one of {', '.join(recorded)}",
        fix="add such a metric to the task's file, or remove the task from the suites",
    )
