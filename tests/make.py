"""Small objects for tests."""

import json
from pathlib import Path

import numpy as np

from sweepcp.data.sources import Source
from sweepcp.data.store import Store, write_index
from sweepcp.recipe import Mixture, Portion, Recipe
from sweepcp.scorecard import HalfScore, Items, Scorecard
from sweepcp.trial import Trial


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
            Portion(source="code", role="domain", language="python", share=1 - general),
            Portion(source="docs", role="general", language="en", share=general),
        )
    )


def trial(number: int, domain: float | None, general: float | None, **changes: object) -> Trial:
    """A trial with these scalars on the half that is chosen on, and one less on the other."""
    card = None
    if domain is not None and general is not None:
        card = Scorecard(
            select=HalfScore(domain=domain, domain_se=0, general=general, general_se=0, members=()),
            report=HalfScore(domain=domain - 1, domain_se=0, general=general - 1, general_se=0, members=()),
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


def items(role: str, amount: list[float], size: list[float] | None = None, **changes: object) -> Items:
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
    return Items(**values | changes)  # type: ignore[arg-type]


def source(**changes: object) -> Source:
    """A source of the JSONL files of a folder."""
    values: dict[str, object] = {"name": "s", "role": "domain", "files": ["*.jsonl"]}
    return Source.model_validate_json(json.dumps({k: v for k, v in (values | changes).items() if v is not None}))


def jsonl(path: Path, records: list[object]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def write_store(folder: Path, name: str, documents: list[list[int]], part: float = 1.0) -> Store:
    """A store of these training documents, token by token."""
    path = folder / name
    path.mkdir()
    lengths = np.array([len(d) for d in documents], dtype=np.int32)
    np.array([t for d in documents for t in d], dtype="<u2").tofile(path / "train.bin")
    with (path / "train.idx").open("wb") as file:
        write_index(file, np.dtype("<u2"), len(documents), lambda: [lengths])
    (path / "store.json").write_text(json.dumps({"train": {"tokens": int(lengths.sum())}}))
    return Store(path, name, part)
