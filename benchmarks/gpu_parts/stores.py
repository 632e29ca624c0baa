"""Token stores of random tokens and words, and the recipe of the measured steps."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from gpu_parts.settings import (
    DOCUMENT_TOKENS,
    SEQ_LEN,
    SEQUENCES,
    SHAPE,
    STEPS,
    TINY,
    WARM_STEPS,
)

ROLES = {"code": "domain", "docs": "general"}
"""Source → role."""
HELD_OUT_DOCUMENTS = 16 if TINY else 256
OTHER_STEPS = 4
"""Steps that are profiled or counted, after those under the clock."""


def write_store(folder: Path, source: str) -> Any:
    """Write a token store, unless it is there: random tokens in documents of different lengths,
    and held-out text of random words."""
    from sweepcp.data.token_store import TokenStore, token_dtype, write_index

    place = folder / source
    if (place / "store.json").exists():
        return TokenStore(place, source)
    place.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(source) + ord(source[0]))
    kind = token_dtype(SHAPE["vocab_size"])
    count = 8 * SEQUENCES * SEQ_LEN // DOCUMENT_TOKENS
    lengths = rng.integers(DOCUMENT_TOKENS // 4, 2 * DOCUMENT_TOKENS, count).astype(np.int32)
    tokens = rng.integers(0, SHAPE["vocab_size"], int(lengths.sum())).astype(kind)
    tokens.tofile(place / "train.bin")
    with (place / "train.idx").open("wb") as file:
        write_index(file, kind, len(lengths), lambda: [lengths])
    letters = rng.integers(97, 123, (500, 6)).astype(np.uint8)
    words = [bytes(word).decode() for word in letters]
    texts = [" ".join(rng.choice(words, 200)) for _ in range(HELD_OUT_DOCUMENTS)]
    (place / "held_out.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    write_record(
        place,
        tokens=len(tokens),
        documents=len(lengths),
        held_out=len(texts),
        tokenizer="bytes",
    )
    return TokenStore(place, source)


def write_record(
    folder: Path, *, tokens: int, documents: int, held_out: int, tokenizer: str
) -> None:
    """Write the `store.json` of a store whose other files are there."""
    from sweepcp.data.token_store import FORMAT, HASHED_FILES
    from sweepcp.util.files import file_sha256

    nothing = {"documents": 0, "bytes": 0, "covered": 0}
    content = {
        "format": FORMAT,
        "fingerprint": "random",
        "tokenizer": tokenizer,
        "records": documents + held_out,
        "left_out": {},
        "bad": 0,
        "examples": [],
        "used_keys": {},
        "near_duplicates": 0,
        "train": nothing | {"documents": documents, "tokens": tokens},
        "held_out": nothing | {"documents": held_out},
        "sha256": {name: file_sha256(folder / name) for name in HASHED_FILES},
    }
    (folder / "store.json").write_text(json.dumps(content))


def write_stores(work: Path) -> list[Any]:
    """Write the stores of both sources, which the parts share."""
    return [write_store(work / "stores", source) for source in ROLES]


def make_recipe(*, packed: bool = True) -> Any:
    """Return the recipe of the measured steps; `packed`: documents are separated."""
    from sweepcp.config.recipe import Recipe

    portions = [
        {"source": source, "role": role, "language": "en", "share": 0.5}
        for source, role in ROLES.items()
    ]
    content = {
        "seq_len": SEQ_LEN,
        "batch_tokens": SEQUENCES * SEQ_LEN,
        "tokens": (WARM_STEPS + STEPS + OTHER_STEPS) * SEQUENCES * SEQ_LEN,
        "lr_fraction": 0.1,
        "mixture": {"portions": portions},
        "cross_documents": not packed,
    }
    return Recipe.model_validate_json(json.dumps(content))
