"""The token stores of an experiment: built where they are missing, and large enough."""

import logging
from collections import Counter
from functools import cache, partial

import numpy as np

from sweepcp.config.experiment import Experiment
from sweepcp.config.suites import MIN_HELD_OUT
from sweepcp.data.build import build_store
from sweepcp.data.source_files import ResolvedSource, describe_left_out
from sweepcp.data.spelling import check_coverage
from sweepcp.data.token_store import SPLITS, TokenStore
from sweepcp.errors import InvalidInput, located
from sweepcp.models.base import pin_base, tokenizer_id
from sweepcp.models.encoder import load_encoder
from sweepcp.util.files import clean_cache
from sweepcp.util.progress import Progress

logger = logging.getLogger(__name__)
REPORTED_LOSS = 1e-4
"""Share of the bytes without tokens from which on it is reported."""


def build_stores(
    experiment: Experiment,
    files: dict[str, ResolvedSource],
    *,
    progress: Progress,
    address: str | None = None,
) -> dict[str, TokenStore]:
    """Return the token store of each source that is not planned, building those that are missing.

    What was excluded from a source is logged, and so are held-out documents that are trained on.

    Args:
        experiment: The experiment whose sources are read.
        files: The resolved files of each source, by source name.
        progress: Receives the shards of each source as the task `sources`.
        address: Ray cluster to build on; by default the cores of this machine.

    Raises:
        InvalidInput: A source has unusable records, too few tokens to train on, too few held-out
            documents to score, or text that the tokenizer has no tokens for.
    """
    clean_cache()
    stores: dict[str, TokenStore] = {}
    # A tokenizer is loaded only if a store is missing, and once for all of them.
    base = pin_base(experiment.base)
    make_encoder = cache(partial(load_encoder, base))
    for source in experiment.sources:
        if source.planned_tokens is not None:
            continue
        store = build_store(
            source,
            files[source.name],
            tokenizer_id=tokenizer_id(base),
            make_encoder=make_encoder,
            progress=progress,
            address=address,
        )
        with located("", f"sources.{source.name}"):
            # First, or a source whose text is dropped would be called too short.
            _check_coverage(store)
            _check_store_size(store, experiment)
        _log_exclusions(store, files[source.name])
        stores[source.name] = store
    _log_leaks(stores)
    progress.finish("sources")
    return stores


def _check_store_size(store: TokenStore, experiment: Experiment) -> None:
    """Raise `InvalidInput` if a store has too little text to train on, or to hold out."""
    seq_len = experiment.training.seq_len
    pretrain = experiment.base.pretrain
    if pretrain and store.source in pretrain.mixture:
        seq_len = max(seq_len, pretrain.training.seq_len)
    if store.tokens <= seq_len:
        raise InvalidInput(
            found=f"{store.tokens} tokens",
            rule=f"more training tokens than the {seq_len} of one sequence",
            fix="add text to the source, or shorten training.seq_len",
        )
    held_out = store.meta["held_out"]["documents"]
    is_scored = any(member.held_out == store.source for _, member in experiment.suites.members)
    if is_scored and held_out < MIN_HELD_OUT:
        raise InvalidInput(
            found=f"{held_out} held-out documents",
            rule=f"at least {MIN_HELD_OUT} held-out documents, half for choice and half for report",
            fix="add documents to the source, or raise its `held_out`",
        )


def _check_coverage(store: TokenStore) -> None:
    """Raise `InvalidInput` if the tokens of a store do not cover its text; log smaller losses."""
    for split in SPLITS:
        total, covered = store.meta[split]["bytes"], store.meta[split]["covered"]
        name = {"train": "training", "held_out": "held-out"}[split]
        check_coverage(covered, total=total, text=f"{name} text")
        lost = (total - covered) / max(1, total)
        if lost > REPORTED_LOSS:
            logger.warning(
                "%s: the tokenizer has no tokens for %.2f %% of the bytes of its %s text",
                store.source,
                100 * lost,
                name,
            )


def _log_leaks(stores: dict[str, TokenStore]) -> None:
    """Log which held-out documents are also training documents, of any source."""
    trained = {name: store.document_hashes("train") for name, store in stores.items()}
    for name, store in stores.items():
        held_out = store.document_hashes("held_out")
        for other, hashes in trained.items():
            count = int(np.isin(held_out, hashes).sum())
            if count:
                logger.warning(
                    "%d of %d held-out documents of %s are trained on in %s: "
                    "their scores measure memory, too",
                    count,
                    len(held_out),
                    name,
                    other,
                )


def _log_exclusions(store: TokenStore, files: ResolvedSource) -> None:
    """Log the files, records and template keys of a source that did not enter its store."""
    meta, name = store.meta, store.source
    for note in describe_left_out(files):
        logger.warning("%s: %s", name, note)
    excluded: Counter[str] = Counter()
    for reason, count in meta["left_out"].items():
        excluded["language" if reason.startswith("language ") else reason] += count
    if meta["near_duplicates"]:
        excluded["near-duplicate"] = meta["near_duplicates"]
    if excluded:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in excluded.most_common())
        logger.info("%s: of %s records, left out: %s", name, f"{meta['records']:,}", reasons)
    if meta["bad"]:
        examples = "; ".join(meta["examples"])
        logger.warning("%s: skipped %s unusable records: %s", name, f"{meta['bad']:,}", examples)
    unused = [key for key, count in meta["used_keys"].items() if not count]
    if unused:
        logger.warning("%s: no record has the template's %s", name, ", ".join(unused))
