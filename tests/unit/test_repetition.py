import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset

from sweepcp.corpora.experiment import load_experiment
from sweepcp.corpora.repetition import check_epochs, count_epochs, epoch_warnings, matched_fraction
from sweepcp.data.source_files import resolve_source
from sweepcp.data.stream import MixtureStream
from sweepcp.data.token_estimate import estimate_tokens
from sweepcp.errors import InvalidInput
from tests.make import jsonl, recipe, source, write_store

TOKENS = {"python-docs": 2_000_000.0, "python-code": 6_000_000.0}
TARGET = ["target={tokens: 20_000_000}", "budget.tokens=102_400"]


def test_epochs_by_hand():
    experiment, _ = load_experiment("quickstart", TARGET)
    docs, code = count_epochs(experiment, TOKENS)
    assert (docs.first_share, code.first_share) == (0.5, 0.5)
    assert docs.first_epochs == pytest.approx(0.5 * 102_400 / 2e6)
    assert docs.most_epochs == pytest.approx(102_400 / 2e6)
    assert docs.target_first_epochs == pytest.approx(0.5 * 20e6 / 2e6)
    assert docs.target_most_epochs == pytest.approx(10)
    assert code.target_most_epochs == pytest.approx(20 / 6)
    text = "\n".join(epoch_warnings([docs, code]))
    assert "the target's run may read python-docs 10.0 times: more than max_epochs" in text
    assert "set target.match_repetition" in text


def test_a_larger_corpus_at_the_target_is_repeated_less():
    sets = ["target={tokens: 20_000_000, source_tokens: {python-docs: 40_000_000}}"]
    docs, _ = count_epochs(load_experiment("quickstart", sets)[0], TOKENS)
    assert docs.target_most_epochs == pytest.approx(0.5)


def test_matched_trials_repeat_as_the_target_does():
    sets = ["target={tokens: 20_000_000, match_repetition: true}"]
    experiment, _ = load_experiment("quickstart", sets)
    assert matched_fraction(experiment, "python-docs", 2e6) == pytest.approx(102_400 / 20e6)
    for count in count_epochs(experiment, TOKENS):
        assert count.first_epochs == pytest.approx(count.target_first_epochs)
        assert count.most_epochs == pytest.approx(count.target_most_epochs)


def test_a_stream_over_a_fraction_of_its_stores_repeats_as_often(tmp_path: Path):
    stores = [
        write_store(tmp_path, name, [list(range(4001))], fraction=0.01) for name in ("code", "docs")
    ]
    # 50 sequences of each source, drawn from 10 of its 1,000 blocks.
    stream = MixtureStream(recipe(tokens=8 * 50), stores)
    first_tokens = np.concatenate([batch.input_ids[:, 0] for batch in stream.batches()])
    _, counts = np.unique(first_tokens, return_counts=True)
    assert counts.min() >= 5
    assert stream.epochs(0, tokens=200) == pytest.approx(5)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "{tokens: 102_400, match_repetition: true, source_tokens: {python-docs: 9_000_000}}",
            "add text to the source",
        ),
        ("{tokens: 2_000_000_000, match_repetition: true}", "more than one sequence"),
    ],
)
def test_what_cannot_be_matched_is_refused(target: str, message: str):
    experiment, _ = load_experiment("quickstart", [f"target={target}"])
    with pytest.raises(InvalidInput, match=message):
        count_epochs(experiment, TOKENS)


def test_caps_warn_or_refuse():
    experiment, _ = load_experiment(
        "quickstart", [*TARGET, "sources.python-docs.beyond_max_epochs=refuse"]
    )
    with pytest.raises(InvalidInput, match=r"up to 10\.00 epochs"):
        check_epochs(experiment, TOKENS)
    for sets in (TARGET, ["sources.python-docs.beyond_max_epochs=refuse"]):
        experiment, _ = load_experiment("quickstart", sets)
        check_epochs(experiment, TOKENS)


@pytest.mark.parametrize(("epochs", "beyond"), [(4.0, False), (4.1, True), (7.0, True)])
def test_the_limit_holds_for_the_largest_share_of_a_trial(epochs: float, beyond: bool):
    """The first trial reads half as much of the source."""
    refusing = "sources.python-docs.beyond_max_epochs=refuse"
    experiment, _ = load_experiment("quickstart", ["budget.tokens=102_400", refusing])
    tokens = {"python-docs": 102_400 / epochs, "python-code": 1e9}
    docs, code = count_epochs(experiment, tokens)
    assert (docs.first_epochs, docs.most_epochs) == pytest.approx((epochs / 2, epochs))
    assert epoch_warnings([docs, code]) == (
        [
            f"a trial may read python-docs {epochs:.1f} times, more than max_epochs 4: the search "
            "is refused"
        ]
        if beyond
        else []
    )
    if beyond:
        with pytest.raises(InvalidInput, match=f"up to {epochs:.2f} epochs"):
            check_epochs(experiment, tokens)
    else:
        check_epochs(experiment, tokens)


@pytest.mark.parametrize(("ratio", "warned"), [(1.9, False), (2.1, True)])
def test_a_target_that_repeats_twice_as_often_as_trials_is_reported(ratio: float, warned: bool):
    sets = ["budget.tokens=102_400", f"target={{tokens: {round(102_400 * ratio)}}}"]
    experiment, _ = load_experiment("quickstart", sets)
    tokens = {"python-docs": 102_400 / 1.5, "python-code": 1e9}
    text = "\n".join(epoch_warnings(count_epochs(experiment, tokens)))
    assert ("repeats python-docs and trials do not" in text) == warned


def test_trials_themselves_may_repeat_a_source_too_often():
    """Half of the tokens of the first trial, and all of those of a corner, are of python-docs."""
    tokens = TOKENS | {"python-docs": 20_000.0}
    experiment, _ = load_experiment("quickstart", [])
    docs, code = count_epochs(experiment, tokens)
    assert (docs.first_epochs, docs.most_epochs) == pytest.approx((2.56, 5.12))
    (warning,) = epoch_warnings([docs, code])
    assert warning.startswith("a trial may read python-docs 5.1 times, more than max_epochs 4")
    refusing, _ = load_experiment("quickstart", ["sources.python-docs.beyond_max_epochs=refuse"])
    with pytest.raises(InvalidInput, match=r"up to 5\.12 epochs"):
        check_epochs(refusing, tokens)


@pytest.mark.parametrize(("times", "warned"), [(1.95, False), (2.05, True)])
def test_a_target_that_repeats_twice_as_often_as_trials_is_a_warning(times: float, warned: bool):
    """Trials read the 102,400 tokens of a source once at most."""
    tokens = TOKENS | {"python-docs": 102_400.0}
    experiment, _ = load_experiment("quickstart", [f"target={{tokens: {int(times * 102_400)}}}"])
    warnings = epoch_warnings(count_epochs(experiment, tokens))
    assert any("repeats python-docs and trials do not" in warning for warning in warnings) == warned


def test_an_unknown_source_of_the_target_is_refused():
    with pytest.raises(InvalidInput, match=r"target\.source_tokens"):
        load_experiment("quickstart", ["target={tokens: 5, source_tokens: {nope: 3}}"])


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet", "txt", "saved"])
def test_tokens_are_estimated_from_a_sample(tmp_path: Path, kind: str):
    rng = np.random.default_rng(0)
    letters = rng.integers(97, 123, 4_100_000, dtype=np.uint8).tobytes().decode()
    sizes = rng.integers(500, 1500, 4000).tolist()
    documents = [letters[1000 * n : 1000 * n + size] for n, size in enumerate(sizes)]
    records: list[object] = [{"text": text, "other": text[:300]} for text in documents]
    s = source(files=[f"a.{kind}"], unit="line", held_out=0.1)
    if kind == "jsonl":
        jsonl(tmp_path / "a.jsonl", records)
    elif kind == "jsonl.gz":
        path = jsonl(tmp_path / "b.jsonl", records)
        (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    elif kind == "parquet":
        pa.parquet.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    elif kind == "txt":
        (tmp_path / "a.txt").write_text("\n".join(documents))
    else:
        Dataset.from_list(records).save_to_disk(tmp_path / "set")
        s = source(files=None, saved={"path": "set"}, held_out=0.1)
    sampled: list[int] = []

    def count(documents: list[str]) -> float:
        sampled.append(len(documents))
        return float(sum(map(len, documents)))

    estimate = estimate_tokens(s, resolve_source(s, folder=tmp_path), count)
    assert estimate == pytest.approx(0.9 * sum(map(len, documents)), rel=0.03)
    assert sum(sampled) < 3000
