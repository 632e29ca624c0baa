"""What a run was searched on: its token stores, base and tasks, verified to be those of the run."""

from pathlib import Path

from sweepcp.corpora.identity import check_store, identify_tasks, identity_changes, store_hash
from sweepcp.data.token_store import TokenStore, store_path
from sweepcp.errors import InvalidInput
from sweepcp.models.base import pretrained_path, tokenizer_id
from sweepcp.models.files import model_identity, read_shards
from sweepcp.runs.run_folder import EXPERIMENT_FILE, Run, RunIdentity
from sweepcp.scoring.scorecard import ItemScores

CACHE_FIX = "set $SWEEPCP_CACHE to the cache that the search used, or"


def stores_of_run(run: Run) -> dict[str, TokenStore]:
    """Return the token store of each source of a run, by source name.

    Raises:
        InvalidInput: A store is no longer in the cache, or is not the one that the run used.
    """
    stores: dict[str, TokenStore] = {}
    for source in run.experiment.sources:
        path = store_path(
            fingerprint=_recorded(run, "sources", source.name),
            tokenizer_id=_recorded(run, "base", "tokenizer"),
        )
        if not (path / "store.json").is_file():
            raise InvalidInput(
                file=run.path,
                key=f"the store of {source.name}",
                found="missing",
                rule=f"a token store in the cache ({path})",
                fix=f"{CACHE_FIX} run `sweepcp data build` on the experiment",
            )
        store = TokenStore(path, source.name)
        check_store(store)
        stores[source.name] = store
    hashes = {name: store_hash(store) for name, store in stores.items()}
    _check_same(run, RunIdentity(stores=hashes))
    return stores


def base_model_of_run(run: Run) -> str:
    """Return the folder of a run's base model, or its hub id.

    Raises:
        InvalidInput: The base is not the one that was scored, or it was pretrained by the search
            and is no longer in the cache.
    """
    base = run.experiment.base
    if base.hub is not None:
        return base.hub
    if base.pretrain is None:
        path = Path(str(base.path))
    else:
        _check_same(run, RunIdentity(base={"tokenizer": tokenizer_id(base)}))
        sources = {name: _recorded(run, "sources", name) for name in base.pretrain.mixture}
        path = pretrained_path(base, sources)
    if not (path / "config.json").is_file():
        resume = "resume the search with a larger --trials, which pretrains it again"
        raise InvalidInput(
            file=run.path,
            key="the base",
            found="missing",
            rule=f"the model that the run began with ({path})",
            fix=f"{CACHE_FIX} {resume}" if base.pretrain else "restore it",
        )
    identity = model_identity(path, read_shards(path))
    if base.pretrain is not None:
        # The experiment names its tokenizer, which was compared above.
        del identity["tokenizer"]
    _check_same(run, RunIdentity(base=identity))
    return str(path)


def check_tasks_of_run(run: Run) -> None:
    """Raise `InvalidInput` if the items of a run's own tasks have changed."""
    _check_same(run, RunIdentity(tasks=identify_tasks(run.experiment.suites)))


def base_items(run: Run) -> list[ItemScores]:
    """Return the item scores of a run's base model.

    Raises:
        InvalidInput: The run was stopped before the base was scored.
    """
    if run.base is None:
        raise InvalidInput(
            file=run.path,
            key="base.json",
            found="missing",
            rule="the scores of the base at step 0",
            fix="resume the search first",
        )
    return list(run.base.items)


def _recorded(run: Run, section: str, name: str) -> str:
    """Return a hash of the run's identity.

    Raises:
        InvalidInput: experiment.json does not state it.
    """
    hashes: dict[str, str] = getattr(run.identity, section)
    if name not in hashes:
        raise InvalidInput(
            file=run.path / EXPERIMENT_FILE,
            key=f"identity.{section}",
            found=sorted(hashes),
            rule=f"hashes of all that the run was searched on, that of {name} among them",
            fix="restore the file from a backup, or search into a new folder",
        )
    return hashes[name]


def _check_same(run: Run, now: RunIdentity) -> None:
    changes = identity_changes(run.identity, now)
    if changes:
        raise InvalidInput(
            file=run.path,
            key="what the run was searched on",
            found=f"changed: {'; '.join(changes)}",
            rule="what the scores of the run were measured with",
            fix="restore it, or search again into another folder",
        )
