"""A full run in which nothing is computed: an engine and a scorer that follow a script."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sweepcp.data.stream import IGNORED, Batch
from sweepcp.scoring.scorecard import ItemScores
from sweepcp.training.process_group import ProcessGroup
from tests.make import items


@dataclass
class Script:
    """What happens in the runs of a test."""

    loss: Callable[[Batch], float] = lambda _: 1.0
    """Nats per target token of a batch."""
    before_step: Callable[[int], None] = lambda _: None
    """Called with the number of the step, over all starts of the test."""
    general: float = 0.0
    """Change of the general held-out text in % once the model has been trained."""
    documents: int = 4
    """Documents of each source's held-out text."""
    steps: int = 0
    """Steps that were computed, in all starts of the test."""
    sequences: list[np.ndarray] | None = None


@dataclass(frozen=True)
class FakeSpec:
    suites: Any


class FakeEngine:
    def __init__(self, script: Script, group: ProcessGroup) -> None:
        self.script, self.group, self.model = script, group, None
        self.steps = 0

    def step(self, batch: Batch, *, target_tokens: int, lr: float) -> tuple[np.ndarray, float]:
        self.script.steps += 1
        self.script.before_step(self.script.steps)
        self.steps += 1
        targets = (batch.targets != IGNORED).sum(1)
        return targets * self.script.loss(batch), 1.0

    def state(self) -> Iterator[tuple[str, int, torch.Tensor]]:
        yield "master/w", 1, torch.tensor([float(self.steps)])

    def set_state(self, state: Iterator[tuple[str, torch.Tensor]], *, steps: int) -> None:
        assert dict(state)["master/w"].tolist() == [steps]
        self.steps = steps

    def save_weights(self, out: Path) -> None:
        out.mkdir(exist_ok=True)


class FakeScorer:
    notes = ()

    def __init__(self, script: Script, engine: list[FakeEngine]) -> None:
        self.script, self.engine = script, engine

    def score(self) -> list[ItemScores]:
        count = self.script.documents
        factor = 1 - self.script.general / 100 if self.engine[-1].steps else 1
        domain, general = [8.0] * count, [8.0 * factor] * count
        return [items("domain", domain), items("general", general)]

    score_held_out = score
