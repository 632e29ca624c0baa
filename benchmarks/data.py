"""Speed and memory of the data stage, against what a user would run instead.

    python benchmarks/data.py tokenise      # one core, beside datasets.map with the same fast tokenizer
    python benchmarks/data.py stream        # tokens a second on one core, and what it adds to a step
    python benchmarks/data.py seek          # to sequence 122 million
    python benchmarks/data.py memory        # of builds of 100 MB and 1 GB, with and without near-duplicates; minutes
    python benchmarks/data.py all

The corpora are made on the spot, of made-up words whose frequencies fall off as those of English do.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.update(
    TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1"
)

import numpy as np
import psutil

from sweepcp.config.recipe import Mixture, Recipe, SourceShare
from sweepcp.config.source import Source
from sweepcp.data import build, near_duplicates
from sweepcp.data.apportionment import Apportionment
from sweepcp.data.encoding import Encoder
from sweepcp.data.records import split_into_shards
from sweepcp.data.source_files import resolve_source
from sweepcp.data.stream import MixtureStream
from sweepcp.data.token_store import TokenStore, write_index

PAIRS = 7
DOCUMENT_WORDS = 170
"""About 1 KB."""


def make_corpus(path: Path, size: int) -> int:
    """Write JSONL of about `size` bytes; returns the number of documents."""
    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    lengths = np.minimum(2 + rng.geometric(0.25, 50_000), 14)
    vocabulary = np.array(["".join(rng.choice(letters, n, p=_falling(26))) for n in lengths])
    documents = written = 0
    with path.open("w") as file:
        while written < size:
            words = vocabulary[rng.choice(50_000, (500, DOCUMENT_WORDS), p=_falling(50_000))]
            for row in words:
                line = json.dumps({"text": " ".join(row)}) + "\n"
                written += file.write(line)
                documents += 1
    return documents


def _falling(count: int) -> np.ndarray:
    weights = 1 / np.arange(1, count + 1)
    return np.asarray(weights / weights.sum())


def make_encoder(corpus: Path) -> Encoder:
    """A byte-level BPE of 8,000 tokens, trained on the first 5,000 documents."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=8000,
        special_tokens=["<s>", "</s>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    with corpus.open() as file:
        texts = [json.loads(line)["text"] for line, _ in zip(file, range(5000), strict=False)]
    tokenizer.train_from_iterator(texts, trainer)
    return Encoder(tokenizer.to_str(), (0,), (1,), tokenizer.get_vocab_size())


def tokenise(folder: Path) -> None:
    """One part of a source from JSONL to token files, against datasets.map to an Arrow file; both in one process."""
    import datasets
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    corpus = folder / "corpus.jsonl"
    documents = make_corpus(corpus, 12_000_000)
    encoder = make_encoder(corpus)
    source = Source(
        name="a", role="domain", files=("corpus.jsonl",), near_duplicates="keep", held_out=1e-9
    )
    found = resolve_source(source, folder, "")
    (part,) = split_into_shards(source, found)
    datasets.disable_caching()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(encoder.tokenizer), bos_token="<s>", eos_token="</s>"
    )

    def ours() -> None:
        build._build_shard(source, found, encoder, folder, part)

    def theirs() -> None:
        rows = datasets.load_dataset(
            "json", data_files=str(corpus), split="train", cache_dir=tempfile.mkdtemp(dir=folder)
        )

        def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
            return {
                "ids": fast(
                    batch["text"], return_attention_mask=False, return_token_type_ids=False
                )["input_ids"]
            }

        rows.map(encode, batched=True, remove_columns=["text"])

    ratios, speeds = [], []
    ours()
    theirs()
    for _ in range(PAIRS):
        mine, other = _seconds(ours), _seconds(theirs)
        ratios.append(other / mine)
        speeds.append(12 / mine)
    print(
        f"tokenise: {documents:,} documents, 12 MB, one core: {statistics.median(speeds):.2f} MB/s; "
        f"datasets.map takes {_spread(ratios)} times as long ({PAIRS} pairs)"
    )


def make_stores(folder: Path) -> list[TokenStore]:
    """Three sources of ten million tokens in documents of about 600."""
    stores = []
    rng = np.random.default_rng(1)
    for name in ("domain", "general", "german"):
        path = folder / name
        path.mkdir()
        lengths = rng.integers(200, 1000, 16_667).astype("<i4")
        rng.integers(0, 32_000, int(lengths.sum()), dtype=np.uint16).tofile(path / "train.bin")
        with (path / "train.idx").open("wb") as file:
            write_index(file, np.dtype("<u2"), len(lengths), partial(list, [lengths]))
        (path / "store.json").write_text(json.dumps({"train": {"tokens": int(lengths.sum())}}))
        stores.append(TokenStore(path, name))
    return stores


def make_recipe(seq_len: int, sequences: int, steps: int) -> Recipe:
    shares = (("domain", 0.5), ("general", 0.45), ("german", 0.05))
    portions = tuple(
        SourceShare(source=n, role="domain", language="en", share=s) for n, s in shares
    )
    batch = seq_len * sequences
    return Recipe(
        seq_len=seq_len,
        batch_tokens=batch,
        tokens=batch * steps,
        lr_fraction=1,
        mixture=Mixture(portions=portions),
    )


def stream(folder: Path) -> None:
    """Batches of a mixture of three sources; and the share of a training step of a small Llama that they take."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from sweepcp.training.engine import PlainEngine

    stores = make_stores(folder)
    for sequences in (1, 32, 512):
        recipe = make_recipe(2048, sequences, 10**6)
        made, count = MixtureStream(recipe, stores), max(2, 2048 // sequences)
        speeds = []
        for n in range(PAIRS):
            seconds = _seconds(
                lambda made=made, n=n, count=count: [
                    made.batch(n * count + i + 1) for i in range(count)
                ]
            )
            speeds.append(count * recipe.batch_tokens / seconds / 1e6)
        print(
            f"stream: seq_len 2048, batches of {sequences} sequences, one core: {_spread(speeds)} million tokens/s"
        )
    torch.set_num_threads(1)
    for name, width, layers, seq_len in (("0.1 M", 64, 2, 128), ("15 M", 288, 6, 128)):
        config = LlamaConfig(
            vocab_size=258 if width == 64 else 32_000,
            hidden_size=width,
            intermediate_size=width * 8 // 3,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            tie_word_embeddings=True,
        )
        recipe = make_recipe(seq_len, 8, 1000)
        engine = PlainEngine(
            LlamaForCausalLM(config), recipe, micro_batch=None, precision="fp32"
        )
        made = MixtureStream(recipe, stores)
        shares = []
        for step in range(1, 24):
            started = time.perf_counter()
            batch = made.batch(step)
            read = time.perf_counter()
            for array in (batch.input_ids, batch.targets):
                array %= config.vocab_size
            computed = time.perf_counter()
            engine.step(batch, target_tokens=batch.targets.size, lr=1e-4)
            shares.append(100 * (read - started) / (time.perf_counter() - computed))
        print(
            f"stream: {_spread(shares[3:])} % of a step of a model of {name} parameters, 8 × {seq_len} tokens, one core"
        )


def seek(_: Path) -> None:
    """The first batch of 1,440 sequences from sequence 122 million on, of mixtures of two to eight sources."""
    rng = np.random.default_rng(2)
    slowest = 0.0
    for _n in range(200):
        shares = rng.dirichlet([rng.choice([0.05, 0.3, 2.0])] * int(rng.integers(2, 9))).tolist()
        slowest = max(
            slowest, _seconds(lambda shares=shares: Apportionment(shares).take(122_000_000, 1440))
        )
    print(
        f"seek: to sequence 122,000,000 and the 1,440 after it, slowest of 200 mixtures: {1000 * slowest:.1f} ms"
    )


def memory(folder: Path) -> None:
    """Peak of a whole build: private memory of all its processes, and of the one that joins."""
    small, large = folder / "small", folder / "large"
    found: dict[tuple[str, str], tuple[float, float]] = {}
    counts = {}
    for place, size in ((small, 100_000_000), (large, 1_000_000_000)):
        place.mkdir()
        counts[place.name] = make_corpus(place / "corpus.jsonl", size)
        for how in ("keep", "drop"):
            found[place.name, how] = _peak([sys.executable, __file__, "--build", str(place), how])
            everything, joining = (f"{x / 1e6:,.0f} MB" for x in found[place.name, how])
            print(
                f"memory: {size / 1e6:,.0f} MB, {counts[place.name]:,} documents, near_duplicates: {how}: "
                f"peak {everything} in all, {joining} in the process that joins",
                flush=True,
            )
    times = found["large", "keep"][0] / found["small", "keep"][0]
    print(
        f"memory: ten times the corpus takes {times:.2f} times the memory where near-duplicates are kept"
    )
    few, many = 1_000_000, 3_000_000
    grown = (_looking(folder, many) - _looking(folder, few)) / (many - few)
    print(
        f"memory: looking for near-duplicates, {grown:.0f} bytes a document more; stated: {near_duplicates.MEMORY_BYTES}"
    )


def _looking(folder: Path, documents: int) -> float:
    """Peak of a process that looks for near-duplicates among random signatures, a third of them repeated."""
    rng = np.random.default_rng(0)
    signatures = np.memmap(
        folder / "signatures", "<u4", "w+", shape=(documents, near_duplicates.MINIMA)
    )
    for first in range(0, documents, 50_000):
        signatures[first : first + 50_000] = rng.integers(
            0, 1 << 32, (50_000, near_duplicates.MINIMA), dtype=np.uint32
        )
    signatures[: documents // 3] = signatures[documents - documents // 3 :]
    signatures.flush()
    del signatures
    return _peak([sys.executable, __file__, "--look", str(folder / "signatures"), str(documents)])[
        1
    ]


def _look(path: str, documents: str) -> None:
    shape = int(documents), near_duplicates.MINIMA
    found = near_duplicates.near_duplicates(np.memmap(path, "<u4", "r", shape=shape))
    assert found.sum() == int(documents) // 3


def _build(folder: Path, how: str) -> None:
    encoder = make_encoder(folder / "corpus.jsonl")
    os.environ["SWEEPCP_CACHE"] = str(folder / f"cache-{how}")
    source = Source(name="a", role="domain", files=("corpus.jsonl",), near_duplicates=how)  # type: ignore[arg-type]
    started = time.perf_counter()
    store = build.build_store(source, resolve_source(source, folder, ""), "bpe", lambda: encoder)
    print(
        f"memory: built {store.tokens:,} tokens in {time.perf_counter() - started:.0f} s",
        flush=True,
    )


def _peak(command: list[str]) -> tuple[float, float]:
    """Largest private memory of a command's processes together, and of the first of them, in bytes."""
    started = subprocess.Popen(command)
    first = psutil.Process(started.pid)
    together = alone = 0.0
    while started.poll() is None:
        total = 0.0
        for process in (first, *first.children(recursive=True)):
            private = _private(process.pid)
            total += private
            alone = max(alone, private if process.pid == first.pid else 0)
        together = max(together, total)
        time.sleep(0.05)
    return together, alone


def _private(pid: int) -> float:
    """Anonymous memory in bytes, as the kernel counts it: mapped files, which it can drop, are not in it."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has just ended
        return 0.0
    return sum(1024.0 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    if sys.argv[1:2] == ["--build"]:
        return _build(Path(sys.argv[2]), sys.argv[3])
    if sys.argv[1:2] == ["--look"]:
        return _look(sys.argv[2], sys.argv[3])
    stages = {"tokenise": tokenise, "stream": stream, "seek": seek, "memory": memory}
    wanted = sys.argv[1] if len(sys.argv) > 1 else "all"
    if wanted != "all" and wanted not in stages:
        sys.exit(__doc__)
    for name, stage in stages.items():
        if wanted in (name, "all"):
            with tempfile.TemporaryDirectory(prefix="sweepcp-") as folder:
                stage(Path(folder))
    return None


if __name__ == "__main__":
    main()
