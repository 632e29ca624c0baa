"""Forward passes over answers, built once and computed for one model after another.

A pass states its inputs and where in its logits each token of an answer is predicted, so that the
log-likelihoods of all its answers are gathered in one go.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from sweepcp.scoring.lm_eval_answers import AnswerTokens
from sweepcp.scoring.lm_eval_batches import bounded_batches
from sweepcp.training.process_group import ProcessGroup

Answer = tuple[float, bool]
"""The log-likelihood of an answer in nats, and whether it is the greedy one."""


LEAST_LOGITS = 8
"""Positions of a pass whose logits are computed, at least: a product with fewer rows than about 4
is computed by other kernels, which round in another way."""


class Branches(NamedTuple):
    """Rows whose answers branch off a context, see `sweepcp.scoring.shared_contexts`."""

    position: torch.Tensor
    """Position of each token from the start of its context, shape (rows, length)."""
    last: torch.Tensor
    """The last column whose token sees this one, shape (rows, length)."""


class AnswerPass(NamedTuple):
    """A forward pass, and the answers that are read off its logits."""

    input_ids: torch.Tensor
    """Shape (rows, length)."""
    branches: Branches | None
    """None if every row is a text of its own, as lm-eval computes it."""
    kept: int
    """The logits of so many of the last columns are needed."""
    columns: torch.Tensor
    """Indices of the logits that predict tokens of the answers, in rows of `kept` columns, each one
    once: many answers may begin behind one context."""
    predictor: torch.Tensor
    """Which of `columns` predicts each token of the answers."""
    greedy_predictor: torch.Tensor
    """The same for the comparison with the likeliest tokens."""
    token: torch.Tensor
    """The tokens of the answers, one after the other."""
    lengths: tuple[int, ...]
    """Tokens of each answer."""
    answers: tuple[int, ...]
    """Index of each answer in what the passes were built from."""


class PassBuilder:
    """Collects the rows of a pass and the answers that they predict."""

    def __init__(self, length: int, kept: int) -> None:
        """Start a pass without rows.

        Args:
            length: Columns.
            kept: The last columns whose logits are needed.
        """
        self.length, self.kept = length, kept
        self.rows: list[list[int]] = []
        self.predictors: list[int] = []
        self.greedy_predictors: list[int] = []
        self.tokens: list[int] = []
        self.lengths: list[int] = []
        self.answers: list[int] = []

    def add_row(self, tokens: list[int]) -> None:
        """Add a row; the answers that are added next are predicted by it."""
        self.rows.append(tokens)

    def add_answer(
        self,
        index: int,
        tokens: list[int],
        columns: Sequence[int],
        *,
        greedy_columns: Sequence[int] | None = None,
    ) -> None:
        """Add an answer of the last row.

        Args:
            index: Which answer it is.
            tokens: Its tokens.
            columns: The columns whose logits predict them.
            greedy_columns: Those whose likeliest tokens they are compared with, if other ones.
        """
        first = (len(self.rows) - 1) * self.kept - (self.length - self.kept)
        self.predictors += [first + column for column in columns]
        self.greedy_predictors += [first + column for column in greedy_columns or columns]
        self.tokens += tokens
        self.lengths.append(len(tokens))
        self.answers.append(index)

    def build(self, branches: Branches | None = None) -> AnswerPass:
        """Return the pass. Rows are filled with zeros at their end, as lm-eval does."""
        input_ids = torch.zeros(len(self.rows), self.length, dtype=torch.long)
        for row, tokens in zip(input_ids, self.rows, strict=True):
            row[: len(tokens)] = torch.tensor(tokens)
        columns, places = np.unique([self.predictors, self.greedy_predictors], return_inverse=True)
        predictor, greedy_predictor = torch.from_numpy(places).reshape(2, -1)
        return AnswerPass(
            input_ids=input_ids,
            branches=branches,
            kept=self.kept,
            columns=torch.from_numpy(columns),
            predictor=predictor,
            greedy_predictor=greedy_predictor,
            token=torch.tensor(self.tokens),
            lengths=tuple(self.lengths),
            answers=tuple(self.answers),
        )


def exact_passes(
    requests: Sequence[AnswerTokens], *, max_length: int, vocab_size: int, first: int = 0
) -> list[AnswerPass]:
    """Return the passes of lm-eval: a row for each text, the same ones in the same order.

    Args:
        requests: The answers of a call of lm-eval.
        max_length: Tokens that the model takes.
        vocab_size: Logits per token.
        first: Index of the first request, to which the others are added.
    """
    passes = []
    for batch in bounded_batches(requests, max_length=max_length, vocab_size=vocab_size):
        rows, windows = [], []
        for group in batch:
            context, scored = requests[group[0]]
            rows.append([*context, *scored][-(max_length + 1) :][:-1])
            longest = max(len(requests[index].scored) for index in group)
            windows.append(len(rows[-1]) - longest)
        length = max(map(len, rows))
        kept = max(length - min(windows), -(-LEAST_LOGITS // len(rows)))
        builder = PassBuilder(length, min(kept, length))
        for tokens, window, group in zip(rows, windows, batch, strict=True):
            builder.add_row(tokens)
            for index in group:
                scored = requests[index].scored
                # Of answers that are the ends of one text and differ in length, lm-eval reads the
                # log-probabilities from the start of the longest one.
                builder.add_answer(
                    first + index,
                    scored,
                    range(window, window + len(scored)),
                    greedy_columns=range(len(tokens) - len(scored), len(tokens)),
                )
        passes.append(builder.build())
    return passes


@torch.no_grad()
def compute_answers(
    passes: Sequence[AnswerPass],
    forward: Callable[[AnswerPass], torch.Tensor],
    group: ProcessGroup,
    *,
    count: int,
) -> list[Answer]:
    """Compute the answers of passes, which the ranks of a group divide among them.

    Args:
        passes: What is computed; there may be nothing to compute.
        forward: Returns the logits of a pass, shape (rows, kept, vocabulary).
        group: The ranks that call this together.
        count: Number of answers.

    Returns:
        The answers, on every rank; zeros for those that no pass has.
    """
    nats, greedy, mine = [], [], []
    for first in range(0, len(passes), group.world_size):
        number = first + group.rank
        # Under ZeRO-3 a forward pass gathers weights from all ranks. A rank that has no pass left
        # computes pass 0 again, or the others would wait for it forever.
        one = passes[number if number < len(passes) else 0]
        sums, is_greedy = _read_answers(forward(one), one)
        if number < len(passes):
            nats.append(sums)
            greedy.append(is_greedy)
            mine.append(one)
    answers = np.zeros((count, 2))
    if mine:
        index = np.concatenate([one.answers for one in mine])
        lengths = np.concatenate([one.lengths for one in mine])
        # After the last pass: a copy to the host would have a GPU wait for the next pass.
        answers[index, 0] = torch.cat(nats).double().cpu().numpy()
        ends = np.cumsum(lengths)
        answers[index, 1] = np.logical_and.reduceat(torch.cat(greedy).cpu().numpy(), ends - lengths)
    return [(float(nat), bool(is_greedy)) for nat, is_greedy in group.all_reduce_sum(answers)]


def _read_answers(logits: torch.Tensor, one: AnswerPass) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-likelihood of each answer, and whether each token is the likeliest."""
    device = logits.device
    columns, predictor, greedy_predictor, token = (
        index.to(device) for index in (one.columns, one.predictor, one.greedy_predictor, one.token)
    )
    # Of the columns that are needed, the same bits as over all of them.
    log_probabilities = torch.log_softmax(
        logits.flatten(0, 1)[columns], dim=-1, dtype=torch.float32
    )
    is_greedy = log_probabilities.argmax(dim=-1)[greedy_predictor] == token
    chosen = log_probabilities[predictor, token]
    # One by one: the sum over a row of several answers would add up in another order.
    return torch.stack([answer.sum() for answer in chosen.split(one.lengths)]), is_greedy
