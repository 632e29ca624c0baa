"""Small objects, folders and files for tests."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sweepcp.config.base_model import BaseSpec
from sweepcp.config.experiment import Experiment
from sweepcp.config.recipe import Mixture, Recipe, SourceShare
from sweepcp.config.source import Source
from sweepcp.config.target import load_target
from sweepcp.corpora.experiment import load_experiment
from sweepcp.data.token_store import TokenStore, write_index
from sweepcp.models.base import tokenizer_id
from sweepcp.promote.candidate import candidate_from_publication
from sweepcp.promote.translate import promote
from sweepcp.runs.trial import Trial
from sweepcp.scoring.scorecard import (
    ItemScores,
    Scorecard,
    SplitScore,
    document_id,
)
from sweepcp.util.files import file_sha256, write_json


def recipe(**changes: object) -> Recipe:
    """Return a recipe of ten steps of two sequences of four tokens."""
    values: dict[str, object] = {
        "seq_len": 4,
        "batch_tokens": 8,
        "tokens": 80,
        "lr_fraction": 0.1,
        "mixture": mixture(0.5),
    }
    return Recipe(**values | changes)  # type: ignore[arg-type]


def mixture(general: float) -> Mixture:
    """Return a mixture of the sources `code` (domain) and `docs` (general)."""
    return Mixture(
        portions=(
            SourceShare(source="code", role="domain", language="python", share=1 - general),
            SourceShare(source="docs", role="general", language="en", share=general),
        )
    )


def trial(number: int, domain: float | None, general: float | None, **changes: object) -> Trial:
    """Return a trial with these scores on the selection half, and 1 less on the reporting half.

    Without scores it is a failed trial.
    """
    card = None
    if domain is not None and general is not None:
        card = Scorecard(
            select=split_score(domain=domain, general=general),
            report=split_score(domain=domain - 1, general=general - 1),
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


def split_score(*, domain: float, general: float) -> SplitScore:
    """Return scores without errors and members."""
    return SplitScore(
        domain=domain, domain_se=0, general=general, general_se=0, members=(), languages=()
    )


def items(
    role: str, amount: list[float], size: list[float] | None = None, **changes: object
) -> ItemScores:
    """Return items, each of a document of its own.

    They alternate between the halves; the first is in the selection half.
    """
    name = str(changes.get("name", f"held_out_{role}"))
    values: dict[str, object] = {
        "name": name,
        "role": role,
        "language": "en",
        "unit": "bits per byte",
        "weight": 1.0,
        "document": changes.get("document") or documents(name, len(amount)),
        "amount": tuple(amount),
        "size": tuple(size or [1.0] * len(amount)),
    }
    return ItemScores(**values | changes)  # type: ignore[arg-type]


def documents(source: str, count: int) -> tuple[str, ...]:
    """Return ids of documents of a source: those of even index are in the selection half."""
    prefix = document_id(source)[:8]
    return tuple(f"{prefix}{index + 1:08x}" for index in range(count))


def experiment(*overrides: str, **changes: object) -> Experiment:
    """Return the quickstart experiment.

    Args:
        *overrides: As of `--set` on the command line.
        **changes: Other values of its fields.
    """
    loaded, _ = load_experiment("quickstart", overrides)
    return loaded.model_copy(update=changes)


def source(**changes: object) -> Source:
    """Return a source of the JSONL files of a folder; a field that is None is left out."""
    values: dict[str, object] = {"name": "s", "role": "domain", "files": ["*.jsonl"]}
    given = {key: value for key, value in (values | changes).items() if value is not None}
    return Source.model_validate_json(json.dumps(given))


def jsonl(path: Path, records: Sequence[object]) -> Path:
    """Write records as JSONL."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_store(
    folder: Path, name: str, documents: list[list[int]], fraction: float = 1.0
) -> TokenStore:
    """Write a token store of training documents, given as their tokens."""
    path = folder / name
    path.mkdir()
    lengths = np.array([len(document) for document in documents], dtype=np.int32)
    tokens = list(itertools.chain.from_iterable(documents))
    np.array(tokens, dtype="<u2").tofile(path / "train.bin")
    with (path / "train.idx").open("wb") as file:
        write_index(file, np.dtype("<u2"), len(documents), lambda: [lengths])
    (path / "held_out.jsonl").touch()
    for split, count in (("train", len(documents)), ("held_out", 0)):
        np.arange(count, dtype="<u8").tofile(path / f"{split}.hashes")
    size = 2 * len(tokens)
    counts = {"documents": len(documents), "bytes": size, "covered": size, "tokens": len(tokens)}
    record: dict[str, object] = {
        "format": 4,
        "fingerprint": "",
        "tokenizer": "",
        "records": len(documents),
        "left_out": {},
        "bad": 0,
        "examples": [],
        "used_keys": {},
        "near_duplicates": 0,
        "train": counts,
        "held_out": {"documents": 0, "bytes": 0, "covered": 0},
    }
    write_json(path / "store.json", record)
    update_store(path, {})
    return TokenStore(path, name, fraction)


def update_store(folder: Path, changes: dict[str, object]) -> None:
    """Change the record of a token store, and state the hashes that its files have now."""
    record = folder / "store.json"
    names = [file.name for file in folder.iterdir() if file.suffix in (".bin", ".idx", ".jsonl")]
    hashes = {name: file_sha256(folder / name) for name in sorted(names)}
    write_json(record, json.loads(record.read_text()) | changes | {"sha256": hashes})


SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


def write_model(folder: Path, *, shard: str = "5GB", **changes: object) -> Path:
    """Write a small Llama over bytes with random weights, the same every time.

    Args:
        folder: The folder of the model.
        shard: Size of a file at most.
        **changes: Other values of the configuration.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from sweepcp.models.loading import byte_tokenizer

    torch.manual_seed(7)
    settings: dict[str, Any] = {
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
    """Write token stores of bytes: `code` has long documents, `docs` short ones.

    Both record the model's tokenizer as theirs.
    """
    rng = np.random.default_rng(3)
    tokenizer = tokenizer_id(BaseSpec(path=str(model), max_lr=1.0))
    stores = {}
    for name, count, low, longest in (("code", 200, 97, 70), ("docs", 150, 65, 5)):

        def letters(length: int, low: int = low) -> list[int]:
            return rng.integers(low, low + 26, length).tolist()

        documents = [[256, *letters(int(rng.integers(1, longest))), 257] for _ in range(count)]
        store = write_store(folder, name, documents)
        held_out = ["".join(map(chr, letters(60))) for _ in range(24)]
        jsonl(store.path / "held_out.jsonl", list(held_out))
        np.arange(24, dtype="<u8").tofile(store.path / "held_out.hashes")
        counts = {"documents": 24, "bytes": 24 * 60, "covered": 24 * 60}
        meta: dict[str, object] = {"tokenizer": tokenizer, "held_out": counts}
        update_store(store.path, meta)
        # A new object: `meta` is cached.
        stores[name] = TokenStore(store.path, name)
    return stores


def target_content(folder: Path, **changes: object) -> dict[str, object]:
    """Return a target of two processes: 20 steps of 16 sequences of 32 tokens.

    Its model and corpora are those of `write_bundle` in the same folder.
    """
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
    """Write a model, corpora, a published recipe, a target with `changes`, and their bundle."""
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
