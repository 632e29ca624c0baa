"""The log of a full run: metrics.jsonl, held_out.jsonl, TensorBoard, trackers and messages."""

import json
import logging
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sweepcp.errors import InvalidInput
from sweepcp.promote.bundle import LoadedBundle
from sweepcp.scoring.scorecard import Scorecard
from sweepcp.training.loop import StepMetrics
from sweepcp.training.process_group import ProcessGroup
from sweepcp.util.files import write_text
from sweepcp.util.memory import GIB
from sweepcp.util.records import read_json_lines

SECONDS_BETWEEN_MESSAGES = 5.0
"""Between log messages about steps; files and trackers receive every step."""

logger = logging.getLogger(__name__)


class RunLog:
    """The log of a full run, which the first rank writes; on the other ranks it does nothing."""

    def __init__(
        self, bundle: LoadedBundle, out: Path, group: ProcessGroup, *, steps_done: int
    ) -> None:
        """Open the log in the folder `out`, without what an earlier attempt logged later.

        Args:
            bundle: What is run.
            out: The folder of the run.
            group: Its ranks.
            steps_done: The step that the run resumes after; 0 for a new run.
        """
        self.bundle, self.out, self.group = bundle, out, group
        self.steps = bundle.bundle.recipe.steps
        self._sinks: list[Callable[[dict[str, float], int], None]] = []
        self._closers: list[Callable[[], None]] = []
        self._last_message = 0.0
        self.truncate(steps_done)
        if group.is_first:
            self._open_sinks(steps_done)
        self._step_began = time.perf_counter()

    def truncate(self, steps_done: int) -> None:
        """Remove what was logged after step `steps_done`.

        Raises:
            InvalidInput: A file of the log is corrupt.
        """
        if not self.group.is_first:
            return
        for name in ("metrics.jsonl", "held_out.jsonl"):
            path = self.out / name
            lines = _logged_lines(path) if path.exists() else []
            write_text(path, "".join(line for step, line in lines if step <= steps_done))

    def write_step(self, metrics: StepMetrics) -> None:
        """Log the metrics of a step that has just ended."""
        now = time.perf_counter()
        seconds, self._step_began = now - self._step_began, now
        if not self.group.is_first:
            return
        tokens_per_second = self.bundle.bundle.recipe.batch_tokens / seconds
        mfu = self._utilisation(tokens_per_second)
        speed = {
            "tokens_per_second": tokens_per_second,
            "mfu": mfu,
            "memory_gib": self._peak_memory(),
        }
        self._append("metrics.jsonl", metrics._asdict() | speed)
        self._track(self._step_values(metrics, speed), metrics.step)
        recently = now - self._last_message <= SECONDS_BETWEEN_MESSAGES
        if recently and metrics.step != self.steps:
            return
        self._last_message = now
        logger.info(
            "step %d/%d  loss %.4f (%s)  LR %.3g  gradient norm %.3g  %s tokens/s%s",
            metrics.step,
            self.steps,
            metrics.loss,
            ", ".join(f"{role} {loss:.3f}" for role, loss in metrics.losses.items()),
            metrics.lr,
            metrics.grad_norm,
            f"{tokens_per_second:,.0f}",
            f"  MFU {mfu:.1%}" if mfu is not None else "",
        )

    def write_held_out(self, step: int, card: Scorecard) -> None:
        """Log the held-out text after a step against step 0."""
        if self.group.is_first:
            split = card.report
            changes = {member.name: member.change for member in split.members}
            scalars = {"domain": split.domain, "general": split.general}
            self._append("held_out.jsonl", {"step": step} | scalars | changes)
            values = {f"held_out/{name}": value for name, value in (scalars | changes).items()}
            self._track(values, step)
            logger.info(
                "held-out text at step %d, bits per byte against step 0: %s",
                step,
                self._compare_with_proxy(changes),
            )
        # Scoring is no part of the time of the next step.
        self._step_began = time.perf_counter()

    def record_checkpoint(self, step: int) -> None:
        """Log that the checkpoint of a step is complete."""
        logger.info("saved the checkpoint at step %d", step)
        self._step_began = time.perf_counter()

    def close(self) -> None:
        """Close TensorBoard and the trackers."""
        for close in self._closers:
            close()

    def _utilisation(self, tokens_per_second: float) -> float | None:
        """Return the model FLOPs utilisation; None where the peak of the hardware is not stated."""
        bundle = self.bundle.bundle
        peak = bundle.target.hardware.peak_tflops
        flops = bundle.model.shape.flops_per_token(bundle.recipe.seq_len) * tokens_per_second
        return flops / (self.group.world_size * peak * 1e12) if peak else None

    def _peak_memory(self) -> float:
        """Return the peak of this rank in GiB: of its GPU or, on a CPU, of the process."""
        if self.group.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.group.device) / GIB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    def _step_values(
        self, metrics: StepMetrics, speed: dict[str, float | None]
    ) -> dict[str, float]:
        """Return the scalars of a step by their names in TensorBoard and the trackers."""
        values = {
            "train/loss": metrics.loss,
            "train/grad_norm": metrics.grad_norm,
            "train/lr": metrics.lr,
        }
        values |= {f"train/loss_{role}": loss for role, loss in metrics.losses.items()}
        values |= {f"tokens/{source}": float(count) for source, count in metrics.tokens.items()}
        values |= {f"speed/{name}": value for name, value in speed.items() if value is not None}
        if proxy := self.bundle.proxy_losses:
            values["train/loss_of_the_proxy"] = proxy_loss(proxy, metrics.step, steps=self.steps)
        return values

    def _compare_with_proxy(self, changes: dict[str, float]) -> str:
        proxy = self.bundle.bundle.proxy
        proxy_changes = proxy.held_out if proxy else {}
        parts = []
        for name, change in changes.items():
            text = f"{name.removeprefix('held_out_')} {change:+.2f} %"
            if name in proxy_changes:
                text += f" (end of the proxy: {proxy_changes[name]:+.2f} %)"
            parts.append(text)
        return ", ".join(parts)

    def _append(self, name: str, content: dict[str, Any]) -> None:
        with (self.out / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(content) + "\n")

    def _track(self, values: dict[str, float], step: int) -> None:
        for sink in self._sinks:
            sink(values, step)

    def _open_sinks(self, steps_done: int) -> None:
        from tensorboardX import SummaryWriter

        # TensorBoard cannot delete events; it hides those from the purge step on.
        purge_step = steps_done + 1 if steps_done else None
        board = SummaryWriter(str(self.out / "tensorboard"), purge_step=purge_step)
        self._sinks.append(partial(_write_scalars, board))
        self._closers.append(board.close)
        for name in self.bundle.bundle.target.tracking:
            from accelerate import PartialState
            from accelerate.tracking import LOGGER_TYPE_TO_CLASS

            # accelerate's trackers ask this singleton whether they are on the main process.
            PartialState(cpu=self.group.device.type == "cpu")
            tracker = LOGGER_TYPE_TO_CLASS[name](self.bundle.bundle.name)
            tracker.start()
            self._sinks.append(partial(_write_to_tracker, tracker))
            self._closers.append(tracker.finish)


def _logged_lines(path: Path) -> list[tuple[int, str]]:
    """Return step and line of what was logged in a file."""
    fix = "correct or remove the line; the log is for reading, the state is in the checkpoints"
    lines = []
    # A process that was killed may have left half a line at the end.
    for place, line, value in read_json_lines(path, fix=fix, complete=False):
        step = value.get("step") if isinstance(value, dict) else None
        if type(step) is not int:
            raise InvalidInput(
                file=place, key="step", found=value, rule="an object with a step", fix=fix
            )
        lines.append((step, line.decode("utf-8")))
    return lines


def proxy_loss(losses: tuple[float, ...], step: int, *, steps: int) -> float:
    """Return the proxy's loss at the same fraction of its run.

    Args:
        losses: Of the proxy, step by step.
        step: Step of the full run, from 1.
        steps: Number of steps of the full run.
    """
    # ⌈step · len(losses) / steps⌉ in integers, so that the last step is the proxy's last one.
    return losses[-(-step * len(losses) // steps) - 1]


def _write_scalars(board: Any, values: dict[str, float], step: int) -> None:
    for name, value in values.items():
        board.add_scalar(name, value, step)


def _write_to_tracker(tracker: Any, values: dict[str, float], step: int) -> None:
    tracker.log(values, step=step)
