"""Files that the program wrote, damaged in every way that is known by name."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from sweepcp.data.join import DOCUMENT, _read_shard
from sweepcp.data.shards import SourceShard
from sweepcp.data.token_store import TokenStore
from sweepcp.errors import InvalidInput
from sweepcp.promote.candidate import candidate_from_run
from sweepcp.report.tables import run_as_dict
from sweepcp.report.views import load_run
from sweepcp.runs.run_folder import read_run
from sweepcp.util import records
from sweepcp.util.files import write_json
from sweepcp.util.json_values import check_unambiguous
from sweepcp.util.records import Record, read_json, read_json_lines, read_record, read_text
from tests.make import update_store, write_store
from tests.make_run import write_run


class Small(Record):
    number: int
    share: float = 0.0
    name: str = ""
    anything: object = None


DAMAGED = {
    "truncated": '{"number": 1',
    "empty": "",
    "text of another type": '{"number": "1"}',
    "a boolean for a number": '{"number": true}',
    "a number for text": '{"number": 1, "name": 2}',
    "a fraction": '{"number": 1.5}',
    "null": '{"number": null}',
    "missing key": "{}",
    "unknown key": '{"number": 1, "more": 1}',
    "no object": "[1]",
    "NaN": '{"number": 1, "share": NaN}',
    "Infinity where anything goes": '{"number": 1, "anything": Infinity}',
    "a number that overflows": '{"number": 1, "anything": 1e999}',
    "an integer beyond 64 bits": '{"number": 9223372036854775808}',
    "5,000 digits": '{"number": ' + "9" * 5000 + "}",
    "5,000 levels": '{"number": 1, "anything": ' + "[" * 5000 + "]" * 5000 + "}",
    "half a surrogate": '{"number": 1, "name": "\\ud800"}',
    "half a surrogate in a key": '{"number": 1, "anything": {"\\udc00": 1}}',
    "a key twice": '{"number": 1, "number": 1}',
    "a key twice further down": '{"number": 1, "anything": [{"a": 1, "a": 2}]}',
    "more behind": '{"number": 1} x',
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_record_is_refused_with_file_and_fix(tmp_path: Path, text: str):
    path = tmp_path / "small.json"
    path.write_text(text)
    with pytest.raises(InvalidInput) as error:
        read_record(Small, path, fix="restore it")
    assert error.value.file == str(path)
    assert error.value.key
    assert error.value.fix == "restore it"


def test_a_record_is_refused_with_key_value_and_rule(tmp_path: Path):
    path = tmp_path / "small.json"
    path.write_text('{"number": "x"}')
    with pytest.raises(InvalidInput, match="a valid integer") as error:
        read_record(Small, path, fix="restore it")
    assert (error.value.key, error.value.found) == ("number", "x")


@pytest.mark.parametrize("kind", ["missing", "folder", "no UTF-8", "in a file"])
def test_what_is_no_readable_file_is_refused(tmp_path: Path, kind: str):
    path = tmp_path / "small.json"
    if kind == "folder":
        path.mkdir()
    elif kind == "no UTF-8":
        path.write_bytes(b'{"number": 1, "name": "\xff"}')
    elif kind == "in a file":
        path.touch()
        path = path / "small.json"
    for read in (
        lambda: read_record(Small, path, fix="f"),
        lambda: read_json(path, fix="f"),
        lambda: read_text(path, fix="f"),
        lambda: list(read_json_lines(path, fix="f")),
    ):
        with pytest.raises(InvalidInput) as error:
            read()
        assert error.value.file.startswith(str(path))


@pytest.mark.parametrize(
    ("text", "parsed_again"),
    [
        ('{"number": 1, "name": "12:30", "anything": {"a": null}}', 0),
        ('{"number": 1, "share": 0.00123456789012345678}', 0),
        ('{"number" : 1, "number": 1}', 1),
        ('{"number": 1, "number": 1, "name": "\\u003a"}', 1),
        ('{"number": 1, "anything": {"a": null}, "anything": {"a": 1e999}}', 1),
        ('{"number":-9223372036854775809}', 1),
    ],
)
def test_a_record_is_parsed_twice_only_if_its_text_may_be_ambiguous(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, parsed_again: int
):
    parsed = []

    def check(content: bytes) -> None:
        parsed.append(content)
        check_unambiguous(content)

    monkeypatch.setattr(records, "check_unambiguous", check)
    path = tmp_path / "small.json"
    path.write_text(text)
    with pytest.raises(InvalidInput) if parsed_again else nullcontext():
        read_record(Small, path, fix="restore it")
    assert len(parsed) == parsed_again


def test_arrays_of_numbers_are_read_whatever_stands_in_text(tmp_path: Path):
    path = tmp_path / "small.json"
    content = {"number": 1, "name": 'a [ 1, 2 ] "', "anything": [[1.5, 2e-3], ["[", "1", "]"]]}
    path.write_text(json.dumps(content))
    assert read_record(Small, path, fix="").model_dump() == content | {"share": 0.0}


def test_integers_of_a_model_may_be_larger_and_numbers_infinite(tmp_path: Path):
    path = tmp_path / "config.json"
    path.write_text('{"model_max_length": 1000000000000000019884624838656, "limit": Infinity}')
    assert read_json(path, fix="", finite=False)["model_max_length"] == int(1e30)
    with pytest.raises(InvalidInput):
        read_json(path, fix="")


def test_a_line_without_its_end_is_refused_or_left_out(tmp_path: Path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n{"a": 2')
    assert [value for _, _, value in read_json_lines(path, fix="", complete=False)] == [{"a": 1}]
    with pytest.raises(InvalidInput, match="a line without its end") as error:
        list(read_json_lines(path, fix=""))
    assert error.value.file == f"{path}:2"


def change(path: Path, **changes: object) -> None:
    write_json(path, json.loads(path.read_text()) | changes)


def test_a_trial_in_the_folder_of_another_one_is_refused(tmp_path: Path):
    run = write_run(tmp_path / "run", 2, documents=8)
    shutil.copytree(run / "trials/0001", run / "trials/0001 (copy)")
    with pytest.raises(InvalidInput, match="as the folder of the trial is called"):
        read_run(run)
    shutil.rmtree(run / "trials/0001 (copy)")
    change(run / "trials/0001/trial.json", number=7)
    with pytest.raises(InvalidInput, match="trial 7 has the id 0007"):
        read_run(run)


def test_scores_that_contradict_each_other_are_refused(tmp_path: Path):
    run = write_run(tmp_path / "run", 1, documents=8)
    change(run / "trials/0000/trial.json", domain=99.0)
    with pytest.raises(InvalidInput, match="those of the selection half"):
        read_run(run)


def test_a_trial_of_other_items_than_the_base_is_refused(tmp_path: Path):
    run, other = write_run(tmp_path / "run", 1, documents=8), tmp_path / "other"
    write_run(other, 1, documents=12)
    shutil.copy(other / "trials/0000/items.json", run / "trials/0000/items.json")
    with pytest.raises(InvalidInput, match="their numbers of items") as error:
        _ = load_run(run).certainty
    assert error.value.file == str(run / "trials/0000/items.json")
    shutil.copy(other / "base.json", run / "base.json")
    with pytest.raises(InvalidInput, match=r"number of items as in base\.json"):
        read_run(run)


def test_a_report_without_the_base_is_refused(tmp_path: Path):
    run = write_run(tmp_path / "run", 1, documents=8)
    (run / "base.json").unlink()
    with pytest.raises(InvalidInput, match="it scores the base again"):
        _ = load_run(run).certainty
    assert run_as_dict(read_run(run))["base"] is None
    with pytest.raises(InvalidInput, match="the scores of the base at step 0"):
        candidate_from_run(read_run(run), "0000")


@pytest.mark.parametrize("name", ["items.json", "metrics.jsonl"])
def test_truncated_files_of_a_trial_are_refused(tmp_path: Path, name: str):
    run = write_run(tmp_path / "run", 1, documents=8)
    file = run / "trials/0000" / name
    file.write_text(file.read_text()[:40] + "\n")
    loaded = load_run(run)
    with pytest.raises(InvalidInput) as error:
        _ = loaded.read_steps("0000"), loaded.certainty
    assert error.value.file.startswith(str(file))


def test_items_of_impossible_size_are_refused(tmp_path: Path):
    run = write_run(tmp_path / "run", 1, documents=8)
    base = json.loads((run / "base.json").read_text())
    base["items"][0]["amount"] = [1e300] * 8
    (run / "base.json").write_text(json.dumps(base))
    with pytest.raises(InvalidInput, match="in magnitude") as error:
        run_as_dict(read_run(run))
    assert error.value.file == str(run / "base.json")


def test_a_file_in_the_place_of_a_trial_is_refused(tmp_path: Path):
    run = write_run(tmp_path / "run", 1, documents=8)
    (run / "trials/0005").touch()
    (run / "trials/notes").touch()
    with pytest.raises(InvalidInput, match="a folder, as") as error:
        read_run(run)
    assert error.value.file == str(run / "trials/0005")


def test_a_store_whose_record_contradicts_its_files_is_refused(tmp_path: Path):
    store = write_store(tmp_path, "a", [[5, 6, 7], [8]])
    counts = store.meta["train"]
    update_store(store.path, {"train": counts | {"tokens": 5}})
    with pytest.raises(InvalidInput, match=r"the 4 tokens of train\.bin"):
        TokenStore(store.path, "a").train()
    update_store(store.path, {"train": counts | {"documents": 3}})
    with pytest.raises(InvalidInput, match="24 bytes"):
        TokenStore(store.path, "a").document_hashes("train")
    update_store(store.path, {"train": counts | {"tokens": -1}})
    with pytest.raises(InvalidInput) as error:
        _ = TokenStore(store.path, "a").tokens
    assert error.value.key == "train.tokens"


def test_held_out_lines_that_are_no_text_are_refused(tmp_path: Path):
    store = write_store(tmp_path, "a", [[5]])
    (store.path / "held_out.jsonl").write_text('"a text"\n{"text": "b"}\n')
    with pytest.raises(InvalidInput, match="a JSON string") as error:
        store.sample_held_out(2)
    assert error.value.file == f"{store.path}/held_out.jsonl:2"


@pytest.mark.parametrize("suffix", ["tokens", "held_out", "documents"])
def test_a_shard_that_lost_its_end_is_refused(tmp_path: Path, suffix: str):
    shard = SourceShard()
    documents = np.zeros(3, DOCUMENT)
    documents["tokens"] = 2
    documents["split"] = [0, 0, 1]
    documents["tokens"][2] = 0
    contents = {
        "documents": documents.tobytes(),
        "tokens": bytes(8),
        "held_out": b'"a"\n',
        "signatures": b"",
    }
    for name, content in contents.items():
        (tmp_path / f"00000000.{name}").write_bytes(content)
    assert len(_read_shard(tmp_path, shard, np.dtype("<u2"))) == 3
    (tmp_path / f"00000000.{suffix}").write_bytes(contents[suffix][:-7])
    with pytest.raises(InvalidInput, match="which is built again"):
        _read_shard(tmp_path, shard, np.dtype("<u2"))
