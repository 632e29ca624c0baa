"""The token stores of an experiment: text without tokens, and held-out text that is trained on."""

import logging
from pathlib import Path

import pytest

from sweepcp.config.source import Source
from sweepcp.corpora import stores
from sweepcp.corpora.stores import build_stores
from sweepcp.data.build import is_held_out
from sweepcp.data.documents import Document
from sweepcp.data.encoding import text_encoder
from sweepcp.data.shards import RecordLocation
from sweepcp.data.source_files import resolve_source
from sweepcp.data.token_store import TokenStore
from sweepcp.errors import InvalidInput
from sweepcp.util.progress import NoProgress
from tests.make import experiment, jsonl, source
from tests.unit.test_encoding import characters

LATIN = [
    f"the lazy dog {'abcdefghij'[n % 10]} jumps over {'klmnop'[n % 6]}" * 4 for n in range(300)
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPCP_CACHE", str(tmp_path / "cache"))
    # In this process: others take seconds to start.
    monkeypatch.setattr(
        "sweepcp.data.build.parallel_map", lambda work, items, address: map(work, items)
    )


def build(folder: Path, *sources: Source) -> dict[str, TokenStore]:
    files = {each.name: resolve_source(each, folder=folder) for each in sources}
    return build_stores(experiment(sources=sources), files, progress=NoProgress())


def drop_other_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the base have a tokenizer that knows small letters and drops other characters."""
    tokenizer = characters("abcdefghijklmnopqrstuvwxyz ")
    encoder = text_encoder(tokenizer.to_str(), prefix=[0], suffix=[1])
    monkeypatch.setattr(stores, "load_encoder", lambda _: encoder)


def test_text_without_tokens_is_refused_wherever_it_stands_in_a_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    drop_other_letters(monkeypatch)
    texts = [f"{n % 10} {text}" for n, text in enumerate(LATIN)]
    texts[200:] = ["Жук" * 40] * 100
    jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    made = source(near_duplicates="keep")
    for _ in range(2):  # as it is built, and as it is found in the cache
        with pytest.raises(InvalidInput, match="bits per byte of text without tokens") as error:
            build(tmp_path, made)
        assert error.value.key == "sources.s"
    (path,) = (tmp_path / "cache" / "stores").glob("*/store.json")
    for split in ("train", "held_out"):
        meta = TokenStore(path.parent, "s").meta[split]
        # A digit per text in Latin letters, and all of the others.
        cyrillic = (meta["bytes"] - meta["covered"]) // 240
        assert meta["bytes"] - meta["covered"] == 240 * cyrillic + meta["documents"] - cyrillic


@pytest.mark.parametrize(
    ("name", "seq_len", "held_out", "message"),
    [
        # A document of 126 bytes has 128 tokens, and a sequence needs the one after it, too.
        ("python-code", 127, 8, ""),
        ("python-code", 128, 8, "more training tokens than the 128 of one sequence"),
        ("python-code", 127, 7, "at least 8 held-out documents"),
        # No suite scores it.
        ("other", 127, 7, ""),
        # The base is pretrained on it, on longer sequences.
        ("python-docs", 127, 8, "more training tokens than the 256 of one sequence"),
    ],
)
def test_a_source_needs_more_than_a_sequence_and_documents_to_score(
    tmp_path: Path, name: str, seq_len: int, held_out: int, message: str
):
    jsonl(tmp_path / "a.jsonl", [{"text": "x" * 126}])
    jsonl(tmp_path / "b.jsonl", [{"text": f"document {n}"} for n in range(held_out)])
    made = source(name=name, files=["a.jsonl"], held_out_files=["b.jsonl"])
    whole = experiment("base.pretrain.training.seq_len=256")
    training = whole.training.model_copy(update={"seq_len": seq_len})
    whole = whole.model_copy(update={"training": training, "sources": (made,)})
    files = {name: resolve_source(made, folder=tmp_path)}
    if not message:
        assert build_stores(whole, files, progress=NoProgress())[name].tokens == 128
        return
    with pytest.raises(InvalidInput, match=message) as error:
        build_stores(whole, files, progress=NoProgress())
    assert error.value.key == f"sources.{name}"


@pytest.mark.parametrize(("digits", "reported"), [(0, False), (1, True)])
def test_little_text_without_tokens_is_reported(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    digits: int,
    reported: bool,
):
    drop_other_letters(monkeypatch)
    jsonl(tmp_path / "a.jsonl", [{"text": 10 * text + "7" * digits} for text in LATIN])
    made = build(tmp_path, source(near_duplicates="keep"))["s"]
    meta = made.meta["train"]
    assert meta["bytes"] - meta["covered"] == digits * meta["documents"]
    assert ("has no tokens for" in caplog.text) == reported
    share = 100 * meta["documents"] / meta["bytes"]
    assert (f"s: the tokenizer has no tokens for {share:.2f} % of" in caplog.text) == reported


def test_a_split_without_text_loses_none(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    jsonl(tmp_path / "a.jsonl", [{"text": "x" * 999}])
    made = build(tmp_path, source(held_out=1e-9))["s"]
    assert made.meta["held_out"]["bytes"] == 0
    assert "no tokens" not in caplog.text


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_the_bound_holds_for_training_and_for_held_out_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
):
    drop_other_letters(monkeypatch)
    jsonl(tmp_path / "a.jsonl", [{"text": text} for text in LATIN])
    jsonl(tmp_path / "b.jsonl", [{"text": "Жук" * 9}] * 30)
    names = ["a.jsonl", "b.jsonl"] if split == "held_out" else ["b.jsonl", "a.jsonl"]
    kept = source(files=names[:1], held_out_files=names[1:], near_duplicates="keep")
    word = {"train": "training", "held_out": "held-out"}[split]
    with pytest.raises(
        InvalidInput, match=rf"tokens for 0\.00% of the 1,?\d+ bytes of {word} text"
    ):
        build(tmp_path, kept)


def test_held_out_documents_that_another_source_trains_on_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    texts = [f"document {n} of the domain, which is {n * n}" for n in range(200)]
    jsonl(tmp_path / "dom.jsonl", [{"text": text} for text in texts])
    jsonl(tmp_path / "gen.jsonl", [{"text": text} for text in [*texts[:120], *LATIN]])
    dom = source(name="dom", files=["dom.jsonl"], near_duplicates="keep", held_out=0.3)
    gen = source(name="gen", files=["gen.jsonl"], near_duplicates="keep", held_out=0.1)
    build(tmp_path, dom, gen)
    values = [Document(text, RecordLocation("")).sha256 for text in texts]
    held_out = [value for value in values if is_held_out(value, 0.3)]
    leaked = [v for v in values[:120] if is_held_out(v, 0.3) and not is_held_out(v, 0.1)]
    expected = f"{len(leaked)} of {len(held_out)} held-out documents of dom are trained on in gen"
    # What gen holds out of dom's documents, dom holds out, too: the share is larger.
    messages = [record.message for record in caplog.records if "held-out" in record.message]
    assert len(messages) == 1
    assert messages[0].startswith(expected)
    assert caplog.records[-1].levelno == logging.WARNING


def test_held_out_files_that_are_trained_on_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    texts = [{"text": f"document {n}, {n * n}"} for n in range(100)]
    jsonl(tmp_path / "a.jsonl", texts[:80])
    jsonl(tmp_path / "valid.jsonl", texts[50:])
    kept = source(files=["a.jsonl"], held_out_files=["valid.jsonl"], near_duplicates="keep")
    build(tmp_path, kept)
    assert "30 of 50 held-out documents of s are trained on in s" in caplog.text
    caplog.clear()
    # Near-duplicates are dropped from what is trained on.
    build(tmp_path, kept.model_copy(update={"near_duplicates": "drop"}))
    assert "trained on" not in caplog.text
