"""The main flow: texts, base, search, front."""

from collections import Counter
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sweepcp.base import BaseSpec, pretrained_path
from sweepcp.data.build import build_store
from sweepcp.data.encode import Encoder, byte_encoder
from sweepcp.data.sources import Found, fingerprint
from sweepcp.data.store import Store
from sweepcp.errors import BadInput
from sweepcp.experiment import Experiment, differences
from sweepcp.job import Job
from sweepcp.repetition import check_epochs, matched_part
from sweepcp.run import Run, RunWriter, load_run, lock
from sweepcp.search.watch import Watch
from sweepcp.suites import MIN_HELD_OUT, make_tasks

if TYPE_CHECKING:
    from sweepcp.bench import Bench

MAY_CHANGE = ("budget.trials", "budget.concurrency", "budget.sustained_tflops", "budget.usd_per_hour")
"""Keys that a continued search may give anew, besides the rule of choice: they change no trial."""


class Stages(Protocol):
    """Who looks on while texts and base are prepared."""

    def note(self, text: str) -> None: ...

    def stage(self, name: str, done: int, of: int, text: str) -> None: ...


class View(Stages, Watch, Protocol):
    """Who looks on, from the texts to the last trial."""

    def trials(self, finished: int, of: int) -> None: ...


def sweep(experiment: Experiment, files: dict[str, Found], out: Path, address: str | None, view: View) -> Run:
    """Run what is missing of an experiment's trials into the run folder `out`, and write its front.

    A search that was stopped, in whatever way, continues. Raises `BadInput` for planned sources, when `out` holds
    another experiment or its texts have changed, and when another process writes it.
    """
    for source in experiment.sources:
        if source.planned_tokens is not None:
            fix = "give its `files`, or look at the experiment with `sweepcp plan`"
            rule = "a search reads texts; a planned source has none"
            raise BadInput(experiment.name, f"sources.{source.name}.planned_tokens", source.planned_tokens, rule, fix)
    texts = {s.name: fingerprint(s, files[s.name]) for s in experiment.sources}
    with lock(out) as writer:
        begun = _begin(writer, experiment, texts)
        left = experiment.budget.trials - sum(t.number < experiment.budget.trials for t in begun.trials)
        view.trials(len(begun.trials), experiment.budget.trials)
        if left:
            _search(writer, begun, experiment, files, texts, address, view)
        run = load_run(out)
        writer.front(run.front)
        return run


def _begin(writer: RunWriter, experiment: Experiment, texts: dict[str, str]) -> Run:
    """Start the run folder, or check that it continues the same experiment on the same texts."""
    now = experiment.model_dump(mode="json")
    if (writer.path / "experiment.json").exists():
        before = load_run(writer.path)
        lasting = before.base is not None or before.trials
        changed = differences(_lasting(before.experiment), _lasting(now))
        changed += [f"{name}: its texts" for name in texts if before.texts.get(name) != texts[name]]
        if changed and lasting:
            fix = "name another --out for the new experiment, or undo the change"
            rule = "a run continues with the experiment that it began with"
            raise BadInput(writer.path, "--out", "; ".join(changed), rule, fix)
    writer.start(now, texts)
    return load_run(writer.path)


def _lasting(experiment: dict[str, Any]) -> dict[str, Any]:
    """The part of an experiment that may not change."""
    kept = experiment | {"choose": {"reference": experiment["choose"]["reference"]}}
    for key in MAY_CHANGE:
        section, _, name = key.partition(".")
        kept[section] = {k: v for k, v in kept[section].items() if k != name}
    return kept


def _search(
    writer: RunWriter,
    run: Run,
    experiment: Experiment,
    files: dict[str, Found],
    texts: dict[str, str],
    address: str | None,
    view: View,
) -> None:
    job, tokens = prepare(experiment, files, texts, view, address)

    from sweepcp.search.driver import Book, cluster, search, stop_on_signal

    with cluster(address, experiment.budget) as concurrency, stop_on_signal():
        book = Book(
            writer=writer,
            watch=view,
            base=run.base,
            finished=run.trials,
            space=experiment.space,
            recipe_at=partial(experiment.recipe, tokens=tokens),
            trials=experiment.budget.trials,
            seed=experiment.seed,
        )
        search(book, partial(_bench, job), experiment.budget, concurrency)


def _bench(job: Job) -> "Bench":
    """What a worker keeps in memory; torch is imported there, the driver may do without it."""
    from sweepcp.bench import Bench

    return Bench(job)


def prepare(
    experiment: Experiment, files: dict[str, Found], texts: dict[str, str], view: View, address: str | None = None
) -> tuple[Job, dict[str, float]]:
    """Build or find the token stores, the base and the made tasks; also the training tokens of each source."""
    spec = experiment.base
    stores = build_stores(experiment, files, view, address)
    tokens = {name: float(store.tokens) for name, store in stores.items()}
    check_epochs(experiment, tokens)
    made = make_tasks(experiment.suites, stores)
    model = _base(experiment, texts, list(stores.values()), view)
    matched = (replace(s, part=matched_part(experiment, s.source, tokens[s.source])) for s in stores.values())
    job = Job(
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


def build_stores(
    experiment: Experiment, files: dict[str, Found], view: "Stages", address: str | None = None
) -> dict[str, Store]:
    """The token stores of all sources but planned ones, built where they are missing, with enough text in each."""
    stores: dict[str, Store] = {}
    encoder = cache(partial(_encoder, experiment.base))
    for source in experiment.sources:
        if source.planned_tokens is None:
            name, found = source.name, files[source.name]
            show = partial(view.stage, "texts", text=f"reading {name}")
            stores[name] = build_store(source, found, experiment.base.tokenizer_id(), encoder, address, show)
            _check_texts(experiment, stores[name])
            for line in losses_of(stores[name], found):
                view.note(line)
    return stores


def losses_of(store: Store, found: Found) -> list[str]:
    """What was read of a source and did not become part of its store."""
    meta, name = store.meta, store.source
    lines = []
    if found.passed_over:
        endings = ", ".join(sorted({path.suffix or path.name for path in found.passed_over}))
        lines.append(f"{name}: {len(found.passed_over)} files passed over, of no kind that can be read ({endings})")
    left_out: Counter[str] = Counter()
    for reason, count in meta["left_out"].items():
        left_out["language" if reason.startswith("language ") else reason] += count
    if meta["near_duplicates"]:
        left_out["near-duplicate"] = meta["near_duplicates"]
    if left_out:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.most_common())
        lines.append(f"{name}: of {meta['records']:,} records, left out: {reasons}")
    if meta["bad"]:
        lines.append(f"{name}: {meta['bad']:,} unusable records skipped, the first: {'; '.join(meta['examples'])}")
    unused = [key for key, count in meta["used_keys"].items() if not count]
    if unused:
        lines.append(f"{name}: no record has {', '.join(unused)} of the template")
    return lines


def _check_texts(experiment: Experiment, store: Store) -> None:
    """Enough text to train on, and to hold out."""
    where, key = experiment.name, f"sources.{store.source}"
    longest = experiment.training.seq_len
    if experiment.base.pretrain and store.source in experiment.base.pretrain.mixture:
        longest = max(longest, experiment.base.pretrain.training.seq_len)
    if store.tokens <= longest:
        rule = f"more training tokens than one sequence has ({longest})"
        raise BadInput(where, key, f"{store.tokens} tokens", rule, "give it more text, or shorten training.seq_len")
    held_out = store.meta["held_out"]["documents"]
    if held_out < MIN_HELD_OUT and any(m.held_out == store.source for _, m in experiment.suites.members):
        rule = f"at least {MIN_HELD_OUT} held-out documents, which are halved for choice and report"
        fix = "give it more documents, or raise its `held_out`"
        raise BadInput(where, key, f"{held_out} held-out documents", rule, fix)


def _base(experiment: Experiment, texts: dict[str, str], stores: list[Store], view: View) -> str:
    """The base's folder or hub id; a base to be pretrained is made now unless it is in the cache."""
    spec = experiment.base
    if spec.pretrain is None:
        return str(spec.path or spec.hub)
    path = pretrained_path(spec, texts)
    if not (path / "config.json").exists():
        from sweepcp.models import load_tokenizer, pretrain

        steps = spec.pretrain.tokens // spec.pretrain.training.batch_tokens
        for row in pretrain(spec.pretrain, spec.max_lr, path, stores, load_tokenizer(spec)):
            view.stage("base", row.step, steps, f"pretraining, loss {row.loss:.2f}")
    return str(path)


def _encoder(base: BaseSpec) -> Encoder:
    """The base's tokenizer; `BadInput` when it has more tokens than the base has embeddings for."""
    if base.tokenizer == "bytes":  # without torch, which takes seconds to import
        encoder = byte_encoder()
    else:
        from sweepcp.models import load_encoder

        encoder = load_encoder(base)
    rows = (base.config() or {}).get("vocab_size", encoder.size)
    if encoder.size > rows:
        rule = f"at most the {rows:,} tokens that the model has embeddings for"
        fix = "use the model's own tokenizer, or give the model more embeddings (vocab_size)"
        raise BadInput(base.tokenizer, "the tokenizer", f"{encoder.size:,} tokens", rule, fix)
    return encoder
