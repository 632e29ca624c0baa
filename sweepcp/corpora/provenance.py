"""What a run was searched on: its token stores and its base model, looked up in the cache."""

from sweepcp.data.token_store import TokenStore, store_path
from sweepcp.errors import InvalidInput
from sweepcp.models.base import pretrained_path, tokenizer_id
from sweepcp.runs.run_folder import Run
from sweepcp.scoring.scorecard import ItemScores

CACHE_FIX = "set $SWEEPCP_CACHE to the cache that the search used, or"


def stores_of_run(run: Run) -> dict[str, TokenStore]:
    """Return the token store of each source of a run, by source name.

    Raises:
        InvalidInput: A store is no longer in the cache.
    """
    stores: dict[str, TokenStore] = {}
    tokenizer = tokenizer_id(run.experiment.base)
    for source in run.experiment.sources:
        fingerprint = run.source_fingerprints[source.name]
        path = store_path(fingerprint=fingerprint, tokenizer_id=tokenizer)
        if not (path / "store.json").is_file():
            raise InvalidInput(
                file=run.path,
                key=f"the store of {source.name}",
                found="missing",
                rule=f"a token store in the cache ({path})",
                fix=f"{CACHE_FIX} run `sweepcp data build` on the experiment",
            )
        stores[source.name] = TokenStore(path, source.name)
    return stores


def base_model_of_run(run: Run) -> str:
    """Return the folder of a run's base model, or its hub id.

    Raises:
        InvalidInput: The base was pretrained by the search and is no longer in the cache.
    """
    base = run.experiment.base
    if base.pretrain is None:
        return str(base.path or base.hub)
    path = pretrained_path(base, run.source_fingerprints)
    if not (path / "config.json").is_file():
        raise InvalidInput(
            file=run.path,
            key="the pretrained base",
            found="missing",
            rule=f"a model in the cache ({path})",
            fix=f"{CACHE_FIX} resume the search with a larger --trials, which pretrains it again",
        )
    return str(path)


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
