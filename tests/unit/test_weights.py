"""Sharded weights and checkpoints: reading and writing, for any number of ranks."""

import json
import logging
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM

from sweepcp.errors import InvalidInput
from sweepcp.full_run import checkpoints
from sweepcp.full_run.checkpoints import RunProgress
from sweepcp.models.architecture import empty_model, read_model_config
from sweepcp.models.checkpoint import match_tensors
from sweepcp.models.files import read_shards
from sweepcp.models.loading import load_model
from sweepcp.training.process_group import ProcessGroup
from sweepcp.training.sharded_weights import (
    read_range,
    read_weights,
    refuse_converted,
    shard_range,
    write_weights,
)
from sweepcp.util.files import file_sha256
from tests.make import SMALL, write_model


@given(size=st.integers(0, 200), world_size=st.integers(1, 40))
def test_shards_of_all_ranks_are_the_whole_tensor(size: int, world_size: int):
    indices: list[int] = []
    for rank in range(world_size):
        indices += range(*shard_range(size, rank=rank, world_size=world_size))
    assert indices == list(range(size))


@settings(deadline=None, max_examples=60)
@given(shape=st.lists(st.integers(1, 7), max_size=3).map(tuple), data=st.data())
def test_a_range_is_read_as_it_is_in_the_flattened_tensor(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, ...], data: st.DataObject
):
    tensor = torch.randn(shape)
    path = tmp_path_factory.mktemp("range") / "x.safetensors"
    save_file({"w": tensor}, path)
    first = data.draw(st.integers(0, tensor.numel()))
    last = data.draw(st.integers(first, tensor.numel()))
    with safe_open(path, framework="pt") as file:
        values = read_range(file, "w", shape, first=first, last=last)
    assert torch.equal(values, tensor.flatten()[first:last])


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_a_model_of_many_files_is_read_in_shards_and_written_back(tmp_path: Path, world_size: int):
    folder = write_model(tmp_path / "model", shard="20KB")
    shards = read_shards(folder)
    assert len(shards) > 3
    shapes = {tensor.name: tensor.shape for shard in shards for tensor in shard.tensors}
    matched = match_tensors(shards, empty_model(read_model_config(folder)))
    pieces: dict[str, list[torch.Tensor]] = {name: [] for name in shapes}
    for rank in range(world_size):
        group = ProcessGroup(rank=rank, world_size=world_size)
        read_weights(matched, group, lambda name, values: pieces[name].append(values))
    write_weights(
        shards,
        matched,
        tmp_path / "out",
        ProcessGroup(),
        lambda name: torch.cat(pieces[name]).reshape(shapes[name]),
    )
    for path in folder.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_weights_are_written_in_the_dtype_that_they_had(tmp_path: Path):
    folder = write_model(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    bf16 = {name: values.bfloat16() for name, values in weights.items()}
    save_file(bf16, folder / "model.safetensors")
    shards = read_shards(folder)
    matched = match_tensors(shards, empty_model(read_model_config(folder)))
    write_weights(
        shards, matched, tmp_path / "out", ProcessGroup(), lambda name: bf16[name].float() + 1e-6
    )
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name, values in bf16.items():
        assert torch.equal(written[name], (values.float() + 1e-6).bfloat16())


def test_what_is_not_trained_is_copied_as_it_was(tmp_path: Path):
    """An old file holds rotary frequencies, which the architecture ignores."""
    folder = write_model(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    ignored = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.arange(8).double()}
    save_file(weights | ignored, folder / "model.safetensors")
    shards = read_shards(folder)
    matched = match_tensors(shards, empty_model(read_model_config(folder)))
    write_weights(shards, matched, tmp_path / "out", ProcessGroup(), lambda name: weights[name] + 1)
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name, values in ignored.items():
        assert torch.equal(written[name], values)
    for name, values in weights.items():
        assert torch.equal(written[name], values + 1)


def test_tensors_that_would_be_converted_are_refused_with_the_way_to_save_them(tmp_path: Path):
    folder = tmp_path / "moe"
    config = MixtralConfig(**SMALL, vocab_size=258, num_local_experts=2)
    model = MixtralForCausalLM(config)
    for original in (True, False):
        model.save_pretrained(folder, save_original_format=original)
        matched = match_tensors(read_shards(folder), empty_model(read_model_config(folder)))
        if original:
            with pytest.raises(InvalidInput, match="save_original_format=False"):
                refuse_converted(matched)
        else:
            refuse_converted(matched)
        loaded = load_model(str(folder), revision=None, device=torch.device("cpu"))
        for name, values in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], values)


def test_a_truncated_file_is_refused(tmp_path: Path):
    folder = write_model(tmp_path / "model")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(InvalidInput, match="copy it from its origin again"):
        read_shards(folder)


STATE = {"master/a": torch.arange(10.0), "exp_avg/a": torch.randn(10), "master/b": torch.randn(2)}


def write_state(folder: Path, step: int, world_size: int) -> RunProgress:
    """A checkpoint as that many ranks would have written it, here one after the other."""
    place = folder / f"step-{step:08d}"
    place.mkdir(parents=True)
    files = {}
    for rank in range(world_size):
        shards = {}
        for name, values in STATE.items():
            first, last = shard_range(len(values), rank=rank, world_size=world_size)
            if first < last:
                shards[name] = values[first:last].clone()
        file = place / f"rank-{rank:05d}.safetensors"
        save_file(shards or {"nothing": torch.zeros(1)}, file)
        files[file.name] = file_sha256(file)
    progress = RunProgress(
        bundle="b",
        step=step,
        tokens={"code": 8 * step},
        skipped=(3,),
        ranks=world_size,
        sizes={name: len(values) for name, values in STATE.items()},
        files=files,
    )
    (place / "manifest.json").write_text(progress.model_dump_json())
    (folder / "latest").write_text(place.name)
    return progress


@pytest.mark.parametrize("written_by", [1, 2, 3, 5])
@pytest.mark.parametrize("read_by", [1, 2, 4])
def test_a_checkpoint_is_read_by_any_number_of_ranks(tmp_path: Path, written_by: int, read_by: int):
    progress = write_state(tmp_path, 5, written_by)
    states = []
    for rank in range(read_by):
        group = ProcessGroup(rank=rank, world_size=read_by)
        place = tmp_path / "step-00000005"
        states.append(dict(checkpoints.read_checkpoint(place, progress, group)))
    for name, values in STATE.items():
        assert torch.equal(torch.cat([state[name] for state in states]), values)


def test_saving_keeps_the_last_checkpoints_and_moves_the_pointer(tmp_path: Path):
    checkpoints.initialize_checkpoints(tmp_path)
    assert checkpoints.find_checkpoint(tmp_path, "b", ProcessGroup()) is None
    start = RunProgress(bundle="b", step=0, tokens={}, ranks=1, sizes={}, files={})
    for step in (5, 10, 15):
        state = ((name, len(values), values) for name, values in STATE.items())
        progress = start.model_copy(update={"step": step})
        checkpoints.save_checkpoint(tmp_path, state, progress, ProcessGroup(), keep=2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["latest", "step-00000010", "step-00000015"]
    checkpoint = checkpoints.find_checkpoint(tmp_path, "b", ProcessGroup())
    assert checkpoint is not None
    _, progress = checkpoint
    assert progress.step == 15
    assert progress.sizes == {name: len(values) for name, values in STATE.items()}


def test_a_run_does_not_begin_beside_checkpoints(tmp_path: Path):
    checkpoints.initialize_checkpoints(tmp_path)
    # A run that was killed right after this begins again: nothing is lost.
    checkpoints.initialize_checkpoints(tmp_path)
    write_state(tmp_path, 5, 1)
    with pytest.raises(InvalidInput, match="does not start over by itself"):
        checkpoints.initialize_checkpoints(tmp_path)


def test_a_lost_pointer_never_starts_the_run_over(tmp_path: Path):
    write_state(tmp_path, 5, 2)
    for lose in (lambda: (tmp_path / "latest").write_text(""), (tmp_path / "latest").unlink):
        lose()
        with pytest.raises(InvalidInput, match="write `step-00000005` into it"):
            checkpoints.find_checkpoint(tmp_path, "b", ProcessGroup())
    with pytest.raises(InvalidInput, match="does not start over by itself"):
        checkpoints.find_checkpoint(tmp_path / "none", "b", ProcessGroup())


def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    write_state(tmp_path, 5, 2)
    write_state(tmp_path, 10, 2)
    file = tmp_path / "step-00000010" / "rank-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING, logger="sweepcp"):
        checkpoint = checkpoints.find_checkpoint(tmp_path, "b", ProcessGroup())
    assert checkpoint is not None
    assert checkpoint[1].step == 5
    assert "step-00000010 is damaged (rank-00001.safetensors)" in caplog.messages[0]
    (tmp_path / "step-00000005" / "rank-00000.safetensors").unlink()
    with pytest.raises(InvalidInput, match="all of them damaged"):
        checkpoints.find_checkpoint(tmp_path, "b", ProcessGroup())


def test_checkpoints_of_another_bundle_or_version_are_refused(tmp_path: Path):
    write_state(tmp_path, 5, 1)
    with pytest.raises(InvalidInput, match="name another --out"):
        checkpoints.find_checkpoint(tmp_path, "other", ProcessGroup())
    path = tmp_path / "step-00000005" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"new": 1}))
    with pytest.raises(InvalidInput, match="this version of sweepcp"):
        checkpoints.find_checkpoint(tmp_path, "b", ProcessGroup())
