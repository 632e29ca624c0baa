"""The start of a run folder, and what must be unchanged for a search to resume in it."""

from dataclasses import replace
from typing import Any, cast, get_args

from sweepcp.config.experiment import Experiment
from sweepcp.config.types import Attention, Role
from sweepcp.corpora.identity import identity_changes
from sweepcp.errors import InvalidInput
from sweepcp.runs.run_folder import Run, RunIdentity, RunWriter, read_run
from sweepcp.runs.trial import check_environment, numeric_versions
from sweepcp.search.worker_io import WorkerSpec
from sweepcp.util.json_values import json_differences

CHANGEABLE_KEYS = (
    "base.parameters",
    "base.shape",
    "budget.trials",
    "budget.concurrency",
    "budget.gpus_per_trial",
    "budget.retries",
    "budget.sustained_tflops",
    "budget.usd_per_hour",
    "suites.scoring",
    "training.micro_batch",
    "training.recompute",
)
"""Keys besides the rule of choice that may change when a search resumes: they affect no trial by
more than rounding. The share of a GPU may not change the device, nor `suites.scoring` how answers
are computed, if scores depend on it: see `check_environment`."""


def start_or_resume(
    writer: RunWriter, before: Run | None, experiment: Experiment, identity: RunIdentity
) -> Run:
    """Start the run folder, or check that it holds the same experiment on the same inputs.

    A folder in which neither the base nor a trial was scored is started again.

    Args:
        writer: The run folder.
        before: Its content; None if it holds no run.
        experiment: What to search.
        identity: Hashes of what the experiment names, as far as they are known.
    """
    if before is None or (before.base is None and not before.trials):
        writer.start(experiment, identity)
        return read_run(writer.path)
    _check_unchanged(before, experiment, identity)
    # What is built later is not known yet; its hashes are kept.
    identity = RunIdentity(
        sources=identity.sources,
        base=before.identity.base | identity.base,
        tasks=before.identity.tasks | identity.tasks,
        stores=before.identity.stores | identity.stores,
    )
    writer.start(experiment, identity)
    return replace(before, experiment=experiment, identity=identity, rule=experiment.choose)


def _check_unchanged(before: Run, experiment: Experiment, identity: RunIdentity) -> None:
    """Raise `InvalidInput` if something has changed on which the scores of a run depend."""
    changes = json_differences(
        before=_fixed_settings(before.experiment), after=_fixed_settings(experiment)
    )
    changes += identity_changes(before.identity, identity)
    if changes:
        raise InvalidInput(
            file=before.path,
            key="--out",
            found="; ".join(changes),
            rule="a run resumes with the experiment, the corpora, the base and the tasks that it "
            "started with; where they lie does not matter",
            fix="pass another --out for the changed experiment, or undo the change",
        )
    if before.base is not None:
        check_environment(
            numeric_versions(),
            before.base.environment,
            where=before.path,
            fix="install the versions that the run started with, or pass another --out",
        )
        _check_scoring(before, experiment)


def _check_scoring(before: Run, experiment: Experiment) -> None:
    """Raise `InvalidInput` if the answers of tasks were computed in another mode."""
    assert before.base is not None
    recorded, _, _ = before.base.environment.get("scoring", "exact").partition(";")
    if any(member.held_out is None for _, member in experiment.suites.members):
        check_environment(
            {"scoring": experiment.suites.scoring},
            {"scoring": recorded},
            where=before.path,
            fix=f"pass --set suites.scoring={recorded}, or another --out",
        )


def with_recorded_attention(spec: WorkerSpec, run: Run) -> WorkerSpec:
    """Have workers on CPUs compute with what `auto` chose when the run began.

    Versions before attention document by document chose sdpa for sequences of every length.
    """
    if run.base is None or spec.device != "cpu" or spec.attention != "auto":
        return spec
    recorded = run.base.environment.get("attention", "sdpa")
    return replace(spec, attention=cast("Attention", recorded))


def _fixed_settings(experiment: Experiment) -> dict[str, Any]:
    """Return the settings of an experiment that must not change when it resumes, as JSON."""
    settings = experiment.model_dump(mode="json")
    settings["choose"] = {"reference": settings["choose"]["reference"]}
    for key in CHANGEABLE_KEYS:
        section, _, name = key.partition(".")
        del settings[section][name]
    # Paths may change: what they lead to is part of the identity.
    _drop_paths(settings["base"], "path")
    _drop_paths(settings["base"]["pretrain"] or {}, "tokenizer")
    for source in settings["sources"]:
        _drop_paths(source, "files", "held_out_files", "exclude")
        _drop_paths(source["saved"] or {}, "path")
    for role in get_args(Role):
        for member in settings["suites"][role]:
            _drop_paths(member, "path")
    return settings


def _drop_paths(settings: dict[str, Any], *keys: str) -> None:
    """Leave of each path only whether there is one."""
    for key in keys:
        if key in settings:
            settings[key] = settings[key] is not None
