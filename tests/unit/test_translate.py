"""A candidate at the scale of a target: what is the target's, and what stays the candidate's."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from sweepcp.config.recipe import Mixture, TrainingMethod
from sweepcp.config.suites import MemberSpec, Suites
from sweepcp.config.target import load_target
from sweepcp.errors import InvalidInput
from sweepcp.models.files import model_identity, read_shards
from sweepcp.promote.assumptions import has_other_weights, transfer_assumptions
from sweepcp.promote.bundle import Bundle, load_bundle
from sweepcp.promote.candidate import candidate_from_publication, candidate_from_run
from sweepcp.promote.translate import promote
from sweepcp.runs.run_folder import Run, read_run
from tests.make import target_content, write_bundle
from tests.make_run import write_run


def test_what_the_target_does_not_state_is_the_candidates(tmp_path: Path):
    """Method, LR fraction, seed and suites; the target states the warmup and not the end."""
    write_bundle(tmp_path, warmup=0.3)
    method = TrainingMethod(
        schedule="wsd",
        warmup=0.2,
        final_fraction=0.05,
        decay=0.4,
        weight_decay=0.01,
        betas=(0.8, 0.9),
        epsilon=1e-6,
        clip=0.5,
        cross_documents=True,
    )
    member = MemberSpec(held_out="code", items=12, chars=30, weight=2.0)
    task = MemberSpec(task="arc_easy")
    candidate = replace(
        candidate_from_publication(str(tmp_path / "recipe.yaml")),
        method=method,
        lr_fraction=0.25,
        seed=7,
        suites=Suites(domain=(member,), general=(task,)),
    )
    target, file = load_target(str(tmp_path / "target.yaml"))
    bundle = promote(candidate, target, file=file, out=tmp_path / "another")
    translated = bundle.recipe
    assert {name: getattr(translated, name) for name in TrainingMethod.model_fields} == (
        {name: getattr(method, name) for name in TrainingMethod.model_fields} | {"warmup": 0.3}
    )
    assert (translated.lr_fraction, translated.seed) == (0.25, 7)
    assert translated.mixture == candidate.mixture
    # What no suite scores is watched by a sample.
    sample = MemberSpec(held_out="docs", items=500, chars=20_000)
    assert (bundle.watched.domain, bundle.watched.general) == ((member,), (sample,))
    assert "warmup: 0.2 in the recipe, changed to 0.3 by the target" in bundle.assumptions


ABSOLUTE = TrainingMethod(schedule="wsd-1-sqrt", warmup_steps=4, min_lr=1e-3)
"""Of the full run of `write_bundle`: 20 steps with a max LR of a tenth of 0.1."""


def promote_method(folder: Path, method: TrainingMethod, **target_changes: object) -> Bundle:
    """Promote a method with the mixture of `write_bundle` to its target with changes."""
    candidate = candidate_from_publication(str(folder / "recipe.yaml"))
    content = target_content(folder, **target_changes)
    (folder / "target.yaml").write_text(json.dumps(content))
    target, file = load_target(str(folder / "target.yaml"))
    out = folder / f"another-{len(list(folder.iterdir()))}"
    return promote(replace(candidate, method=method), target, file=file, out=out)


def test_absolute_numbers_are_carried_over_unchanged_and_stated(tmp_path: Path):
    write_bundle(tmp_path)
    bundle = promote_method(tmp_path, ABSOLUTE)
    recipe = bundle.recipe
    assert (recipe.warmup_steps, recipe.warmup, recipe.min_lr) == (4, None, 1e-3)
    # 20 steps: 4 of warmup to 0.01, then held, and 4 of the fall to 0.001.
    lr = [recipe.lr(step, max_lr=bundle.model.max_lr) for step in (1, 4, 16, 17, 20)]
    assert lr == pytest.approx([0.0025, 0.01, 0.01, 1e-3 + 9e-3 * 0.5, 1e-3])
    assert "warmup_steps: 4 is carried over unchanged: 0.2 of the 20 steps of the full run" in (
        bundle.assumptions
    )
    assert "min_lr: 0.001 is carried over unchanged: 0.1 of the full run's max LR 0.01" in (
        bundle.assumptions
    )
    loaded = load_bundle(next(tmp_path.glob("another-*")))
    assert loaded.bundle.recipe == recipe


def test_absolute_numbers_of_a_trial_are_compared_with_those_of_its_run(tmp_path: Path):
    run = read_run(write_run(tmp_path / "run", 2))
    candidate = candidate_from_run(run, run.trials[0].id)
    bundle = load_bundle(write_bundle(tmp_path)).bundle
    method = candidate.method.model_copy(update={"warmup_steps": 4, "min_lr": 1e-5})
    recipe = bundle.recipe.model_copy(update={"warmup_steps": 4, "min_lr": 1e-5})
    lines = transfer_assumptions(
        replace(candidate, method=method, lr_fraction=0.1),
        bundle.target,
        recipe=recipe,
        model=bundle.model,
        corpora=bundle.corpora,
        memory=bundle.memory,
    )
    assert candidate.proxy is not None
    steps = candidate.proxy.tokens // candidate.proxy.batch_tokens
    max_lr = 0.1 * run.experiment.base.max_lr
    assert (
        f"warmup_steps: 4 is carried over unchanged: {4 / steps:.3g} of the {steps:,} steps of a "
        "trial, 0.2 of the 20 steps of the full run" in lines
    )
    assert (
        f"min_lr: 1e-05 is carried over unchanged: {1e-5 / max_lr:.3g} of the trial's max LR "
        f"{max_lr:.4g}, 0.001 of the full run's max LR 0.01" in lines
    )


def test_a_target_may_state_either_of_two_alternatives(tmp_path: Path):
    write_bundle(tmp_path)
    bundle = promote_method(tmp_path, ABSOLUTE, warmup=0.1, final_fraction=0.2)
    assert (bundle.recipe.warmup, bundle.recipe.warmup_steps) == (0.1, None)
    assert (bundle.recipe.final_fraction, bundle.recipe.min_lr) == (0.2, None)
    assert "warmup_steps: 4 in the recipe, changed to warmup 0.1 by the target" in (
        bundle.assumptions
    )
    assert not any("carried over" in line for line in bundle.assumptions)
    bundle = promote_method(tmp_path, TrainingMethod(), warmup_steps=3, min_lr=2e-3)
    assert (bundle.recipe.warmup, bundle.recipe.warmup_steps) == (None, 3)
    assert bundle.recipe.lr(20, max_lr=0.1) == pytest.approx(2e-3)
    assert "final_fraction: 0.1 in the recipe, changed to min_lr 0.002 by the target" in (
        bundle.assumptions
    )
    with pytest.raises(InvalidInput, match="warmup and warmup_steps exclude each other"):
        promote_method(tmp_path, TrainingMethod(), warmup=0.1, warmup_steps=3)


def test_absolute_numbers_that_the_full_run_cannot_have_are_refused(tmp_path: Path):
    write_bundle(tmp_path)
    with pytest.raises(InvalidInput, match=r"(?s)warmup_steps.*found: 20.*which are 20 "):
        promote_method(tmp_path, ABSOLUTE.model_copy(update={"warmup_steps": 20}))
    with pytest.raises(InvalidInput, match=r"(?s)min_lr.*found: 0\.011.*max LR, 0\.01 "):
        promote_method(tmp_path, ABSOLUTE.model_copy(update={"min_lr": 0.011}))
    # 0.1 × 0.1 is not quite 0.01.
    promote_method(tmp_path, ABSOLUTE.model_copy(update={"min_lr": 0.01}))


def test_a_shipped_recipe_has_the_steps_of_warmup_that_were_published():
    candidate = candidate_from_publication("code-llama")
    assert (candidate.method.warmup_steps, candidate.method.warmup) == (1000, None)
    assert candidate.method.final_fraction == pytest.approx(1 / 30)


def test_a_recipe_of_one_role_cannot_be_watched(tmp_path: Path):
    write_bundle(tmp_path)
    candidate = candidate_from_publication(str(tmp_path / "recipe.yaml"))
    (code, _) = candidate.mixture.portions
    mixture = Mixture(portions=(code.model_copy(update={"share": 1.0}),))
    content = json.loads((tmp_path / "target.yaml").read_text())
    del content["corpora"]["docs"]
    (tmp_path / "target.yaml").write_text(json.dumps(content))
    target, file = load_target(str(tmp_path / "target.yaml"))
    with pytest.raises(InvalidInput, match="sources of both roles"):
        promote(replace(candidate, mixture=mixture), target, file=file, out=tmp_path / "another")


def test_a_source_may_be_read_as_often_as_its_limit_and_no_more(tmp_path: Path):
    """4,096 of the 10,240 tokens are of `docs`."""
    write_bundle(tmp_path)
    stores = target_content(tmp_path)["corpora"]
    assert isinstance(stores, dict)
    docs = {"store": "planned", "tokens": 1024, "max_epochs": 4.0}
    shutil.rmtree(tmp_path / "bundle")
    corpora = load_bundle(write_bundle(tmp_path, corpora={**stores, "docs": docs})).bundle.corpora
    assert (corpora[1].read, corpora[1].epochs) == (4096, 4.0)
    assert (corpora[0].read, corpora[0].tokens) == (6144, corpora[0].read / corpora[0].epochs)
    few = docs | {"tokens": 1023}
    shutil.rmtree(tmp_path / "bundle")
    with pytest.raises(InvalidInput, match=r"4\.00 epochs"):
        write_bundle(tmp_path, corpora={**stores, "docs": few})
    few["beyond_max_epochs"] = "warn"
    loaded = load_bundle(write_bundle(tmp_path, corpora={**stores, "docs": few}))
    assert "docs: 4.0 epochs, more than 4" in loaded.bundle.assumptions


def test_a_model_that_is_not_the_base_of_the_trial_is_known_by_its_weights(tmp_path: Path):
    model = load_bundle(write_bundle(tmp_path)).bundle.model
    folder = tmp_path / "model"
    weights = model_identity(folder, read_shards(folder))["weights"]
    run = read_run(write_run(tmp_path / "run", 2))

    def searched_on(weights: str) -> Run:
        identity = run.identity.model_copy(update={"base": {"weights": weights}})
        return replace(run, identity=identity)

    assert has_other_weights(searched_on("0" * 16), model)
    assert not has_other_weights(searched_on(weights), model)
    assert not has_other_weights(None, model)
