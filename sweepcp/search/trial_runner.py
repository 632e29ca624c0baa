"""State that a worker keeps between trials, and the steps of one trial: train, then score."""

import socket
import time
from collections.abc import Iterator
from functools import cached_property

import torch

from sweepcp.config.recipe import Recipe
from sweepcp.data.stream import MixtureStream
from sweepcp.errors import Diverged, located
from sweepcp.models.loading import default_device, load_model, load_tokenizer
from sweepcp.runs.trial import (
    BaseRecord,
    Cost,
    TrialOutcome,
    numeric_environment,
    package_versions,
)
from sweepcp.scoring.scorer import Scorer
from sweepcp.search.worker_io import WorkerSpec
from sweepcp.training.engine import PlainEngine, computes_in_bf16
from sweepcp.training.isolation import check_isolation
from sweepcp.training.loop import StepMetrics, run_training
from sweepcp.training.process_group import ProcessGroup


def environment_of(scorer: Scorer, device: torch.device) -> dict[str, str]:
    """Return what the scores of a scorer depend on besides files; builds its tasks."""
    in_bf16 = computes_in_bf16(device, scorer.spec.precision)
    return numeric_environment(
        device=device.type, precision="bf16" if in_bf16 else "fp32", prompts=scorer.prompts
    )


class TrialRunner:
    """Trains and scores trials on one device, with the base and the suites kept in memory."""

    def __init__(self, spec: WorkerSpec) -> None:
        torch.set_num_threads(spec.threads)
        self.spec = spec
        self.device = default_device()
        self.tokenizer = load_tokenizer(spec.base)
        self.model = load_model(spec.model, revision=spec.base.revision, device=self.device)
        group = ProcessGroup(device=self.device)
        with located(spec.model):
            check_isolation(
                self.model,
                group,
                seq_len=spec.scoring.seq_len,
                packed=spec.scoring.packed,
            )
        self.scorer = Scorer(spec.scoring, self.model, self.tokenizer, group)
        # Copying the base's weights back is far cheaper than loading the model for every trial.
        self.base_weights = {
            name: tensor.to("cpu", copy=True) for name, tensor in self.model.state_dict().items()
        }

    @cached_property
    def environment(self) -> dict[str, str]:
        """What the scores depend on besides files, see `BaseRecord`."""
        return environment_of(self.scorer, self.device)

    def score_base(self) -> BaseRecord:
        """Score the untouched base."""
        spec = self.spec
        self.model.load_state_dict(self.base_weights)
        return BaseRecord(
            model=f"{spec.model}@{spec.base.revision}" if spec.base.hub else spec.model,
            parameters=sum(p.numel() for p in self.model.parameters()),
            max_lr=spec.base.max_lr,
            items=tuple(self.scorer.score()),
            notes=self.scorer.notes,
            environment=self.environment,
            versions=package_versions(),
        )

    def run(self, recipe: Recipe) -> Iterator[StepMetrics | TrialOutcome]:
        """Run one trial from the base's weights.

        Yields:
            The `StepMetrics` of every step and, at the end, one `TrialOutcome`.
        """
        started = time.perf_counter()
        self.model.load_state_dict(self.base_weights)
        torch.manual_seed(recipe.seed)
        stream = MixtureStream(recipe, list(self.spec.stores))
        engine = PlainEngine(
            self.model,
            recipe,
            micro_batch=self.spec.micro_batch,
            precision=self.spec.precision,
        )
        metrics = None
        try:
            for metrics in run_training(engine, recipe, stream, max_lr=self.spec.base.max_lr):
                yield metrics
            del engine  # frees the optimizer's memory before scoring
            trained = time.perf_counter()
            items = tuple(self.scorer.score())
        except Diverged as error:
            yield TrialOutcome(status="diverged", reason=str(error), versions=package_versions())
            return
        tokens = metrics.tokens if metrics else {}
        epochs = {
            source: stream.epochs(index, tokens=count)
            for index, (source, count) in enumerate(tokens.items())
        }
        yield TrialOutcome(
            status="done",
            items=items,
            tokens_by_source=tokens,
            epochs_by_source=epochs,
            cost=self._cost(recipe, train_seconds=trained - started, scoring_began=trained),
            versions=package_versions(),
        )

    def _cost(self, recipe: Recipe, *, train_seconds: float, scoring_began: float) -> Cost:
        on_gpu = self.device.type == "cuda"
        device = torch.cuda.get_device_name(self.device) if on_gpu else "CPU"
        return Cost(
            train_seconds=train_seconds,
            score_seconds=time.perf_counter() - scoring_began,
            tokens=recipe.tokens,
            tokens_per_second=recipe.tokens / train_seconds,
            worker=f"{socket.gethostname()}, {device}, {torch.get_num_threads()} threads",
        )
