"""The tokens of a run in the order of its stream, written out: for trainers that cannot mix by tokens."""

import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sweepcp.config.recipe import Recipe
from sweepcp.data.stream import IGNORED, Batch, MixtureStream, tokens_by_source
from sweepcp.data.token_store import TokenStore
from sweepcp.errors import InvalidInput
from sweepcp.util.files import write_json

MixRows = Literal["documents", "sequences"]


def materialize_mix(
    recipe: Recipe, stores: list[TokenStore], out: Path, rows: MixRows, workers: int
) -> dict[str, int]:
    """Write the run's tokens as a data set of `datasets` into the new folder `out`; returns tokens by source.

    Rows are sequences, or of each sequence what it holds of a document; `labels` leave out what the recipe does not
    train on, and the first token of a row, which has none before it. `mix.json` in the folder has the counts, and is
    written last. Needs as much room again while it is written.
    """
    from datasets import Dataset, Features, List, Value

    if (out / "mix.json").is_file():
        raise InvalidInput(
            file=out,
            key="--out",
            found="holds a mix",
            rule="a mix is written once",
            fix="use it, or remove it to write it again",
        )
    work = out.with_name(f".{out.name}.work")
    for unfinished in (out, work):
        shutil.rmtree(unfinished, ignore_errors=True)
    steps = list(range(1, recipe.steps + 1))
    token, flag = List(Value("int32")), List(Value("int8"))
    made = Dataset.from_generator(
        generate_rows,
        features=Features({"input_ids": token, "attention_mask": flag, "labels": token}),
        gen_kwargs={"steps": steps, "recipe": recipe, "stores": tuple(stores), "rows": rows},
        num_proc=min(workers, len(steps)) if workers > 1 else None,
        cache_dir=str(work),
    )
    made.save_to_disk(str(out))
    shutil.rmtree(work, ignore_errors=True)
    tokens = tokens_by_source(recipe, recipe.steps)
    write_json(
        out / "mix.json",
        {"recipe_id": recipe.id, "kind": rows, "rows": len(made), "tokens": tokens},
    )
    return tokens


def generate_rows(
    steps: list[int], recipe: Recipe, stores: tuple[TokenStore, ...], rows: MixRows
) -> Iterator[dict[str, Any]]:
    """The rows of some steps, in the order of the stream."""
    stream = MixtureStream(recipe, list(stores))
    for step in steps:
        batch = stream.batch(step)
        for row in range(len(batch.input_ids)):
            for first, last in (
                document_spans(batch, row) if rows == "documents" else [(0, recipe.seq_len)]
            ):
                yield _dataset_row(batch, row, first, last)


def document_spans(batch: Batch, row: int) -> list[tuple[int, int]]:
    """Where the documents of a sequence begin and end."""
    begins = [*np.flatnonzero(batch.position_ids[row] == 0).tolist(), batch.input_ids.shape[1]]
    return list(pairwise(begins))


def _dataset_row(batch: Batch, row: int, first: int, last: int) -> dict[str, Any]:
    """Labels stand where their token stands. A row of one token keeps its own, for rows without any are dropped."""
    tokens = batch.input_ids[row, first:last]
    labels = np.concatenate([[IGNORED], batch.targets[row, first : last - 1]])
    labels = tokens if len(tokens) == 1 else labels
    return {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "labels": labels}
