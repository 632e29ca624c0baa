"""Speed and memory of the data stage, compared with what a user would run instead.

    python benchmarks/data.py tokenise      # one core, compared with datasets.map and its tokenizer
    python benchmarks/data.py stream        # tokens per second on one core, and share of a step
    python benchmarks/data.py seek          # to sequence 122 million
    python benchmarks/data.py memory        # builds of 100 MB and 1 GB; takes minutes
    python benchmarks/data.py all

The corpora are generated, of made-up words whose frequencies fall off as those of English do.
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
from itertools import islice
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
from sweepcp.data.encoding import Encoder, text_encoder
from sweepcp.data.records import split_into_shards
from sweepcp.data.source_files import resolve_source
from sweepcp.data.stream import MixtureStream
from sweepcp.data.token_store import TokenStore, write_index
from sweepcp.util.progress import NoProgress

PAIRS = 7
"""Repetitions of each measurement."""
VOCABULARY = 50_000
DOCUMENT_WORDS = 170
"""About 1 KB."""


def make_corpus(path: Path, size: int) -> int:
    """Write JSONL of about `size` bytes; return the number of documents."""
    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    lengths = np.minimum(2 + rng.geometric(0.25, VOCABULARY), 14)
    words = ["".join(rng.choice(letters, n, p=_zipf(26))) for n in lengths]
    vocabulary = np.array(words)
    documents = written = 0
    with path.open("w") as file:
        while written < size:
            drawn = rng.choice(VOCABULARY, (500, DOCUMENT_WORDS), p=_zipf(VOCABULARY))
            for document in vocabulary[drawn]:
                line = json.dumps({"text": " ".join(document)}) + "\n"
                written += file.write(line)
                documents += 1
    return documents


def _zipf(count: int) -> np.ndarray:
    """Probabilities that fall off with the rank, as those of words do; shape (count,)."""
    weights = 1 / np.arange(1, count + 1)
    return np.asarray(weights / weights.sum())


def make_encoder(corpus: Path) -> Encoder:
    """Train a byte-level BPE of 8,000 tokens on the first 5,000 documents."""
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
        documents = [json.loads(line)["text"] for line in islice(file, 5000)]
    tokenizer.train_from_iterator(documents, trainer)
    return text_encoder(tokenizer.to_str(), prefix=[0], suffix=[1])


def tokenise(folder: Path) -> None:
    """Time JSONL to a shard of token files, and datasets.map to an Arrow file; in one process."""
    import datasets
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    corpus = folder / "corpus.jsonl"
    documents = make_corpus(corpus, 12_000_000)
    encoder = make_encoder(corpus)
    source = Source(
        name="a", role="domain", files=("corpus.jsonl",), near_duplicates="keep", held_out=1e-9
    )
    files = resolve_source(source, folder=folder)
    (shard,) = split_into_shards(source, files)
    datasets.disable_caching()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(encoder.tokenizer_json),
        bos_token="<s>",
        eos_token="</s>",
    )

    def build_shard() -> None:
        build._build_shard(source, files, encoder, folder, shard)

    def map_dataset() -> None:
        rows = datasets.load_dataset(
            "json", data_files=str(corpus), split="train", cache_dir=tempfile.mkdtemp(dir=folder)
        )

        def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
            encoded = tokenizer(
                batch["text"], return_attention_mask=False, return_token_type_ids=False
            )
            return {"ids": encoded["input_ids"]}

        rows.map(encode, batched=True, remove_columns=["text"])

    ratios, speeds = [], []
    build_shard()
    map_dataset()
    for _ in range(PAIRS):
        build_seconds, map_seconds = _seconds(build_shard), _seconds(map_dataset)
        ratios.append(map_seconds / build_seconds)
        speeds.append(12 / build_seconds)
    print(
        f"tokenise: {documents:,} documents, 12 MB, one core: "
        f"{statistics.median(speeds):.2f} MB/s; "
        f"datasets.map takes {_spread(ratios)} times as long ({PAIRS} pairs)"
    )


def make_stores(folder: Path) -> list[TokenStore]:
    """Write the stores of three sources, of ten million tokens in documents of about 600."""
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


def make_recipe(*, seq_len: int, sequences: int, steps: int) -> Recipe:
    shares = (("domain", 0.5), ("general", 0.45), ("german", 0.05))
    portions = tuple(
        SourceShare(source=name, role="domain", language="en", share=share)
        for name, share in shares
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
    """Time the batches of a mixture of three sources, alone and as a share of a training step."""
    stores = make_stores(folder)
    _time_batches(stores)
    _time_steps(stores)


def _time_batches(stores: list[TokenStore]) -> None:
    for sequences in (1, 32, 512):
        recipe = make_recipe(seq_len=2048, sequences=sequences, steps=10**6)
        mixture = MixtureStream(recipe, stores)
        count = max(2, 2048 // sequences)
        speeds = []
        for repetition in range(PAIRS):
            first = repetition * count + 1
            started = time.perf_counter()
            for step in range(first, first + count):
                mixture.batch(step)
            seconds = time.perf_counter() - started
            speeds.append(count * recipe.batch_tokens / seconds / 1e6)
        print(
            f"stream: seq_len 2048, batches of {sequences} sequences, one core: "
            f"{_spread(speeds)} million tokens/s"
        )


def _time_steps(stores: list[TokenStore]) -> None:
    """Time the stream's share of a step of small Llama models."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from sweepcp.training.engine import PlainEngine

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
        recipe = make_recipe(seq_len=seq_len, sequences=8, steps=1000)
        engine = PlainEngine(LlamaForCausalLM(config), recipe, micro_batch=None, precision="fp32")
        mixture = MixtureStream(recipe, stores)
        shares = []
        for step in range(1, 24):
            started = time.perf_counter()
            batch = mixture.batch(step)
            read_seconds = time.perf_counter() - started
            # The stores hold random tokens, some of them beyond the model's vocabulary.
            for array in (batch.input_ids, batch.targets):
                array %= config.vocab_size
            started = time.perf_counter()
            engine.step(batch, target_tokens=batch.targets.size, lr=1e-4)
            step_seconds = time.perf_counter() - started
            shares.append(100 * read_seconds / step_seconds)
        print(
            f"stream: {_spread(shares[3:])} % of a step of a model of {name} parameters, "
            f"8 × {seq_len} tokens, one core"
        )


def seek(_: Path) -> None:
    """Time the first 1,440 sequences from sequence 122 million on, of two to eight sources."""
    rng = np.random.default_rng(2)
    slowest = 0.0
    for _repetition in range(200):
        count = int(rng.integers(2, 9))
        shares = rng.dirichlet([rng.choice([0.05, 0.3, 2.0])] * count).tolist()
        apportionment = Apportionment(shares)
        seconds = _seconds(partial(apportionment.take, 122_000_000, length=1440))
        slowest = max(slowest, seconds)
    print(
        "seek: to sequence 122,000,000 and the 1,440 after it, slowest of 200 mixtures: "
        f"{1000 * slowest:.1f} ms"
    )


def memory(folder: Path) -> None:
    """Measure the peak memory of whole builds and of the search for near-duplicates."""
    peaks: dict[tuple[str, str], float] = {}
    for name, size in (("small", 100_000_000), ("large", 1_000_000_000)):
        place = folder / name
        place.mkdir()
        documents = make_corpus(place / "corpus.jsonl", size)
        for mode in ("keep", "drop"):
            command = [sys.executable, __file__, "--build", str(place), mode]
            everything, joining = _peak_memory(command)
            peaks[name, mode] = everything
            print(
                f"memory: {size / 1e6:,.0f} MB, {documents:,} documents, near_duplicates: {mode}: "
                f"peak {everything / 1e6:,.0f} MB in all, "
                f"{joining / 1e6:,.0f} MB in the process that joins",
                flush=True,
            )
    growth = peaks["large", "keep"] / peaks["small", "keep"]
    print(
        f"memory: ten times the corpus takes {growth:.2f} times the memory where near-duplicates "
        "are kept"
    )
    few, many = 1_000_000, 3_000_000
    per_document = (_search_memory(folder, many) - _search_memory(folder, few)) / (many - few)
    print(
        f"memory: near-duplicate search, {per_document:.0f} bytes more per document; "
        f"stated: {near_duplicates.MEMORY_PER_DOCUMENT}"
    )


def _search_memory(folder: Path, documents: int) -> float:
    """Peak of a near-duplicate search among random signatures, a third of which are repeated."""
    rng = np.random.default_rng(0)
    shape = documents, near_duplicates.MINIMA
    signatures = np.memmap(folder / "signatures", "<u4", "w+", shape=shape)
    for first in range(0, documents, 50_000):
        chunk = rng.integers(0, 1 << 32, (50_000, near_duplicates.MINIMA), dtype=np.uint32)
        signatures[first : first + 50_000] = chunk
    signatures[: documents // 3] = signatures[documents - documents // 3 :]
    signatures.flush()
    del signatures
    command = [sys.executable, __file__, "--search", str(folder / "signatures"), str(documents)]
    _, first_process = _peak_memory(command)
    return first_process


def _search_near_duplicates(path: str, documents: int) -> None:
    shape = documents, near_duplicates.MINIMA
    signatures = np.memmap(path, "<u4", "r", shape=shape)
    is_duplicate = near_duplicates.find_near_duplicates(signatures)
    assert is_duplicate.sum() == documents // 3


def _build(folder: Path, mode: str) -> None:
    encoder = make_encoder(folder / "corpus.jsonl")
    os.environ["SWEEPCP_CACHE"] = str(folder / f"cache-{mode}")
    source = Source(name="a", role="domain", files=("corpus.jsonl",), near_duplicates=mode)  # type: ignore[arg-type]
    started = time.perf_counter()
    store = build.build_store(
        source,
        resolve_source(source, folder=folder),
        tokenizer_id="bpe",
        make_encoder=lambda: encoder,
        progress=NoProgress(),
    )
    seconds = time.perf_counter() - started
    print(f"memory: built {store.tokens:,} tokens in {seconds:.0f} s", flush=True)


def _peak_memory(command: list[str]) -> tuple[float, float]:
    """Peak private memory in bytes: of a command's processes together, and of the first of them."""
    started = subprocess.Popen(command)
    first = psutil.Process(started.pid)
    together = alone = 0.0
    while started.poll() is None:
        total = 0.0
        for process in (first, *first.children(recursive=True)):
            private = _private_memory(process.pid)
            total += private
            if process.pid == first.pid:
                alone = max(alone, private)
        together = max(together, total)
        time.sleep(0.05)
    return together, alone


def _private_memory(pid: int) -> float:
    """Anonymous memory in bytes, as the kernel counts it.

    Mapped files are not part of it: the kernel can drop them.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        # The process has just ended.
        return 0.0
    return sum(1024.0 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    # The memory stage measures these in processes of their own.
    if sys.argv[1:2] == ["--build"]:
        _build(Path(sys.argv[2]), sys.argv[3])
        return
    if sys.argv[1:2] == ["--search"]:
        _search_near_duplicates(sys.argv[2], int(sys.argv[3]))
        return
    stages = {"tokenise": tokenise, "stream": stream, "seek": seek, "memory": memory}
    wanted = sys.argv[1] if len(sys.argv) > 1 else "all"
    if wanted != "all" and wanted not in stages:
        sys.exit(__doc__)
    for name, stage in stages.items():
        if wanted in (name, "all"):
            with tempfile.TemporaryDirectory(prefix="sweepcp-") as folder:
                stage(Path(folder))


if __name__ == "__main__":
    main()
