"""The full run: trains a bundle's recipe under ZeRO-3, saves, resumes, watches, exports and scores.

base.json           scores of the model at step 0, item by item
metrics.jsonl       one line per step
held_out_base.json  scores of the watched held-out text at step 0
held_out.jsonl      changes of held-out text against step 0, as often as the target asks for
checkpoints/        see `sweepcp.full_run.checkpoints`
tensorboard/
model/              the trained model in the Hugging Face format
items.json          scores of the trained model, item by item
scorecard.json      both suites against step 0; written last: the run is finished
"""

import logging
import os
import signal
import socket
import threading
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

import numpy as np
import torch

from sweepcp.config.base_model import BaseSpec
from sweepcp.data.stream import MixtureStream
from sweepcp.errors import Alarmed, Diverged, InvalidInput, Stopped
from sweepcp.full_run.checkpoints import (
    RunProgress,
    find_checkpoint,
    initialize_checkpoints,
    read_checkpoint,
    save_checkpoint,
)
from sweepcp.full_run.preflight import fetch_model_files, stores_of_bundle
from sweepcp.full_run.run_log import RunLog
from sweepcp.models.files import SafetensorsFile
from sweepcp.models.loading import load_tokenizer
from sweepcp.promote.bundle import LoadedBundle
from sweepcp.runs.trial import BaseRecord, package_versions
from sweepcp.scoring.scorecard import (
    ItemScores,
    Scorecard,
    compare_with_base,
    read_items,
    write_items,
)
from sweepcp.scoring.scorer import Scorer
from sweepcp.scoring.spec import ScoringSpec, make_scoring_spec
from sweepcp.training.deepspeed_config import zero_config
from sweepcp.training.loop import StepMetrics, run_training
from sweepcp.training.process_group import ProcessGroup
from sweepcp.training.zero_engine import ZeroEngine, join_process_group
from sweepcp.util.files import write_json, write_text
from sweepcp.util.locks import exclusive_lock

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
"""What a scheduler sends before it takes a node away. The run saves a checkpoint and ends with exit
status 128 + signal."""

logger = logging.getLogger(__name__)


def full_run(bundle: LoadedBundle, out: Path) -> Scorecard:
    """Start a bundle's run in the folder `out`, or resume it there; every rank calls this.

    Returns:
        The trained model against step 0.

    Raises:
        InvalidInput: The bundle cannot be run here, or `out` holds another run.
        Diverged: The loss or the gradient is not finite, or the loss spiked too often.
        Alarmed: Held-out general text regressed beyond the target's bound. The state is saved.
        Stopped: A scheduler sent a signal. The state is saved.
    """
    _check_gpu(bundle)
    group = join_process_group(bundle.bundle.target.hardware.device)
    if not group.is_first:
        # All ranks get to the same messages; those of one of them are enough.
        logging.getLogger("sweepcp").setLevel(logging.ERROR)
    shards = fetch_model_files(bundle, group)
    rule = "one run at a time writes the folder"
    with exclusive_lock(out / "train.lock", rule) if group.is_first else nullcontext():
        return _FullRun(bundle, out, shards, group).run()


def _check_gpu(bundle: LoadedBundle) -> None:
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if bundle.bundle.target.hardware.device == "cuda" and torch.cuda.device_count() <= local_rank:
        raise InvalidInput(
            file=bundle.path / "bundle.json",
            key="target.hardware.device",
            found=f"{torch.cuda.device_count()} GPUs on {socket.gethostname()}",
            rule="a GPU for each process",
            fix="start as many processes per node as it has GPUs, or promote to a target with "
            "`device: cpu`",
        )


class _FullRun:
    """One process of a full run, with the engine, the scorers and the log."""

    def __init__(
        self, bundle: LoadedBundle, out: Path, shards: list[SafetensorsFile], group: ProcessGroup
    ) -> None:
        content = bundle.bundle
        self.bundle, self.out, self.group = bundle, out, group
        self.recipe, self.target, self.model = content.recipe, content.target, content.model
        self.stores = stores_of_bundle(content)
        self.checkpoints = Path(self.target.checkpoints.folder or out / "checkpoints")
        self.received_signal = 0
        compute = self.target.compute
        self.engine = ZeroEngine(
            shards,
            self.recipe,
            self._deepspeed_config(),
            group,
            attention=compute.attention,
            recompute=compute.recompute,
        )
        folder = shards[0].path.parent
        tokenizer = load_tokenizer(BaseSpec(path=str(folder), max_lr=self.model.max_lr))
        spec = self._scoring_spec()
        watched = replace(spec, suites=content.watched)
        self.scorer = Scorer(spec, self.engine.model, tokenizer, group)
        self.watcher = Scorer(watched, self.engine.model, tokenizer, group)

    def run(self) -> Scorecard:
        """Train from step 0, or from the last checkpoint, to the scorecard."""
        # Python allows signal handlers in the main thread only; Ray Train calls from another one.
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._receive_signal)
        progress, base, watched_base = self._start_or_resume()
        self.log = RunLog(self.bundle, self.out, self.group, steps_done=progress.step)
        try:
            while progress.step < self.recipe.steps:
                try:
                    progress = self._train(progress, watched_base)
                except Diverged as error:
                    progress = self._roll_back(progress, error)
        finally:
            self.log.close()
        return self._finish(base)

    def _deepspeed_config(self) -> dict[str, Any]:
        """Return the bundle's configuration, or one of the same steps for another world size."""
        planned, world_size = self.target.hardware.world_size, self.group.world_size
        if world_size == planned:
            return self.bundle.ds_config
        micro_batch = self.target.compute.micro_batch
        if self.recipe.sequences % (world_size * micro_batch):
            micro_batches = self.recipe.sequences // micro_batch
            raise InvalidInput(
                file=self.bundle.path / "bundle.json",
                key="the number of processes",
                found=world_size,
                rule=f"a number of processes that divides {micro_batches} micro batches of a step",
                fix=f"start {planned}, as the bundle was planned",
            )
        config = zero_config(self.recipe, self.target, world_size=world_size)
        logger.info(
            "planned for %d processes, running on %d: each computes %d micro batches per step",
            planned,
            world_size,
            config["gradient_accumulation_steps"],
        )
        return config

    def _scoring_spec(self) -> ScoringSpec:
        def make() -> ScoringSpec:
            return make_scoring_spec(
                self.bundle.bundle.suites,
                {store.source: store for store in self.stores},
                languages=self.bundle.bundle.languages,
                seq_len=self.recipe.seq_len,
                precision=self.target.compute.precision,
            )

        # The first rank generates the tasks; the others find them, unless their node has a cache of
        # its own, where they generate the same ones.
        spec = make() if self.group.is_first else None
        self.group.barrier()
        return spec or make()

    def _start_or_resume(self) -> tuple[RunProgress, list[ItemScores], list[ItemScores]]:
        """Bring the engine to the state that training continues from.

        Returns:
            The progress so far, and the scores at step 0 of the suites and of the watched text.
        """
        start = RunProgress(
            bundle=self.bundle.id,
            step=0,
            tokens={},
            ranks=self.group.world_size,
            sizes={},
            files={},
        )
        base_path, watched_path = self.out / "base.json", self.out / "held_out_base.json"
        # The first rank decides for all: on shared storage another may see an older state.
        has_begun = self.group.all_reduce_any(self.group.is_first and base_path.is_file())
        if not has_begun:
            if self.group.is_first:
                initialize_checkpoints(self.checkpoints)
            logger.info("scoring the model at step 0")
            base, watched_base = self.scorer.score(), self.watcher.score_held_out()
            if self.group.is_first:
                write_items(watched_path, watched_base)
                # Last, because this file is what marks a run that has begun.
                write_text(base_path, self._base_record(base).model_dump_json() + "\n")
            return start, base, watched_base
        base = list(BaseRecord.model_validate_json(base_path.read_bytes()).items)
        watched_base = read_items(watched_path)
        latest = find_checkpoint(self.checkpoints, self.bundle.id, self.group)
        if latest is None:
            logger.info("the run was stopped before its first checkpoint: starting at step 0")
            return start, base, watched_base
        checkpoint, progress = latest
        logger.info(
            "resuming after step %d of %d from %s",
            progress.step,
            self.recipe.steps,
            checkpoint.name,
        )
        self._load_state(checkpoint, progress)
        return progress, base, watched_base

    def _base_record(self, items: list[ItemScores]) -> BaseRecord:
        model = self.model
        return BaseRecord(
            model=model.path or f"{model.hub}@{model.revision}",
            parameters=model.parameters,
            max_lr=model.max_lr,
            items=tuple(items),
            versions=package_versions(),
        )

    def _load_state(self, checkpoint: Path, progress: RunProgress) -> None:
        state = read_checkpoint(checkpoint, progress, self.group)
        self.engine.set_state(state, steps=progress.step)

    def _train(self, progress: RunProgress, watched_base: list[ItemScores]) -> RunProgress:
        """Train to the last step.

        Raises:
            Diverged: The loss or the gradient is not finite, or the loss spiked.
            Alarmed: The target stops a run whose held-out general text regressed.
            Stopped: A signal was received.
        """
        steps, watch = self.recipe.steps, self.target.watch
        for metrics in run_training(
            self.engine,
            self.recipe,
            MixtureStream(self.recipe, self.stores, progress.skipped),
            max_lr=self.model.max_lr,
            steps_done=progress.step,
            tokens_fed=progress.tokens,
        ):
            recent = self._check_spike(metrics, progress.recent)
            progress = progress.model_copy(
                update={"step": metrics.step, "tokens": metrics.tokens, "recent": recent}
            )
            self.log.write_step(metrics)
            is_last = metrics.step == steps
            alarm = ""
            if is_last or metrics.step % watch.every == 0:
                alarm = self._score_watched(metrics.step, watched_base)
            stops = bool(alarm) and watch.stop
            signal_number = self._agree_on_signal()
            if is_last or stops or signal_number or self._saves_after(metrics.step):
                save_checkpoint(
                    self.checkpoints,
                    self.engine.state(),
                    progress,
                    self.group,
                    keep=self.target.checkpoints.keep,
                )
                self.log.record_checkpoint(metrics.step)
            if signal_number:
                raise Stopped(signal_number)
            if stops and not is_last:
                raise Alarmed(alarm)
        return progress

    def _saves_after(self, step: int) -> bool:
        return step % self.target.checkpoints.every == 0

    def _check_spike(self, metrics: StepMetrics, recent: tuple[float, ...]) -> tuple[float, ...]:
        """Return the losses that the next step is compared with.

        Raises:
            Diverged: This step's loss spiked, and the target rolls back spikes.
        """
        spikes = self.target.spikes
        if spikes is None:
            return ()
        if len(recent) == spikes.window and metrics.loss > spikes.factor * median(recent):
            ratio = metrics.loss / median(recent)
            raise Diverged(
                f"step {metrics.step}: loss {metrics.loss:.4f}, {ratio:.2f} times the median of "
                f"the last {spikes.window} steps",
                metrics.step,
            )
        return (*recent, metrics.loss)[-spikes.window :]

    def _roll_back(self, progress: RunProgress, error: Diverged) -> RunProgress:
        """Go back to the last checkpoint and skip the steps of the stream that led to the error.

        Everything here follows from checkpoints alone, so a run that is stopped now and resumed
        takes the same decision.

        Args:
            progress: Where the steps that failed began.
            error: What happened.

        Raises:
            Diverged: The error itself, if the target does not roll back, or not so often.
        """
        spikes = self.target.spikes
        if spikes is None or error.step is None or progress.rollbacks == spikes.at_most:
            raise error
        latest = find_checkpoint(self.checkpoints, self.bundle.id, self.group)
        if latest is None:
            raise error
        checkpoint, back = latest
        # Steps of the optimizer and of the stream differ once steps of the stream were skipped.
        stream = MixtureStream(self.recipe, self.stores, progress.skipped)
        newly_skipped = tuple(
            stream.stream_step(step) for step in range(back.step + 1, error.step + 1)
        )
        logger.warning(
            "%s: rolled back to step %d, skipping %d steps of the stream",
            error,
            back.step,
            len(newly_skipped),
        )
        self._load_state(checkpoint, back)
        self.log.truncate(back.step)
        skipped = tuple(sorted({*progress.skipped, *newly_skipped}))
        return back.model_copy(update={"skipped": skipped, "rollbacks": progress.rollbacks + 1})

    def _score_watched(self, step: int, base: list[ItemScores]) -> str:
        """Log the watched text against step 0; return an alarm, or an empty string."""
        card = compare_with_base(trial=self.watcher.score_held_out(), base=base)
        self.log.write_held_out(step, card)
        bound, general = self.target.watch.max_regression, card.report.general
        if bound is None or general >= -bound:
            return ""
        alarm = f"step {step}: held-out general {general:+.2f} %, the bound is -{bound:g} %"
        logger.warning("ALARM: %s", alarm)
        return alarm

    def _finish(self, base: list[ItemScores]) -> Scorecard:
        """Export the model, and score it on both suites."""
        logger.info("writing the model")
        self.engine.save_weights(self.out / "model")
        logger.info("scoring both suites")
        items = self.scorer.score()
        card = compare_with_base(trial=items, base=base)
        if self.group.is_first:
            write_items(self.out / "items.json", items)
            write_json(self.out / "scorecard.json", card.model_dump(mode="json"))
        self.group.barrier()
        return card

    def _receive_signal(self, number: int, _frame: FrameType | None) -> None:
        self.received_signal = number

    def _agree_on_signal(self) -> int:
        """Return a signal that some rank has received, 0 for none; equal on every rank."""
        # A signal reaches ranks at different times, or only some of them. They have to save the
        # same step, so each step ends with a sum over all ranks.
        received = [float(self.received_signal == number) for number in SIGNALS]
        counts = self.group.all_reduce_sum(np.array(received))
        return next(
            (int(number) for number, count in zip(SIGNALS, counts, strict=True) if count), 0
        )
