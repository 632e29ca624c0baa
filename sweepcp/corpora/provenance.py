"""What a run was made of, found again: its experiment, token stores and base."""

from pathlib import Path

from sweepcp.config.experiment import Experiment
from sweepcp.config.validation import validate
from sweepcp.data.token_store import TokenStore, store_path
from sweepcp.errors import InvalidInput
from sweepcp.models.base import pretrained_path
from sweepcp.models.files import read_config, read_shards
from sweepcp.runs.run_folder import Run
from sweepcp.scoring.generated_tasks import generate_tasks
from sweepcp.scoring.scorecard import ItemScores
from sweepcp.search.worker_spec import WorkerSpec

CACHE = "set $SWEEPCP_CACHE to where the search had it, or "


def experiment_of(run: Run) -> Experiment:
    """The experiment as it was asked for; `BadInput` when it is of another version of sweepcp."""
    return validate(Experiment, run.experiment, run.path / "experiment.json")


def stores_of(run: Run, experiment: Experiment) -> dict[str, TokenStore]:
    """Source → its token store in the cache; `BadInput` for one that is gone."""
    found = {}
    for source in experiment.sources:
        path = store_path(run.texts[source.name], experiment.base.tokenizer_id())
        if not (path / "store.json").is_file():
            rule = f"a token store in the cache ({path})"
            fix = f"{CACHE}run `sweepcp data build` on the experiment"
            raise InvalidInput(
                file=run.path,
                key=f"the store of {source.name}",
                found="missing",
                rule=rule,
                fix=fix,
            )
        found[source.name] = TokenStore(path, source.name)
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
        raise InvalidInput(
            file=run.path, key="the pretrained base", found="missing", rule=rule, fix=fix
        )
    return str(path)


def base_items(run: Run) -> list[ItemScores]:
    """The base's items; `BadInput` for a run that was stopped before the base was scored."""
    if run.base is None:
        rule = "the base, scored at step 0"
        raise InvalidInput(
            file=run.path,
            key="base.json",
            found="missing",
            rule=rule,
            fix="go on with the search first",
        )
    return list(run.base.items)


def job_of(run: Run, model: Path) -> WorkerSpec:
    """What scores another model, in a folder, on the run's suites with that model's own tokenizer."""
    read_shards(model, "sweepcp score", "MODEL")
    read_config(model, "sweepcp score", "MODEL")
    experiment = experiment_of(run)
    stores = stores_of(run, experiment)
    return WorkerSpec(
        base=experiment.base.model_copy(
            update={"path": str(model), "hub": None, "pretrain": None, "revision": None}
        ),
        model=str(model),
        stores=tuple(stores.values()),
        languages={s.name: s.language for s in experiment.sources},
        suites=experiment.suites,
        made_tasks=generate_tasks(experiment.suites, stores),
        seq_len=experiment.training.seq_len,
        micro_batch=experiment.training.micro_batch,
        precision=experiment.training.precision,
        threads=experiment.budget.cpus_per_trial,
    )
