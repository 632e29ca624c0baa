"""Write the tokens of a run in the order of its stream, for trainers that cannot mix by tokens."""

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
"""What a row holds: a sequence, or the tokens of one document in a sequence."""
UNFINISHED = ("dataset_info.json", "state.json")
"""Files beside the `.arrow` files of a data set that is being written."""


def materialize_mix(
    recipe: Recipe, stores: list[TokenStore], *, out: Path, rows: MixRows, workers: int
) -> dict[str, int]:
    """Write the tokens of a run as a data set of the `datasets` library.

    Labels are `IGNORED` where the recipe does not train, and at the first token of a row, which no
    token precedes. `mix.json` in the folder has the counts and is written last, so a folder without
    it is incomplete, and is replaced. Writing takes twice the disk space of the result.

    Args:
        recipe: The recipe of the run.
        stores: The token stores of its sources.
        out: The folder to write.
        rows: What a row holds.
        workers: Number of processes.

    Returns:
        Source → tokens written.

    Raises:
        InvalidInput: The folder already holds a mix.
    """
    from datasets import Dataset, Features, List, Value

    if (out / "mix.json").is_file():
        raise InvalidInput(
            file=out,
            key="--out",
            found="a folder that holds a mix",
            rule="a folder without a mix",
            fix="use it, or remove it to write it again",
        )
    _check_is_unfinished(out)
    work = out.with_name(f".{out.name}.work")
    for unfinished in (out, work):
        shutil.rmtree(unfinished, ignore_errors=True)
    # `datasets` splits arguments that are lists over the processes, and passes tuples whole.
    steps = list(range(1, recipe.steps + 1))
    tokens, flags = List(Value("int32")), List(Value("int8"))
    dataset = Dataset.from_generator(
        generate_rows,
        features=Features({"input_ids": tokens, "attention_mask": flags, "labels": tokens}),
        gen_kwargs={"steps": steps, "recipe": recipe, "stores": tuple(stores), "rows": rows},
        num_proc=min(workers, len(steps)) if workers > 1 else None,
        cache_dir=str(work),
    )
    dataset.save_to_disk(str(out))
    shutil.rmtree(work, ignore_errors=True)
    counts = tokens_by_source(recipe, recipe.steps)
    record = {"recipe_id": recipe.id, "kind": rows, "rows": len(dataset), "tokens": counts}
    write_json(out / "mix.json", record)
    return counts


def _check_is_unfinished(out: Path) -> None:
    """Refuse a folder with files of something else, which an unfinished mix would be deleted as."""
    others = [file.name for file in out.iterdir()] if out.exists() else []
    others = [name for name in others if not name.endswith(".arrow") and name not in UNFINISHED]
    if others:
        raise InvalidInput(
            file=out,
            key="--out",
            found=f"a folder that holds {min(others)}",
            rule="a new folder, or an unfinished mix",
            fix="name another folder",
        )


def generate_rows(
    steps: list[int], recipe: Recipe, stores: tuple[TokenStore, ...], rows: MixRows
) -> Iterator[dict[str, Any]]:
    """Yield the rows of some steps, in the order of the stream.

    Yields:
        `input_ids`, `attention_mask` and `labels`, each of shape (tokens of the row,). A label is
        the token at its own position.
    """
    stream = MixtureStream(recipe, list(stores))
    for step in steps:
        batch = stream.batch(step)
        for sequence in range(len(batch.input_ids)):
            spans = [(0, recipe.seq_len)]
            if rows == "documents":
                spans = document_spans(batch, sequence)
            for first, last in spans:
                yield _dataset_row(batch, sequence, first=first, last=last)


def document_spans(batch: Batch, sequence: int) -> list[tuple[int, int]]:
    """Return where the documents of a sequence start and end (exclusive)."""
    starts = np.flatnonzero(batch.position_ids[sequence] == 0).tolist()
    return list(pairwise([*starts, batch.input_ids.shape[1]]))


def _dataset_row(batch: Batch, sequence: int, *, first: int, last: int) -> dict[str, Any]:
    tokens = batch.input_ids[sequence, first:last]
    # A target belongs to the token before it, a label of transformers to its own token.
    labels = np.concatenate([[IGNORED], batch.targets[sequence, first : last - 1]])
    # Trainers drop rows without any label, and with them the tokens: a single token keeps its own.
    if len(tokens) == 1:
        labels = tokens
    return {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "labels": labels}
