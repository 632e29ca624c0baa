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
from sweepcp.promote.assumptions import has_other_weights
from sweepcp.promote.bundle import load_bundle
from sweepcp.promote.candidate import candidate_from_publication
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
        method.model_dump() | {"warmup": 0.3}
    )
    assert (translated.lr_fraction, translated.seed) == (0.25, 7)
    assert translated.mixture == candidate.mixture
    # What no suite scores is watched by a sample.
    sample = MemberSpec(held_out="docs", items=500, chars=20_000)
    assert (bundle.watched.domain, bundle.watched.general) == ((member,), (sample,))
    assert "warmup: 0.2 in the recipe, changed to 0.3 by the target" in bundle.assumptions


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
