"""The training loop and AdamW against an independent computation; DeepSpeed's configuration."""

import itertools
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from deepspeed.runtime.config import DeepSpeedConfig
from transformers import AutoModelForCausalLM

from sweepcp.config.recipe import Recipe
from sweepcp.config.target import Target
from sweepcp.config.validation import validate
from sweepcp.data.stream import IGNORED, Batch, restarting_positions
from sweepcp.errors import Diverged
from sweepcp.training.deepspeed_config import zero_config
from sweepcp.training.engine import PlainEngine, build_adamw
from sweepcp.training.loop import StepMetrics, run_training
from sweepcp.training.process_group import ProcessGroup
from tests.make import mixture, recipe, target_content, write_model

SETTINGS: dict[str, Any] = {
    "seq_len": 16,
    "batch_tokens": 64,
    "tokens": 5 * 64,
    "clip": 1.6,
    "betas": (0.7, 0.83),
    "weight_decay": 0.9,
    "epsilon": 3e-3,
    "warmup_steps": 2,
    "schedule": "linear",
    "min_lr": 0.0025,
    "lr_fraction": 0.5,
}
"""No setting has its default; the norms of the gradients are on both sides of the clip."""
MAX_LR = 0.02
LRS = [0.005, 0.01, 0.0075, 0.005, 0.0025]
"""Of 5 steps: a linear warmup of 2 to half of the max LR, then linearly to the minimum."""


class FixedStream:
    """Batches of two documents per row, with unequal numbers of targets."""

    def __init__(self, settings: Recipe) -> None:
        self.settings = settings

    def batch(self, step: int, rank: int, world_size: int) -> Batch:
        assert (rank, world_size) == (0, 1)
        rows, length = self.settings.sequences, self.settings.seq_len
        generator = np.random.default_rng(step)
        ids = generator.integers(0, 256, (rows, length + 1))
        starts = np.zeros((rows, length + 1), dtype=bool)
        starts[np.arange(rows), generator.integers(1, length, rows)] = True
        targets = np.where(starts[:, 1:], IGNORED, ids[:, 1:])
        targets[0, : length // 2] = IGNORED
        source = np.arange(rows) % 2
        return Batch(ids[:, :-1], targets, restarting_positions(starts[:, :-1]), source)


class StubEngine:
    """Returns losses and gradient norms that are given."""

    group = ProcessGroup()

    def __init__(self, losses: list[float], grad_norm: float = 1.0) -> None:
        self.losses, self.grad_norm = losses, grad_norm

    def step(self, batch: Batch, *, target_tokens: int, lr: float) -> tuple[np.ndarray, float]:
        assert target_tokens == (batch.targets != IGNORED).sum()
        assert lr > 0
        return np.array(self.losses), self.grad_norm


def run(engine: Any, settings: Recipe) -> list[StepMetrics]:
    return list(run_training(engine, settings, FixedStream(settings), max_lr=MAX_LR))  # type: ignore[arg-type]


def mean_loss_of_documents(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Return the mean over all targets, each document computed alone."""
    losses = []
    for ids, targets, positions in zip(
        batch.input_ids, batch.targets, batch.position_ids, strict=True
    ):
        cuts = [*np.flatnonzero(positions == 0), len(ids)]
        for first, end in itertools.pairwise(cuts):
            log_probabilities = model(torch.tensor(ids[None, first:end])).logits[0].log_softmax(-1)
            places = np.flatnonzero(targets[first:end] != IGNORED)
            losses.append(-log_probabilities[places, targets[first + places]])
    return torch.cat(losses).mean()


def reference_steps(
    model: torch.nn.Module, settings: Recipe
) -> tuple[list[float], list[float], set[bool]]:
    """Train as the textbook has it: Loshchilov and Hutter's AdamW, every number written out."""
    beta1, beta2 = SETTINGS["betas"]
    moments = {
        name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in model.named_parameters()
    }
    losses, norms, clipped = [], [], set()
    for step in range(1, settings.steps + 1):
        batch = FixedStream(settings).batch(step, 0, 1)
        loss = mean_loss_of_documents(model, batch)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        norm = math.sqrt(sum(float(g.double().pow(2).sum()) for g in gradients))
        factor = min(1.0, SETTINGS["clip"] / norm)
        lr = LRS[step - 1]
        with torch.no_grad():
            for (name, parameter), gradient in zip(
                model.named_parameters(), gradients, strict=True
            ):
                first, second = moments[name]
                first.mul_(beta1).add_((1 - beta1) * factor * gradient)
                second.mul_(beta2).add_((1 - beta2) * (factor * gradient) ** 2)
                decay = SETTINGS["weight_decay"] if parameter.ndim >= 2 else 0.0
                parameter.mul_(1 - lr * decay)
                corrected = (second / (1 - beta2**step)).sqrt() + SETTINGS["epsilon"]
                parameter.sub_(lr * (first / (1 - beta1**step)) / corrected)
        losses.append(loss.item())
        norms.append(norm)
        clipped.add(factor < 1)
    return losses, norms, clipped


def test_training_equals_an_independent_computation_away_from_the_defaults(tmp_path: Path):
    folder = write_model(tmp_path / "model", initializer_range=0.05)
    settings = recipe(**SETTINGS)
    load = lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)  # noqa: E731
    expected, model = load(), load()
    losses, norms, clipped = reference_steps(expected, settings)
    assert clipped == {True, False}
    engine = PlainEngine(model, settings, micro_batch=3, precision="fp32")
    steps = run(engine, settings)
    assert [s.lr for s in steps] == pytest.approx(LRS)
    assert [s.loss for s in steps] == pytest.approx(losses, rel=1e-5)
    assert [s.grad_norm for s in steps] == pytest.approx(norms, rel=1e-4)
    for (name, trained), reference in zip(
        model.named_parameters(), expected.parameters(), strict=True
    ):
        assert torch.allclose(trained, reference, atol=2e-5), name


def test_matrices_decay_and_vectors_do_not():
    """Without gradients AdamW only decays."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = build_adamw(model, recipe(weight_decay=0.9))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    optimizer.step()
    for parameter, start in zip(model.parameters(), before, strict=True):
        factor = 1 - 0.5 * 0.9 if parameter.ndim == 2 else 1.0
        assert torch.allclose(parameter, factor * start)


def test_losses_by_role_are_means_over_targets():
    settings = recipe(seq_len=4, batch_tokens=8, tokens=8, mixture=mixture(0.5))
    batch = FixedStream(settings).batch(1, 0, 1)
    targets = (batch.targets != IGNORED).sum(1)
    assert targets.tolist() != [4, 4]
    assert targets[0] != targets[1]
    (step,) = run(StubEngine([6.0, 10.0]), settings)
    assert step.losses == {"domain": 6.0 / targets[0], "general": 10.0 / targets[1]}
    assert step.loss == 16.0 / targets.sum()
    assert step.tokens == {"code": 4, "docs": 4}


class ThreadGroup(ProcessGroup):
    """A rank in a thread of this process."""

    barrier_of_all = threading.Barrier(2)
    parts: ClassVar[dict[int, np.ndarray]] = {}

    def all_reduce_sum(self, array: np.ndarray) -> np.ndarray:
        self.parts[self.rank] = array.copy()
        self.barrier_of_all.wait(20)
        total = self.parts[0] + self.parts[1]
        self.barrier_of_all.wait(20)
        return total


class RankStream(FixedStream):
    """The rows of a rank: the first one, or the others."""

    def batch(self, step: int, rank: int, world_size: int) -> Batch:
        assert world_size == 2
        whole = super().batch(step, 0, 1)
        rows = slice(None, 1) if rank == 0 else slice(1, None)
        columns = (whole.input_ids, whole.targets, whole.position_ids, whole.source)
        return Batch(*(column[rows] for column in columns))


def test_losses_and_targets_are_those_of_all_ranks():
    """Rank 0 has one row of four with few targets: a mean of the ranks' means would be another."""
    settings = recipe(**SETTINGS | {"tokens": 64, "warmup_steps": None}, mixture=mixture(0.5))
    losses = [3.0, 20.0, 5.0, 7.0]
    (expected,) = run(StubEngine(losses), settings)
    counted: list[int] = []

    class RankEngine(StubEngine):
        def step(self, batch: Batch, *, target_tokens: int, lr: float) -> tuple[np.ndarray, float]:
            counted.append(target_tokens)
            return np.array(self.losses), self.grad_norm

    def run_rank(rank: int) -> StepMetrics:
        engine = RankEngine(losses[:1] if rank == 0 else losses[1:])
        engine.group = ThreadGroup(rank=rank, world_size=2)
        stream = RankStream(settings)
        (step,) = run_training(engine, settings, stream, max_lr=MAX_LR)  # type: ignore[arg-type]
        return step

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run_rank, (0, 1))) == [expected, expected]
    targets = FixedStream(settings).batch(1, 0, 1).targets
    assert counted == [(targets != IGNORED).sum()] * 2
    assert expected.loss == 35 / counted[0]


def test_a_resumed_run_continues_its_steps_its_schedule_and_its_count_of_tokens():
    settings = recipe(**SETTINGS, mixture=mixture(0.5))
    stream = FixedStream(settings)
    resumed = run_training(
        StubEngine([1.0] * 4),
        settings,
        stream,  # type: ignore[arg-type]
        max_lr=MAX_LR,
        steps_done=3,
        tokens_fed={"docs": 1000, "code": 500},
    )
    steps = list(resumed)
    assert [s.step for s in steps] == [4, 5]
    assert [s.lr for s in steps] == pytest.approx(LRS[3:])
    # Two sequences of 16 tokens of each source per step.
    assert [s.tokens for s in steps] == [
        {"code": 532, "docs": 1032},
        {"code": 564, "docs": 1064},
    ]


@pytest.mark.parametrize(
    ("losses", "grad_norm"),
    [
        ([1.0, math.nan], 1.0),
        ([1.0, math.inf], 1.0),
        ([1.0, 1.0], math.nan),
        ([1.0, 1.0], math.inf),
    ],
)
def test_a_loss_or_gradient_norm_that_is_not_finite_ends_training(
    losses: list[float], grad_norm: float
):
    settings = recipe(seq_len=4, batch_tokens=8, tokens=16)
    with pytest.raises(Diverged, match="step 1 of 2") as caught:
        run(StubEngine(losses, grad_norm), settings)
    assert caught.value.step == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_deepspeed_is_told_the_clip_and_to_sum_gradients_in_fp32(tmp_path: Path, precision: str):
    compute = {"micro_batch": 2, "precision": precision}
    target = validate(Target, target_content(tmp_path, compute=compute), tmp_path / "target.yaml")
    settings = recipe(seq_len=4, batch_tokens=64, tokens=640, clip=0.37)
    config = zero_config(settings, target, world_size=1)
    assert (config["train_batch_size"], config["gradient_accumulation_steps"]) == (16, 8)
    parsed = DeepSpeedConfig(config)
    assert parsed.gradient_clipping == 0.37
    assert parsed.communication_data_type == torch.float32
    assert parsed.bfloat16_config.enabled == (precision == "bf16")
    assert parsed.grad_accum_dtype == ("fp32" if precision == "bf16" else None)
