"""Damaged and impossible files of a model: configuration, index, weights and tokenizer."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sweepcp.config.base_model import BaseSpec
from sweepcp.config.model_dimensions import dimensions_of
from sweepcp.errors import InvalidInput
from sweepcp.full_run.checkpoints import find_checkpoint
from sweepcp.models.base import max_sequence_length
from sweepcp.models.files import (
    model_fingerprint,
    read_config,
    read_safetensors_header,
    read_shards,
    tokenizer_fingerprint,
)
from sweepcp.models.loading import check_model_files, load_model
from sweepcp.training.process_group import ProcessGroup
from sweepcp.util.files import write_json
from tests.fuzz.workspace import CONFIG, make_checkpoint, write_small_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_small_model(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    write_small_model(tmp_path / "sharded", shards=2)
    return tmp_path / "sharded"


def test_the_small_model_is_a_model(model: Path, sharded: Path):
    assert load_model(str(model), revision=None, device=torch.device("cpu")).num_parameters() > 0
    assert len(model_fingerprint(sharded, read_shards(sharded))) == 16


@pytest.mark.parametrize("text", ["", "[1]", "{", "\ufeff{}", '{"a": 1, "a": 2}', "[" * 5000])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_damaged_settings_of_a_model_are_refused(model: Path, name: str, text: str):
    (model / name).write_text(text)
    read = read_config if name == "config.json" else tokenizer_fingerprint
    with pytest.raises(InvalidInput) as error:
        read(model)
    assert error.value.file == str(model / name)
    assert error.value.fix


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", "32"),
        ("hidden_size", -32),
        ("hidden_size", 10**300),
        ("num_attention_heads", 0),
        ("num_key_value_heads", 1.5),
        ("vocab_size", [258]),
        ("tie_word_embeddings", "no"),
        ("rope_parameters", [1]),
        ("rope_parameters", {"rope_theta": "large"}),
        ("rms_norm_eps", True),
        ("model_type", ["llama"]),
    ],
)
def test_impossible_dimensions_are_refused_with_their_key(key: str, value: Any):
    with pytest.raises(InvalidInput) as error:
        dimensions_of(CONFIG | {key: value}, 1000)
    assert error.value.key in (key, "rope_theta")


@pytest.mark.parametrize("value", ["64", 0, -1, 64.0, True, [64]])
def test_a_longest_sequence_that_is_no_size_is_refused(model: Path, value: Any):
    write_json(model / "config.json", CONFIG | {"max_position_embeddings": value})
    with pytest.raises(InvalidInput, match="an integer of at least 1") as error:
        max_sequence_length(BaseSpec(path=str(model), max_lr=1.0))
    assert error.value.file == str(model / "config.json")


def test_null_is_no_longest_sequence(model: Path):
    write_json(model / "config.json", CONFIG | {"max_position_embeddings": None, "n_ctx": 48})
    assert max_sequence_length(BaseSpec(path=str(model), max_lr=1.0)) == 48


def test_more_layers_than_any_model_has_are_refused_at_once(model: Path):
    write_json(model / "config.json", CONFIG | {"num_hidden_layers": 10**12})
    with pytest.raises(InvalidInput, match="at most 10,000 layers"):
        check_model_files(model)


@pytest.mark.parametrize(
    "weight_map",
    [None, {}, {"a": 1}, {"a": "../model.safetensors"}, {"a": "/etc/x.safetensors"}, ["x"]],
)
def test_an_index_that_names_no_files_of_the_folder_is_refused(sharded: Path, weight_map: Any):
    write_json(sharded / "model.safetensors.index.json", {"weight_map": weight_map})
    with pytest.raises(InvalidInput) as error:
        read_shards(sharded)
    assert error.value.key == "weight_map"


def change_header(file: Path, change: Any) -> None:
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header["lm_head.weight"].update(shape=[2, 2]),
        lambda header: header["lm_head.weight"].update(shape="258"),
        lambda header: header["lm_head.weight"].update(data_offsets=[0]),
        lambda header: header["lm_head.weight"].update(data_offsets=[0, -4]),
        lambda header: header["lm_head.weight"].update(data_offsets=[4, 8]),
        lambda header: header["lm_head.weight"].pop("dtype"),
        lambda header: header.update(more=1),
    ],
)
def test_a_header_that_does_not_fit_its_bytes_is_refused(model: Path, change: Any):
    change_header(model / "model.safetensors", change)
    with pytest.raises(InvalidInput) as error:
        read_safetensors_header(model / "model.safetensors")
    assert error.value.key == "the header"


def test_a_header_length_beyond_the_file_is_refused(model: Path):
    file = model / "model.safetensors"
    file.write_bytes((2**63).to_bytes(8, "little") + file.read_bytes()[8:])
    with pytest.raises(InvalidInput):
        read_safetensors_header(file)


def test_settings_of_generation_that_cannot_be_loaded_are_refused(model: Path):
    (model / "generation_config.json").write_text('"text"')
    with pytest.raises(InvalidInput, match="files that transformers can load"):
        load_model(str(model), revision=None, device=torch.device("cpu"))


def test_a_checkpoint_whose_manifest_contradicts_it_is_refused(tmp_path: Path):
    make_checkpoint(tmp_path)
    folder, group = tmp_path / "checkpoints", ProcessGroup(device=torch.device("cpu"))
    found = find_checkpoint(folder, "bundle", group)
    assert found is not None
    manifest = found[0] / "manifest.json"
    content = json.loads(manifest.read_text())
    wrong: dict[str, Any] = {
        "step": 3,
        "ranks": 2,
        "files": {},
        "sizes": content["sizes"] | {"master/b": 6},
    }
    for key, value in wrong.items():
        write_json(manifest, content | {key: value})
        with pytest.raises(InvalidInput) as error:
            find_checkpoint(folder, "bundle", group)
        assert error.value.file == str(manifest)
    shutil.rmtree(found[0])
    (folder / "latest").unlink()
    (folder / "latest").mkdir()
    with pytest.raises(InvalidInput, match="a file that can be read"):
        find_checkpoint(folder, "bundle", group)
