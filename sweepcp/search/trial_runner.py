"""State that a worker keeps between trials, and the steps of one trial: train, then score."""

import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel

from sweepcp.config.model_dimensions import ModelDimensions
from sweepcp.config.recipe import Recipe
from sweepcp.data.stream import MixtureStream
from sweepcp.errors import Diverged, InvalidInput, OutOfDeviceMemory, located
from sweepcp.models.architecture import built_dimensions
from sweepcp.models.attention import attention_of
from sweepcp.models.layers import compile_layers, recompute_activations
from sweepcp.models.loading import load_model, load_tokenizer
from sweepcp.models.memory import CONTEXT_BYTES
from sweepcp.runs.trial import (
    BaseRecord,
    Cost,
    TrialOutcome,
    numeric_environment,
    package_versions,
)
from sweepcp.scoring.scorecard import ItemScores
from sweepcp.scoring.scorer import Scorer
from sweepcp.search.trial_memory import TrialMemory
from sweepcp.search.worker_io import WorkerSpec
from sweepcp.training.device import is_out_of_memory, open_device
from sweepcp.training.engine import PlainEngine, computes_in_bf16
from sweepcp.training.isolation import ensure_isolation
from sweepcp.training.loop import StepMetrics, run_training
from sweepcp.training.process_group import ProcessGroup
from sweepcp.util.memory import GIB, usable_memory
from sweepcp.util.parallel import usable_cores


def environment_of(scorer: Scorer, device: torch.device) -> dict[str, str]:
    """Return what the scores of a scorer depend on besides files; builds its tasks."""
    in_bf16 = computes_in_bf16(device, scorer.spec.precision)
    return numeric_environment(
        device=device.type,
        precision="bf16" if in_bf16 else "fp32",
        attention=attention_of(scorer.model),
        prompts=scorer.prompts,
        items=scorer.items,
        scoring=scorer.scoring,
    )


class TrialRunner:
    """Trains and scores trials on one device, with the base and the suites kept in memory."""

    def __init__(self, spec: WorkerSpec, *, concurrent_trials: int = 1) -> None:
        """Load the base and check that it can be trained as the experiment states.

        Args:
            spec: What the worker needs.
            concurrent_trials: Trials that run at a time, on all machines.
        """
        torch.set_num_threads(spec.threads)
        self.spec = spec
        self.device = open_device(spec.device, gpu_share=spec.gpu_share)
        self.tokenizer = load_tokenizer(spec.base)
        in_bf16 = computes_in_bf16(self.device, spec.precision)
        self.model = load_model(
            spec.model,
            revision=spec.base.revision,
            device=self.device,
            attention=spec.attention,
            in_bf16=in_bf16,
            seq_len=spec.scoring.seq_len,
            isolated=spec.scoring.packed,
        )
        group = ProcessGroup(device=self.device)
        if spec.recompute:
            recompute_activations(self.model)
        with located(spec.model):
            ensure_isolation(
                self.model,
                group,
                wanted=spec.attention,
                seq_len=spec.scoring.seq_len,
                packed=spec.scoring.packed,
            )
        if spec.compile:
            compile_layers(self.model)
        self.scorer = Scorer(spec.scoring, self.model, self.tokenizer, group)
        # Copying the base's weights back is far cheaper than loading the model for every trial.
        # From memory that is not pinned it takes a second per few GB, once per trial; pinned memory
        # could not be swapped, and every worker has a copy.
        self.base_weights = {
            name: tensor.to("cpu", copy=True) for name, tensor in self.model.state_dict().items()
        }
        self.memory = TrialMemory(
            dimensions=_dimensions_of(self.model),
            available=_available_memory(spec, self.device, concurrent_trials),
            in_bf16=in_bf16,
            attention=attention_of(self.model),
            recompute=spec.recompute,
            isolated=spec.scoring.packed,
        )
        self.fitting: int | None = None
        """The micro batch at which this worker's trials fitted, after a larger one did not."""

    @cached_property
    def environment(self) -> dict[str, str]:
        """What the scores depend on besides files, see `BaseRecord`."""
        # It builds the tasks, which checks on some of the answers how they may be computed.
        with self._without_compiling():
            return environment_of(self.scorer, self.device)

    def _restore_base(self) -> None:
        """Load the base's weights, on which the tasks are built before the first trial."""
        self.model.load_state_dict(self.base_weights)
        # How answers are computed is decided on the weights that the tasks are built on.
        _ = self.environment

    def score_base(self) -> BaseRecord:
        """Score the untouched base."""
        spec = self.spec
        self._restore_base()
        return BaseRecord(
            model=spec.model_name,
            parameters=sum(p.numel() for p in self.model.parameters()),
            max_lr=spec.base.max_lr,
            items=self._score(),
            notes=self.scorer.notes,
            environment=self.environment,
            versions=package_versions(),
        )

    def run(
        self, recipe: Recipe, *, micro_batch: int | None = None
    ) -> Iterator[StepMetrics | TrialOutcome]:
        """Run one trial from the base's weights.

        Args:
            recipe: What to train.
            micro_batch: See `TrialRunnerProtocol.run`.

        Yields:
            The `StepMetrics` of every step and, at the end, one `TrialOutcome`.

        Raises:
            OutOfDeviceMemory: Training does not fit into the memory of the GPU.
        """
        started = time.perf_counter()
        self._restore_base()
        torch.manual_seed(recipe.seed)
        stream = MixtureStream(recipe, list(self.spec.stores))
        engine = PlainEngine(
            self.model,
            recipe,
            micro_batch=self._first_micro_batch(recipe, micro_batch),
            precision=self.spec.precision,
            halves=self.spec.micro_batch == "auto",
        )
        first_micro_batch = engine.micro_batch
        metrics = None
        try:
            for metrics in self._train(engine, recipe, stream):
                yield metrics
            trained = time.perf_counter()
            last_micro_batch, peak = engine.micro_batch, self._peak_gib()
            del engine  # frees the optimizer's memory before scoring
            items = self._score()
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
            cost=self._cost(
                recipe,
                train_seconds=trained - started,
                scoring_began=trained,
                first_micro_batch=first_micro_batch,
                micro_batch=last_micro_batch,
                memory_gib=peak,
            ),
            versions=package_versions(),
        )

    def _first_micro_batch(self, recipe: Recipe, fitting: int | None) -> int:
        """Return the micro batch to start a trial with.

        Args:
            recipe: What to train.
            fitting: See `TrialRunnerProtocol.run`.
        """
        if self.spec.micro_batch != "auto":
            return min(self.spec.micro_batch, recipe.sequences)
        sizes = (self.memory.largest_micro_batch(recipe), fitting, self.fitting)
        return min(size for size in sizes if size is not None)

    def _train(
        self, engine: PlainEngine, recipe: Recipe, stream: MixtureStream
    ) -> Iterator[StepMetrics]:
        """Train, and remember the micro batch if it was halved."""
        first = engine.micro_batch
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        try:
            yield from run_training(engine, recipe, stream, max_lr=self.spec.base.max_lr)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfDeviceMemory(self._describe_shortage(recipe, engine.micro_batch)) from None
        finally:
            if engine.micro_batch < first:
                self.fitting = engine.micro_batch

    def _describe_shortage(self, recipe: Recipe, micro_batch: int) -> str:
        """Return why a trial cannot be trained on this GPU and what helps, on one line."""
        spec = self.spec
        estimate = self.memory.estimate_gib(recipe, micro_batch=micro_batch)
        measured = self._peak_gib()
        amounts = [f"{self.memory.available / GIB:.3g} GiB are available to a trial"]
        if measured is not None:
            amounts.append(f"{measured:.3g} GiB were allocated when more was asked for")
        if estimate is not None:
            amounts.append(f"{estimate:.3g} GiB were estimated")
        where = ""
        if spec.micro_batch != "auto":
            fixes = ["set training.micro_batch to auto or to a smaller number"]
        else:
            # The engine halves until one sequence is left, unless it is past the activations.
            where = " in the optimizer's step" if micro_batch > 1 else ""
            fixes = ["use a smaller proxy"]
            fixes += [] if spec.recompute else ["set training.recompute to true"]
            fixes += ["raise budget.gpus_per_trial"] if spec.gpu_share < 1 else []
        return (
            f"GPU memory ran out{where} at micro batch {micro_batch}: {', '.join(amounts)}; fix: "
            f"{', or '.join(fixes)}"
        )

    def _score(self) -> tuple[ItemScores, ...]:
        """Score the model as it is now, without compiled layers."""
        if self.device.type == "cuda":
            # Blocks of the sizes that training asked for would not fit those that scoring asks for.
            torch.cuda.empty_cache()
        with self._without_compiling():
            return tuple(self.scorer.score())

    def _without_compiling(self) -> AbstractContextManager[Any]:
        """Compute layers as they are: scoring has many shapes, each of which would be compiled."""
        return torch.compiler.set_stance("force_eager") if self.spec.compile else nullcontext()

    def _peak_gib(self) -> float | None:
        """Return the peak of allocated GPU memory since training began or was halved."""
        if self.device.type != "cuda":
            return None
        return torch.cuda.max_memory_allocated(self.device) / GIB

    def _cost(
        self,
        recipe: Recipe,
        *,
        train_seconds: float,
        scoring_began: float,
        first_micro_batch: int,
        micro_batch: int,
        memory_gib: float | None,
    ) -> Cost:
        on_gpu = self.device.type == "cuda"
        device = torch.cuda.get_device_name(self.device) if on_gpu else "CPU"
        return Cost(
            train_seconds=train_seconds,
            score_seconds=time.perf_counter() - scoring_began,
            tokens=recipe.tokens,
            tokens_per_second=recipe.tokens / train_seconds,
            worker=f"{socket.gethostname()}, {device}, {torch.get_num_threads()} threads",
            first_micro_batch=first_micro_batch,
            micro_batch=micro_batch,
            attention=self.memory.attention,
            memory_gib=memory_gib,
            estimated_memory_gib=self.memory.estimate_gib(recipe, micro_batch=micro_batch),
        )


def _dimensions_of(model: PreTrainedModel) -> ModelDimensions | None:
    """Return the dimensions of the base, or None if its configuration does not state them."""
    try:
        return built_dimensions(model)
    except InvalidInput:
        return None


def _available_memory(spec: WorkerSpec, device: torch.device, concurrent_trials: int) -> float:
    """Return the bytes that a trial may use: its share of the GPU, or of this machine's memory."""
    if device.type == "cuda":
        return spec.gpu_share * torch.cuda.get_device_properties(device).total_memory
    on_this_machine = min(concurrent_trials, max(1, usable_cores() // spec.threads))
    # The estimate includes CUDA's context, which a CPU does not have.
    return usable_memory() / on_this_machine + CONTEXT_BYTES
