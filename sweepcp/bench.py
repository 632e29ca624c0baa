"""What a worker keeps in memory from trial to trial, and the way of one trial: train, then score."""

import socket
import time
from collections.abc import Iterator
from functools import cached_property
from importlib.metadata import version
from platform import python_version

import numpy as np
import torch

from sweepcp.data.stream import Stream
from sweepcp.engine import Engine
from sweepcp.job import Job
from sweepcp.models import load_model, load_tokenizer
from sweepcp.recipe import Recipe, Role
from sweepcp.score.held_out import HeldOut
from sweepcp.score.tasks import Tasks
from sweepcp.scorecard import Items
from sweepcp.suites import MemberSpec
from sweepcp.train import Diverged, Row, train
from sweepcp.trial import Base, Cost, Outcome

SCORE_ROWS = 64
"""Sequences in a forward pass over held-out text; fixed, so that scores are the same on every machine of a kind."""
PACKAGES = ("sweepcp", "torch", "transformers", "ray", "optuna", "lm_eval", "numpy")


class Bench:
    """The resident base, stores and suites of one worker process."""

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job.threads)
        self.job = job
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = load_tokenizer(job.base)
        self.model = load_model(job.model, job.base.revision, self.device)
        self.weights = {name: tensor.to("cpu", copy=True) for name, tensor in self.model.state_dict().items()}

    @cached_property
    def held_out(self) -> list[tuple[Role, MemberSpec, HeldOut]]:
        stores = {store.source: store for store in self.job.stores}
        return [
            (role, m, HeldOut(stores[m.held_out], m, self.job.seq_len, self.tokenizer))
            for role, m in self.job.suites.members
            if m.held_out
        ]

    @cached_property
    def tasks(self) -> Tasks | None:
        members = [(role, self._language(m), m) for role, m in self.job.suites.members if not m.held_out]
        if not members:
            return None
        return Tasks(members, self.job.made_tasks, self.model, self.tokenizer, self.job.precision)

    def score(self) -> list[Items]:
        """Items of every member of the suites under the weights as they are now.

        Raises `Diverged` when a document's loss is not finite: accuracies of such a model would mean nothing.
        """
        held_out = [self._read(role, member, texts) for role, member, texts in self.held_out]
        return held_out + (self.tasks.score() if self.tasks else [])

    def _read(self, role: Role, member: MemberSpec, texts: HeldOut) -> Items:
        bits = texts.bits(self.model, SCORE_ROWS, self.job.precision)
        if not np.isfinite(bits).all():
            raise Diverged(f"the loss on the held-out text of {member.held_out} is not finite")
        return Items(
            name=member.name,
            role=role,
            language=self._language(member),
            unit="bits per byte",
            weight=member.weight,
            select=texts.select,
            amount=tuple(bits.tolist()),
            size=tuple(texts.bytes.astype(float).tolist()),
        )

    def _language(self, member: MemberSpec) -> str:
        return member.language or self.job.languages.get(str(member.source), "en")

    def base(self) -> Base:
        """The untouched base's scores."""
        self.model.load_state_dict(self.weights)
        return Base(
            model=f"{self.job.model}@{self.job.base.revision}" if self.job.base.hub else self.job.model,
            parameters=sum(p.numel() for p in self.model.parameters()),
            max_lr=self.job.base.max_lr,
            items=tuple(self.score()),
            versions=versions(),
        )

    def run(self, recipe: Recipe) -> Iterator[Row | Outcome]:
        """One trial from the base's weights: a `Row` a step, and an `Outcome` at the end."""
        started = time.perf_counter()
        self.model.load_state_dict(self.weights)
        torch.manual_seed(recipe.seed)
        stream = Stream(recipe, list(self.job.stores))
        engine = Engine(self.model, recipe, self.job.micro_batch, self.job.precision)
        row = None
        try:
            for row in train(engine, recipe, self.job.base.max_lr, stream):
                yield row
            del engine  # the optimizer's memory, before scoring
            trained = time.perf_counter()
            items = tuple(self.score())
        except Diverged as error:
            yield Outcome(status="diverged", reason=str(error), versions=versions())
            return
        tokens = row.tokens if row else {}
        yield Outcome(
            status="done",
            items=items,
            tokens_by_source=tokens,
            epochs_by_source={name: stream.epochs(i, n) for i, (name, n) in enumerate(tokens.items())},
            cost=Cost(
                train_seconds=trained - started,
                score_seconds=time.perf_counter() - trained,
                tokens=recipe.tokens,
                tokens_per_second=recipe.tokens / (trained - started),
                worker=f"{socket.gethostname()}, {self._device_name()}, {torch.get_num_threads()} threads",
            ),
            versions=versions(),
        )

    def _device_name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"


def versions() -> dict[str, str]:
    """Python and the packages that decide a trial's numbers."""
    return {"python": python_version()} | {name: version(name) for name in PACKAGES}
