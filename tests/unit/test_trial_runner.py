"""Scorer, trial runner and pretraining: every setting reaches the numbers that it decides."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sweepcp.config.base_model import BaseSpec, PretrainSpec
from sweepcp.config.recipe import TrainingSettings
from sweepcp.config.suites import MemberSpec, Suites
from sweepcp.data.stream import MixtureStream
from sweepcp.data.token_store import TokenStore
from sweepcp.errors import Diverged
from sweepcp.models.loading import byte_tokenizer, load_model, make_encoder
from sweepcp.runs.trial import BaseRecord, TrialOutcome
from sweepcp.scoring.held_out import HeldOutText
from sweepcp.scoring.scorecard import ItemScores, document_id
from sweepcp.scoring.scorer import Scorer
from sweepcp.scoring.spec import ScoringSpec, experiment_scoring_spec
from sweepcp.search import trial_runner
from sweepcp.search.trial_runner import TrialRunner, environment_of
from sweepcp.search.worker_io import WorkerSpec
from sweepcp.training import pretraining
from sweepcp.training.engine import PlainEngine
from sweepcp.training.loop import StepMetrics, run_training
from sweepcp.training.pretraining import _initialize_model, pretrain_base, pretraining_recipe
from sweepcp.training.process_group import ProcessGroup
from tests.make import experiment, recipe, write_corpora, write_model

CPU = torch.device("cpu")
MAX_LR = 0.02
SUITES = Suites(
    domain=(MemberSpec(held_out="code", chars=40, weight=2.5),),
    general=(MemberSpec(held_out="docs", items=12, language="fr"),),
)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> WorkerSpec:
    """No setting has its default or the value of another one."""
    folder = tmp_path_factory.mktemp("runner")
    write_model(folder / "model", attention_dropout=0.3)
    (folder / "stores").mkdir()
    stores = write_corpora(folder / "stores", folder / "model")
    scoring = ScoringSpec(
        suites=SUITES,
        stores=tuple(stores.values()),
        languages={"code": "python", "docs": "en"},
        generated_tasks=None,
        seq_len=48,
        packed=True,
        precision="fp32",
    )
    return WorkerSpec(
        base=BaseSpec(path=str(folder / "model"), max_lr=MAX_LR),
        model=str(folder / "model"),
        stores=(replace(stores["code"], fraction=0.25), stores["docs"]),
        scoring=scoring,
        micro_batch=3,
        precision="fp32",
        attention="auto",
        recompute=False,
        compile=False,
        threads=1,
        device="cpu",
        gpu_share=0.0,
    )


@pytest.fixture(scope="module")
def runner(spec: WorkerSpec) -> TrialRunner:
    return TrialRunner(spec)


TRIED = recipe(seq_len=16, batch_tokens=64, tokens=6 * 64, lr_fraction=0.3, clip=0.5, seed=5)


def train(model: Any, spec: WorkerSpec) -> list[StepMetrics]:
    engine = PlainEngine(model, TRIED, micro_batch=None, precision="fp32")
    stream = MixtureStream(TRIED, list(spec.stores))
    return list(run_training(engine, TRIED, stream, max_lr=MAX_LR))


def score(spec: ScoringSpec, model: Any) -> list[ItemScores]:
    return Scorer(spec, model, byte_tokenizer(), ProcessGroup()).score()


def split(events: list[StepMetrics | TrialOutcome]) -> tuple[list[StepMetrics], TrialOutcome]:
    *metrics, outcome = events
    assert isinstance(outcome, TrialOutcome)
    return [event for event in metrics if isinstance(event, StepMetrics)], outcome


def test_a_trial_is_the_recipe_trained_from_the_base_and_scored(
    spec: WorkerSpec, runner: TrialRunner
):
    model = load_model(spec.model, revision=None, device=CPU)
    expected = train(model, spec)
    metrics, outcome = split(list(runner.run(TRIED)))
    assert [m.step for m in metrics] == list(range(1, 7))
    assert [m.lr for m in metrics] == [TRIED.lr(step, max_lr=MAX_LR) for step in range(1, 7)]
    assert [m.loss for m in metrics] == pytest.approx([m.loss for m in expected], rel=1e-5)
    assert outcome.status == "done"
    for measured, item_scores in zip(outcome.items, score(spec.scoring, model), strict=True):
        assert measured.amount == pytest.approx(item_scores.amount, rel=1e-4)
    # Half of 6 · 64 tokens each. Of `code` a quarter of the blocks is visible.
    assert outcome.tokens_by_source == {"code": 192, "docs": 192}
    tokens = {store.source: len(store.train().tokens) for store in spec.stores}
    blocks = {"code": round((tokens["code"] - 1) // 16 / 4), "docs": (tokens["docs"] - 1) // 16}
    assert outcome.epochs_by_source == {name: 12 / count for name, count in blocks.items()}
    assert outcome.cost is not None
    assert outcome.cost.tokens == 384
    assert outcome.cost.tokens_per_second == pytest.approx(384 / outcome.cost.train_seconds)


def test_trials_and_the_base_do_not_depend_on_what_ran_before(runner: TrialRunner):
    base = runner.score_base()
    first = split(list(runner.run(TRIED)))
    assert first[1].items != base.items
    other = TRIED.model_copy(update={"seed": 6})
    assert split(list(runner.run(other)))[0][0].loss != first[0][0].loss
    diverged = split(list(runner.run(TRIED.model_copy(update={"lr_fraction": 1e30}))))[1]
    assert (diverged.status, diverged.items) == ("diverged", ())
    assert str(diverged.reason).startswith("step ")
    again = split(list(runner.run(TRIED)))
    assert (again[0], again[1].items) == (first[0], first[1].items)
    assert runner.score_base().items == base.items


def test_tasks_are_built_on_the_weights_of_the_base(
    spec: WorkerSpec, monkeypatch: pytest.MonkeyPatch
):
    """They decide how answers are computed, in every worker alike."""
    built_on: list[dict[str, torch.Tensor]] = []

    def describe(scorer: Scorer, _: object) -> dict[str, str]:
        state = scorer.model.state_dict()
        built_on.append({name: tensor.clone() for name, tensor in state.items()})
        return {}

    monkeypatch.setattr(trial_runner, "environment_of", describe)
    made = TrialRunner(spec)
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.mul_(2)
    next(made.run(TRIED))
    (state,) = built_on
    assert all(torch.equal(state[name], tensor) for name, tensor in made.base_weights.items())


def test_isolation_is_checked_as_the_experiment_states(
    spec: WorkerSpec, monkeypatch: pytest.MonkeyPatch
):
    seen = []
    monkeypatch.setattr(
        trial_runner, "ensure_isolation", lambda model, group, **settings: seen.append(settings)
    )
    TrialRunner(replace(spec, attention="varlen"))
    assert seen == [{"wanted": "varlen", "seq_len": 48, "packed": True}]


def test_a_model_whose_scores_are_not_finite_has_diverged(
    runner: TrialRunner, monkeypatch: pytest.MonkeyPatch
):
    def fail() -> None:
        raise Diverged("the loss on the held-out text of docs is not finite")

    monkeypatch.setattr(runner.scorer, "score", fail)
    _, outcome = split(list(runner.run(TRIED)))
    assert (outcome.status, outcome.reason) == (
        "diverged",
        "the loss on the held-out text of docs is not finite",
    )


def test_the_base_is_recorded_with_what_it_is(spec: WorkerSpec, runner: TrialRunner):
    record = runner.score_base()
    assert isinstance(record, BaseRecord)
    assert (record.model, record.max_lr) == (spec.model, MAX_LR)
    tensors = load_file(Path(spec.model) / "model.safetensors")
    assert record.parameters == sum(values.numel() for values in tensors.values())
    assert record.environment["precision"] == "fp32"
    assert list(record.items) == score(
        spec.scoring, load_model(spec.model, revision=None, device=CPU)
    )


def test_the_engine_of_a_trial_has_the_settings_of_the_experiment(
    spec: WorkerSpec, runner: TrialRunner, monkeypatch: pytest.MonkeyPatch
):
    made: list[dict[str, Any]] = []

    def make(*arguments: Any, **settings: Any) -> PlainEngine:
        made.append(settings)
        return PlainEngine(*arguments, **settings)

    monkeypatch.setattr(trial_runner, "PlainEngine", make)
    settings: list[tuple[int | Literal["auto"], str]] = [(2, "fp32"), (9, "fp32"), ("auto", "bf16")]
    for micro_batch, precision in settings:
        changed = replace(spec, micro_batch=micro_batch, precision=precision)
        monkeypatch.setattr(runner, "spec", changed)
        next(runner.run(TRIED))
    assert made == [
        {"micro_batch": 2, "precision": "fp32", "halves": False},
        {"micro_batch": 4, "precision": "fp32", "halves": False},
        {"micro_batch": 4, "precision": "bf16", "halves": True},
    ]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_held_out_members_are_scored_as_the_suites_state(
    spec: WorkerSpec, packed: bool, precision: str
):
    scoring = replace(spec.scoring, packed=packed, precision=precision)
    model = load_model(spec.model, revision=None, device=CPU)
    scorer = Scorer(scoring, model, byte_tokenizer(), ProcessGroup())
    code, docs = scorer.score()
    assert (code.name, code.role, code.language) == ("held_out_code", "domain", "python")
    assert (docs.name, docs.role, docs.language) == ("held_out_docs", "general", "fr")
    assert (code.weight, docs.weight) == (2.5, 1.0)
    for scores, member in ((code, SUITES.domain[0]), (docs, SUITES.general[0])):
        store = next(s for s in scoring.stores if s.source == member.held_out)
        texts = store.sample_held_out(member.items)
        assert scores.unit == "bits per byte"
        assert scores.document == tuple(map(document_id, texts))
        assert scores.size == tuple(float(len(text[: member.chars])) for text in texts)
        settings: dict[str, Any] = {"seq_len": 48, "packed": packed}
        text = HeldOutText(store, member, make_encoder(byte_tokenizer()), **settings)
        bits = text.bits(model, ProcessGroup(), rows=4, precision=precision)
        tolerance = 1e-5 if precision == "fp32" else 0.02
        assert scores.amount == pytest.approx(bits.tolist(), rel=tolerance)
    # Documents of 60 tokens leave windows of 12, of which four fit into a row.
    rows = scorer.held_out_texts[1][2].batch.input_ids.shape
    assert rows == (15 if packed else 24, 48)
    environment = environment_of(scorer, CPU)
    assert (environment["device"], environment["precision"]) == ("cpu", precision)
    if precision == "bf16":
        exact = score(replace(scoring, precision="fp32"), model)
        assert [m.amount for m in exact] != [code.amount, docs.amount]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_model_with_a_document_whose_loss_is_not_finite_is_not_scored(
    spec: WorkerSpec, monkeypatch: pytest.MonkeyPatch, bad: float
):
    bits = np.array([9.0] * 23 + [bad])
    monkeypatch.setattr(HeldOutText, "bits", lambda *_, **__: bits)
    model = load_model(spec.model, revision=None, device=CPU)
    with pytest.raises(Diverged, match="held-out text of code is not finite"):
        score(spec.scoring, model)


@pytest.mark.parametrize("crossing", [True, False])
def test_what_is_scored_follows_from_the_experiment(crossing: bool):
    changes = [f"training.cross_documents={str(crossing).lower()}", "training.seq_len=64"]
    searched = experiment(*changes, "training.precision=bf16")
    suites = Suites(
        domain=(MemberSpec(held_out="python-code"),), general=(MemberSpec(held_out="python-docs"),)
    )
    stores = {"python-docs": TokenStore(Path("docs"), "python-docs")}
    scoring = experiment_scoring_spec(
        searched.model_copy(update={"suites": suites}), stores, scoring="exact"
    )
    assert (scoring.packed, scoring.seq_len, scoring.precision) == (not crossing, 64, "bf16")
    assert scoring.languages == {source.name: source.language for source in searched.sources}
    assert len(set(scoring.languages.values())) == 2
    assert scoring.stores == tuple(stores.values())


PRETRAINING: dict[str, Any] = {
    "seq_len": 16,
    "batch_tokens": 64,
    "warmup": 0.5,
    "clip": 0.7,
    "betas": (0.8, 0.9),
    "weight_decay": 0.3,
    "cross_documents": True,
}


def pretrain_spec(seed: int = 3) -> PretrainSpec:
    config = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "attention_dropout": 0.5,
        "vocab_size": 300,
    }
    return PretrainSpec(
        config=config,
        mixture={"code": 0.25, "docs": 0.75},
        tokens=4 * 64,
        training=TrainingSettings(**PRETRAINING),
        seed=seed,
    )


def test_pretraining_is_the_recipe_of_its_section(spec: WorkerSpec):
    made = pretraining_recipe(pretrain_spec(), list(spec.stores))
    assert {name: getattr(made, name) for name in PRETRAINING} == PRETRAINING
    assert (made.lr_fraction, made.tokens, made.seed) == (1.0, 256, 3)
    assert {p.source: p.share for p in made.mixture.portions} == {"code": 0.25, "docs": 0.75}


def test_a_pretrained_base_follows_from_its_section(tmp_path: Path, spec: WorkerSpec):
    stores = list(spec.stores)

    def pretrain(name: str, seed: int) -> list[StepMetrics]:
        steps = pretrain_base(
            pretrain_spec(seed), MAX_LR, tmp_path / name, stores, byte_tokenizer(), device=CPU
        )
        return list(steps)

    torch.manual_seed(1)
    first = pretrain("first", 3)
    made = pretraining_recipe(pretrain_spec(), stores)
    assert [m.lr for m in first] == [made.lr(step, max_lr=MAX_LR) for step in range(1, 5)]
    assert max(m.lr for m in first) == MAX_LR
    assert first[-1].tokens == {"code": 64, "docs": 192}
    torch.manual_seed(2)
    assert pretrain("again", 3) == first
    tensors = [load_file(tmp_path / n / "model.safetensors") for n in ("first", "again")]
    assert all(torch.equal(values, tensors[1][name]) for name, values in tensors[0].items())
    assert pretrain("other", 4)[0].loss != first[0].loss
    weights = [
        _initialize_model(pretrain_spec(n), byte_tokenizer(), made, CPU).lm_head.weight
        for n in (3, 4)
    ]
    assert not torch.equal(*weights)
    assert json.loads((tmp_path / "first/config.json").read_text())["attention_dropout"] == 0
    model = load_model(str(tmp_path / "first"), revision=None, device=CPU)
    assert model.config.vocab_size == 300
    assert (model.config.bos_token_id, model.config.eos_token_id) == (256, 257)
    # It was saved after the last step: a step more begins from a loss below the first one.
    stream = MixtureStream(made, stores)
    engine = PlainEngine(model, made, micro_batch=None, precision="fp32")
    batch = stream.batch(1)
    losses, _ = engine.step(batch, target_tokens=1, lr=0.0)
    assert losses.sum() / batch.targets.size < first[0].loss - 0.1


@pytest.mark.parametrize("crossing", [True, False])
def test_pretraining_is_in_fp32_and_checks_isolation_unless_documents_cross(
    tmp_path: Path, spec: WorkerSpec, monkeypatch: pytest.MonkeyPatch, crossing: bool
):
    checked: list[tuple[int, bool]] = []

    def check(*_: object, wanted: str, seq_len: int, packed: bool) -> None:
        assert wanted == "auto"
        checked.append((seq_len, packed))

    class Built(Exception):
        pass

    def build(*_: object, **settings: object) -> None:
        raise Built(settings)

    monkeypatch.setattr(pretraining, "ensure_isolation", check)
    monkeypatch.setattr(pretraining, "PlainEngine", build)
    training = TrainingSettings(**PRETRAINING | {"cross_documents": crossing})
    section = pretrain_spec().model_copy(update={"training": training})
    stores = list(spec.stores)
    steps = pretrain_base(section, MAX_LR, tmp_path / "base", stores, byte_tokenizer(), device=CPU)
    with pytest.raises(Built) as built:
        next(steps)
    assert built.value.args == ({"micro_batch": None, "precision": "fp32", "halves": True},)
    assert checked == [(16, not crossing)]
