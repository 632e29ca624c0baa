"""The translation of a recipe to a target: the same recipe at the full run's scale, as a bundle."""

from datetime import UTC, datetime
from pathlib import Path

from sweepcp.config.base_model import BaseSpec
from sweepcp.config.lr_checks import check_min_lr, check_warmup_steps
from sweepcp.config.recipe import RELATIVE_FIELDS, Recipe, SourceShare, TrainingMethod
from sweepcp.config.suites import MIN_HELD_OUT, MemberSpec, Suites
from sweepcp.config.target import Target, TargetCorpus
from sweepcp.config.validation import validate
from sweepcp.corpora.identity import identify_tasks
from sweepcp.data.stream import tokens_by_source
from sweepcp.data.token_store import TokenStore
from sweepcp.errors import InvalidInput, located
from sweepcp.models.base import tokenizer_id
from sweepcp.models.dimensions import read_dimensions
from sweepcp.models.files import model_fingerprint, read_shards
from sweepcp.promote.assumptions import transfer_assumptions
from sweepcp.promote.bundle import FORMAT, Bundle, CorpusPlan, Model, write_bundle
from sweepcp.promote.candidate import (
    Candidate,
    base_spec_of_run,
    corpora_of_run,
    held_out_member,
)
from sweepcp.promote.estimates import estimate_expense, estimate_memory
from sweepcp.promote.work_tree import current_commit
from sweepcp.runs.run_folder import Run
from sweepcp.runs.trial import package_versions
from sweepcp.training.deepspeed_config import check_deepspeed
from sweepcp.util.files import file_sha256
from sweepcp.util.paths import check_new_folder, user_path

SCALED_FIELDS = ("tokens", "batch_tokens", "seq_len")
"""Fields of a recipe that the target decides."""


def promote(candidate: Candidate, target: Target, *, file: Path, out: Path) -> Bundle:
    """Translate a recipe to a target and write the bundle into a new folder.

    Args:
        candidate: The recipe to promote.
        target: The model, budget and hardware of the full run.
        file: The target's file; paths in the target are relative to it.
        out: The folder to write, completely or not at all.

    Raises:
        InvalidInput: The full run is impossible: the processes do not divide the batch, a sequence
            is longer than the model takes, a key of DeepSpeed contradicts the target, a source
            exceeds its epoch limit or has no corpus.
    """
    check_new_folder(out, key="--out")
    with located(file):
        model = _resolve_model(target, candidate.run, file)
        recipe = _translate_recipe(candidate, target, base_max_lr=model.max_lr, file=file)
        _check_batch(recipe, target)
        check_deepspeed(target, world_size=target.hardware.world_size)
        _check_sequence_length(recipe, model)
        corpora = _plan_corpora(candidate, target, recipe, model, file)
        watched = _watched_suites(candidate, corpora)
    target = _with_absolute_checkpoints(target, file.parent)
    memory = estimate_memory(model.shape, target, isolated=not recipe.cross_documents)
    assumptions = transfer_assumptions(
        candidate, target, recipe=recipe, model=model, corpora=corpora, memory=memory
    )
    bundle = Bundle(
        format=FORMAT,
        name=target.name,
        recipe=recipe,
        recipe_id=recipe.id,
        model=model,
        corpora=corpora,
        suites=candidate.suites,
        tasks=identify_tasks(candidate.suites),
        watched=watched,
        languages={corpus.name: corpus.language for corpus in corpora},
        target=target,
        lineage=candidate.lineage,
        proxy=candidate.proxy,
        memory=memory,
        expense=estimate_expense(model.shape, recipe, target),
        assumptions=(*candidate.assumptions, *assumptions),
        versions=package_versions(),
        commit=current_commit(),
        made=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_bundle(bundle, out, proxy_steps=candidate.read_steps())
    return bundle


def _resolve_model(target: Target, run: Run | None, file: Path) -> Model:
    """Return the model of a target, read from its folder or as stated for a hub model."""
    spec = target.model
    if spec.run_base:
        with located(file, "model.run_base"):
            return _model_of_run(run)
    assert spec.max_lr is not None
    if spec.hub is not None:
        assert spec.shape is not None
        return Model(
            path=None,
            hub=spec.hub,
            revision=spec.revision,
            max_lr=spec.max_lr,
            shape=spec.shape,
            parameters=spec.shape.parameter_count,
            fingerprint=None,
        )
    with located(file, "model.path"):
        return _read_model(_resolve_path(str(spec.path), file.parent), max_lr=spec.max_lr)


def _model_of_run(run: Run | None) -> Model:
    """Return the base model of a run, which must be a folder."""
    if run is None:
        raise InvalidInput(
            found=True,
            rule="the base of a run; a published recipe has no run",
            fix="name a path or a hub id instead, and its max_lr",
        )
    base = base_spec_of_run(run)
    if base.path is None:
        raise InvalidInput(
            found=base.hub,
            rule="a base that is a folder",
            fix="name the hub id instead, its revision, max_lr and shape",
        )
    return _read_model(Path(base.path).resolve(), max_lr=base.max_lr)


def _read_model(folder: Path, *, max_lr: float) -> Model:
    """Return the model in a folder, without loading its weights."""
    dimensions = read_dimensions(folder)
    return Model(
        path=str(folder),
        hub=None,
        revision=None,
        max_lr=max_lr,
        shape=dimensions,
        parameters=dimensions.parameter_count,
        fingerprint=model_fingerprint(folder, read_shards(folder)),
    )


def _translate_recipe(
    candidate: Candidate, target: Target, *, base_max_lr: float, file: Path
) -> Recipe:
    """Return the recipe with the target's length, batch and sequences.

    LR fraction, shares and seed are unchanged; warmup and the LR of the last step too, unless the
    target states them. Where they are fractions of the run, the schedule stretches with it.

    Args:
        candidate: The recipe before translation.
        target: The target of the full run.
        base_max_lr: The max LR of the target model's own pretraining.
        file: The target's file.
    """
    content = {name: getattr(candidate.method, name) for name in TrainingMethod.model_fields}
    for absolute, relative in RELATIVE_FIELDS.items():
        stated = {name: getattr(target, name) for name in (absolute, relative)}
        if stated != {absolute: None, relative: None}:
            content |= stated
    for name in SCALED_FIELDS:
        content[name] = getattr(target, name)
    content["lr_fraction"] = candidate.lr_fraction
    content["seed"] = candidate.seed
    content["mixture"] = candidate.mixture.model_dump(mode="json")
    steps = target.tokens // target.batch_tokens
    check_warmup_steps(content["warmup_steps"], steps=steps)
    check_min_lr(content["min_lr"], lr_fraction=candidate.lr_fraction, base_max_lr=base_max_lr)
    return validate(Recipe, content, file)


def _check_batch(recipe: Recipe, target: Target) -> None:
    """Raise `InvalidInput` unless all replicas get equally many whole micro batches per step."""
    replicas, micro_batch = target.replicas, target.compute.micro_batch
    per_pass = replicas * micro_batch
    if recipe.sequences % per_pass:
        nearest = max(1, round(recipe.sequences / per_pass)) * per_pass * recipe.seq_len
        raise InvalidInput(
            key="batch_tokens",
            found=recipe.batch_tokens,
            rule=f"{replicas} data-parallel processes × micro batches of {micro_batch} sequences "
            f"of {recipe.seq_len} tokens divide the batch",
            fix=f"use batch_tokens {nearest}, or another micro_batch or number of processes",
        )


def _check_sequence_length(recipe: Recipe, model: Model) -> None:
    longest = model.shape.max_position_embeddings
    if recipe.seq_len > longest:
        raise InvalidInput(
            key="seq_len",
            found=recipe.seq_len,
            rule=f"at most {longest} tokens, the longest sequence that the model takes",
            fix=f"use {longest} or less",
        )


def _plan_corpora(
    candidate: Candidate, target: Target, recipe: Recipe, model: Model, file: Path
) -> tuple[CorpusPlan, ...]:
    """Return the corpus of each source of the recipe, with the tokens that the run reads of it."""
    corpora = _corpora_by_source(candidate, target, recipe)
    tokenizer = _tokenizer_of_stores(target, model)
    tokens_read = tokens_by_source(recipe, recipe.steps)
    plans: list[CorpusPlan] = []
    for portion in recipe.mixture.portions:
        name = portion.source
        with located(file, f"corpora.{name}"):
            if name not in corpora:
                raise InvalidInput(
                    found=None,
                    rule="a corpus for every source of the recipe",
                    fix="add it: a folder of `sweepcp data build`, or planned with its tokens",
                )
            plan = _plan_corpus(
                portion,
                corpora[name],
                tokens_read=tokens_read[name],
                tokenizer=tokenizer,
                folder=file.parent,
            )
        plans.append(plan)
    return tuple(plans)


def _corpora_by_source(
    candidate: Candidate, target: Target, recipe: Recipe
) -> dict[str, TargetCorpus]:
    """Return the corpora of the target or, where it names none, those of the run."""
    sources = [portion.source for portion in recipe.mixture.portions]
    if target.corpora:
        for name in target.corpora:
            if name not in sources:
                raise InvalidInput(
                    key=f"corpora.{name}",
                    found=name,
                    rule=f"a source of the recipe: {', '.join(sources)}",
                    fix="correct the name, or remove it",
                )
        return target.corpora
    if candidate.run is None:
        raise InvalidInput(
            key="corpora",
            found=None,
            rule="corpora in the target; a published recipe has no run to take them from",
            fix=f"add `corpora:` with {', '.join(sources)}",
        )
    return corpora_of_run(candidate.run)


def _plan_corpus(
    portion: SourceShare,
    corpus: TargetCorpus,
    *,
    tokens_read: int,
    tokenizer: str | None,
    folder: Path,
) -> CorpusPlan:
    """Return the plan of one source.

    Args:
        portion: The source and its share of the recipe's mixture.
        corpus: The source's corpus at the target's scale.
        tokens_read: Tokens that the run reads of it.
        tokenizer: The id of the tokenizer that its store must have been built with; None for any.
        folder: The folder that the corpus's path is relative to.
    """
    path = store_id = None
    tokens = corpus.tokens
    if corpus.store != "planned":
        path = _resolve_path(corpus.store, folder)
        store = _open_store(path, portion.source, tokenizer=tokenizer)
        tokens, store_id = store.tokens, file_sha256(path / "store.json")
    assert tokens is not None
    epochs = tokens_read / tokens
    if epochs > corpus.max_epochs and corpus.beyond_max_epochs == "refuse":
        raise InvalidInput(
            key="max_epochs",
            found=f"{epochs:.2f} epochs",
            rule=f"at most {corpus.max_epochs:g} epochs of the {tokens:,} training tokens",
            fix="add text to the source, lower tokens, promote a trial with a smaller share of it, "
            "or raise max_epochs",
        )
    return CorpusPlan(
        name=portion.source,
        role=portion.role,
        language=portion.language,
        store=str(path) if path else None,
        store_id=store_id,
        tokens=tokens,
        read=tokens_read,
        epochs=epochs,
        max_epochs=corpus.max_epochs,
    )


def _tokenizer_of_stores(target: Target, model: Model) -> str | None:
    """Return the id of the tokenizer that token stores must have been built with.

    None for the base of a run: the stores of the run were built with the tokenizer of that base.
    """
    if target.model.run_base:
        return None
    spec = BaseSpec(path=model.path, hub=model.hub, revision=model.revision, max_lr=model.max_lr)
    return tokenizer_id(spec)


def _open_store(path: Path, source: str, *, tokenizer: str | None) -> TokenStore:
    """Open a token store that can be trained on and scored during the run."""
    if not (path / "store.json").is_file():
        raise InvalidInput(
            key="store",
            found=str(path),
            rule="the folder of a token store",
            fix="build it with `sweepcp data build`, which shows its folder",
        )
    store = TokenStore(path, source)
    held_out = store.meta["held_out"]["documents"]
    if held_out < MIN_HELD_OUT:
        raise InvalidInput(
            key="store",
            found=f"{path} with {held_out}",
            rule=f"at least {MIN_HELD_OUT} held-out documents, which are scored during the run",
            fix="build it with a larger `held_out`",
        )
    built_with = store.meta.get("tokenizer")
    if tokenizer is not None and built_with != tokenizer:
        raise InvalidInput(
            key="store",
            found=f"{path}, built with {built_with}",
            rule=f"a store that was built with the model's own tokenizer ({tokenizer})",
            fix="run `sweepcp data build` on an experiment whose base is this model, and name its "
            "store",
        )
    return store


def _watched_suites(candidate: Candidate, corpora: tuple[CorpusPlan, ...]) -> Suites:
    """Return suites of each source's held-out text, as the candidate's suites score it.

    Of a source that they do not score, a sample is scored.
    """
    scored: dict[str, MemberSpec] = {}
    for _, member in candidate.suites.members:
        if member.held_out:
            scored[member.held_out] = member
    members: dict[str, list[MemberSpec]] = {"domain": [], "general": []}
    for corpus in corpora:
        members[corpus.role].append(scored.get(corpus.name) or held_out_member(corpus.name))
    if not all(members.values()):
        raise InvalidInput(
            key="corpora",
            found=[corpus.name for corpus in corpora],
            rule="sources of both roles, whose held-out text is scored during the run",
            fix="add one of the other role to the experiment's sources; its share may be 0",
        )
    return Suites(domain=tuple(members["domain"]), general=tuple(members["general"]))


def _with_absolute_checkpoints(target: Target, folder: Path) -> Target:
    """Return the target with an absolute checkpoint folder, if it names one."""
    if target.checkpoints.folder is None:
        return target
    with located("", "checkpoints.folder"):
        path = _resolve_path(target.checkpoints.folder, folder)
    checkpoints = target.checkpoints.model_copy(update={"folder": str(path)})
    return target.model_copy(update={"checkpoints": checkpoints})


def _resolve_path(path: str, folder: Path) -> Path:
    """Return an absolute path; a relative one is relative to `folder`."""
    return user_path(path, folder=folder).resolve()
