"""From the recipe of a trial, or of a publication, to a launch bundle for the full run."""

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sweepcp.config.base_model import BaseSpec
from sweepcp.config.model_dimensions import ModelDimensions, dimensions_of
from sweepcp.config.recipe import Recipe, TrainingMethod
from sweepcp.config.suites import MIN_HELD_OUT, MemberSpec, Suites
from sweepcp.config.target import Target
from sweepcp.config.validation import validate
from sweepcp.data.stream import tokens_by_source
from sweepcp.data.token_store import TokenStore
from sweepcp.errors import InvalidInput
from sweepcp.models.base import tokenizer_id
from sweepcp.models.files import count_elements, model_fingerprint, read_config, read_shards
from sweepcp.promote.bundle import FORMAT, Bundle, CorpusPlan, Memory, Model, write_manifest
from sweepcp.promote.candidate import Candidate, base_of_run, corpora_of_run, first_documents
from sweepcp.promote.estimates import estimate_expense, estimate_memory
from sweepcp.runs.run_folder import Run
from sweepcp.runs.trial import package_versions
from sweepcp.training.deepspeed_config import zero_config
from sweepcp.util.files import check_is_new, file_sha256, new_folder, write_json, write_text

MAX_PLAN_LINES = 1000
"""A longer run has a line of its plan at so many steps, evenly spread."""


def promote(candidate: Candidate, target: Target, file: Path, out: Path) -> Bundle:
    """Write the bundle of a recipe on a target, read from `file`, into the folder `out`, complete or not at all.

    Raises `BadInput` for what cannot be run: a batch that the processes do not divide, a sequence longer than the
    model, more epochs than the cap, a source without a corpus.
    """
    check_is_new(out)
    model = _resolve_model(target, file, candidate.run)
    recipe = _translate_recipe(candidate, target, file)
    _check_batch(recipe, target, file)
    if recipe.seq_len > model.shape.max_position_embeddings:
        rule = f"the model takes at most {model.shape.max_position_embeddings} tokens"
        raise InvalidInput(
            file=file, key="seq_len", found=recipe.seq_len, rule=rule, fix="shorten it"
        )
    corpora = _plan_corpora(candidate, target, recipe, model, file)
    if (folder := target.checkpoints.folder) is not None:
        place = str((file.parent / Path(folder).expanduser()).resolve())
        target = target.model_copy(
            update={"checkpoints": target.checkpoints.model_copy(update={"folder": place})}
        )
    memory = estimate_memory(model.shape, target)
    bundle = Bundle(
        format=FORMAT,
        name=target.name,
        recipe=recipe,
        recipe_id=recipe.id,
        model=model,
        corpora=corpora,
        suites=candidate.suites,
        watched=_watched_suites(candidate, corpora, file),
        languages={c.name: c.language for c in corpora},
        target=target,
        lineage=candidate.lineage,
        proxy=candidate.proxy,
        memory=memory,
        expense=estimate_expense(model.shape, recipe, target),
        assumptions=(
            *candidate.assumptions,
            *_transfer_assumptions(candidate, target, recipe, model, corpora, memory),
        ),
        versions=package_versions(),
        commit=_git_commit(),
        made=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    _write_bundle(bundle, candidate, out)
    return bundle


def _watched_suites(candidate: Candidate, corpora: tuple[CorpusPlan, ...], file: Path) -> Suites:
    """Held-out text of each source, as the suites read it, or its first documents."""
    stated = {m.held_out: m for _, m in candidate.suites.members if m.held_out}
    members: dict[str, list[MemberSpec]] = {"domain": [], "general": []}
    for corpus in corpora:
        members[corpus.role].append(stated.get(corpus.name) or first_documents(corpus.name))
    if not all(members.values()):
        rule = "sources of both roles, whose held-out text is watched"
        fix = "add one of the other role to the experiment's sources; its share may be 0"
        raise InvalidInput(
            file=file, key="corpora", found=[c.name for c in corpora], rule=rule, fix=fix
        )
    return Suites(domain=tuple(members["domain"]), general=tuple(members["general"]))


def _resolve_model(target: Target, file: Path, run: Run | None) -> Model:
    spec, key, base = target.model, "model.path", None
    if spec.run_base:
        if run is None:
            rule = "a published recipe has no run, and so no base of it"
            raise InvalidInput(
                file=file,
                key="model.run_base",
                found=True,
                rule=rule,
                fix="name a path or a hub id, and its max_lr",
            )
        key, base = "model.run_base", base_of_run(run)
        if base.hub is not None:
            rule = "a base that is a folder"
            raise InvalidInput(
                file=file,
                key=key,
                found=base.hub,
                rule=rule,
                fix="name the hub id, its revision, max_lr and shape",
            )
    max_lr = spec.max_lr or (base.max_lr if base else None)
    assert max_lr is not None
    if spec.hub is not None:
        assert spec.shape is not None
        return Model(
            path=None,
            hub=spec.hub,
            revision=spec.revision,
            max_lr=max_lr,
            shape=spec.shape,
            parameters=spec.shape.parameter_count,
            fingerprint=None,
        )
    place = str(base.path if base else spec.path)
    folder = (file.parent / Path(place).expanduser()).resolve()
    with located(file, key):
        shards = read_shards(folder)
    parameters = count_elements(shards)
    shape = dimensions_of(config, parameters)
    if shape is None:
        rule = f"a config.json with {', '.join(n for n, f in ModelDimensions.model_fields.items() if f.is_required())}"
        raise InvalidInput(
            file=file, key=key, found=str(folder), rule=rule, fix="use a model of this kind"
        )
    return Model(
        path=str(folder),
        hub=None,
        revision=None,
        max_lr=max_lr,
        shape=shape,
        parameters=parameters,
        fingerprint=model_fingerprint(folder, shards),
    )


def _translate_recipe(candidate: Candidate, target: Target, file: Path) -> Recipe:
    """The recipe at the target's length and batch. LR fraction, shares, schedule and seed stay what they were."""
    method = {name: getattr(candidate.method, name) for name in TrainingMethod.model_fields}
    method |= {
        name: value
        for name in ("warmup", "final_fraction")
        if (value := getattr(target, name)) is not None
    }
    lengths = {name: getattr(target, name) for name in ("tokens", "batch_tokens", "seq_len")}
    content = method | lengths | {"lr_fraction": candidate.lr_fraction, "seed": candidate.seed}
    return validate(Recipe, content | {"mixture": candidate.mixture.model_dump(mode="json")}, file)


def _check_batch(recipe: Recipe, target: Target, file: Path) -> None:
    """Every rank gets as many whole micro batches of every step."""
    world, micro = target.hardware.world_size, target.compute.micro_batch
    if recipe.sequences % (world * micro):
        near = max(1, round(recipe.sequences / (world * micro))) * world * micro * recipe.seq_len
        rule = f"{world} processes × micro batches of {micro} sequences of {recipe.seq_len} tokens divide the batch"
        fix = f"use batch_tokens {near}, or another micro_batch or number of processes"
        raise InvalidInput(
            file=file, key="batch_tokens", found=recipe.batch_tokens, rule=rule, fix=fix
        )


def _plan_corpora(
    candidate: Candidate, target: Target, recipe: Recipe, model: Model, file: Path
) -> tuple[CorpusPlan, ...]:
    corpora = target.corpora or (corpora_of_run(candidate.run) if candidate.run else None)
    names = [p.source for p in recipe.mixture.portions]
    if corpora is None:
        rule = "a published recipe has no run, so the target names its corpora"
        raise InvalidInput(
            file=file,
            key="corpora",
            found=None,
            rule=rule,
            fix=f"add `corpora:` with {', '.join(names)}",
        )
    for name in corpora if target.corpora else ():
        if name not in names:
            rule = f"a source of the recipe: {', '.join(names)}"
            raise InvalidInput(
                file=file,
                key=f"corpora.{name}",
                found=name,
                rule=rule,
                fix="correct the name, or remove it",
            )
    tokenizer = _tokenizer_id(target, model)
    read = tokens_by_source(recipe, recipe.steps)
    found = []
    for portion in recipe.mixture.portions:
        corpus = corpora.get(portion.source)
        key = f"corpora.{portion.source}"
        if corpus is None:
            rule = "every source of the recipe has a corpus"
            raise InvalidInput(
                file=file,
                key=key,
                found=None,
                rule=rule,
                fix="add it: a folder of `sweepcp data build`, or planned with its tokens",
            )
        path = (
            None
            if corpus.store == "planned"
            else (file.parent / Path(corpus.store).expanduser()).resolve()
        )
        tokens, store_id = corpus.tokens, None
        if path is not None:
            tokens, store_id = _read_store(path, portion.source, tokenizer, file, key)
        assert tokens is not None
        epochs = read[portion.source] / tokens
        if epochs > corpus.max_epochs and corpus.beyond_max_epochs == "refuse":
            rule = f"no run reads it more than {corpus.max_epochs:g} times ({tokens:,} training tokens)"
            fix = "give it more text, lower tokens, promote a trial with a smaller share, or set max_epochs"
            raise InvalidInput(
                file=file, key=f"{key}.max_epochs", found=f"{epochs:.2f} epochs", rule=rule, fix=fix
            )
        found.append(
            CorpusPlan(
                name=portion.source,
                role=portion.role,
                language=portion.language,
                store=str(path) if path else None,
                store_id=store_id,
                tokens=tokens,
                read=read[portion.source],
                epochs=epochs,
                max_epochs=corpus.max_epochs,
            )
        )
    return tuple(found)


def _tokenizer_id(target: Target, model: Model) -> str | None:
    """How stores name the tokenizer of the model, whose ids they must hold; None where the run knows that they do."""
    if target.model.run_base:
        return None
    spec = BaseSpec(path=model.path, hub=model.hub, revision=model.revision, max_lr=model.max_lr)
    return tokenizer_id(spec)


def _read_store(
    path: Path, name: str, tokenizer: str | None, file: Path, key: str
) -> tuple[int, str]:
    """Training tokens and id of a store."""
    content = path / "store.json"
    if not content.is_file():
        fix = "build it with `sweepcp data build`, which shows its folder"
        raise InvalidInput(
            file=file,
            key=f"{key}.store",
            found=str(path),
            rule="the folder of a token store",
            fix=fix,
        )
    store = TokenStore(path, name)
    held_out = store.meta["held_out"]["documents"]
    if held_out < MIN_HELD_OUT:
        rule = f"a store with at least {MIN_HELD_OUT} held-out documents, which are watched during the run"
        raise InvalidInput(
            file=file,
            key=f"{key}.store",
            found=f"{path} with {held_out}",
            rule=rule,
            fix="build it with a larger `held_out`",
        )
    made_with = store.meta.get("tokenizer")
    if tokenizer is not None and made_with != tokenizer:
        rule = f"a store that was made with the model's own tokenizer ({tokenizer})"
        fix = "run `sweepcp data build` on an experiment whose base is this model, and name that store"
        raise InvalidInput(
            file=file,
            key=f"{key}.store",
            found=f"{path}, made with {made_with}",
            rule=rule,
            fix=fix,
        )
    return store.tokens, file_sha256(content)


def _transfer_assumptions(
    candidate: Candidate,
    target: Target,
    recipe: Recipe,
    model: Model,
    corpora: tuple[CorpusPlan, ...],
    memory: Memory,
) -> list[str]:
    """What promotion takes for granted, in numbers."""
    said = []
    if proxy := candidate.proxy:
        for what, before, now in (
            ("parameters", proxy.parameters, model.parameters),
            ("tokens", proxy.tokens, recipe.tokens),
            ("tokens in a batch", proxy.batch_tokens, recipe.batch_tokens),
            ("tokens in a sequence", proxy.seq_len, recipe.seq_len),
        ):
            if before != now:
                ratio = f"{now / before:,.3g} times"
                said.append(
                    f"{what}: {before:,} in the trial, {now:,} here ({ratio}); that the optimum stays is assumed"
                )
        for corpus in corpora:
            there = proxy.epochs.get(corpus.name, 0.0)
            if corpus.epochs > max(1.0, 2 * there):
                said.append(
                    f"{corpus.name}: read {there:.3g} times in the trial, {corpus.epochs:.3g} times here"
                )
    for name in ("warmup", "final_fraction"):
        if getattr(target, name) is not None and getattr(target, name) != getattr(
            candidate.method, name
        ):
            before, now = getattr(candidate.method, name), getattr(target, name)
            said.append(f"{name}: {before:g} in the recipe, {now:g} here, as the target says")
    said += [
        f"{corpus.name} is read {corpus.epochs:.1f} times, more than {corpus.max_epochs:g}"
        for corpus in corpora
        if corpus.epochs > corpus.max_epochs
    ]
    if planned := [corpus.name for corpus in corpora if corpus.store is None]:
        said.append(f"the tokens of {', '.join(planned)} are stated, none of them was read")
    hub = model.hub
    if hub and (model.revision is None or len(model.revision) != 40):
        said.append(
            f"{hub}@{model.revision or 'main'} is no commit: what it is may change between ranks and resumes"
        )
    if target.hardware.peak_tflops is not None:
        said.append(
            f"hours and cost are at an MFU of {target.hardware.mfu:.0%}, stated and not measured"
        )
    limit = target.hardware.memory_gib
    need = memory.total / 2**30
    if limit is not None and need > limit:
        said.append(f"the estimate of {need:.1f} GiB does not fit the {limit:g} GiB of a GPU")
    return said


def planned_steps(recipe: Recipe, max_lr: float) -> list[dict[str, Any]]:
    """LR of a step, and tokens of each source up to it: at every step, or at `PLAN_LINES` of them with both ends."""
    lines = min(recipe.steps, MAX_PLAN_LINES)
    steps = sorted({round(1 + i * (recipe.steps - 1) / max(1, lines - 1)) for i in range(lines)})
    return [
        {"step": step, "lr": recipe.lr(step, max_lr), "tokens": tokens_by_source(recipe, step)}
        for step in steps
    ]


def _write_bundle(bundle: Bundle, candidate: Candidate, out: Path) -> None:
    with new_folder(out) as work:
        write_json(work / "bundle.json", bundle.model_dump(mode="json"))
        write_json(
            work / "ds_config.json",
            zero_config(bundle.recipe, bundle.target, bundle.target.hardware.world_size),
        )
        rows = planned_steps(bundle.recipe, bundle.model.max_lr)
        write_text(work / "plan.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        if candidate.metrics is not None:
            write_text(work / "proxy.jsonl", candidate.metrics.read_text(encoding="utf-8"))
        write_manifest(work)


def _git_commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None
