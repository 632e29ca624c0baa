"""The token stores of an experiment: built where they are missing, and large enough."""

import logging
from collections import Counter
from functools import cache, partial

from sweepcp.config.base_model import BaseSpec
from sweepcp.config.experiment import Experiment
from sweepcp.config.suites import MIN_HELD_OUT
from sweepcp.data.build import build_store
from sweepcp.data.encoding import Encoder, byte_encoder
from sweepcp.data.source_files import ResolvedSource
from sweepcp.data.token_store import TokenStore
from sweepcp.errors import InvalidInput, located
from sweepcp.models.base import model_config, tokenizer_id
from sweepcp.util.progress import Progress

logger = logging.getLogger(__name__)


def build_stores(
    experiment: Experiment,
    files: dict[str, ResolvedSource],
    *,
    progress: Progress,
    address: str | None = None,
) -> dict[str, TokenStore]:
    """Return the token store of each source that is not planned, building those that are missing.

    What was excluded from a source is logged.

    Args:
        experiment: The experiment whose sources are read.
        files: The resolved files of each source, by source name.
        progress: Receives the shards of each source as the task `sources`.
        address: Ray cluster to build on; by default the cores of this machine.

    Raises:
        InvalidInput: A source has unusable records, or too few tokens to train on, or too few
            held-out documents to score.
    """
    stores: dict[str, TokenStore] = {}
    # A tokenizer is loaded only if a store is missing, and once for all of them.
    make_encoder = cache(partial(_load_encoder, experiment.base))
    for source in experiment.sources:
        if source.planned_tokens is not None:
            continue
        store = build_store(
            source,
            files[source.name],
            tokenizer_id=tokenizer_id(experiment.base),
            make_encoder=make_encoder,
            progress=progress,
            address=address,
        )
        with located(experiment.name, f"sources.{source.name}"):
            _check_store_size(store, experiment)
        _log_exclusions(store, files[source.name])
        stores[source.name] = store
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


def _log_exclusions(store: TokenStore, files: ResolvedSource) -> None:
    """Log the files, records and template keys of a source that did not enter its store."""
    meta, name = store.meta, store.source
    if files.skipped:
        suffixes = sorted({path.suffix or path.name for path in files.skipped})
        logger.warning(
            "%s: skipped %d files of formats that are not read (%s)",
            name,
            len(files.skipped),
            ", ".join(suffixes),
        )
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


def _load_encoder(base: BaseSpec) -> Encoder:
    """Load the tokenizer of a base.

    Raises:
        InvalidInput: It has more tokens than the base has embeddings.
    """
    if base.tokenizer == "bytes":
        encoder = byte_encoder()
    else:
        # Imports torch, which takes seconds.
        from sweepcp.models.loading import load_encoder

        encoder = load_encoder(base)
    embeddings = (model_config(base) or {}).get("vocab_size", encoder.vocab_size)
    if encoder.vocab_size > embeddings:
        raise InvalidInput(
            file=base.tokenizer,
            key="the tokenizer",
            found=f"{encoder.vocab_size:,} tokens",
            rule=f"at most the {embeddings:,} tokens that the model has embeddings for",
            fix="use the model's own tokenizer, or give the model more embeddings (vocab_size)",
        )
    return encoder
