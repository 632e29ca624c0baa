"""What is scored and how, as plain data that is passed to worker processes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sweepcp.config.experiment import Experiment
from sweepcp.config.suites import Suites
from sweepcp.config.types import ScoringMode
from sweepcp.data.token_store import TokenStore
from sweepcp.scoring.generated_tasks import generate_tasks


@dataclass(frozen=True)
class ScoringSpec:
    """Everything that a `Scorer` needs besides a model and its tokenizer."""

    suites: Suites
    stores: tuple[TokenStore, ...]
    """The token stores of the sources, which hold the held-out text that the suites score."""
    languages: dict[str, str]
    """Source → language."""
    generated_tasks: Path | None
    """Folder of the lm-eval tasks generated from held-out text; None if there are none."""
    seq_len: int
    """Tokens in a sequence of held-out text."""
    packed: bool
    """Whether held-out windows share sequences, separated by positions that restart. It needs a
    model that isolates packed documents. If False, each window is a sequence of its own."""
    precision: str
    """`fp32`, `bf16` or `auto` (bf16 on a GPU)."""
    scoring: ScoringMode = "exact"
    """How the answers of lm-eval tasks are computed."""
    working_folder: Path = field(default_factory=Path.cwd)
    """Where relative paths of the tasks' data files start from. Workers run in another folder."""


def make_scoring_spec(
    suites: Suites,
    stores: Mapping[str, TokenStore],
    *,
    languages: dict[str, str],
    seq_len: int,
    packed: bool,
    precision: str,
    scoring: ScoringMode = "exact",
) -> ScoringSpec:
    """Generate the tasks of the suites in the cache and return what is to be scored.

    Raises:
        InvalidInput: The held-out text of a source is too short for the tasks asked of it.
    """
    return ScoringSpec(
        suites=suites,
        stores=tuple(stores.values()),
        languages=languages,
        generated_tasks=generate_tasks(suites, stores),
        seq_len=seq_len,
        packed=packed,
        precision=precision,
        scoring=scoring,
    )


def experiment_scoring_spec(
    experiment: Experiment, stores: Mapping[str, TokenStore], *, scoring: ScoringMode
) -> ScoringSpec:
    """Return what an experiment scores, and how, see `make_scoring_spec`."""
    return make_scoring_spec(
        experiment.suites,
        stores,
        languages={source.name: source.language for source in experiment.sources},
        seq_len=experiment.training.seq_len,
        packed=not experiment.training.cross_documents,
        precision=experiment.training.precision,
        scoring=scoring,
    )
