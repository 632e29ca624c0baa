"""Weights in parts: reading, writing and checkpoints, for any number of ranks."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sweepcp.errors import InvalidInput
from sweepcp.full_run import checkpoints
from sweepcp.full_run.checkpoints import RunProgress
from sweepcp.models.files import read_shards
from sweepcp.training.process_group import ProcessGroup
from sweepcp.training.sharded_weights import (
    check_tensors,
    read_range,
    read_weights,
    shard_range,
    write_weights,
)
from sweepcp.util.files import file_sha256
from tests.make import write_model


@given(size=st.integers(0, 200), ranks=st.integers(1, 40))
def test_spans_of_all_ranks_are_the_whole(size: int, ranks: int):
    spans = [shard_range(size, rank, ranks) for rank in range(ranks)]
    assert [i for first, last in spans for i in range(first, last)] == list(range(size))


@settings(deadline=None, max_examples=60)
@given(shape=st.lists(st.integers(1, 7), max_size=3).map(tuple), data=st.data())
def test_a_span_is_read_as_it_stands(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, ...], data: st.DataObject
):
    whole = torch.randn(shape)
    file = tmp_path_factory.mktemp("span") / "x.safetensors"
    save_file({"w": whole}, file)
    first = data.draw(st.integers(0, whole.numel()))
    last = data.draw(st.integers(first, whole.numel()))
    with safe_open(file, framework="pt") as source:
        assert torch.equal(read_range(source, "w", shape, first, last), whole.flatten()[first:last])


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_a_model_of_many_shards_is_read_in_parts_and_written_again(tmp_path: Path, ranks: int):
    folder = write_model(tmp_path / "model", shard="20KB")
    shards = read_shards(folder, "t", "model")
    assert len(shards) > 3
    shapes = {t.name: t.shape for shard in shards for t in shard.tensors}
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in shapes}
    for rank in range(ranks):
        read_weights(
            shards,
            shapes,
            ProcessGroup(rank, ranks),
            lambda name, values: parts[name].append(values),
        )
    write_weights(
        shards,
        tmp_path / "out",
        ProcessGroup(),
        lambda name: torch.cat(parts[name]).reshape(shapes[name]),
    )
    for path in folder.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_weights_are_written_in_the_dtype_that_they_had(tmp_path: Path):
    folder = write_model(tmp_path / "model")
    half = {
        name: values.bfloat16() for name, values in load_file(folder / "model.safetensors").items()
    }
    save_file(half, folder / "model.safetensors")
    shards = read_shards(folder, "t", "model")
    write_weights(shards, tmp_path / "out", ProcessGroup(), lambda name: half[name].float() + 1e-6)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(written[name], (half[name].float() + 1e-6).bfloat16()) for name in half)


def test_files_that_do_not_fit_the_model_are_refused(tmp_path: Path):
    shards = read_shards(write_model(tmp_path / "model"), "t", "model")
    shapes = {t.name: t.shape for t in shards[0].tensors}
    name = next(iter(shapes))
    with pytest.raises(InvalidInput, match="tensors that the model has a parameter for"):
        check_tensors(shards, {k: v for k, v in shapes.items() if k != name})
    with pytest.raises(InvalidInput, match="as config"):
        check_tensors(shards, shapes | {name: (1, 1)})
    (tmp_path / "model" / "model.safetensors").write_bytes(shards[0].path.read_bytes()[:-5])
    with pytest.raises(InvalidInput, match="copy the file again"):
        read_shards(tmp_path / "model", "t", "model")


STATE = {"master/a": torch.arange(10.0), "exp_avg/a": torch.randn(10), "master/b": torch.randn(2)}


def write_state(folder: Path, step: int, ranks: int) -> RunProgress:
    """A checkpoint as that many ranks would have written it, here one after the other."""
    progress = RunProgress(
        bundle="b",
        step=step,
        tokens={"code": 8 * step},
        skipped=(3,),
        ranks=ranks,
        sizes={},
        files={},
    )
    place = folder / f"step-{step:08d}"
    place.mkdir(parents=True)
    files = {}
    for rank in range(ranks):
        cut = {
            name: values[slice(*shard_range(len(values), rank, ranks))].clone()
            for name, values in STATE.items()
        }
        file = place / f"rank-{rank:05d}.safetensors"
        save_file(
            {name: values for name, values in cut.items() if len(values)}
            or {"nothing": torch.zeros(1)},
            file,
        )
        files[file.name] = file_sha256(file)
    sizes = {name: len(values) for name, values in STATE.items()}
    progress = progress.model_copy(update={"sizes": sizes, "files": files})
    (place / "manifest.json").write_text(progress.model_dump_json())
    (folder / "latest").write_text(place.name)
    return progress


@pytest.mark.parametrize("wrote", [1, 2, 3, 5])
@pytest.mark.parametrize("reads", [1, 2, 4])
def test_a_checkpoint_is_read_by_any_number_of_ranks(tmp_path: Path, wrote: int, reads: int):
    progress = write_state(tmp_path, 5, wrote)
    parts = [
        dict(
            checkpoints.read_checkpoint(
                tmp_path / "step-00000005", progress, ProcessGroup(rank, reads)
            )
        )
        for rank in range(reads)
    ]
    for name, values in STATE.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), values)


def test_saving_keeps_the_last_ones_and_moves_the_pointer(tmp_path: Path):
    checkpoints.initialize_checkpoints(tmp_path)
    assert checkpoints.find_checkpoint(tmp_path, "b", ProcessGroup(), print) is None
    blank = RunProgress(bundle="b", step=0, tokens={}, ranks=1, sizes={}, files={})
    for step in (5, 10, 15):
        state = ((name, len(values), values) for name, values in STATE.items())
        checkpoints.save_checkpoint(
            tmp_path, state, blank.model_copy(update={"step": step}), 2, ProcessGroup()
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "latest",
        "step-00000010",
        "step-00000015",
    ]
    found = checkpoints.find_checkpoint(tmp_path, "b", ProcessGroup(), print)
    assert found is not None
    assert (found[1].step, found[1].sizes) == (
        15,
        {name: len(values) for name, values in STATE.items()},
    )


def test_a_run_does_not_begin_beside_checkpoints(tmp_path: Path):
    checkpoints.initialize_checkpoints(tmp_path)
    checkpoints.initialize_checkpoints(tmp_path)  # killed in between: nothing is lost
    write_state(tmp_path, 5, 1)
    with pytest.raises(InvalidInput, match="does not start over by itself"):
        checkpoints.initialize_checkpoints(tmp_path)


def test_a_lost_pointer_never_starts_over(tmp_path: Path):
    write_state(tmp_path, 5, 2)
    for lose in (lambda: (tmp_path / "latest").write_text(""), (tmp_path / "latest").unlink):
        lose()
        with pytest.raises(InvalidInput, match="write `step-00000005` into it"):
            checkpoints.find_checkpoint(tmp_path, "b", ProcessGroup(), print)
    with pytest.raises(InvalidInput, match="does not start over by itself"):
        checkpoints.find_checkpoint(tmp_path / "none", "b", ProcessGroup(), print)


def test_a_damaged_checkpoint_is_said_and_the_one_before_taken(tmp_path: Path):
    write_state(tmp_path, 5, 2)
    write_state(tmp_path, 10, 2)
    file = tmp_path / "step-00000010" / "rank-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    said: list[str] = []
    found = checkpoints.find_checkpoint(tmp_path, "b", ProcessGroup(), said.append)
    assert found is not None
    assert found[1].step == 5
    assert "rank-00001.safetensors" in said[0]
    (tmp_path / "step-00000005" / "rank-00000.safetensors").unlink()
    with pytest.raises(InvalidInput, match="none of them sound"):
        checkpoints.find_checkpoint(tmp_path, "b", ProcessGroup(), said.append)


def test_checkpoints_of_another_bundle_or_version_are_refused(tmp_path: Path):
    write_state(tmp_path, 5, 1)
    with pytest.raises(InvalidInput, match="name another --out"):
        checkpoints.find_checkpoint(tmp_path, "other", ProcessGroup(), print)
    path = tmp_path / "step-00000005" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"new": 1}))
    with pytest.raises(InvalidInput, match="this version of sweepcp"):
        checkpoints.find_checkpoint(tmp_path, "b", ProcessGroup(), print)
