"""A model's items on both suites: held-out text and lm-eval tasks."""

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sweepcp.config.suites import MemberSpec
from sweepcp.config.types import Role
from sweepcp.scoring.held_out import HeldOutText
from sweepcp.scoring.scorecard import ItemScores
from sweepcp.search.worker_spec import WorkerSpec
from sweepcp.training.loop import Diverged
from sweepcp.training.process_group import ProcessGroup

if TYPE_CHECKING:
    from sweepcp.scoring.lm_eval_tasks import LmEvalTasks


SCORE_TOKENS = 8192
"""Tokens in a forward pass over held-out text; fixed, so that scores are the same on every machine of a kind."""


class Scorer:
    """The suites of a job, ready to score one model in memory again and again.

    The model may be spread over ranks: then all of them score at the same time, and get the same items.
    """

    def __init__(
        self,
        job: WorkerSpec,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        ranks: ProcessGroup,
    ) -> None:
        self.job, self.model, self.tokenizer, self.ranks = job, model, tokenizer, ranks

    @cached_property
    def texts(self) -> list[tuple[Role, MemberSpec, HeldOutText]]:
        stores = {store.source: store for store in self.job.stores}
        return [
            (role, m, HeldOutText(stores[m.held_out], m, self.job.seq_len, self.tokenizer))
            for role, m in self.job.suites.members
            if m.held_out
        ]

    @cached_property
    def tasks(self) -> "LmEvalTasks | None":
        members = [
            (role, self._language(m), m) for role, m in self.job.suites.members if not m.held_out
        ]
        if not members:
            return None

        from sweepcp.scoring.lm_eval_tasks import LmEvalTasks

        return LmEvalTasks(
            members, self.job.made_tasks, self.model, self.tokenizer, self.job.precision
        )

    def score(self) -> list[ItemScores]:
        """Items of every member of the suites under the weights as they are now.

        Raises `Diverged` when a document's loss is not finite: accuracies of such a model would mean nothing.
        """
        return self.held_out() + (self.tasks.score() if self.tasks else [])

    def held_out(self) -> list[ItemScores]:
        """Items of the members that are held-out text; raises `Diverged` as `score` does."""
        return [self._read(role, member, texts) for role, member, texts in self.texts]

    def _read(self, role: Role, member: MemberSpec, texts: HeldOutText) -> ItemScores:
        rows = max(1, SCORE_TOKENS // self.job.seq_len)
        bits = texts.bits(self.model, self.ranks, rows, self.job.precision)
        if not np.isfinite(bits).all():
            raise Diverged(f"the loss on the held-out text of {member.held_out} is not finite")
        return ItemScores(
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
