"""Small objects for tests."""

import json
from pathlib import Path

import numpy as np

from sweepcp.config.base_model import BaseSpec
from sweepcp.config.experiment import Experiment
from sweepcp.config.recipe import Mixture, Recipe, SourceShare
from sweepcp.config.source import Source
from sweepcp.config.space import Point, Range, WeightedSource, recipe_at
from sweepcp.config.target import load_target
from sweepcp.corpora.experiment import load_experiment
from sweepcp.data.token_store import TokenStore, write_index
from sweepcp.models.base import tokenizer_id
from sweepcp.promote.candidate import candidate_from_publication
from sweepcp.promote.translate import promote
from sweepcp.runs.run_folder import RunWriter
from sweepcp.runs.trial import BaseRecord, Cost, Trial, TrialOutcome
from sweepcp.scoring.scorecard import ItemScores, Scorecard, SplitScore, compare_with_base


def recipe(**changes: object) -> Recipe:
    values: dict[str, object] = {
        "seq_len": 4,
        "batch_tokens": 8,
        "tokens": 80,
        "lr_fraction": 0.1,
        "mixture": mixture(0.5),
    }
    return Recipe(**values | changes)  # type: ignore[arg-type]


def mixture(general: float) -> Mixture:
    return Mixture(
        portions=(
            SourceShare(source="code", role="domain", language="python", share=1 - general),
            SourceShare(source="docs", role="general", language="en", share=general),
        )
    )


def trial(number: int, domain: float | None, general: float | None, **changes: object) -> Trial:
    """A trial with these scalars on the half that is chosen on, and one less on the other."""
    card = None
    if domain is not None and general is not None:
        card = Scorecard(
            select=SplitScore(
                domain=domain, domain_se=0, general=general, general_se=0, members=()
            ),
            report=SplitScore(
                domain=domain - 1, domain_se=0, general=general - 1, general_se=0, members=()
            ),
        )
    values: dict[str, object] = {
        "id": f"{number:04d}",
        "number": number,
        "status": "done" if card else "failed",
        "reason": None if card else "it broke",
        "proposed_by": "anchor",
        "point": {"lr_fraction": 0.1, "general_share": 0.5},
        "recipe": recipe(),
        "recipe_id": recipe().id,
        "domain": domain,
        "general": general,
        "scorecard": card,
        "tokens_by_source": {},
        "epochs_by_source": {},
        "cost": None,
        "versions": {},
        "finished": "2026-01-01T00:00:00+00:00",
    }
    return Trial(**values | changes)  # type: ignore[arg-type]


def items(
    role: str, amount: list[float], size: list[float] | None = None, **changes: object
) -> ItemScores:
    """Items that alternate between the halves, the first on the half that is chosen on."""
    values: dict[str, object] = {
        "name": f"held_out_{role}",
        "role": role,
        "language": "en",
        "unit": "bits per byte",
        "weight": 1.0,
        "select": tuple(i % 2 == 0 for i in range(len(amount))),
        "amount": tuple(amount),
        "size": tuple(size or [1.0] * len(amount)),
    }
    return ItemScores(**values | changes)  # type: ignore[arg-type]


def experiment(*overrides: str, **changes: object) -> Experiment:
    """The quickstart with overrides as on the command line, and with other values of its fields."""
    loaded, _ = load_experiment("quickstart", overrides)
    return loaded.model_copy(update=changes)


def answer(point: Point) -> tuple[float, float]:
    """Domain and general change in %: along the front LR fraction is 0.3, the share moves along it."""
    miss = 4 * abs(np.log10(float(point["lr_fraction"]) / 0.3))
    domain = 1 - float(point["general_share"])
    return 12 * domain - miss, -4 * domain**2 - miss / 2


def write_run(
    folder: Path,
    trials: int,
    documents: int = 40,
    steps: int = 10,
    space: str = "lr-mix",
    **statuses: str,
) -> Path:
    """A run folder of the quickstart whose scores follow `answer`, with noise of items that all trials share.

    `statuses` are those of trials that are not done: t0003="diverged".
    """
    searched = experiment(f"budget.trials={max(trials, 1)}", f"space={space}")
    rng = np.random.default_rng(5)
    sizes = rng.uniform(50, 150, documents)
    noise = {name: rng.normal(0, 1.5, documents) for name in ("code", "docs", "docs_de")}
    writer = RunWriter(folder)
    writer.start(searched, {"python-docs": "aa", "python-code": "bb"})

    def measured(domain: float, general: float) -> tuple[ItemScores, ...]:
        found = []
        for name, role, language, change in (
            ("code", "domain", "python", domain),
            ("docs", "general", "en", general),
            ("docs_de", "general", "de", 0.8 * general),
        ):
            moved = change + (noise[name] * abs(change) / 10)
            amount = (2 * sizes * (1 - moved / 100)).tolist()
            found.append(
                items(role, amount, sizes.tolist(), name=f"held_out_{name}", language=language)
            )
        right = [float(i % 4 < 2 + (domain > 5)) for i in range(documents)]
        found.append(items("domain", right, name="quiz", unit="accuracy", language="python"))
        return tuple(found)

    base = BaseRecord(
        model="a base",
        parameters=111_040,
        max_lr=3e-3,
        items=measured(0, 0),
        versions={"torch": "2"},
    )
    writer.write_base(base)
    sources = [
        WeightedSource(name="python-docs", role="general", language="en", weight=1),
        WeightedSource(name="python-code", role="domain", language="python", weight=1),
    ]
    for number in range(trials):
        point: Point = {
            name: axis.from_unit(float(rng.uniform()))
            if isinstance(axis, Range)
            else axis.choices[number % 2]
            for name, axis in searched.space.axes.items()
        }
        point = (
            dict(searched.space.anchors[0]) if number == 0 and searched.space.anchors else point
        )
        made = recipe_at(point, sources, searched.training, tokens=1024 * steps, seed=0)
        status = statuses.get(f"t{number:04d}", "done")
        outcome = TrialOutcome(
            status=status, items=measured(*answer(point)) if status == "done" else ()
        )  # type: ignore[arg-type]
        card = compare_with_base(list(outcome.items), list(base.items)) if outcome.items else None
        record = Trial(
            id=f"{number:04d}",
            number=number,
            status=status,  # type: ignore[arg-type]
            reason=None if card else "step 3 of 10: loss nan",
            proposed_by="anchor" if number == 0 else "tpe",
            point=point,
            recipe=made,
            recipe_id=made.id,
            domain=card.select.domain if card else None,
            general=card.select.general if card else None,
            scorecard=card,
            tokens_by_source={
                p.source: round(p.share * made.tokens) for p in made.mixture.portions
            },
            epochs_by_source={p.source: p.share / 10 for p in made.mixture.portions},
            cost=Cost(
                train_seconds=6,
                score_seconds=3,
                tokens=made.tokens,
                tokens_per_second=170,
                worker="here, CPU",
            ),
            versions={"torch": "2"},
            finished="2026-01-01T00:00:00+00:00",
        )
        writer.begin_trial(record.id)
        writer.append_metrics(record.id, step_rows(made, steps))
        writer.write_trial(record, outcome)
    return folder


def step_rows(made: Recipe, steps: int) -> list[dict[str, object]]:
    """The first steps of a trial as its metrics file has them."""
    return [
        {
            "step": n,
            "lr": made.lr(n, 3e-3),
            "loss": 2 - n / 100,
            "grad_norm": 1.0,
            "tokens": {"python-code": 1024 * n},
        }
        for n in range(1, steps + 1)
    ]


def source(**changes: object) -> Source:
    """A source of the JSONL files of a folder."""
    values: dict[str, object] = {"name": "s", "role": "domain", "files": ["*.jsonl"]}
    return Source.model_validate_json(
        json.dumps({k: v for k, v in (values | changes).items() if v is not None})
    )


def jsonl(path: Path, records: list[object]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def write_store(
    folder: Path, name: str, documents: list[list[int]], fraction: float = 1.0
) -> TokenStore:
    """A store of these training documents, token by token."""
    path = folder / name
    path.mkdir()
    lengths = np.array([len(d) for d in documents], dtype=np.int32)
    np.array([t for d in documents for t in d], dtype="<u2").tofile(path / "train.bin")
    with (path / "train.idx").open("wb") as file:
        write_index(file, np.dtype("<u2"), len(documents), lambda: [lengths])
    (path / "store.json").write_text(json.dumps({"train": {"tokens": int(lengths.sum())}}))
    return TokenStore(path, name, fraction)


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


def write_model(folder: Path, shard: str = "5GB", **changes: object) -> Path:
    """A small Llama over bytes with random weights, the same every time, in shards of at most so many bytes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from sweepcp.models.loading import byte_tokenizer

    torch.manual_seed(7)
    settings = {
        "vocab_size": 258,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "initializer_range": 0.1,
        **SMALL,
    } | changes
    LlamaForCausalLM(LlamaConfig(**settings)).save_pretrained(folder, max_shard_size=shard)
    byte_tokenizer().save_pretrained(folder)
    return folder


def write_corpora(folder: Path, model: Path) -> dict[str, TokenStore]:
    """Stores of bytes: `code` of long documents, `docs` of short ones, 20 sequences of 32 tokens with fewer targets.

    They say that they were made with the model's tokenizer.
    """
    rng = np.random.default_rng(3)
    tokenizer = tokenizer_id(BaseSpec(path=str(model), max_lr=1.0))
    stores = {}
    for name, count, low, longest in (("code", 200, 97, 70), ("docs", 150, 65, 5)):
        texts = [
            rng.integers(low, low + 26, rng.integers(1, longest)).tolist() for _ in range(count)
        ]
        stores[name] = write_store(folder, name, [[256, *text, 257] for text in texts])
        held_out = ["".join(map(chr, rng.integers(low, low + 26, 60).tolist())) for _ in range(24)]
        (folder / name / "held_out.jsonl").write_text(
            "".join(json.dumps(text) + "\n" for text in held_out)
        )
        meta = stores[name].meta | {
            "tokenizer": tokenizer,
            "held_out": {"documents": len(held_out)},
        }
        (folder / name / "store.json").write_text(json.dumps(meta))
    return {name: TokenStore(folder / name, name) for name in stores}


def target_content(folder: Path, **changes: object) -> dict[str, object]:
    """A target of two processes on the model and corpora in a folder: 20 steps of 16 sequences of 32 tokens."""
    return {
        "name": "small",
        "model": {"path": str(folder / "model"), "max_lr": 0.1},
        "corpora": {
            name: {"store": str(folder / "stores" / name), "max_epochs": 99.0}
            for name in ("code", "docs")
        },
        "tokens": 20 * 16 * 32,
        "batch_tokens": 16 * 32,
        "seq_len": 32,
        "hardware": {"device": "cpu", "nodes": 1, "per_node": 2},
        "compute": {"micro_batch": 2, "precision": "fp32"},
        "checkpoints": {"every": 5},
        "watch": {"every": 10},
    } | changes


def write_bundle(folder: Path, **changes: object) -> Path:
    """Model, corpora, a published recipe, and the bundle of both; `changes` are those of the target."""
    if not (folder / "model").exists():
        write_model(folder / "model")
        (folder / "stores").mkdir()
        write_corpora(folder / "stores", folder / "model")
    content = {
        "published": "a test",
        "lr_fraction": 0.1,
        "mixture": mixture(0.4).model_dump(mode="json"),
    }
    (folder / "recipe.yaml").write_text(json.dumps(content))
    (folder / "target.yaml").write_text(json.dumps(target_content(folder, **changes)))
    target, file = load_target(str(folder / "target.yaml"))
    candidate = candidate_from_publication(str(folder / "recipe.yaml"))
    promote(candidate, target, file=file, out=folder / "bundle")
    return folder / "bundle"
