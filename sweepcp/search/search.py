"""The main flow of a search: corpora, base, trials, front."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweepcp.config.experiment import Experiment
from sweepcp.corpora.repetition import check_epochs, matched_fraction
from sweepcp.corpora.stores import build_stores
from sweepcp.data.source_files import ResolvedSource, source_fingerprint
from sweepcp.data.token_store import TokenStore
from sweepcp.errors import InvalidInput
from sweepcp.models.base import pretrained_path
from sweepcp.runs.run_folder import Run, RunWriter, locked_run, read_run
from sweepcp.scoring.spec import experiment_scoring_spec
from sweepcp.search.worker_io import WorkerSpec
from sweepcp.util.json_values import json_differences
from sweepcp.util.progress import Progress

if TYPE_CHECKING:  # imports torch
    from sweepcp.search.trial_runner import TrialRunner

logger = logging.getLogger(__name__)
CHANGEABLE_KEYS = (
    "budget.trials",
    "budget.concurrency",
    "budget.sustained_tflops",
    "budget.usd_per_hour",
)
"""Keys besides the rule of choice that may change when a search resumes: they affect no trial."""


def run_search(
    experiment: Experiment,
    files: dict[str, ResolvedSource],
    out: Path,
    *,
    progress: Progress,
    address: str | None = None,
) -> Run:
    """Run the missing trials of an experiment, and write its front.

    A search that was stopped, in whatever way, resumes.

    Args:
        experiment: What to search.
        files: The files of each source.
        out: The run folder.
        progress: Receives the progress of stages and trials.
        address: A Ray cluster; by default this machine.

    Raises:
        InvalidInput: A source is planned, `out` holds another experiment or its corpora have
            changed, or another process writes the folder.
    """
    _refuse_planned_sources(experiment)
    fingerprints = {s.name: source_fingerprint(s, files[s.name]) for s in experiment.sources}
    with locked_run(out) as writer:
        run = _start_or_resume(writer, experiment, fingerprints)
        total = experiment.budget.trials
        missing = total - sum(trial.number < total for trial in run.trials)
        progress.update("trials", done=len(run.trials), total=total)
        if run.trials:
            logger.info("%d trials are finished; %d left to run", len(run.trials), missing)
        if missing:
            spec, tokens = prepare_worker(
                experiment, files, fingerprints, progress=progress, address=address
            )
            _run_missing_trials(writer, run, spec, tokens, progress=progress, address=address)
        run = read_run(out)
        writer.write_front(run.front)
        return run


def _refuse_planned_sources(experiment: Experiment) -> None:
    for source in experiment.sources:
        if source.planned_tokens is not None:
            raise InvalidInput(
                file=experiment.name,
                key=f"sources.{source.name}.planned_tokens",
                found=source.planned_tokens,
                rule="a source with documents, which a search reads; a planned one has none",
                fix="add its `files`, or view the experiment with `sweepcp plan`",
            )


def _start_or_resume(
    writer: RunWriter, experiment: Experiment, fingerprints: dict[str, str]
) -> Run:
    """Start the run folder, or check that it holds the same experiment on the same corpora.

    A folder in which neither the base nor a trial was scored is started again.
    """
    if (writer.path / "experiment.json").exists():
        before = read_run(writer.path)
        changes = json_differences(
            before=_fixed_settings(before.experiment), after=_fixed_settings(experiment)
        )
        for name, fingerprint in fingerprints.items():
            if before.source_fingerprints.get(name) != fingerprint:
                changes.append(f"{name}: its files")
        if changes and (before.base is not None or before.trials):
            raise InvalidInput(
                file=writer.path,
                key="--out",
                found="; ".join(changes),
                rule="a run resumes with the experiment and the corpora that it started with",
                fix="pass another --out for the changed experiment, or undo the change",
            )
    writer.start(experiment, fingerprints)
    return read_run(writer.path)


def _fixed_settings(experiment: Experiment) -> dict[str, Any]:
    """Return the settings of an experiment that must not change when it resumes, as JSON."""
    settings = experiment.model_dump(mode="json")
    settings["choose"] = {"reference": settings["choose"]["reference"]}
    for key in CHANGEABLE_KEYS:
        section, _, name = key.partition(".")
        del settings[section][name]
    return settings


def _run_missing_trials(
    writer: RunWriter,
    run: Run,
    spec: WorkerSpec,
    tokens: Mapping[str, float],
    *,
    progress: Progress,
    address: str | None,
) -> None:
    # Ray and Optuna take seconds to import, which a finished run need not wait for.
    from sweepcp.search.ledger import TrialLedger
    from sweepcp.search.ray_driver import ray_cluster, run_trials, stop_on_signal

    experiment = run.experiment
    budget = experiment.budget
    with ray_cluster(address, budget) as concurrency, stop_on_signal():
        logger.info("starting workers for %d trials at a time", concurrency)
        ledger = TrialLedger(
            writer,
            progress=progress,
            base=run.base,
            finished=run.trials,
            space=experiment.space,
            make_recipe=partial(experiment.recipe_at, source_tokens=dict(tokens)),
            trials=budget.trials,
            seed=experiment.seed,
        )
        make_runner = partial(_make_trial_runner, spec)
        run_trials(ledger, make_runner, budget=budget, concurrency=concurrency)


def _make_trial_runner(spec: WorkerSpec) -> "TrialRunner":
    """Build a worker's runner. Runs in the worker, which imports torch; the driver need not."""
    from sweepcp.search.trial_runner import TrialRunner

    return TrialRunner(spec)


def prepare_worker(
    experiment: Experiment,
    files: dict[str, ResolvedSource],
    fingerprints: dict[str, str],
    *,
    progress: Progress,
    address: str | None = None,
) -> tuple[WorkerSpec, dict[str, float]]:
    """Build or find the token stores, the base and the generated tasks.

    Returns:
        What a worker needs, and the training tokens of each source.
    """
    stores = build_stores(experiment, files, progress=progress, address=address)
    tokens = {name: float(store.tokens) for name, store in stores.items()}
    check_epochs(experiment, tokens)
    training = experiment.training
    scoring = experiment_scoring_spec(experiment, stores)
    visible = []
    for name, store in stores.items():
        fraction = matched_fraction(experiment, name, tokens[name])
        visible.append(replace(store, fraction=fraction))
    spec = WorkerSpec(
        base=experiment.base,
        model=_find_or_pretrain_base(experiment, fingerprints, stores, progress=progress),
        stores=tuple(visible),
        scoring=scoring,
        micro_batch=training.micro_batch,
        precision=training.precision,
        threads=experiment.budget.cpus_per_trial,
    )
    return spec, tokens


def _find_or_pretrain_base(
    experiment: Experiment,
    fingerprints: dict[str, str],
    stores: dict[str, TokenStore],
    *,
    progress: Progress,
) -> str:
    """Return the base's folder or hub id; pretrain it first if it is not in the cache."""
    base = experiment.base
    if base.pretrain is None:
        return str(base.path or base.hub)
    path = pretrained_path(base, fingerprints)
    if not (path / "config.json").exists():
        from sweepcp.models.loading import load_tokenizer
        from sweepcp.training.pretraining import pretrain_base

        tokenizer = load_tokenizer(base)
        steps = base.pretrain.tokens // base.pretrain.training.batch_tokens
        logger.info("pretraining the base model: %d steps; it is cached for later runs", steps)
        for metrics in pretrain_base(
            base.pretrain, base.max_lr, path, list(stores.values()), tokenizer
        ):
            detail = f"pretraining, loss {metrics.loss:.2f}"
            progress.update("base", done=metrics.step, total=steps, detail=detail)
        progress.finish("base")
    return str(path)
