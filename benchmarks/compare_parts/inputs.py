"""What all arms share: the base, the tokens, the held-out text and the items of an experiment.

sweepcp has prepared them in its cache; here they are also written in the form in which a user of
`datasets`, `transformers` and lm-eval has them.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROLES = ("domain", "general")


@dataclass(frozen=True)
class Inputs:
    """The files of a comparison, and the settings of a trial."""

    base: str
    """Folder of the base model."""
    tokenizer: str
    """Folder of its tokenizer."""
    train: dict[str, str]
    """Role → `datasets` folder of blocks of `seq_len` tokens."""
    held_out: dict[str, str]
    """Role → `datasets` folder of rows of held-out text."""
    held_out_bytes: dict[str, int]
    """Role → UTF-8 bytes of that text."""
    task_folder: str
    """Folder of the lm-eval tasks."""
    tasks: tuple[str, ...]
    """Their names."""
    seq_len: int
    sequences: int
    """Sequences per step."""
    steps: int
    warmup_steps: int
    final_fraction: float
    max_lr: float
    """The max LR of the base's own pretraining."""
    lr_fractions: tuple[float, float]
    """The range that is searched."""
    seed: int

    @classmethod
    def read(cls, folder: Path) -> "Inputs":
        """Read what `write_inputs` wrote."""
        content = json.loads((folder / "inputs.json").read_text())
        for key in ("tasks", "lr_fractions"):
            content[key] = tuple(content[key])
        return cls(**content)


def write_inputs(name: str, overrides: Sequence[str], folder: Path) -> Inputs:
    """Write the inputs of an experiment, which a search has prepared in the cache.

    Args:
        name: The experiment.
        overrides: Of `--set`.
        folder: Where to write.
    """
    from sweepcp.config.space import Range
    from sweepcp.corpora.experiment import load_experiment
    from sweepcp.corpora.identity import identify_inputs
    from sweepcp.corpora.stores import build_stores
    from sweepcp.models.base import pretrained_path
    from sweepcp.models.loading import load_tokenizer, make_encoder
    from sweepcp.scoring.spec import experiment_scoring_spec
    from sweepcp.util.progress import NoProgress

    experiment, files = load_experiment(name, list(overrides))
    stores = build_stores(experiment, files, progress=NoProgress())
    base = pretrained_path(experiment.base, identify_inputs(experiment, files).sources)
    tokenizer = load_tokenizer(experiment.base)
    tokenizer.save_pretrained(str(folder / "tokenizer"))
    seq_len = experiment.training.seq_len
    role_of = {source.name: source.role for source in experiment.sources}
    train: dict[str, str] = {}
    for source, store in stores.items():
        path = folder / "train" / role_of[source]
        _write_blocks(path, store.train().tokens, seq_len=seq_len, seed=experiment.seed)
        train[role_of[source]] = str(path)
    held_out: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for role, member in experiment.suites.members:
        if member.held_out:
            store, path = stores[member.held_out], folder / "held_out" / role
            sizes[role] = _write_held_out(path, store, member, make_encoder(tokenizer), seq_len)
            held_out[role] = str(path)
    scoring = experiment_scoring_spec(experiment, stores, scoring="exact")
    lr = experiment.space.axes["lr_fraction"]
    assert isinstance(lr, Range)
    recipe = experiment.recipe_at(
        dict(experiment.space.anchors[0]), {name: float(s.tokens) for name, s in stores.items()}
    )
    assert recipe.final_fraction is not None
    inputs = Inputs(
        base=str(base),
        tokenizer=str(folder / "tokenizer"),
        train=train,
        held_out=held_out,
        held_out_bytes=sizes,
        task_folder=str(scoring.generated_tasks),
        tasks=tuple(m.name for _, m in experiment.suites.members if not m.held_out),
        seq_len=seq_len,
        sequences=recipe.sequences,
        steps=recipe.steps,
        warmup_steps=recipe.warmup_length,
        final_fraction=recipe.final_fraction,
        max_lr=experiment.base.max_lr,
        lr_fractions=(lr.low, lr.high),
        seed=experiment.seed,
    )
    (folder / "inputs.json").write_text(json.dumps(asdict(inputs), indent=1) + "\n")
    return inputs


def _write_blocks(path: Path, tokens: np.ndarray, *, seq_len: int, seed: int) -> None:
    """Write the tokens of a source as blocks in random order, each with its labels."""
    from datasets import Dataset

    count = len(tokens) // seq_len
    blocks = np.asarray(tokens[: count * seq_len], dtype=np.int64).reshape(count, seq_len)
    blocks = np.random.default_rng(seed).permutation(blocks)
    Dataset.from_dict({"input_ids": blocks, "labels": blocks}).save_to_disk(str(path))


def _write_held_out(path: Path, store: Any, member: Any, encoder: Any, seq_len: int) -> int:
    """Write the rows of held-out text that sweepcp scores, and return the bytes of the text."""
    from datasets import Dataset

    from sweepcp.scoring.held_out import HeldOutText

    text = HeldOutText(store, member, encoder, seq_len=seq_len, packed=True)
    rows = {
        "input_ids": text.batch.input_ids,
        "position_ids": text.batch.position_ids,
        "labels": text.batch.targets,
    }
    Dataset.from_dict(rows).save_to_disk(str(path))
    return int(text.bytes.sum())


if __name__ == "__main__":
    write_inputs(sys.argv[2], sys.argv[3:], Path(sys.argv[1]))
