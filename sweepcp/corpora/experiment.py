"""Loading of an experiment: everything that a search needs, checked before anything is written."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sweepcp.config.experiment import Experiment
from sweepcp.config.experiment_file import parse_experiment
from sweepcp.config.overrides import attributed_to_overrides
from sweepcp.config.source import Source
from sweepcp.config.suites import MemberSpec, Suites
from sweepcp.config.yaml_files import find_config_file
from sweepcp.data.path_patterns import file_identity
from sweepcp.data.source_files import ResolvedSource, resolve_source
from sweepcp.errors import InvalidInput, located
from sweepcp.models.base import max_sequence_length, resolve_base
from sweepcp.scoring.task_files import read_task_folder
from sweepcp.scoring.task_rules import checked_tasks
from sweepcp.util.paths import user_path

READING_FIELDS = ("field", "template", "unit", "filters", "exclude")
"""Fields of a source that decide which documents it reads from a file."""


def load_experiment(
    name: str, overrides: Sequence[str] = ()
) -> tuple[Experiment, dict[str, ResolvedSource]]:
    """Load an experiment and resolve its paths. Nothing is written, and no corpus is read.

    Args:
        name: The path of an experiment file, or the name of a shipped one.
        overrides: `a.b=value` with a YAML value.

    Returns:
        The experiment with absolute paths of its base and tasks, and source → its files.

    Raises:
        InvalidInput: The experiment, an override, or a file that they name is not valid.
    """
    path = find_config_file(name, kind="experiments", key="EXPERIMENT")
    experiment = parse_experiment(path, overrides)
    names = [source.name for source in experiment.sources]
    with attributed_to_overrides(overrides, names), located(path):
        return _resolve_paths(experiment, path.parent)


@contextmanager
def attributed_to_experiment(
    name: str, overrides: Sequence[str], experiment: Experiment
) -> Iterator[None]:
    """Name the experiment's file, or an override, in any `InvalidInput` that names no file.

    For what is found after loading, by code that does not know the file.

    Args:
        name: See `load_experiment`.
        overrides: See `load_experiment`.
        experiment: What was loaded from them.
    """
    try:
        yield
    except InvalidInput as error:
        if error.file:
            raise
        path = find_config_file(name, kind="experiments", key="EXPERIMENT")
        names = [source.name for source in experiment.sources]
        with attributed_to_overrides(overrides, names), located(path):
            raise


def _resolve_paths(
    experiment: Experiment, folder: Path
) -> tuple[Experiment, dict[str, ResolvedSource]]:
    base = resolve_base(experiment.base, folder)
    experiment = experiment.model_copy(update={"base": base})
    _check_sequence_lengths(experiment)
    files = {}
    for source in experiment.sources:
        with located(file="", key=f"sources.{source.name}"):
            files[source.name] = resolve_source(source, folder=folder)
    _check_shared_files(experiment, files)
    suites = _resolve_tasks(experiment.suites, folder)
    return experiment.model_copy(update={"suites": suites}), files


def _check_sequence_lengths(experiment: Experiment) -> None:
    """Check that the base model takes sequences as long as those of the training sections."""
    base = experiment.base
    limit = max_sequence_length(base)
    if limit is None:
        return
    lengths = {"training.seq_len": experiment.training.seq_len}
    if base.pretrain is not None:
        lengths["base.pretrain.training.seq_len"] = base.pretrain.training.seq_len
    for key, length in lengths.items():
        if length > limit:
            raise InvalidInput(
                key=key,
                found=length,
                rule=f"the base takes at most {limit} tokens",
                fix=f"use {limit} or less",
            )


def _check_shared_files(experiment: Experiment, files: dict[str, ResolvedSource]) -> None:
    """Check the sources that read the same file."""
    first_readers: dict[tuple[int, int], Source] = {}
    for source in experiment.sources:
        if source.python is not None:
            # One part of a module is its docstrings, the other its code: they share no text.
            continue
        paths = files[source.name].paths + files[source.name].held_out_paths
        for file in paths:
            other = first_readers.setdefault(file_identity(file), source)
            if other is not source:
                with located(file="", key=f"sources.{source.name}"):
                    _check_shared_file(file, source, other=other)


def _check_shared_file(file: Path, source: Source, *, other: Source) -> None:
    """Check that sources take different documents from a file, and hold out the same ones."""
    found = f"{file}, as {other.name} does"
    if source.held_out_files or other.held_out_files or source.held_out != other.held_out:
        raise InvalidInput(
            found=found,
            rule="sources that share a file hold out the same documents of it; otherwise one "
            "trains on what the other holds out",
            fix="give both the same `held_out`, and no held_out_files",
        )
    if all(getattr(source, name) == getattr(other, name) for name in READING_FIELDS):
        raise InvalidInput(
            found=found,
            rule="sources that share a file read different documents of it",
            fix="remove one, or give them different filters",
        )


def _resolve_tasks(suites: Suites, folder: Path) -> Suites:
    """Return the suites with absolute paths of task folders, whose content is checked."""
    members: dict[str, list[MemberSpec]] = {"domain": [], "general": []}
    for role, member in suites.members:
        if member.path is not None:
            with located(file="", key=f"suites.{role}"):
                member = _resolve_task(member, user_path(member.path, folder=folder))
        members[role].append(member)
    resolved = {role: tuple(of_role) for role, of_role in members.items()}
    return suites.model_copy(update=resolved)


def _resolve_task(member: MemberSpec, task_folder: Path) -> MemberSpec:
    task_folder = task_folder.resolve()
    if not task_folder.is_dir():
        raise InvalidInput(
            found=member.path,
            rule=f"an existing folder (looked for {task_folder})",
            fix="correct the path; it is relative to the folder of the experiment file",
        )
    checked_tasks(member, read_task_folder(task_folder), Path.cwd())
    return member.model_copy(update={"path": str(task_folder)})
