"""Batches of lm-eval's log-likelihoods, bounded in memory.

Without a bound, 32 requests of 2,048 tokens over 128 k entries are 34 GB of log-softmax in fp32.
"""

from collections.abc import Sequence

from sweepcp.scoring.lm_eval_answers import AnswerTokens

MAX_REQUESTS = 32
"""Requests in a forward pass, at most. It is fixed, so that the scores are the same on every
machine of a kind."""
MAX_LOGITS = 1 << 29
"""Logits in a forward pass of more than one request, at most: 2 GiB of log-softmax in fp32, besides
the logits in the model's own dtype. Fixed for the same reason."""


def bounded_batches(
    requests: Sequence[AnswerTokens], *, max_length: int, vocab_size: int
) -> list[list[list[int]]]:
    """Divide requests into the batches of lm-eval, and these where they have too many logits.

    They follow from the requests, the model's context and its vocabulary alone.

    Args:
        requests: As lm-eval encodes them.
        max_length: Tokens that the model takes.
        vocab_size: Logits per token.

    Returns:
        The rows of each batch in their order; a row is the indices of the requests that share it.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, (context, answer) in enumerate(requests):
        groups.setdefault((*context, *answer[:-1]), []).append(index)

    # As lm-eval does: requests that differ only in their last token share a row, that of the one
    # with the longest answer; rows are sorted by length, the longest first.
    def order(group: list[int]) -> tuple[int, tuple[int, ...]]:
        context, answer = requests[max(group, key=lambda index: len(requests[index].scored))]
        tokens = (*context, *answer)
        return -len(tokens), tokens

    batches: list[list[list[int]]] = []
    most_rows = 0
    for group in sorted(groups.values(), key=order):
        if not batches or len(batches[-1]) == most_rows:
            length = min(requests[group[0]].length - 1, max_length)
            most_rows = min(MAX_REQUESTS, max(1, MAX_LOGITS // (length * vocab_size)))
            batches.append([])
        batches[-1].append(group)
    return batches
