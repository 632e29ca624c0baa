"""What would stop a search after its token stores are built, found before it begins.

Names, metrics and files are checked in this process. What only lm-eval and transformers can tell,
such as prompts that cannot be built and answers longer than the model's context, is found by a
process of its own, which builds tasks, tokenizer and model as a worker does, without weights.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sweepcp.config.base_model import BaseSpec
from sweepcp.config.experiment import Experiment
from sweepcp.config.suites import MemberSpec
from sweepcp.config.types import Role
from sweepcp.corpora.permissions import remember_permissions
from sweepcp.errors import InvalidInput, located
from sweepcp.models.base import BYTES
from sweepcp.scoring.task_data import BUILDERS, is_remote
from sweepcp.scoring.task_files import TaskFolder, read_task_folder, stock_tasks, walk
from sweepcp.scoring.task_rules import checked_tasks, is_continuous
from sweepcp.scoring.task_selection import LeafTask
from sweepcp.util.parallel import call_in_child

if TYPE_CHECKING:  # imports torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class _Rehearsal:
    """What a process of its own builds as a worker does."""

    base: BaseSpec
    loads_base: bool
    """Whether tokenizer and configuration of the base are loaded, too."""
    members: tuple[tuple[Role, str, MemberSpec], ...]
    """Role, language and spec of members that are lm-eval tasks."""


def check_readiness(experiment: Experiment, *, may_fetch: bool) -> list[str]:
    """Check suites, tokenizer and base of an experiment as far as that needs no token store.

    Args:
        experiment: With absolute paths.
        may_fetch: Whether data of a hub may be fetched. If not, what needs it is not checked.

    Returns:
        What the user should know: contexts that are cut, and what was not checked.

    Raises:
        InvalidInput: A search would end with it.
    """
    tasks = _check_suites(experiment)
    remember_permissions(experiment.suites)
    rehearsed = [name for name, leaves in tasks.items() if may_fetch or all(map(_is_here, leaves))]
    notes = []
    if skipped := [name for name in tasks if name not in rehearsed]:
        notes.append(f"not checked: {', '.join(skipped)}; a search fetches their data")
    base = experiment.base
    is_here = base.hub is None and (base.tokenizer == BYTES or Path(base.tokenizer).is_dir())
    members = tuple(
        (role, member.language or "en", member)
        for role, member in experiment.suites.members
        if member.name in rehearsed
    )
    # A search loads tokenizer and base itself before it builds a store.
    if members or (is_here and base.tokenizer != BYTES and not may_fetch):
        work = _Rehearsal(base, may_fetch or is_here, members)
        found = call_in_child(_rehearse_safely, work)
        if isinstance(found, InvalidInput):
            raise found
        notes += found
    return notes


def _check_suites(experiment: Experiment) -> dict[str, list[LeafTask]]:
    """Check the names, metrics and files of the lm-eval members; return the tasks of each."""
    tasks: dict[str, list[LeafTask]] = {}
    continuous: dict[Role, bool] = {"domain": False, "general": False}
    for role, member in experiment.suites.members:
        if member.task is None:
            continuous[role] = True
            continue
        with located("", f"suites.{role}"):
            leaves = checked_tasks(member, _task_folder(member), Path.cwd()).leaves
        continuous[role] |= any(is_continuous(leaf) is not False for leaf in leaves)
        tasks[member.name] = leaves
    for role, has_bits in continuous.items():
        if not has_bits:
            raise InvalidInput(
                key=f"suites.{role}",
                found="no member that is measured in bits per byte",
                rule="a continuous member in each suite, which its scalar is computed from",
                fix="add held-out text (`held_out: SOURCE`), or a task with answers to choose from",
            )
    return tasks


def _task_folder(member: MemberSpec) -> TaskFolder:
    return read_task_folder(Path(member.path)) if member.path else stock_tasks()


def _is_here(leaf: LeafTask) -> bool:
    """Return whether a task reads files of this machine only."""
    path, options = leaf.config.get("dataset_path"), leaf.config.get("dataset_kwargs") or {}
    if path not in BUILDERS:
        return isinstance(path, str) and Path(path).is_absolute()
    return not any(isinstance(name, str) and is_remote(name) for name in walk(options))


def _rehearse_safely(work: _Rehearsal) -> list[str] | InvalidInput:
    # A process that raises is killed, and Python then reports the semaphores of its libraries.
    try:
        return _rehearse(work)
    except InvalidInput as error:
        return error


def _rehearse(work: _Rehearsal) -> list[str]:
    """Build what a worker builds before its first trial; return the notes of the tasks."""
    import torch

    from sweepcp.models.encoder import load_encoder
    from sweepcp.models.loading import load_tokenizer
    from sweepcp.scoring.lm_eval_loading import MemberLoader
    from sweepcp.scoring.lm_eval_tasks import LmEvalTasks

    if not work.loads_base:
        loader = MemberLoader(torch.device("cpu"), Path.cwd())
        loaded = [loader.load(member, str(member.path or "")) for _, _, member in work.members]
        return [note for member in loaded for note in member.notes]
    load_encoder(work.base)
    tokenizer = load_tokenizer(work.base)
    model = _model_without_weights(work.base, tokenizer)
    tasks = LmEvalTasks(
        work.members,
        model,
        tokenizer,
        generated_tasks=None,
        precision="auto",
        working_folder=Path.cwd(),
    )
    return [*tasks.notes, *_note_of_dimensions(work.base)]


def _note_of_dimensions(base: BaseSpec) -> list[str]:
    """Return a note if a full run cannot start from the base."""
    from sweepcp.models.dimensions import read_dimensions

    try:
        if base.path is not None:
            read_dimensions(Path(base.path))
    except InvalidInput as error:
        return [f"`sweepcp promote` cannot take the base ({error.key}: {error.rule})"]
    return []


def _model_without_weights(
    base: BaseSpec, tokenizer: "PreTrainedTokenizerBase"
) -> "PreTrainedModel":
    """Build the model that trials begin with, on the meta device."""
    from sweepcp.models.architecture import empty_model, read_model_config
    from sweepcp.models.loading import check_model_files
    from sweepcp.training.pretraining import model_config_of

    if base.pretrain is not None:
        with located("", "base.pretrain.config"):
            return empty_model(model_config_of(base.pretrain, tokenizer))
    if base.hub is not None:
        from huggingface_hub import hf_hub_download

        file = hf_hub_download(base.hub, "config.json", revision=base.revision)
        return empty_model(read_model_config(Path(file).parent))
    check_model_files(Path(str(base.path)))
    return empty_model(read_model_config(Path(str(base.path))))
