"""What tokens, sources and items cost: stores, training, batches, recipes, records, comparison."""

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from measuring import spread_of

from scale_parts.growth import Growth
from scale_parts.instant import quickstart_items
from sweepcp.config.recipe import Mixture, Recipe, SourceShare, TrainingSettings
from sweepcp.config.source import Source
from sweepcp.config.space import Point, WeightedSource, recipe_at
from sweepcp.data.build import build_store
from sweepcp.data.encoding import Encoder, text_encoder
from sweepcp.data.source_files import resolve_source
from sweepcp.data.stream import MixtureStream
from sweepcp.data.token_store import TokenStore
from sweepcp.runs.trial import TrialOutcome
from sweepcp.scoring.scorecard import BaseComparison, compare_with_base, read_items, write_items
from sweepcp.util.progress import NoProgress
from tests.make import write_store

TOKENS = (102_400, 1_024_000)
"""Of a trial: the quickstart's, and ten times as many."""
CORPUS_BYTES = (2_000_000, 20_000_000)
SOURCES = (2, 5, 10, 20)
FACTORS = (1, 3, 10)
ITEMS = (100, 300, 1000)
SOURCE_BYTES = 200_000
SEQ_LEN, SEQUENCES = 128, 8


def seconds_of(work: Callable[[], object], repeats: int) -> float:
    """Return the median of the seconds that some work takes."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return spread_of(seconds).median


def make_stores(folder: Path, count: int) -> list[TokenStore]:
    """Write a store of 200,000 tokens for each of so many sources."""
    rng = np.random.default_rng(0)
    texts = [[0, *rng.integers(2, 250, 398).tolist(), 1] for _ in range(500)]
    return [write_store(folder, f"source-{number}", texts) for number in range(count)]


def make_recipe(sources: int, tokens: int) -> Recipe:
    """Return a recipe of equal shares."""
    portions = tuple(
        SourceShare(
            source=f"source-{number}",
            role="domain" if number % 2 else "general",
            language="en",
            share=1 / sources,
        )
        for number in range(sources)
    )
    return Recipe(
        seq_len=SEQ_LEN,
        batch_tokens=SEQ_LEN * SEQUENCES,
        tokens=tokens,
        lr_fraction=0.1,
        mixture=Mixture(portions=portions),
    )


def growth_with_tokens(folder: Path) -> list[Growth]:
    """Measure the training of a small Llama, and the build of a token store."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from sweepcp.training.engine import PlainEngine
    from sweepcp.training.loop import run_training

    torch.set_num_threads(1)
    stores = make_stores(folder, 2)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=48,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=SEQ_LEN,
        )
    )
    training = []
    for tokens in TOKENS:
        recipe = make_recipe(2, tokens)
        engine = PlainEngine(model, recipe, micro_batch=None, precision="fp32")
        steps = run_training(engine, recipe, MixtureStream(recipe, stores), max_lr=1e-3)
        training.append(seconds_of(partial(list, steps), 1))
    building, held = [], []
    for size in CORPUS_BYTES:
        corpus = folder / f"corpus-{size}"
        corpus.mkdir()
        started = time.perf_counter()
        store = _build(corpus, size)
        building.append(time.perf_counter() - started)
        held.append(sum(file.stat().st_size for file in store.path.iterdir()) / 1e6)
    return [
        Growth("tokens per trial", "training of a small Llama", "s", TOKENS, tuple(training)),
        Growth("bytes of a source", "build of its token store", "s", CORPUS_BYTES, tuple(building)),
        Growth("bytes of a source", "its token store", "MB", CORPUS_BYTES, tuple(held)),
    ]


def _build(folder: Path, size: int, *, seed: int = 0) -> TokenStore:
    """Write a corpus of about `size` bytes, and build its store."""
    rng = np.random.default_rng(seed)
    words = np.array(["".join(rng.choice(list("etaoinshr"), 6)) for _ in range(5000)])
    line = len(json.dumps({"text": " ".join(words[:170])})) + 1
    with (folder / "corpus.jsonl").open("w") as file:
        for drawn in rng.choice(words, (size // line, 170)):
            file.write(json.dumps({"text": " ".join(drawn)}) + "\n")
    return _build_store(folder)


def _build_store(folder: Path) -> TokenStore:
    """Build the store of a corpus, or find the one that was built before."""
    source = Source(name="corpus", role="domain", files=("corpus.jsonl",))
    files = resolve_source(source, folder=folder)
    return build_store(
        source,
        files,
        tokenizer_id="bytes",
        make_encoder=_byte_encoder,
        progress=NoProgress(),
    )


def _build_stores(folders: Sequence[Path]) -> list[TokenStore]:
    return [_build_store(folder) for folder in folders]


def _byte_encoder() -> Encoder:
    """Return an encoder with a token for each byte."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {"<s>": 0, "</s>": 1} | {sign: n for n, sign in enumerate(sorted(alphabet), 2)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return text_encoder(tokenizer.to_str(), prefix=[0], suffix=[1])


def growth_with_sources(folder: Path) -> list[Growth]:
    """Measure the start of a stream, its batches, and the recipe at a point of the space."""
    stores = make_stores(folder, SOURCES[-1])
    folders = [folder / f"corpus-{number}" for number in range(SOURCES[-1])]
    for number, corpus in enumerate(folders):
        corpus.mkdir()
        _build(corpus, SOURCE_BYTES, seed=number)
    opening, batches, recipes, finding = [], [], [], []
    for count in SOURCES:
        finding.append(1e3 * seconds_of(partial(_build_stores, folders[:count]), 5))
        recipe = make_recipe(count, 1_024_000)
        opening.append(1e3 * seconds_of(partial(MixtureStream, recipe, stores), 20))
        stream = MixtureStream(recipe, stores)
        steps = range(1, 201)
        total = seconds_of(partial(list, map(stream.batch, steps)), 1)
        batches.append(1e3 * total / len(steps))
        sources = [
            WeightedSource(name=f"s{n}", role="domain" if n % 2 else "general", language="en",
                           weight=1.0)
            for n in range(count)
        ]  # fmt: skip
        training = TrainingSettings(seq_len=SEQ_LEN, batch_tokens=SEQ_LEN * SEQUENCES)
        point: Point = {"lr_fraction": 0.1, "general_share": 0.3}
        at_point = partial(recipe_at, point, sources, training, tokens=1_024_000, seed=0)
        recipes.append(1e3 * seconds_of(at_point, 100))
    return [
        Growth("sources", "start of a trial's stream", "ms", SOURCES, tuple(opening)),
        Growth("sources", "batch of a step", "ms", SOURCES, tuple(batches)),
        Growth("sources", "recipe of a proposed point", "ms", SOURCES, tuple(recipes)),
        Growth("sources", "stores found again at the start", "ms", SOURCES, tuple(finding)),
    ]


def growth_with_items(folder: Path) -> list[Growth]:
    """Measure the scoring of items, and what the driver does with them and their records."""
    return [*_scoring_of_items(folder), *_records_of_items(folder)]


def _scoring_of_items(folder: Path) -> list[Growth]:
    """Measure four-way items with a model of the quickstart's size."""
    import torch
    from score import TASK, documentation, make_random, write_task

    from sweepcp.config.suites import MemberSpec
    from sweepcp.models.loading import byte_tokenizer
    from sweepcp.scoring.lm_eval_tasks import LmEvalTasks

    torch.set_num_threads(1)
    model, tokenizer = make_random("llama", byte_tokenizer())
    texts = documentation()
    member = MemberSpec(task=TASK, path=str(folder))
    costs: dict[str, list[float]] = {}
    for count in ITEMS:
        write_task(folder, texts, count=count, words=3)
        for mode in ("shared", "exact"):
            build = partial(
                LmEvalTasks,
                [("general", "en", member)],
                model,
                tokenizer,
                generated_tasks=None,
                precision="fp32",
                scoring=mode,
            )
            costs.setdefault(f"tasks, once per worker, {mode}", []).append(seconds_of(build, 3))
            scoring = seconds_of(build().score, 3)
            costs.setdefault(f"scoring, per trial, {mode}", []).append(scoring)
    return [Growth("items", cost, "s", ITEMS, tuple(seconds)) for cost, seconds in costs.items()]


def _records_of_items(folder: Path) -> list[Growth]:
    counts, preparing, comparing, writing, reading, size = [], [], [], [], [], []
    for factor in FACTORS:
        base = list(quickstart_items(domain=0.0, general=0.0, factor=factor))
        trial = list(quickstart_items(domain=4.0, general=-1.0, factor=factor))
        counts.append(sum(len(member.document) for member in base))
        comparison = BaseComparison(base)
        assert comparison.compare(trial) == compare_with_base(trial=trial, base=base)
        preparing.append(1e3 * seconds_of(partial(BaseComparison, base), 10))
        comparing.append(1e3 * seconds_of(partial(comparison.compare, trial), 20))
        file = folder / "items.json"
        writing.append(1e3 * seconds_of(partial(write_items, file, trial), 10))
        reading.append(1e3 * seconds_of(partial(read_items, file), 10))
        size.append(len(TrialOutcome(status="done", items=tuple(trial)).model_dump_json()) / 1e3)
    sizes = tuple(counts)
    return [
        Growth("items", "preparation of the base, once per search", "ms", sizes, tuple(preparing)),
        Growth("items", "comparison with the base, per trial", "ms", sizes, tuple(comparing)),
        Growth("items", "writing of items.json, per trial", "ms", sizes, tuple(writing)),
        Growth("items", "reading of items.json", "ms", sizes, tuple(reading)),
        Growth("items", "record of the items", "kB", sizes, tuple(size)),
    ]
