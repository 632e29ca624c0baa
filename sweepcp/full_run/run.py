"""The full run: trains a bundle's recipe under ZeRO-3, saves, resumes, watches, exports and scores.

run.json        the bundle that the folder belongs to; written first
base.json       scores of the model at step 0, item by item
metrics.jsonl   one line per step
held_out.jsonl  changes of held-out text against step 0, as often as the target asks for
checkpoints/    see `sweepcp.full_run.checkpoints`
tensorboard/
model/          the trained model in the Hugging Face format
items.json      scores of the trained model, item by item
scorecard.json  both suites against step 0
ended.json      exit status, step and reason of the last start; written last
"""

import logging
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from sweepcp.config.base_model import BaseSpec
from sweepcp.data.stream import MixtureStream
from sweepcp.errors import Alarmed, Diverged, Stopped, located
from sweepcp.full_run.checkpoints import (
    RunProgress,
    find_checkpoint,
    initialize_checkpoints,
    read_checkpoint,
    save_checkpoint,
)
from sweepcp.full_run.ending import (
    FINISHED,
    Ending,
    begin_attempt,
    check_bundle,
    check_on_first_rank,
    claim_folder,
    ending_of,
    record_ending,
)
from sweepcp.full_run.peak_memory import PeakMemory
from sweepcp.full_run.preflight import (
    check_compute,
    check_content,
    ds_config_for,
    fetch_model_files,
    stores_of_bundle,
)
from sweepcp.full_run.run_log import RunLog
from sweepcp.full_run.stop_request import StopRequest
from sweepcp.full_run.watch import check_spike, regression_alarm
from sweepcp.models.attention import attention_of
from sweepcp.models.files import SafetensorsFile
from sweepcp.models.loading import load_tokenizer
from sweepcp.promote.bundle import LoadedBundle
from sweepcp.scoring.scorecard import (
    ItemScores,
    Scorecard,
    check_splits,
    compare_with_recorded,
    write_items,
)
from sweepcp.scoring.scorer import Scorer
from sweepcp.scoring.spec import ScoringSpec, make_scoring_spec
from sweepcp.training.loop import run_training
from sweepcp.training.process_group import FILES_TIMEOUT, STEPS_TIMEOUT, ProcessGroup
from sweepcp.training.zero_engine import ZeroEngine, join_process_group
from sweepcp.util.files import write_json, write_text
from sweepcp.util.locks import exclusive_lock
from sweepcp.util.records import Record, read_record
from sweepcp.util.temporary import remove_abandoned

logger = logging.getLogger(__name__)


class StepZeroRecord(Record):
    """`base.json` of a full run: the scores at step 0; a run that has it has begun."""

    format: Literal[2] = 2
    """Version of the format."""
    bundle: str
    """Id of the bundle."""
    items: tuple[ItemScores, ...]
    """Of both suites."""
    watched: tuple[ItemScores, ...]
    """Of the held-out text that is scored during the run."""


def full_run(bundle: LoadedBundle, out: Path, *, stop_file: Path | None = None) -> Scorecard:
    """Start a bundle's run in the folder `out`, or resume it there; every rank calls this.

    The caller has checked that the run has not come to a final ending.

    Args:
        bundle: What is run.
        out: The folder of the run.
        stop_file: Written, with the number of a signal, where signals do not reach the processes:
            the run stops as after that signal.

    Returns:
        The trained model against step 0.

    Raises:
        InvalidInput: The bundle cannot be run here, what it names has changed, or `out` holds
            another run.
        Diverged: The loss or the gradient is not finite, or the loss spiked too often.
        Alarmed: Held-out general text regressed beyond the target's bound. The state is saved.
        Stopped: A scheduler sent a signal. The state is saved.
    """
    check_compute(bundle)
    stop = StopRequest(stop_file)
    group = join_process_group(bundle.bundle.target.hardware.device)
    if not group.is_first:
        # All ranks get to the same messages; those of one of them are enough.
        logging.getLogger("sweepcp").setLevel(logging.ERROR)
    check_on_first_rank(group, partial(check_content, bundle))
    shards = fetch_model_files(bundle, group)
    rule = "one run at a time writes the folder"
    with ExitStack() as stack:

        def take_folder() -> None:
            stack.enter_context(exclusive_lock(out / "train.lock", rule))
            for folder in (out, *out.glob("checkpoints")):
                remove_abandoned(folder)
            begin_attempt(out, bundle.id)

        check_on_first_rank(group, take_folder)
        return _run_and_record_ending(bundle, out, shards, group, stop)


def _run_and_record_ending(
    bundle: LoadedBundle,
    out: Path,
    shards: list[SafetensorsFile],
    group: ProcessGroup,
    stop: StopRequest,
) -> Scorecard:
    run: _FullRun | None = None
    try:
        run = _FullRun(bundle, out, shards, group, stop)
        card = run.run()
    except BaseException as error:
        if group.is_first:
            step = run.progress.step if run else None
            record_ending(out, ending_of(error, bundle.id, step=step))
        if isinstance(error, Alarmed | Diverged | Stopped):
            # All ranks raise these together. A launcher kills the other processes as soon as one
            # has ended, so none ends before the file is written.
            group.barrier()
        raise
    if group.is_first:
        ending = Ending(
            bundle=bundle.id,
            status=FINISHED,
            step=run.progress.step,
            reason="finished",
            **run.memory_use,
        )
        record_ending(out, ending)
    return card


class _FullRun:
    """One process of a full run, with the engine, the scorers and the log."""

    def __init__(
        self,
        bundle: LoadedBundle,
        out: Path,
        shards: list[SafetensorsFile],
        group: ProcessGroup,
        stop: StopRequest,
    ) -> None:
        content = bundle.bundle
        self.bundle, self.out, self.group, self.stop = bundle, out, group, stop
        self.recipe, self.target, self.model = content.recipe, content.target, content.model
        self.stores = stores_of_bundle(content)
        self.checkpoints = Path(self.target.checkpoints.folder or out / "checkpoints")
        self.progress = RunProgress(
            bundle=bundle.id, step=0, tokens={}, ranks=group.world_size, sizes={}, files={}
        )
        compute = self.target.compute
        self.engine = ZeroEngine(
            shards,
            self.recipe,
            ds_config_for(bundle, group.world_size),
            group,
            attention=compute.attention,
            recompute=compute.recompute,
        )
        folder = shards[0].path.parent
        tokenizer = load_tokenizer(BaseSpec(path=str(folder), max_lr=self.model.max_lr))
        spec = self._scoring_spec()
        watched = replace(spec, suites=content.watched)
        self.memory = PeakMemory(group)
        self.memory_use: dict[str, Any] = {}
        self.scorer = Scorer(spec, self.engine.model, tokenizer, group)
        self.watcher = Scorer(watched, self.engine.model, tokenizer, group)

    def run(self) -> Scorecard:
        """Train from step 0, or from the last checkpoint, to the scorecard."""
        self.stop.check(self.group)
        base, watched_base = self._start_or_resume()
        self.stop.check(self.group)
        self.log = RunLog(self.bundle, self.out, self.group, steps_done=self.progress.step)
        try:
            while self.progress.step < self.recipe.steps:
                try:
                    self._train(watched_base)
                except Diverged as error:
                    self._roll_back(error)
        finally:
            self.log.close()
        return self._finish(base)

    def _scoring_spec(self) -> ScoringSpec:
        def make() -> ScoringSpec:
            return make_scoring_spec(
                self.bundle.bundle.suites,
                {store.source: store for store in self.stores},
                languages=self.bundle.bundle.languages,
                seq_len=self.recipe.seq_len,
                packed=not self.recipe.cross_documents,
                precision=self.target.compute.precision,
            )

        # The first rank generates the tasks; the others find them, unless their node has a cache of
        # its own, where they generate the same ones.
        spec = make() if self.group.is_first else None
        self.group.barrier()
        return spec or make()

    def _start_or_resume(self) -> tuple[list[ItemScores], list[ItemScores]]:
        """Bring the engine and the progress to the state that training continues from.

        Returns:
            The scores at step 0 of the suites and of the watched text.

        Raises:
            InvalidInput: The suites or the watched text have too few documents, or the folder's
                files are damaged or those of another bundle.
        """
        path = self.out / "base.json"
        # The first rank decides for all: on shared storage another may see an older state.
        has_begun = self.group.all_reduce_any(self.group.is_first and path.is_file())
        if not has_begun:
            return self._score_step_zero(path)
        fix = f"restore the file from a backup, or remove {self.out} to start over"
        record = read_record(StepZeroRecord, path, fix=fix)
        check_bundle(path, record.bundle, bundle_id=self.bundle.id, fix="name another --out")
        latest = find_checkpoint(self.checkpoints, self.bundle.id, self.group)
        if latest is None:
            logger.info("the run was stopped before its first checkpoint: starting at step 0")
        else:
            checkpoint, progress = latest
            logger.info(
                "resuming after step %d of %d from %s",
                progress.step,
                self.recipe.steps,
                checkpoint.name,
            )
            self._load_state(checkpoint, progress)
        return list(record.items), list(record.watched)

    def _score_step_zero(self, path: Path) -> tuple[list[ItemScores], list[ItemScores]]:
        def take_folders() -> None:
            initialize_checkpoints(self.checkpoints)
            claim_folder(self.out, self.bundle.id)

        check_on_first_rank(self.group, take_folders)
        logger.info("scoring the model at step 0")
        base, watched_base = self.scorer.score(), self.watcher.score_held_out()
        for note in self.scorer.notes:
            logger.warning("%s", note)
        with located(self.bundle.path / "bundle.json"):
            for key, items in (("suites", base), ("watched", watched_base)):
                with located("", key):
                    check_splits(items)
        if self.group.is_first:
            record = StepZeroRecord(
                bundle=self.bundle.id, items=tuple(base), watched=tuple(watched_base)
            )
            write_text(path, record.model_dump_json() + "\n")
        return base, watched_base

    def _load_state(self, checkpoint: Path, progress: RunProgress) -> None:
        state = read_checkpoint(checkpoint, progress, self.group)
        self.engine.set_state(state, steps=progress.step)
        self.progress = progress

    def _train(self, watched_base: list[ItemScores]) -> None:
        """Train to the last step.

        Raises:
            Diverged: The loss or the gradient is not finite, or the loss spiked.
            Alarmed: The target stops a run whose held-out general text regressed.
            Stopped: A signal was received.
        """
        steps, watch = self.recipe.steps, self.target.watch
        self.group.set_timeout(STEPS_TIMEOUT)
        self.memory.begin_step()
        for metrics in run_training(
            self.engine,
            self.recipe,
            MixtureStream(self.recipe, self.stores, self.progress.skipped),
            max_lr=self.model.max_lr,
            steps_done=self.progress.step,
            tokens_fed=self.progress.tokens,
        ):
            recent = self.progress.recent
            recent = check_spike(metrics.step, metrics.loss, recent, self.target.spikes)
            self.progress = self.progress.model_copy(
                update={"step": metrics.step, "tokens": metrics.tokens, "recent": recent}
            )
            self.memory.end_step()
            self.log.write_step(metrics)
            is_last = metrics.step == steps
            alarm = ""
            if is_last or metrics.step % watch.every == 0:
                alarm = self._score_watched(metrics.step, watched_base)
            stops = bool(alarm) and watch.stop
            signal_number = self.stop.agree(self.group)
            if is_last or stops or signal_number or self._saves_after(metrics.step):
                self._save(metrics.step)
            if signal_number:
                raise Stopped(signal_number)
            if stops and not is_last:
                raise Alarmed(alarm)
            self.memory.begin_step()

    def _save(self, step: int) -> None:
        self.group.set_timeout(FILES_TIMEOUT)
        keep = self.target.checkpoints.keep
        save_checkpoint(self.checkpoints, self.engine.state(), self.progress, self.group, keep=keep)
        self.group.set_timeout(STEPS_TIMEOUT)
        self.log.record_checkpoint(step)

    def _saves_after(self, step: int) -> bool:
        return step % self.target.checkpoints.every == 0

    def _roll_back(self, error: Diverged) -> None:
        """Go back to the last checkpoint and skip the steps of the stream that led to the error.

        Everything here follows from checkpoints alone, so a run that is stopped now and resumed
        takes the same decision.

        Raises:
            Diverged: The error itself, if the target does not roll back, or not so often.
        """
        spikes, rollbacks = self.target.spikes, self.progress.rollbacks
        if spikes is None or error.step is None or rollbacks == spikes.at_most:
            raise error
        self.group.set_timeout(FILES_TIMEOUT)
        latest = find_checkpoint(self.checkpoints, self.bundle.id, self.group)
        if latest is None:
            raise error
        checkpoint, back = latest
        # Steps of the optimizer and of the stream differ once steps of the stream were skipped.
        stream = MixtureStream(self.recipe, self.stores, self.progress.skipped)
        failed_steps = range(back.step + 1, error.step + 1)
        newly_skipped = {stream.stream_step(step) for step in failed_steps}
        skipped = tuple(sorted({*self.progress.skipped, *newly_skipped}))
        logger.warning(
            "%s: rolled back to step %d, skipping %d steps of the stream",
            error,
            back.step,
            len(newly_skipped),
        )
        back = back.model_copy(update={"skipped": skipped, "rollbacks": rollbacks + 1})
        self._load_state(checkpoint, back)
        self.log.truncate(back.step)

    def _score_watched(self, step: int, base: list[ItemScores]) -> str:
        """Log the watched text against step 0; return an alarm, or an empty string."""
        items = self.watcher.score_held_out()
        card = compare_with_recorded(trial=items, base=base, file=self.out / "base.json")
        self.log.write_held_out(step, card)
        alarm = regression_alarm(step, card.report.general, self.target.watch.max_regression)
        if alarm:
            logger.warning("ALARM: %s", alarm)
        return alarm

    def _finish(self, base: list[ItemScores]) -> Scorecard:
        """Export the model, and score it on both suites."""
        self.group.set_timeout(FILES_TIMEOUT)
        logger.info("writing the model")
        self.engine.save_weights(self.out / "model")
        logger.info("scoring both suites")
        items = self.scorer.score()
        card = compare_with_recorded(trial=items, base=base, file=self.out / "base.json")
        if self.group.is_first:
            write_items(self.out / "items.json", items)
            write_json(self.out / "scorecard.json", card.model_dump(mode="json"))
        attention = attention_of(self.engine.model)
        self.memory_use = self.memory.compare(self.bundle.bundle, attention=attention)
        self.group.barrier()
        return card
