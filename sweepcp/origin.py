"""What a run was made of, found again: its experiment, token stores and base."""

from pathlib import Path

from sweepcp.base import pretrained_path
from sweepcp.data.store import Store, store_path
from sweepcp.errors import BadInput
from sweepcp.experiment import Experiment
from sweepcp.job import Job
from sweepcp.model_files import read_config, shards_of
from sweepcp.run import Run
from sweepcp.schema import validate
from sweepcp.scorecard import Items
from sweepcp.suites import make_tasks

CACHE = "set $SWEEPCP_CACHE to where the search had it, or "


def experiment_of(run: Run) -> Experiment:
    """The experiment as it was asked for; `BadInput` when it is of another version of sweepcp."""
    return validate(Experiment, run.experiment, run.path / "experiment.json")


def stores_of(run: Run, experiment: Experiment) -> dict[str, Store]:
    """Source → its token store in the cache; `BadInput` for one that is gone."""
    found = {}
    for source in experiment.sources:
        path = store_path(run.texts[source.name], experiment.base.tokenizer_id())
        if not (path / "store.json").is_file():
            rule = f"a token store in the cache ({path})"
            fix = f"{CACHE}run `sweepcp data build` on the experiment"
            raise BadInput(run.path, f"the store of {source.name}", "missing", rule, fix)
        found[source.name] = Store(path, source.name)
    return found


def base_of(run: Run, experiment: Experiment) -> str:
    """The folder or hub id of the base; `BadInput` for a pretrained one that is gone."""
    spec = experiment.base
    if spec.pretrain is None:
        return str(spec.path or spec.hub)
    path = pretrained_path(spec, run.texts)
    if not (path / "config.json").is_file():
        rule = f"a model in the cache ({path})"
        fix = f"{CACHE}search on with a larger --trials, which pretrains it again"
        raise BadInput(run.path, "the pretrained base", "missing", rule, fix)
    return str(path)


def base_items(run: Run) -> list[Items]:
    """The base's items; `BadInput` for a run that was stopped before the base was scored."""
    if run.base is None:
        rule = "the base, scored at step 0"
        raise BadInput(run.path, "base.json", "missing", rule, "go on with the search first")
    return list(run.base.items)


def job_of(run: Run, model: Path) -> Job:
    """What scores another model, in a folder, on the run's suites with that model's own tokenizer."""
    shards_of(model, "sweepcp score", "MODEL")
    read_config(model, "sweepcp score", "MODEL")
    experiment = experiment_of(run)
    stores = stores_of(run, experiment)
    return Job(
        base=experiment.base.model_copy(update={"path": str(model), "hub": None, "pretrain": None, "revision": None}),
        model=str(model),
        stores=tuple(stores.values()),
        languages={s.name: s.language for s in experiment.sources},
        suites=experiment.suites,
        made_tasks=make_tasks(experiment.suites, stores),
        seq_len=experiment.training.seq_len,
        micro_batch=experiment.training.micro_batch,
        precision=experiment.training.precision,
        threads=experiment.budget.cpus_per_trial,
    )
