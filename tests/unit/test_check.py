"""The check of corpora, without a base: what is scanned, what is drawn, and what is found."""

import json
import random
from pathlib import Path

import pytest

from sweepcp.config.source import Source
from sweepcp.config.suites import MemberSpec, Suites
from sweepcp.corpora import check
from sweepcp.corpora.check import CorporaCheck, SourceCheck, check_corpora
from sweepcp.data import records
from sweepcp.data.build import is_held_out
from sweepcp.data.documents import Document
from sweepcp.data.shards import RecordLocation
from sweepcp.data.source_files import resolve_source
from sweepcp.data.token_store import TokenStore
from sweepcp.training import device as device_module
from sweepcp.util.gpus import Device
from sweepcp.util.progress import NoProgress
from tests.make import experiment, jsonl, source

HELD_OUT = 0.2
NOUNS = ("lamp", "cup", "table", "chair", "shelf", "window", "garden", "silver", "marble", "pepper")


def listing(rng: random.Random) -> str:
    return " ".join(f"the {rng.choice(NOUNS)} number {rng.randrange(10**6)}" for _ in range(12))


def is_trained(text: str) -> bool:
    return not is_held_out(Document(text, RecordLocation("")).sha256, HELD_OUT)


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """300 documents of `code`. Everything is read in this process."""
    monkeypatch.setenv("SWEEPCP_CACHE", str(tmp_path / "cache"))
    for module in ("corpora.check", "data.build"):
        monkeypatch.setattr(
            f"sweepcp.{module}.parallel_map", lambda work, items, address: map(work, items)
        )
    monkeypatch.setattr(check, "detect_language", lambda text: "en" if "lamp" in text else "de")
    rng = random.Random(0)
    return [listing(rng) for _ in range(300)]


def checked(
    folder: Path, code: list[str], docs: list[str], *members: MemberSpec, **changes: object
) -> tuple[CorporaCheck, SourceCheck, SourceCheck]:
    """Check the sources `code`, which `members` score, and `python-docs`."""
    sources: list[Source] = []
    for name, role, content in (("code", "domain", code), ("python-docs", "general", docs)):
        jsonl(folder / f"{name}.jsonl", [{"text": text} for text in content])
        values = {"name": name, "role": role, "files": [f"{name}.jsonl"], "held_out": HELD_OUT}
        sources.append(source(**values | {"near_duplicates": "keep"} | changes))
    suites = Suites(domain=members, general=(MemberSpec(held_out="python-docs"),))
    files = {each.name: resolve_source(each, folder=folder) for each in sources}
    made = experiment(sources=tuple(sources), suites=suites)
    result = check_corpora(made, files, device="cpu", progress=NoProgress())
    first, second = result.sources
    return result, first, second


def test_training_documents_that_contain_an_item_are_found_and_held_out_ones_are_not_scanned(
    tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
):
    item = next(text for text in texts if not is_trained(text))
    words = item.split()
    # A document's split follows from its text, so one that is trained on has to be found.
    leaks = (f"{' '.join(words[: len(words) // 2 + 8])} and then {n}" for n in range(99))
    leak = next(text for text in leaks if is_trained(text))
    rng = random.Random(1)
    docs = [*(listing(rng) for _ in range(100)), leak, *(listing(rng) for _ in range(50))]
    monkeypatch.setattr(records, "SHARD_BYTES", 5000)
    result, code, other = checked(tmp_path, texts, docs, MemberSpec(held_out="code"))
    assert code.overlaps == []
    (overlap,) = other.overlaps
    assert overlap.location == f"{tmp_path}/python-docs.jsonl:101"
    assert overlap.hit.member == "held_out_code"
    assert overlap.hit.item == Document(item, RecordLocation("")).sha256.hex()[:16]
    runs = len(words) - 7
    assert overlap.hit.overlap == pytest.approx((len(words) // 2 + 1) / runs, abs=1 / runs)
    assert result.overlaps == [overlap]
    held_out = [*filter(lambda text: not is_trained(text), [*texts, *docs])]
    assert (result.items, result.short) == (len(held_out), 0)
    # Items that are not drawn are not searched for.
    drawn = MemberSpec(held_out="code", items=8)
    assert checked(tmp_path, texts, docs, drawn)[0].items == (
        8 + sum(not is_trained(text) for text in docs)
    )


def test_items_are_searched_for_with_their_right_answers(tmp_path: Path, texts: list[str]):
    cloze = MemberSpec(cloze="code", items=20)
    checked(tmp_path, texts, texts[:60], cloze)
    (file,) = (tmp_path / "cache" / "tasks").glob("*/cloze_code.jsonl")
    items = [json.loads(line) for line in file.read_text().splitlines()]
    right = [item["context"] + item["choices"][item["gold"]] for item in items]
    assert any(item["gold"] for item in items)
    # A few times each, so that one of them at least is trained on.
    docs = [f"{item} {n}" for item in right for n in range(8)]
    result, _, other = checked(tmp_path, texts, docs, cloze)
    whole = {o.hit.item for o in other.overlaps if o.hit[0] == "cloze_code" and o.hit.overlap == 1}
    assert whole == set(map(str, range(20)))
    assert result.items == 20 + sum(not is_trained(text) for text in docs)


@pytest.mark.parametrize("wanted", [50, 10_000])
def test_languages_are_those_of_a_random_sample_of_training_documents(
    tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch, wanted: int
):
    monkeypatch.setattr(check, "LANGUAGE_SAMPLE", wanted)
    _, code, _ = checked(tmp_path, texts, texts[:60], MemberSpec(held_out="code"), language="en")
    trained = [text for text in texts if is_trained(text)]
    total = sum(code.languages.values())
    if wanted > len(texts):
        assert total == len(trained)
        share = sum("lamp" in text for text in trained) / total
        assert code.share_in_declared_language == pytest.approx(share)
    else:
        # 50 are expected, with a standard deviation of 6.
        assert 25 < total < 75


def test_the_share_of_a_language_needs_a_two_letter_code_and_a_sample(tmp_path: Path):
    def share(language: str, **counts: int) -> float | None:
        made = SourceCheck(source(language=language), TokenStore(tmp_path, "s"))
        made.languages.update(counts)
        return made.share_in_declared_language

    assert share("en", en=3, de=1) == 0.75
    assert share("fr", en=3, de=1) == 0.0
    assert share("python", en=3) is None
    assert share("en") is None


class Opened(Exception):
    """Raised in place of opening a device."""


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_base_is_scored_on_the_device_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, device: Device
):
    def open_device(device: str) -> None:
        raise Opened(device)

    monkeypatch.setattr(device_module, "open_device", open_device)
    monkeypatch.setattr(check, "_available_base", lambda *_: "a model")
    with pytest.raises(Opened, match=device):
        check._measure_base_loss(experiment(), {}, [], device=device, progress=NoProgress())
