"""What a run's numbers depend on, by content: collected, and compared with an earlier state."""

from collections.abc import Iterable
from pathlib import Path

from sweepcp.config.experiment import Experiment
from sweepcp.config.suites import MemberSpec, Suites
from sweepcp.corpora.task_files import task_fingerprint
from sweepcp.data.source_files import ResolvedSource, source_fingerprint
from sweepcp.data.token_store import TokenStore
from sweepcp.errors import InvalidInput
from sweepcp.models.base import tokenizer_id
from sweepcp.models.files import model_identity, read_shards
from sweepcp.runs.run_folder import RunIdentity
from sweepcp.util.file_hashes import content_hashes, content_sha256
from sweepcp.util.json_values import digest


def identify_inputs(experiment: Experiment, files: dict[str, ResolvedSource]) -> RunIdentity:
    """Return the identity of what an experiment names, before anything is built.

    Files that were hashed before are read again only if their stamps have changed.
    """
    spec = experiment.base
    base = {"tokenizer": tokenizer_id(spec)}
    if spec.hub is not None:
        base["commit"] = str(spec.revision)
    if spec.path is not None:
        base |= model_identity(Path(spec.path), read_shards(Path(spec.path)))
    return RunIdentity(
        sources={s.name: source_fingerprint(s, files[s.name]) for s in experiment.sources},
        base=base,
        tasks=identify_tasks(experiment.suites),
    )


def identify_prepared(
    inputs: RunIdentity,
    experiment: Experiment,
    *,
    model: str,
    stores: Iterable[TokenStore],
    generated_tasks: Path | None,
) -> RunIdentity:
    """Return an identity with what was built from the inputs.

    Args:
        inputs: The identity of the inputs.
        experiment: The experiment.
        model: Folder of the base, or its hub id.
        stores: The token stores of the sources.
        generated_tasks: Folder of the tasks generated from held-out text.

    Raises:
        InvalidInput: A store in the cache is not as it was built.
    """
    base = dict(inputs.base)
    if experiment.base.pretrain is not None:
        identity = model_identity(Path(model), read_shards(Path(model)))
        base |= {"weights": identity["weights"], "config": identity["config"]}
    tasks = dict(inputs.tasks)
    for _, member in experiment.suites.members:
        if generated_tasks is not None and (member.cloze or member.swap):
            tasks[member.name] = content_sha256(generated_tasks / f"{member.name}.jsonl")[:16]
    hashes: dict[str, str] = {}
    for store in stores:
        check_store(store)
        hashes[store.source] = store_hash(store)
    return RunIdentity(sources=inputs.sources, base=base, tasks=tasks, stores=hashes)


def identify_tasks(suites: Suites) -> dict[str, str]:
    """Return suite member → hash of its task files, of the members that have a `path`."""
    return {member.name: _task_hash(member) for _, member in suites.members if member.path}


def _task_hash(member: MemberSpec) -> str:
    return task_fingerprint(Path(str(member.path)), str(member.task))


def identity_changes(before: RunIdentity, after: RunIdentity) -> list[str]:
    """Return what has changed, in words; what one of the two does not have is not compared."""
    compared = [
        (before.sources, after.sources, "the text of {}"),
        (before.base, after.base, "the base's {}"),
        (before.tasks, after.tasks, "the items of {}"),
        (before.stores, after.stores, "the token store of {}"),
    ]
    changes: list[str] = []
    for old, new, words in compared:
        for name, value in old.items():
            if new.get(name, value) != value:
                changes.append(words.format(name))
    return changes


def store_hash(store: TokenStore) -> str:
    """Return 16 hex digits that change with the tokens or the held-out text of a store."""
    return digest(store.meta["sha256"])


def check_store(store: TokenStore) -> None:
    """Raise `InvalidInput` if a file of a token store is not as it was built.

    Files that were hashed before are read again only if their stamps have changed.
    """
    expected: dict[str, str] = store.meta["sha256"]
    for name in expected:
        if not (store.path / name).is_file():
            raise _changed_store(store, name, "missing")
    hashes = content_hashes([store.path / name for name in expected])
    for name, sha256 in zip(expected, hashes, strict=True):
        if sha256 != expected[name]:
            raise _changed_store(store, name, f"SHA-256 {sha256[:16]}…")


def _changed_store(store: TokenStore, name: str, found: str) -> InvalidInput:
    return InvalidInput(
        file=store.path / name,
        key="the content",
        found=found,
        rule="the file that was built, whose SHA-256 store.json states",
        fix=f"restore the file, or remove {store.path} and build the store again",
    )
