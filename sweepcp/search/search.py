"""The main flow: texts, base, search, front."""

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
from sweepcp.scoring.generated_tasks import generate_tasks
from sweepcp.search.worker_spec import WorkerSpec
from sweepcp.util.json_values import json_differences
from sweepcp.util.progress import Progress

if TYPE_CHECKING:
    from sweepcp.search.trial_runner import TrialRunner


CHANGEABLE_KEYS = (
    "budget.trials",
    "budget.concurrency",
    "budget.sustained_tflops",
    "budget.usd_per_hour",
)
"""Keys that a continued search may give anew, besides the rule of choice: they change no trial."""


def run_search(
    experiment: Experiment,
    files: dict[str, ResolvedSource],
    out: Path,
    address: str | None,
    view: Progress,
) -> Run:
    """Run what is missing of an experiment's trials into the run folder `out`, and write its front.

    A search that was stopped, in whatever way, continues. Raises `BadInput` for planned sources, when `out` holds
    another experiment or its texts have changed, and when another process writes it.
    """
    for source in experiment.sources:
        if source.planned_tokens is not None:
            fix = "give its `files`, or look at the experiment with `sweepcp plan`"
            rule = "a search reads texts; a planned source has none"
            raise InvalidInput(
                file=experiment.name,
                key=f"sources.{source.name}.planned_tokens",
                found=source.planned_tokens,
                rule=rule,
                fix=fix,
            )
    texts = {s.name: source_fingerprint(s, files[s.name]) for s in experiment.sources}
    with locked_run(out) as writer:
        begun = _start_or_resume(writer, experiment, texts)
        left = experiment.budget.trials - sum(
            t.number < experiment.budget.trials for t in begun.trials
        )
        view.trials(len(begun.trials), experiment.budget.trials)
        if left:
            _run_missing_trials(writer, begun, experiment, files, texts, address, view)
        run = read_run(out)
        writer.front(run.front)
        return run


def _start_or_resume(writer: RunWriter, experiment: Experiment, texts: dict[str, str]) -> Run:
    """Start the run folder, or check that it continues the same experiment on the same texts."""
    now = experiment.model_dump(mode="json")
    if (writer.path / "experiment.json").exists():
        before = read_run(writer.path)
        lasting = before.base is not None or before.trials
        changed = json_differences(_fixed_settings(before.experiment), _fixed_settings(now))
        changed += [f"{name}: its texts" for name in texts if before.texts.get(name) != texts[name]]
        if changed and lasting:
            fix = "name another --out for the new experiment, or undo the change"
            rule = "a run continues with the experiment that it began with"
            raise InvalidInput(
                file=writer.path, key="--out", found="; ".join(changed), rule=rule, fix=fix
            )
    writer.start(now, texts)
    return read_run(writer.path)


def _fixed_settings(experiment: dict[str, Any]) -> dict[str, Any]:
    """The part of an experiment that may not change."""
    kept = experiment | {"choose": {"reference": experiment["choose"]["reference"]}}
    for key in CHANGEABLE_KEYS:
        section, _, name = key.partition(".")
        kept[section] = {k: v for k, v in kept[section].items() if k != name}
    return kept


def _run_missing_trials(
    writer: RunWriter,
    run: Run,
    experiment: Experiment,
    files: dict[str, ResolvedSource],
    texts: dict[str, str],
    address: str | None,
    view: Progress,
) -> None:
    job, tokens = prepare_worker(experiment, files, texts, view, address)

    from sweepcp.search.ledger import TrialLedger
    from sweepcp.search.ray_driver import ray_cluster, run_trials, stop_on_signal

    with ray_cluster(address, experiment.budget) as concurrency, stop_on_signal():
        book = TrialLedger(
            writer=writer,
            watch=view,
            base=run.base,
            finished=run.trials,
            space=experiment.space,
            recipe_at=partial(experiment.recipe, tokens=tokens),
            trials=experiment.budget.trials,
            seed=experiment.seed,
        )
        run_trials(book, partial(_make_trial_runner, job), experiment.budget, concurrency)


def _make_trial_runner(job: WorkerSpec) -> "TrialRunner":
    """What a worker keeps in memory; torch is imported there, the driver may do without it."""
    from sweepcp.search.trial_runner import TrialRunner

    return TrialRunner(job)


def prepare_worker(
    experiment: Experiment,
    files: dict[str, ResolvedSource],
    texts: dict[str, str],
    view: Progress,
    address: str | None = None,
) -> tuple[WorkerSpec, dict[str, float]]:
    """Build or find the token stores, the base and the made tasks; also the training tokens of each source."""
    spec = experiment.base
    stores = build_stores(experiment, files, view, address)
    tokens = {name: float(store.tokens) for name, store in stores.items()}
    check_epochs(experiment, tokens)
    made = generate_tasks(experiment.suites, stores)
    model = _find_or_pretrain_base(experiment, texts, list(stores.values()), view)
    matched = (
        replace(s, part=matched_fraction(experiment, s.source, tokens[s.source]))
        for s in stores.values()
    )
    job = WorkerSpec(
        base=spec,
        model=model,
        stores=tuple(matched),
        languages={s.name: s.language for s in experiment.sources},
        suites=experiment.suites,
        made_tasks=made,
        seq_len=experiment.training.seq_len,
        micro_batch=experiment.training.micro_batch,
        precision=experiment.training.precision,
        threads=experiment.budget.cpus_per_trial,
    )
    return job, tokens


def _find_or_pretrain_base(
    experiment: Experiment, texts: dict[str, str], stores: list[TokenStore], view: Progress
) -> str:
    """The base's folder or hub id; a base to be pretrained is made now unless it is in the cache."""
    spec = experiment.base
    if spec.pretrain is None:
        return str(spec.path or spec.hub)
    path = pretrained_path(spec, texts)
    if not (path / "config.json").exists():
        from sweepcp.models.loading import load_tokenizer
        from sweepcp.training.pretraining import pretrain_base

        steps = spec.pretrain.tokens // spec.pretrain.training.batch_tokens
        for row in pretrain_base(spec.pretrain, spec.max_lr, path, stores, load_tokenizer(spec)):
            view.stage("base", row.step, steps, f"pretraining, loss {row.loss:.2f}")
    return str(path)
