"""What a full run says while it runs: metrics.jsonl, held_out.jsonl, TensorBoard and lines on the terminal."""

import json
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sweepcp.promote.bundle import LoadedBundle
from sweepcp.scoring.scorecard import Scorecard
from sweepcp.training.loop import StepMetrics
from sweepcp.training.process_group import ProcessGroup
from sweepcp.util.files import write_text

Say = Callable[[str], None]
SECONDS_BETWEEN_LINES = 5.0
"""Between lines on the terminal."""


class RunLog:
    """Written by the first rank; the others keep silent. Lines after step `done` of an earlier attempt are removed."""

    def __init__(
        self, opened: LoadedBundle, out: Path, ranks: ProcessGroup, done: int, say: Say
    ) -> None:
        self.opened, self.out, self.ranks, self.say = opened, out, ranks, say
        self.steps = opened.bundle.recipe.steps
        self.sinks: list[Callable[[dict[str, float], int], None]] = []
        self.closers: list[Callable[[], None]] = []
        self.spoke = 0.0
        self.back(done)
        if ranks.first:
            self._open_sinks(done)
        self.since = time.perf_counter()

    def back(self, done: int) -> None:
        """Remove what was logged after step `done`."""
        if not self.ranks.first:
            return
        for name in ("metrics.jsonl", "held_out.jsonl"):
            path = self.out / name
            lines = (
                path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
            )
            kept = [
                line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= done
            ]
            write_text(path, "".join(kept))

    def row(self, row: StepMetrics) -> None:
        """One step."""
        now = time.perf_counter()
        seconds, self.since = now - self.since, now
        if not self.ranks.first:
            return
        bundle = self.opened.bundle
        speed = bundle.recipe.batch_tokens / seconds
        peak = bundle.target.hardware.peak_tflops
        flops = bundle.model.shape.flops_per_token(bundle.recipe.seq_len) * speed
        mfu = flops / (self.ranks.ranks * peak * 1e12) if peak else None
        extra = {"tokens_per_second": speed, "mfu": mfu, "memory_gib": self._memory()}
        self._append("metrics.jsonl", row._asdict() | extra)
        values = {"train/loss": row.loss, "train/grad_norm": row.grad_norm, "train/lr": row.lr}
        values |= {f"train/loss_{role}": loss for role, loss in row.losses.items()}
        values |= {f"tokens/{source}": float(count) for source, count in row.tokens.items()}
        values |= {f"speed/{name}": value for name, value in extra.items() if value is not None}
        if proxy := self.opened.proxy_losses:  # at the same part of its way
            values["train/loss_of_the_proxy"] = proxy[-(-row.step * len(proxy) // self.steps) - 1]
        for sink in self.sinks:
            sink(values, row.step)
        if now - self.spoke > SECONDS_BETWEEN_LINES or row.step == self.steps:
            self.spoke = now
            roles = ", ".join(f"{role} {loss:.3f}" for role, loss in row.losses.items())
            used = f", MFU {mfu:.1%}" if mfu is not None else ""
            self.say(
                f"step {row.step}/{self.steps}  loss {row.loss:.4f} ({roles})  LR {row.lr:.3g}  "
                f"grad {row.grad_norm:.3g}  {speed:,.0f} tokens/s{used}"
            )

    def held_out(self, step: int, card: Scorecard) -> None:
        """Held-out text against step 0, beside what the proxy came to."""
        if self.ranks.first:
            half = card.report
            changes = {m.name: m.change for m in half.members}
            self._append(
                "held_out.jsonl",
                {"step": step, "domain": half.domain, "general": half.general} | changes,
            )
            values = {"held_out/domain": half.domain, "held_out/general": half.general}
            for sink in self.sinks:
                sink(
                    values | {f"held_out/{name}": change for name, change in changes.items()}, step
                )
            proxy = self.opened.bundle.proxy.held_out if self.opened.bundle.proxy else {}
            each = ", ".join(
                f"{m.name.removeprefix('held_out_')} {m.change:+.2f} %"
                + (f" (the proxy's end: {proxy[m.name]:+.2f} %)" if m.name in proxy else "")
                for m in half.members
            )
            self.say(f"held-out text at step {step}, bits per byte against step 0: {each}")
        self.since = time.perf_counter()

    def saved(self, step: int) -> None:
        """A checkpoint is complete."""
        self.say(f"checkpoint at step {step}")
        self.since = time.perf_counter()

    def close(self) -> None:
        for close in self.closers:
            close()

    def _append(self, name: str, content: dict[str, Any]) -> None:
        with (self.out / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(content) + "\n")

    def _memory(self) -> float:
        """Peak of this rank in GiB: of its GPU, or of the process."""
        if self.ranks.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.ranks.device) / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    def _open_sinks(self, done: int) -> None:
        from tensorboardX import SummaryWriter

        board = SummaryWriter(str(self.out / "tensorboard"), purge_step=done + 1 if done else None)

        def add(values: dict[str, float], step: int) -> None:
            for key, value in values.items():
                board.add_scalar(key, value, step)

        self.sinks.append(add)
        self.closers.append(board.close)
        for name in self.opened.bundle.target.tracking:
            from accelerate import PartialState
            from accelerate.tracking import LOGGER_TYPE_TO_CLASS

            PartialState(
                cpu=self.ranks.device.type == "cpu"
            )  # trackers ask it which process this is
            tracker = LOGGER_TYPE_TO_CLASS[name](self.opened.bundle.name)
            tracker.start()
            self.sinks.append(partial(_track, tracker))
            self.closers.append(tracker.finish)


def _track(tracker: Any, values: dict[str, float], step: int) -> None:
    tracker.log(values, step=step)
