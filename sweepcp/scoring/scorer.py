"""Scores of a model on both suites: held-out text and lm-eval tasks."""

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sweepcp.config.suites import MemberSpec
from sweepcp.config.types import Role
from sweepcp.errors import Diverged, located
from sweepcp.models.loading import make_encoder
from sweepcp.scoring.held_out import HeldOutText
from sweepcp.scoring.scorecard import ItemScores
from sweepcp.scoring.spec import ScoringSpec
from sweepcp.training.process_group import ProcessGroup

if TYPE_CHECKING:
    from sweepcp.scoring.lm_eval_tasks import LmEvalTasks

SCORED_TOKENS = {"cpu": 4096, "cuda": 8192}
"""Tokens in a forward pass over held-out text, by device. Each is fixed, so that the scores are the
same on every machine of a kind. On a CPU, tensors of longer passes are not taken from memory that
the allocator keeps, and their page faults cost half as much again as the pass."""


class Scorer:
    """Scores one model, whose weights may change between calls, on the suites of a spec.

    Under ZeRO-3 the model is partitioned: then every rank of the group scores at the same time,
    and every rank gets the scores of all items.
    """

    def __init__(
        self,
        spec: ScoringSpec,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        group: ProcessGroup,
    ) -> None:
        self.spec, self.model, self.tokenizer, self.group = spec, model, tokenizer, group

    @cached_property
    def held_out_texts(self) -> list[tuple[Role, MemberSpec, HeldOutText]]:
        """The held-out text of each member that is scored on it, packed once."""
        spec = self.spec
        stores = {store.source: store for store in spec.stores}
        encoder = make_encoder(self.tokenizer)
        texts: list[tuple[Role, MemberSpec, HeldOutText]] = []
        for role, member in spec.suites.members:
            if member.held_out:
                with located(self.tokenizer.name_or_path, "the tokenizer"):
                    text = HeldOutText(
                        stores[member.held_out],
                        member,
                        encoder,
                        seq_len=spec.seq_len,
                        packed=spec.packed,
                    )
                texts.append((role, member, text))
        return texts

    @cached_property
    def tasks(self) -> "LmEvalTasks | None":
        """The lm-eval members of the suites, built once; None if there are none."""
        members = [
            (role, self._language(member), member)
            for role, member in self.spec.suites.members
            if not member.held_out
        ]
        if not members:
            return None

        from sweepcp.scoring.lm_eval_tasks import LmEvalTasks

        return LmEvalTasks(
            members,
            self.model,
            self.tokenizer,
            generated_tasks=self.spec.generated_tasks,
            precision=self.spec.precision,
            scoring=self.spec.scoring,
            group=self.group,
            working_folder=self.spec.working_folder,
        )

    def score(self) -> list[ItemScores]:
        """Score every member of the suites with the model's present weights.

        Raises:
            Diverged: The loss of a held-out document is not finite. The accuracies of such a model
                would mean nothing.
            InvalidInput: A task of the suites, or an item of it, cannot be scored.
        """
        # The tasks are built first, so that an invalid item is found before anything is computed.
        tasks = self.tasks
        # Held-out text is scored first: it finds a model that is not finite, which lm-eval would
        # score as if it were sound (argmax over NaN picks the first choice).
        return self.score_held_out() + (tasks.score() if tasks else [])

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the suites' items, once the tasks are built."""
        return tuple(self.tasks.notes) if self.tasks else ()

    @property
    def prompts(self) -> str:
        """16 hex digits of the prompts and answers of the tasks; empty without tasks."""
        return self.tasks.prompts if self.tasks else ""

    @property
    def items(self) -> str:
        """16 hex digits of the items of the tasks; empty without tasks."""
        return self.tasks.items if self.tasks else ""

    @property
    def scoring(self) -> str:
        """How the answers of the tasks are computed, see `LmEvalTasks.scoring`."""
        return self.tasks.scoring if self.tasks else "exact"

    def score_held_out(self) -> list[ItemScores]:
        """Score the members that are held-out text; raises `Diverged` as `score` does."""
        return [self._score_text(role, member, text) for role, member, text in self.held_out_texts]

    def _score_text(self, role: Role, member: MemberSpec, text: HeldOutText) -> ItemScores:
        rows = max(1, SCORED_TOKENS[self.group.device.type] // self.spec.seq_len)
        bits = text.bits(self.model, self.group, rows=rows, precision=self.spec.precision)
        if not np.isfinite(bits).all():
            raise Diverged(f"the loss on the held-out text of {member.held_out} is not finite")
        return ItemScores(
            name=member.name,
            role=role,
            language=self._language(member),
            unit="bits per byte",
            weight=member.weight,
            document=text.document_ids,
            amount=tuple(bits.tolist()),
            size=tuple(text.bytes.astype(float).tolist()),
        )

    def _language(self, member: MemberSpec) -> str:
        return member.language or self.spec.languages.get(str(member.source), "en")
