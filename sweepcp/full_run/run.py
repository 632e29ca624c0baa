"""The full run: a bundle's recipe on its model under ZeRO-3, watched, saved, resumed, exported and scored.

base.json         the model at step 0, item by item
metrics.jsonl     a line a step
held_out_base.json  watched held-out text at step 0
held_out.jsonl    held-out changes against step 0, as often as the target asks for
checkpoints/      see `sweepcp.full.checkpoint`
tensorboard/
model/            the trained model in the Hugging Face format
scorecard.json    both suites against step 0; written last: the run is finished
"""

import os
import signal
import socket
import threading
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import FrameType

import numpy as np
import torch

from sweepcp.config.base_model import BaseSpec
from sweepcp.data.stream import MixtureStream
from sweepcp.errors import Alarmed, InvalidInput, Stopped
from sweepcp.full_run.checkpoints import (
    RunProgress,
    find_checkpoint,
    initialize_checkpoints,
    read_checkpoint,
    save_checkpoint,
)
from sweepcp.full_run.preflight import fetch_model_files, stores_of
from sweepcp.full_run.run_log import RunLog, Say
from sweepcp.models.files import SafetensorsFile
from sweepcp.models.loading import load_tokenizer
from sweepcp.promote.bundle import LoadedBundle
from sweepcp.runs.trial import BaseRecord, package_versions
from sweepcp.scoring.generated_tasks import generate_tasks
from sweepcp.scoring.scorecard import (
    ItemScores,
    Scorecard,
    compare_with_base,
    read_items,
    write_items,
)
from sweepcp.scoring.scorer import Scorer
from sweepcp.search.worker_spec import WorkerSpec
from sweepcp.training.deepspeed_config import zero_config
from sweepcp.training.loop import Diverged, StepMetrics, run_training
from sweepcp.training.process_group import ProcessGroup
from sweepcp.training.zero_engine import ZeroEngine, join_process_group
from sweepcp.util.files import write_json, write_text
from sweepcp.util.locks import exclusive_lock

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
"""What a scheduler sends before it takes a node away; a run saves, and ends with 128 + signal."""


def full_run(opened: LoadedBundle, out: Path, say: Say) -> Scorecard:
    """Run what is left of a bundle's run in the folder `out`; call it on every rank. Returns the final scorecard.

    Raises `BadInput` when the bundle cannot be run here, or `out` holds another run; `Diverged`, `Alarmed` and
    `Stopped` with the state saved as far as it was sound.
    """
    target = opened.bundle.target
    if target.hardware.device == "cuda" and torch.cuda.device_count() <= int(
        os.environ.get("LOCAL_RANK", "0")
    ):
        found = f"{torch.cuda.device_count()} GPUs on {socket.gethostname()}"
        fix = "start as many processes a node as it has GPUs, or promote to a target with `device: cpu`"
        raise InvalidInput(
            file=opened.path / "bundle.json",
            key="target.hardware.device",
            found=found,
            rule="a GPU for each process",
            fix=fix,
        )
    ranks = join_process_group(target.hardware.device)
    speak = say if ranks.first else lambda text: None
    shards = fetch_model_files(opened, ranks)
    rule = "one run at a time writes the folder"
    with exclusive_lock(out / "train.lock", rule) if ranks.first else nullcontext():
        return _FullRun(opened, out, shards, ranks, speak).go()


class _FullRun:
    def __init__(
        self,
        opened: LoadedBundle,
        out: Path,
        shards: list[SafetensorsFile],
        ranks: ProcessGroup,
        say: Say,
    ) -> None:
        self.opened, self.bundle, self.out, self.ranks, self.say = (
            opened,
            opened.bundle,
            out,
            ranks,
            say,
        )
        self.recipe, self.target = self.bundle.recipe, self.bundle.target
        self.stores = stores_of(self.bundle)
        self.checkpoints = Path(self.target.checkpoints.folder or out / "checkpoints")
        self.received = 0
        compute = self.target.compute
        self.engine = ZeroEngine(
            shards, self.recipe, self._config(), compute.attention, compute.recompute, ranks
        )
        job = self._job(shards[0].path.parent)
        tokenizer = load_tokenizer(job.base)
        self.scorer = Scorer(job, self.engine.model, tokenizer, ranks)
        self.watcher = Scorer(
            replace(job, suites=self.bundle.watched), self.engine.model, tokenizer, ranks
        )

    def go(self) -> Scorecard:
        """From step 0, or from the last checkpoint, to the scorecard."""
        if (
            threading.current_thread() is threading.main_thread()
        ):  # Ray Train calls from another one
            for number in SIGNALS:
                signal.signal(number, self._receive)
        at, base, watched = self._begin()
        self.log = RunLog(self.opened, self.out, self.ranks, at.step, self.say)
        try:
            while at.step < self.recipe.steps:
                try:
                    at = self._steps(at, watched)
                except Diverged as error:
                    at = self._roll_back(at, error)
        finally:
            self.log.close()
        return self._finish(base)

    def _config(self) -> dict[str, object]:
        """DeepSpeed's configuration: the bundle's, or for another number of processes one that gives the same steps."""
        planned, now = self.target.hardware.world_size, self.ranks.ranks
        if now == planned:
            return self.opened.ds_config
        micro = self.target.compute.micro_batch
        if self.recipe.sequences % (now * micro):
            rule = f"a number of processes that divides {self.recipe.sequences // micro} micro batches of a step"
            where = self.opened.path / "bundle.json"
            raise InvalidInput(
                file=where,
                key="the number of processes",
                found=now,
                rule=rule,
                fix=f"start {planned}, as the bundle was planned",
            )
        config = zero_config(self.recipe, self.target, now)
        accumulation = config["gradient_accumulation_steps"]
        self.say(
            f"planned for {planned} processes, running on {now}: {accumulation} micro batches a step on each"
        )
        return config

    def _job(self, folder: Path) -> WorkerSpec:
        bundle = self.bundle
        spec = BaseSpec(path=str(folder), max_lr=bundle.model.max_lr)
        by_name = {store.source: store for store in self.stores}
        made = generate_tasks(bundle.suites, by_name) if self.ranks.first else None
        self.ranks.wait()
        return WorkerSpec(
            base=spec,
            model=str(folder),
            stores=tuple(self.stores),
            languages=bundle.languages,
            suites=bundle.suites,
            made_tasks=made or generate_tasks(bundle.suites, by_name),
            seq_len=self.recipe.seq_len,
            micro_batch=None,
            precision=self.target.compute.precision,
            threads=1,
        )

    def _begin(self) -> tuple[RunProgress, list[ItemScores], list[ItemScores]]:
        """Where the run stands, and the items of step 0 of the suites and of watched text; sets the engine's state."""
        start = RunProgress(
            bundle=self.opened.id, step=0, tokens={}, ranks=self.ranks.ranks, sizes={}, files={}
        )
        path, watched_path = self.out / "base.json", self.out / "held_out_base.json"
        begun = self.ranks.any(self.ranks.first and path.is_file())
        if not begun:
            if self.ranks.first:
                initialize_checkpoints(self.checkpoints)
            self.say("scoring the model at step 0")
            items, watched = self.scorer.score(), self.watcher.held_out()
            if self.ranks.first:
                write_items(watched_path, watched)
                write_text(path, self._base(items).model_dump_json() + "\n")
            return start, items, watched
        items = list(BaseRecord.model_validate_json(path.read_bytes()).items)
        watched = read_items(watched_path)
        found = find_checkpoint(self.checkpoints, self.opened.id, self.ranks, self.say)
        if found is None:
            self.say("no checkpoint was saved before the run was stopped: starting at step 0")
            return start, items, watched
        place, at = found
        self.say(f"going on after step {at.step} of {self.recipe.steps}, from {place.name}")
        self.engine.set_state(at.step, read_checkpoint(place, at, self.ranks))
        return at, items, watched

    def _base(self, items: list[ItemScores]) -> BaseRecord:
        model = self.bundle.model
        return BaseRecord(
            model=model.path or f"{model.hub}@{model.revision}",
            parameters=model.parameters,
            max_lr=model.max_lr,
            items=tuple(items),
            versions=package_versions(),
        )

    def _steps(self, at: RunProgress, watched: list[ItemScores]) -> RunProgress:
        """Train from a state to the end. Raises `Diverged` also for a spike, if the target looks for them."""
        stream = MixtureStream(self.recipe, self.stores, at.skipped)
        steps, max_lr = self.recipe.steps, self.bundle.model.max_lr
        for row in run_training(self.engine, self.recipe, max_lr, stream, at.step, at.tokens):
            at = at.model_copy(
                update={
                    "step": row.step,
                    "tokens": row.tokens,
                    "recent": self._no_spike(row, at.recent),
                }
            )
            self.log.row(row)
            last = row.step == steps
            alarm = (
                self._look(row, watched) if row.step % self.target.watch.every == 0 or last else ""
            )
            number = self._agreed_signal()
            stop = alarm and self.target.watch.stop
            if row.step % self.target.checkpoints.every == 0 or last or number or stop:
                save_checkpoint(
                    self.checkpoints,
                    self.engine.state(),
                    at,
                    self.target.checkpoints.keep,
                    self.ranks,
                )
                self.log.saved(row.step)
            if number:
                raise Stopped(number)
            if stop and not last:
                raise Alarmed(alarm)
        return at

    def _no_spike(self, row: StepMetrics, recent: tuple[float, ...]) -> tuple[float, ...]:
        """The losses that the next step is measured against; raises `Diverged` for a spike."""
        spikes = self.target.spikes
        if spikes is None:
            return ()
        if len(recent) == spikes.window and row.loss > spikes.factor * median(recent):
            times = row.loss / median(recent)
            why = f"step {row.step}: loss {row.loss:.4f}, {times:.2f} times the median of {spikes.window} steps"
            raise Diverged(why, row.step)
        return (*recent, row.loss)[-spikes.window :]

    def _roll_back(self, at: RunProgress, error: Diverged) -> RunProgress:
        """Go back to the last checkpoint, around the steps of the stream from there to where the loss went wrong.

        `at` is where the steps that failed began. All of it follows from checkpoints alone, so a run that is stopped
        now and resumed comes to the same point again.
        """
        spikes = self.target.spikes
        found = find_checkpoint(self.checkpoints, self.opened.id, self.ranks, self.say)
        if spikes is None or error.step is None or at.rollbacks == spikes.at_most or found is None:
            raise error
        place, back = found
        stream = MixtureStream(self.recipe, self.stores, at.skipped)
        passed = tuple(stream.place(step) for step in range(back.step + 1, error.step + 1))
        self.say(
            f"{error}: back to step {back.step}, passing over {len(passed)} steps of the stream"
        )
        self.engine.set_state(back.step, read_checkpoint(place, back, self.ranks))
        self.log.back(back.step)
        skipped = tuple(sorted({*at.skipped, *passed}))
        return back.model_copy(update={"skipped": skipped, "rollbacks": at.rollbacks + 1})

    def _look(self, row: StepMetrics, before: list[ItemScores]) -> str:
        """Held-out text against step 0; what is alarming about it, or nothing."""
        card = compare_with_base(self.watcher.held_out(), before)
        self.log.held_out(row.step, card)
        bound, general = self.target.watch.max_regression, card.report.general
        if bound is None or general >= -bound:
            return ""
        alarm = f"step {row.step}: held-out general {general:+.2f} %, the bound is -{bound:g} %"
        self.say(f"ALARM: {alarm}")
        return alarm

    def _finish(self, base: list[ItemScores]) -> Scorecard:
        """Export, and score both suites."""
        self.say("writing the model")
        self.engine.save_weights(self.out / "model")
        self.say("scoring both suites")
        items = self.scorer.score()
        card = compare_with_base(items, base)
        if self.ranks.first:
            write_items(self.out / "items.json", items)
            write_json(self.out / "scorecard.json", card.model_dump(mode="json"))
        self.ranks.wait()
        return card

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number

    def _agreed_signal(self) -> int:
        """The signal that any rank has received, 0 for none, equal on every rank."""
        seen = self.ranks.total(np.array([float(self.received == number) for number in SIGNALS]))
        return next((int(number) for number, count in zip(SIGNALS, seen, strict=True) if count), 0)
