"""The main flow of a search: corpora, base, trials, front."""

import errno
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from sweepcp.config.experiment import Experiment
from sweepcp.corpora.identity import identify_inputs, identify_prepared
from sweepcp.corpora.repetition import check_epochs, matched_fraction
from sweepcp.corpora.stores import build_stores
from sweepcp.data.source_files import ResolvedSource
from sweepcp.errors import InvalidInput
from sweepcp.models.base import pin_base
from sweepcp.runs.run_folder import (
    EXPERIMENT_FILE,
    Run,
    RunIdentity,
    RunWriter,
    locked_run,
    read_run,
)
from sweepcp.runs.trial import check_environment
from sweepcp.scoring.spec import experiment_scoring_spec
from sweepcp.search.base_model import check_base, find_or_pretrain_base
from sweepcp.search.base_scores import BaseScoreCache, base_score_cache
from sweepcp.search.devices import TrialSlots, check_devices, no_gpu, resolve_devices
from sweepcp.search.readiness import check_readiness
from sweepcp.search.resume import start_or_resume, with_recorded_attention
from sweepcp.search.worker_io import WorkerSpec
from sweepcp.search.worker_python import worker_python
from sweepcp.util.garbage import no_garbage_collection
from sweepcp.util.gpus import Gpu, visible_gpus
from sweepcp.util.parallel import usable_cores
from sweepcp.util.progress import Progress

logger = logging.getLogger(__name__)


def run_search(
    experiment: Experiment,
    files: dict[str, ResolvedSource],
    out: Path,
    *,
    progress: Progress,
    address: str | None = None,
    retry_failed: bool = False,
) -> Run:
    """Run the missing trials of an experiment, and write its front.

    A search that was stopped, in whatever way, resumes.

    Args:
        experiment: What to search.
        files: The files of each source.
        out: The run folder.
        progress: Receives the progress of stages and trials.
        address: A Ray cluster; by default this machine.
        retry_failed: Whether trials that failed run again.

    Raises:
        InvalidInput: A source is planned, a trial needs more CPUs or GPU memory than there are,
            `out` holds another experiment or something that its scores depend on has changed, or
            another process writes the folder.
    """
    _refuse_planned_sources(experiment)
    if address is None:
        _check_cores(experiment)
        _report_devices(experiment, visible_gpus())
    experiment = experiment.model_copy(update={"base": pin_base(experiment.base)})
    inputs = identify_inputs(experiment, files)
    with locked_run(out) as writer:
        before = read_run(out) if (out / EXPERIMENT_FILE).exists() else None
        run = start_or_resume(writer, before, experiment, inputs)
        total = experiment.budget.trials
        kept = [trial for trial in run.trials if not (retry_failed and trial.status == "failed")]
        missing = total - sum(trial.number < total for trial in kept)
        progress.update("trials", done=len(run.trials), total=total)
        if run.trials:
            logger.info("%d trials are finished; %d left to run", len(kept), missing)
        if missing:
            _search_with_ray(
                writer,
                run,
                experiment,
                files,
                inputs,
                progress=progress,
                address=address,
                retry_failed=retry_failed,
            )
        run = read_run(out)
        writer.write_front(run.front)
        return run


def _search_with_ray(
    writer: RunWriter,
    run: Run,
    experiment: Experiment,
    files: dict[str, ResolvedSource],
    inputs: RunIdentity,
    *,
    progress: Progress,
    address: str | None,
    retry_failed: bool,
) -> None:
    """Connect to Ray, count what has room there, and prepare and run the missing trials."""
    with ExitStack() as stack:
        python = stack.enter_context(worker_python(experiment.budget, address))
        # It takes seconds to import, which a finished run need not wait for.
        with no_garbage_collection():
            from sweepcp.search.cluster import ray_cluster

        slots = stack.enter_context(ray_cluster(address, experiment.budget, python=python))
        if address is not None:
            _report_devices(experiment, slots.gpus)
        _check_base_device(run, slots)
        spec, tokens = prepare_worker(
            experiment, files, inputs.sources, slots=slots, progress=progress, address=address
        )
        prepared = identify_prepared(
            inputs,
            experiment,
            model=spec.model,
            stores=spec.stores,
            generated_tasks=spec.scoring.generated_tasks,
        )
        run = start_or_resume(writer, run, experiment, prepared)
        spec = with_recorded_attention(spec, run)
        _run_missing_trials(
            writer,
            run,
            spec,
            tokens,
            slots=slots,
            progress=progress,
            cache=base_score_cache(spec, prepared, slots, on_cluster=address is not None),
            retry_failed=retry_failed,
        )


def _refuse_planned_sources(experiment: Experiment) -> None:
    for source in experiment.sources:
        if source.planned_tokens is not None:
            raise InvalidInput(
                key=f"sources.{source.name}.planned_tokens",
                found=source.planned_tokens,
                rule="a source with documents, which a search reads; a planned one has none",
                fix="add its `files`, or view the experiment with `sweepcp plan`",
            )


def _check_cores(experiment: Experiment) -> None:
    """Raise `InvalidInput` if a trial has more threads than this process may use cores."""
    cores, threads = usable_cores(), experiment.budget.cpus_per_trial
    if threads > cores:
        raise InvalidInput(
            key="budget.cpus_per_trial",
            found=threads,
            rule=f"at most the {cores} CPUs that this process may use",
            fix="lower it, or give the process more CPUs (taskset, or the scheduler's options)",
        )


def _report_devices(experiment: Experiment, gpus: Sequence[Gpu]) -> None:
    """Log what the user should know about the devices of trials.

    Raises:
        InvalidInput: A trial needs a GPU that is not there, or cannot run on those that are.
    """
    notes = check_devices(experiment, gpus)
    share = resolve_devices(experiment.budget, gpus)
    if share and not gpus:
        raise no_gpu(share)
    for note in notes:
        logger.info("%s", note)


def _check_base_device(run: Run, slots: TrialSlots) -> None:
    """Raise `InvalidInput` if the base of a run was scored on another kind of device."""
    if run.base is None:
        return
    recorded = run.base.environment.get("device")
    if recorded == "cuda":
        fix = "resume where a GPU is visible, with budget.gpus_per_trial above 0"
    else:
        fix = "set budget.gpus_per_trial to 0"
    check_environment(
        {"device": slots.device},
        run.base.environment,
        where=run.path,
        fix=f"{fix}, or pass another --out",
    )


def _run_missing_trials(
    writer: RunWriter,
    run: Run,
    spec: WorkerSpec,
    tokens: Mapping[str, float],
    *,
    slots: TrialSlots,
    progress: Progress,
    cache: BaseScoreCache,
    retry_failed: bool = False,
) -> None:
    # They import libraries that a finished run need not wait for.
    with no_garbage_collection():
        from sweepcp.search.ledger import TrialLedger
        from sweepcp.search.ray_driver import run_trials
        from sweepcp.search.worker import make_trial_runner

    experiment = run.experiment
    budget = experiment.budget
    logger.info("starting workers for %d trials at a time", slots.concurrency)
    ledger = TrialLedger(
        writer,
        progress=progress,
        base=run.base,
        finished=run.trials,
        space=experiment.space,
        reference=experiment.choose.reference,
        make_recipe=partial(experiment.recipe_at, source_tokens=dict(tokens)),
        trials=budget.trials,
        retries=budget.retries,
        retry_failed=retry_failed,
        seed=experiment.seed,
        cache=cache,
    )
    make_runner = partial(make_trial_runner, spec, slots.concurrency)
    try:
        run_trials(ledger, make_runner, budget=budget, slots=slots)
    except InvalidInput:
        _check_stores_exist(spec)
        raise


def _check_stores_exist(spec: WorkerSpec) -> None:
    """Raise `FileNotFoundError` if a store was removed while workers used it.

    Nothing is wrong with it then: the same command builds it again.
    """
    for store in spec.stores:
        if not store.path.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(store.path))


def prepare_worker(
    experiment: Experiment,
    files: dict[str, ResolvedSource],
    fingerprints: dict[str, str],
    *,
    slots: TrialSlots,
    progress: Progress,
    address: str | None = None,
) -> tuple[WorkerSpec, dict[str, float]]:
    """Build or find the token stores, the base and the generated tasks.

    This process must be connected to Ray, in which the base is pretrained.

    Returns:
        What a worker needs, and the training tokens of each source.
    """
    check_readiness(experiment, may_fetch=True)
    check_base(experiment, fingerprints, device=slots.device)
    stores = build_stores(experiment, files, progress=progress, address=address)
    tokens = {name: float(store.tokens) for name, store in stores.items()}
    check_epochs(experiment, tokens)
    training = experiment.training
    scoring = experiment_scoring_spec(experiment, stores, scoring=experiment.suites.scoring)
    visible = []
    for name, store in stores.items():
        fraction = matched_fraction(experiment, name, tokens[name])
        visible.append(replace(store, fraction=fraction))
    spec = WorkerSpec(
        base=experiment.base,
        model=find_or_pretrain_base(
            experiment, fingerprints, stores, device=slots.device, progress=progress
        ),
        stores=tuple(visible),
        scoring=scoring,
        micro_batch=training.micro_batch,
        precision=training.precision,
        attention=training.attention,
        recompute=training.recompute,
        compile=training.compile,
        threads=experiment.budget.cpus_per_trial,
        device=slots.device,
        gpu_share=slots.gpu_share,
    )
    return spec, tokens
