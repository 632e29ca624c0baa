"""What a worker keeps in memory from trial to trial, and the way of one trial: train, then score."""

import socket
import time
from collections.abc import Iterator

import torch

from sweepcp.config.recipe import Recipe
from sweepcp.data.stream import MixtureStream
from sweepcp.models.loading import load_model, load_tokenizer
from sweepcp.runs.trial import BaseRecord, Cost, TrialOutcome, package_versions
from sweepcp.scoring.scorer import Scorer
from sweepcp.search.worker_spec import WorkerSpec
from sweepcp.training.engine import PlainEngine
from sweepcp.training.loop import Diverged, StepMetrics, run_training
from sweepcp.training.process_group import ProcessGroup


class TrialRunner:
    """The resident base, stores and suites of one worker process."""

    def __init__(self, job: WorkerSpec) -> None:
        torch.set_num_threads(job.threads)
        self.job = job
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = load_tokenizer(job.base)
        self.model = load_model(job.model, job.base.revision, self.device)
        self.scorer = Scorer(job, self.model, self.tokenizer, ProcessGroup(device=self.device))
        self.weights = {
            name: tensor.to("cpu", copy=True) for name, tensor in self.model.state_dict().items()
        }

    def base(self) -> BaseRecord:
        """The untouched base's scores."""
        self.model.load_state_dict(self.weights)
        return BaseRecord(
            model=f"{self.job.model}@{self.job.base.revision}"
            if self.job.base.hub
            else self.job.model,
            parameters=sum(p.numel() for p in self.model.parameters()),
            max_lr=self.job.base.max_lr,
            items=tuple(self.scorer.score()),
            versions=package_versions(),
        )

    def run(self, recipe: Recipe) -> Iterator[StepMetrics | TrialOutcome]:
        """One trial from the base's weights: a `Row` a step, and an `Outcome` at the end."""
        started = time.perf_counter()
        self.model.load_state_dict(self.weights)
        torch.manual_seed(recipe.seed)
        stream = MixtureStream(recipe, list(self.job.stores))
        engine = PlainEngine(self.model, recipe, self.job.micro_batch, self.job.precision)
        row = None
        try:
            for row in run_training(engine, recipe, self.job.base.max_lr, stream):
                yield row
            del engine  # the optimizer's memory, before scoring
            trained = time.perf_counter()
            items = tuple(self.scorer.score())
        except Diverged as error:
            yield TrialOutcome(status="diverged", reason=str(error), versions=package_versions())
            return
        tokens = row.tokens if row else {}
        yield TrialOutcome(
            status="done",
            items=items,
            tokens_by_source=tokens,
            epochs_by_source={
                name: stream.epochs(i, n) for i, (name, n) in enumerate(tokens.items())
            },
            cost=Cost(
                train_seconds=trained - started,
                score_seconds=time.perf_counter() - trained,
                tokens=recipe.tokens,
                tokens_per_second=recipe.tokens / (trained - started),
                worker=f"{socket.gethostname()}, {self._device_name()}, {torch.get_num_threads()} threads",
            ),
            versions=package_versions(),
        )

    def _device_name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
