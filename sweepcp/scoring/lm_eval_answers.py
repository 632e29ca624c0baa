"""The tokens that lm-eval scores of each answer, and the bytes of text that they cover.

lm-eval tokenises context and answer together, and scores what follows as many tokens as the context
has alone. Where a token spans the boundary between the two, this is another text than the answer: a
part of it, or nothing, on which lm-eval fails.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from sweepcp.errors import InvalidInput


class AnswerTokens(NamedTuple):
    """The tokens of a request: those that are given, and those that are scored."""

    context: list[int]
    scored: list[int]

    @property
    def length(self) -> int:
        """The number of all tokens."""
        return len(self.context) + len(self.scored)


class ItemAnswers(NamedTuple):
    """The tokens that are scored of one item."""

    requests: list[AnswerTokens]
    """Those whose log-likelihoods the metrics of lm-eval are made of, one for each request."""
    gold: AnswerTokens | None
    """Tokens that cover all of the right answer, if those of its request do not."""
    gold_bytes: int
    """UTF-8 bytes that the scored tokens cover, of `gold` or of the right answer's request."""


class _AnswerText:
    """Context and answer as one text, and where each of its tokens ends."""

    def __init__(self, lm: Any, context: str, answer: str) -> None:
        self.lm, self.context, self.text = lm, context, context + answer
        # As in `_stock_tokens`. A text that states its BOS gets no other one.
        self.ids = lm.tok_encode(self.text, add_special_tokens=None if context else False)
        encoding = lm.tokenizer(self.text, return_offsets_mapping=True)
        if encoding["input_ids"] != self.ids:
            encoding = lm.tokenizer(
                self.text, return_offsets_mapping=True, add_special_tokens=False
            )
        # Special tokens have the offsets (0, 0).
        self.ends = list(accumulate((end for _, end in encoding["offset_mapping"]), max))

    @property
    def boundary(self) -> int:
        """The last boundary between tokens that is not behind the end of the context."""
        return self._end_of(bisect_right(self.ends, len(self.context)))

    def scored_from(self, position: int) -> AnswerTokens:
        """Return the tokens that begin at a position of the text, after those before it."""
        count = bisect_right(self.ends, position)
        return AnswerTokens(self.ids[:count] or [self.lm.prefix_token_id], self.ids[count:])

    def bytes_of(self, scored: list[int]) -> int:
        """Return the UTF-8 bytes that the last tokens of the text cover."""
        return len(self.text[self._end_of(len(self.ids) - len(scored)) :].encode())

    def covers_answer(self, scored: list[int]) -> bool:
        """Return whether the last tokens of the text cover all of the answer."""
        return bool(scored) and self._end_of(len(self.ids) - len(scored)) <= len(self.context)

    def _end_of(self, count: int) -> int:
        return self.ends[count - 1] if count else 0


def encode_item(lm: Any, requests: Sequence[tuple[str, str]], gold: int) -> ItemAnswers:
    """Tokenise the requests of an item, each a context and an answer.

    The tokens are those of lm-eval. Where these leave an answer of the item without a token, all
    answers to the same context are scored from the last boundary before its end that they share.

    Args:
        lm: lm-eval's wrapper of the model and its tokenizer.
        requests: Contexts and answers.
        gold: Which of the requests asks for the right answer.

    Raises:
        InvalidInput: An answer is no token at all, or is longer than the model's context.
    """
    tokens = [_stock_tokens(lm, context, answer) for context, answer in requests]
    text = _AnswerText(lm, *requests[gold])
    if not all(request.scored and request.context for request in tokens):
        texts = [_AnswerText(lm, context, answer) for context, answer in requests]
        tokens = []
        for context, _ in requests:
            shared = min(other.boundary for other in texts if other.context == context)
            tokens.append(texts[len(tokens)].scored_from(shared))
    for (_, answer), request in zip(requests, tokens, strict=True):
        _check_length(lm, answer, request)
    if text.covers_answer(tokens[gold].scored):
        return ItemAnswers(tokens, None, text.bytes_of(tokens[gold].scored))
    right = text.scored_from(text.boundary)
    _check_length(lm, requests[gold][1], right)
    return ItemAnswers(tokens, right, text.bytes_of(right.scored))


def _stock_tokens(lm: Any, context: str, answer: str) -> AnswerTokens:
    """Tokenise as lm-eval does in `TemplateLM.loglikelihood`."""
    if context:
        return AnswerTokens(*lm._encode_pair(context, answer))
    ids = lm.tok_encode(answer, add_special_tokens=False)
    if ids[:1] == [lm.prefix_token_id]:
        return AnswerTokens(ids[:1], ids[1:])
    return AnswerTokens([lm.prefix_token_id], ids)


def _check_length(lm: Any, answer: str, request: AnswerTokens) -> None:
    if not request.scored:
        raise InvalidInput(
            key="an answer",
            found=answer,
            rule="text of at least one token of the model",
            fix="leave the item out with `process_docs`, or use a tokenizer that covers it",
        )
    if len(request.scored) > lm.max_length:
        raise InvalidInput(
            key="an answer",
            found=f"{len(request.scored)} tokens",
            rule=f"at most {lm.max_length} tokens, the longest context of the model",
            fix="leave the item out with `process_docs`, or use a base with a longer context",
        )
