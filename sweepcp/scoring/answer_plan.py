"""How the answers of the members of suites are computed: with shared contexts, or exactly."""

from collections.abc import Sequence

from sweepcp.config.types import ScoringMode
from sweepcp.scoring.answer_model import AnswerModel
from sweepcp.scoring.answer_passes import Answer, AnswerPass
from sweepcp.scoring.lm_eval_answers import AnswerTokens

Calls = Sequence[Sequence[AnswerTokens]]
"""The answers of a member, by the call of lm-eval that would compute them."""


class AnswerPlan:
    """The forward passes over the answers of all members, built once."""

    def __init__(self, model: AnswerModel, members: Sequence[Calls], scoring: ScoringMode) -> None:
        """Build the passes.

        In shared mode a sample of each member is computed in both ways, with the present weights.

        Args:
            model: Computes them.
            members: The answers of each member.
            scoring: The mode that is asked for.
        """
        self.model = model
        self.counts = [sum(map(len, calls)) for calls in members]
        self.obstacles: dict[int, str] = {}
        """Member → why its contexts cannot be shared, in shared mode."""
        self.firsts: dict[int, int] = {}
        """Member with shared contexts → index of its first answer."""
        self.exact: dict[int, list[AnswerPass]] = {}
        """Member without → its passes."""
        shared: list[AnswerTokens] = []
        for member, calls in enumerate(members):
            answers = [answer for call in calls for answer in call]
            if answers and scoring == "shared":
                obstacle = model.obstacle(answers)
                if not obstacle:
                    self.firsts[member] = len(shared)
                    shared += answers
                    continue
                self.obstacles[member] = obstacle
            self.exact[member] = self._exact_passes(calls)
        self.shared = model.shared_passes(shared)
        model.keep_logits([one for passes in self.exact.values() for one in passes])

    def _exact_passes(self, calls: Calls) -> list[AnswerPass]:
        passes: list[AnswerPass] = []
        first = 0
        for call in calls:
            passes += self.model.exact_passes(call, first=first)
            first += len(call)
        return passes

    def compute_shared(self) -> dict[int, list[Answer]]:
        """Return the answers of the members whose contexts are shared."""
        count = sum(self.counts[member] for member in self.firsts)
        answers = self.model.compute(self.shared, count=count)
        return {
            member: answers[first : first + self.counts[member]]
            for member, first in self.firsts.items()
        }

    def compute_exact(self, member: int) -> list[Answer]:
        """Return the answers of a member whose contexts are not shared."""
        return self.model.compute(self.exact[member], count=self.counts[member])
