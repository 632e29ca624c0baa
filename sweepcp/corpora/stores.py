"""TODO corpora.stores."""

from collections import Counter
from functools import cache, partial

from sweepcp.config.base_model import BaseSpec
from sweepcp.config.experiment import Experiment
from sweepcp.config.suites import MIN_HELD_OUT
from sweepcp.data.build import build_store
from sweepcp.data.encoding import Encoder, byte_encoder
from sweepcp.data.source_files import ResolvedSource
from sweepcp.data.token_store import TokenStore
from sweepcp.errors import InvalidInput
from sweepcp.models.base import model_config, tokenizer_id
from sweepcp.util.progress import Progress


def build_stores(
    experiment: Experiment,
    files: dict[str, ResolvedSource],
    view: "Progress",
    address: str | None = None,
) -> dict[str, TokenStore]:
    """The token stores of all sources but planned ones, built where they are missing, with enough text in each."""
    stores: dict[str, TokenStore] = {}
    encoder = cache(partial(_load_encoder, experiment.base))
    for source in experiment.sources:
        if source.planned_tokens is None:
            name, found = source.name, files[source.name]
            show = partial(view.stage, "texts", text=f"reading {name}")
            stores[name] = build_store(
                source, found, tokenizer_id(experiment.base), encoder, address, show
            )
            _check_store_size(experiment, stores[name])
            for line in exclusion_messages(stores[name], found):
                view.note(line)
    return stores


def exclusion_messages(store: TokenStore, found: ResolvedSource) -> list[str]:
    """What was read of a source and did not become part of its store."""
    meta, name = store.meta, store.source
    lines = []
    if found.passed_over:
        endings = ", ".join(sorted({path.suffix or path.name for path in found.passed_over}))
        lines.append(
            f"{name}: {len(found.passed_over)} files passed over, of no kind that can be read ({endings})"
        )
    left_out: Counter[str] = Counter()
    for reason, count in meta["left_out"].items():
        left_out["language" if reason.startswith("language ") else reason] += count
    if meta["near_duplicates"]:
        left_out["near-duplicate"] = meta["near_duplicates"]
    if left_out:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.most_common())
        lines.append(f"{name}: of {meta['records']:,} records, left out: {reasons}")
    if meta["bad"]:
        lines.append(
            f"{name}: {meta['bad']:,} unusable records skipped, the first: {'; '.join(meta['examples'])}"
        )
    unused = [key for key, count in meta["used_keys"].items() if not count]
    if unused:
        lines.append(f"{name}: no record has {', '.join(unused)} of the template")
    return lines


def _check_store_size(experiment: Experiment, store: TokenStore) -> None:
    """Enough text to train on, and to hold out."""
    where, key = experiment.name, f"sources.{store.source}"
    longest = experiment.training.seq_len
    if experiment.base.pretrain and store.source in experiment.base.pretrain.mixture:
        longest = max(longest, experiment.base.pretrain.training.seq_len)
    if store.tokens <= longest:
        rule = f"more training tokens than one sequence has ({longest})"
        raise InvalidInput(
            file=where,
            key=key,
            found=f"{store.tokens} tokens",
            rule=rule,
            fix="give it more text, or shorten training.seq_len",
        )
    held_out = store.meta["held_out"]["documents"]
    if held_out < MIN_HELD_OUT and any(
        m.held_out == store.source for _, m in experiment.suites.members
    ):
        rule = f"at least {MIN_HELD_OUT} held-out documents, which are halved for choice and report"
        fix = "give it more documents, or raise its `held_out`"
        raise InvalidInput(
            file=where, key=key, found=f"{held_out} held-out documents", rule=rule, fix=fix
        )


def _load_encoder(base: BaseSpec) -> Encoder:
    """The base's tokenizer; `BadInput` when it has more tokens than the base has embeddings for."""
    if base.tokenizer == "bytes":  # without torch, which takes seconds to import
        encoder = byte_encoder()
    else:
        from sweepcp.models.loading import load_encoder

        encoder = load_encoder(base)
    rows = (model_config(base) or {}).get("vocab_size", encoder.size)
    if encoder.size > rows:
        rule = f"at most the {rows:,} tokens that the model has embeddings for"
        fix = "use the model's own tokenizer, or give the model more embeddings (vocab_size)"
        raise InvalidInput(
            file=base.tokenizer,
            key="the tokenizer",
            found=f"{encoder.size:,} tokens",
            rule=rule,
            fix=fix,
        )
    return encoder
