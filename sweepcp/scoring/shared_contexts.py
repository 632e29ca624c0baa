"""Forward passes that compute a context once for all of its answers.

A row is a context and, behind it, the answers to it. Their positions start again after the context,
and a token sees the context and the tokens before it in its own answer only. Answers that begin
with the same tokens share these, so a row is a tree of which each token sees its ancestors. The
columns where contexts end are aligned, so the logits that answers need are those of the last
columns.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile

import torch

from sweepcp.scoring.answer_passes import AnswerPass, Branches, PassBuilder
from sweepcp.scoring.lm_eval_answers import AnswerTokens
from sweepcp.scoring.lm_eval_batches import MAX_LOGITS

ROW_ANSWERS = 512
"""Tokens of answers in a row with more than one, at most: attention takes the square of a row."""


class ContextRow:
    """A context and the tree of its answers."""

    def __init__(self, context: Sequence[int]) -> None:
        self.context_length = len(context)
        self.tokens = list(context)
        self.positions = list(range(len(context)))
        self.last = [0] * len(context)
        """The last token that sees each one, once the row is complete."""
        self.answers: list[tuple[int, list[int], list[int]]] = []
        """Of each answer its index, its tokens, and the tokens of the row that predict them."""
        self._path: list[int] = []
        """The tokens of the row that the previous answer consists of."""

    @property
    def answer_length(self) -> int:
        """The number of tokens behind the context."""
        return len(self.tokens) - self.context_length

    def add(self, index: int, answer: list[int]) -> None:
        """Add an answer, which sorts behind those before it."""
        # Nothing is predicted by the last token of an answer.
        given = answer[:-1]
        pairs = zip(self._path, given, strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: self.tokens[pair[0]] == pair[1], pairs))
        self._close(shared)
        for depth in range(shared, len(given)):
            self._path.append(len(self.tokens))
            self.tokens.append(given[depth])
            self.positions.append(self.context_length + depth)
            self.last.append(0)
        self.answers.append((index, answer, [self.context_length - 1, *self._path]))

    def complete(self) -> None:
        """State which tokens are seen to the end of the row."""
        self._close(0)
        end = len(self.tokens) - 1
        self.last[: self.context_length] = [end] * self.context_length

    def _close(self, depth: int) -> None:
        """End the branch of the previous answer behind so many of its tokens."""
        for column in self._path[depth:]:
            self.last[column] = len(self.tokens) - 1
        del self._path[depth:]


def context_rows(
    requests: Sequence[AnswerTokens], *, max_length: int, most_columns: int = sys.maxsize
) -> list[ContextRow]:
    """Return the rows of requests, the longest first.

    Args:
        requests: Their contexts may be longer than the model takes.
        max_length: Tokens that the model takes.
        most_columns: Tokens of a row with more than one answer, at most.
    """
    by_context: dict[tuple[int, ...], list[tuple[list[int], int]]] = {}
    for index, (context, scored) in enumerate(requests):
        # As lm-eval cuts it, the start of the context first.
        cut = max(0, len(context) + len(scored) - max_length - 1)
        by_context.setdefault(tuple(context[cut:]), []).append((scored, index))
    rows: list[ContextRow] = []
    for given, answers in by_context.items():
        most_answers = min(ROW_ANSWERS, most_columns - len(given))
        rows += _rows_of(given, answers, most_answers)
    return sorted(rows, key=lambda row: (-row.answer_length, -row.context_length))


def _rows_of(
    context: Sequence[int], answers: Iterable[tuple[list[int], int]], most_answers: int
) -> Iterator[ContextRow]:
    row = ContextRow(context)
    for answer, index in sorted(answers):
        if row.answers and row.answer_length + len(answer) > most_answers:
            row.complete()
            yield row
            row = ContextRow(context)
        row.add(index, answer)
    row.complete()
    yield row


def shared_passes(
    requests: Sequence[AnswerTokens],
    *,
    max_length: int,
    vocab_size: int,
    pass_tokens: int,
    keeps_logits: bool = True,
    most_columns: int = sys.maxsize,
) -> list[AnswerPass]:
    """Return the passes that compute each context of requests once.

    Args:
        requests: Contexts and answers.
        max_length: Tokens that the model takes.
        vocab_size: Logits per token.
        pass_tokens: Tokens in a pass of more than one row, at most.
        keeps_logits: Whether the model computes only the logits that are needed, or all.
        most_columns: Tokens of a row with more than one answer, at most; and columns of a pass with
            more than one row.
    """
    passes: list[AnswerPass] = []
    rows: list[ContextRow] = []
    for row in context_rows(requests, max_length=max_length, most_columns=most_columns):
        before, answers = _shape([*rows, row])
        length = before + answers
        tokens = (len(rows) + 1) * length
        logits = (len(rows) + 1) * (answers + 1 if keeps_logits else length) * vocab_size
        if rows and (tokens > pass_tokens or logits > MAX_LOGITS or length > most_columns):
            passes.append(_make_pass(rows))
            rows = []
        rows.append(row)
    return [*passes, _make_pass(rows)] if rows else []


def _shape(rows: Sequence[ContextRow]) -> tuple[int, int]:
    """Return the columns of a pass before its answers, and those of its answers."""
    return max(row.context_length for row in rows), max(row.answer_length for row in rows)


def _make_pass(rows: Sequence[ContextRow]) -> AnswerPass:
    """Align the ends of the contexts of rows and return their pass."""
    before, answers = _shape(rows)
    length = before + answers
    positions = torch.zeros(len(rows), length, dtype=torch.long)
    # What fills a row sees itself, because attention to nothing is not a number.
    last = torch.arange(length).repeat(len(rows), 1)
    builder = PassBuilder(length, answers + 1)
    for number, row in enumerate(rows):
        first = before - row.context_length
        builder.add_row([0] * first + row.tokens)
        columns = slice(first, first + len(row.tokens))
        positions[number, columns] = torch.tensor(row.positions)
        last[number, columns] = torch.tensor(row.last) + first
        for index, answer, predictors in row.answers:
            builder.add_answer(index, answer, [first + column for column in predictors])
    return builder.build(Branches(positions, last))


def branch_mask(last: torch.Tensor) -> torch.Tensor:
    """Return which tokens each token sees.

    Args:
        last: See `Branches`.

    Returns:
        Shape (rows, 1, length, length).
    """
    column = torch.arange(last.shape[1], device=last.device)
    seen_by_later = column[:, None] >= column
    mask: torch.Tensor = seen_by_later & (column[:, None] <= last[:, None, :])
    return mask[:, None]
