"""Exports, parsed by the peers themselves, which tests/peers/run installs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sweepcp.export.recipe_facts import FACTS, Finding
from sweepcp.export.verify import run_reader
from sweepcp.promote.bundle import load_bundle
from tests.exports import (
    CASES,
    at_fixed_paths,
    export_alterations,
    export_cases,
    make_input,
    promoted,
    promoted_short,
    rendered,
    verify_exports,
    write_rendered,
)
from tests.make import write_bundle

FOLDER = Path(os.environ.get("SWEEPCP_PEERS", "/nowhere"))
TRAINERS = ["deepspeed", "hf-trainer", "axolotl", "llama-factory", "megatron-lm", "torchtitan"]
ROOT = Path(__file__).parents[2]
TABLE_FILE = ROOT / "docs" / "guides" / "export.md"
TABLE_BEGIN, TABLE_END = "<!-- table -->\n", "<!-- end of table -->"


def peer_python(peer: str) -> str:
    """Return the interpreter in which a peer is installed, or skip the test."""
    if peer in ("deepspeed", "hf-trainer"):
        return sys.executable
    python = FOLDER / peer / "bin" / "python"
    if not python.exists():
        pytest.skip(f"$SWEEPCP_PEERS has no {peer}: run tests/peers/run")
    return str(python)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_trainers_parse_what_was_exported(tmp_path, trainer):
    verifications = verify_exports(peer_python(trainer), trainer, export_cases(tmp_path, trainer))
    for case, verification in zip(CASES, verifications, strict=True):
        assert verification.passed, (case, verification.problems)
    print(f"\n{verifications[0].peer}: {len(CASES)} recipes")


@pytest.mark.parametrize("trainer", TRAINERS[1:])
def test_every_altered_key_is_detected(tmp_path, trainer):
    exports = export_alterations(tmp_path / "out", promoted_short(tmp_path / "bundle"), trainer)
    results = verify_exports(peer_python(trainer), trainer, list(exports.values()))
    verifications = dict(zip(exports, results, strict=True))
    assert verifications.pop("nothing").passed
    assert [key for key, verification in verifications.items() if verification.passed] == []
    print(f"\n{trainer}: {len(verifications)} keys, each altered, each detected")


@pytest.mark.parametrize("trainer", TRAINERS)
def test_e_llama_at_70b_on_480_gpus(tmp_path, trainer):
    export_input = make_input(promoted(tmp_path, "llama-3.1-70b-60x8"), tmp_path / "out")
    exports = [(export_input, rendered(export_input, trainer))]
    (verification,) = verify_exports(peer_python(trainer), trainer, exports)
    assert verification.passed, verification.problems
    stated = set(verification.differences)
    disagreeing = {f.name for f in verification.findings if f.agrees is False}
    assert disagreeing == stated
    agreeing = sum(finding.agrees is True for finding in verification.findings)
    (lr,) = (finding for finding in verification.findings if finding.name == "lr")
    print(f"\n{verification.peer}: {agreeing} agree, {lr.detail}, differences: {stated}")


@pytest.mark.parametrize(
    ("trainer", "rows"), [("axolotl", "documents"), ("llama-factory", "sequences")]
)
def test_the_mix_is_read_and_packed_as_the_stream(tmp_path, trainer, rows):
    """The shares are the recipe's, every pack is full, and an altered mix is refused."""
    python = peer_python(trainer)
    (tmp_path / "made").mkdir()
    bundle, out = write_bundle(tmp_path / "made"), tmp_path / "out"
    export_input = make_input(load_bundle(bundle), out)
    exports = [(export_input, rendered(export_input, trainer))]
    (verification,) = verify_exports(python, trainer, exports)
    assert verification.passed
    assert [finding.name for finding in verification.pending] == ["shares"]

    command = [sys.executable, "-m", "sweepcp", "data", "mix", str(bundle)]
    options = ["--out", str(out / "mix"), "--rows", rows]
    subprocess.run([*command, *options], check=True, capture_output=True)
    content = run_reader(trainer, [out], python=python)["read"][0]
    assert content["facts"]["shares"] == {"code": 0.6, "docs": 0.4}

    record = json.loads((out / "mix" / "mix.json").read_text())
    altered = record | {"rows": record["rows"] - 1}
    (out / "mix" / "mix.json").write_text(json.dumps(altered))
    error = run_reader(trainer, [out], python=python)["read"][0]["error"]
    assert "does not have the" in error


LOADER = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np, torch
from pathlib import Path
from sweepcp.data.stream import MixtureStream
from sweepcp.data.token_store import TokenStore
from sweepcp.promote.bundle import load_bundle
from sweepcp_run import StreamLoader

loaded = load_bundle(Path(sys.argv[2]))
recipe = loaded.bundle.recipe
stream = MixtureStream(recipe, [TokenStore(Path(c.store), c.name) for c in loaded.bundle.corpora])

def make_loader(rank, world_size):
    config = StreamLoader.Config(bundle=str(loaded.path), bundle_hash=loaded.id)
    return config.build(
        dp_world_size=world_size, dp_rank=rank, tokenizer=None, seq_len=32, local_batch_size=2
    )

def next_batch(iterators, micro_batches):
    # Inputs, positions and targets of all ranks, one rank after the other.
    columns = [], [], []
    for iterator in iterators:
        for _ in range(micro_batches):
            inputs, targets = next(iterator)
            for column, tensor in zip(columns, (inputs["input"], inputs["positions"], targets)):
                column.append(tensor)
    return [torch.cat(column).numpy() for column in columns]

loaders = [make_loader(rank, 2) for rank in range(2)]
iterators = [iter(loader) for loader in loaders]
for step in range(1, 8):
    batch = stream.batch(step)
    expected = batch.input_ids, batch.position_ids, batch.targets
    for column, expected_column in zip(next_batch(iterators, 4), expected):
        assert np.array_equal(column, expected_column), step
resumed = make_loader(0, 1)
resumed.load_state_dict(loaders[0].state_dict())
inputs, _, _ = next_batch([iter(resumed)], 8)
assert np.array_equal(inputs, stream.batch(8).input_ids)
assert len(list(iter(resumed))) == (recipe.steps - 8) * 8
print("the loader yields the stream, and resumes on another number of ranks")
"""


def test_torchtitans_loader_yields_the_stream(tmp_path):
    (tmp_path / "made").mkdir()
    bundle = write_bundle(tmp_path / "made")
    export_input = make_input(promoted_short(tmp_path / "short"), tmp_path / "out")
    write_rendered(export_input, rendered(export_input, "torchtitan"))
    command = [peer_python("torchtitan"), "-c", LOADER, str(export_input.out), str(bundle)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert process.returncode == 0, process.stderr
    print(f"\n{process.stdout.strip()}")


def test_skypilot_accepts_its_tasks_and_refuses_unknown_keys(tmp_path):
    export_input = at_fixed_paths(promoted(tmp_path, "llama-3.1-70b-60x8"))
    folders: list[Path] = []
    for trainer in (*TRAINERS, TRAINERS[0]):
        folder = tmp_path / str(len(folders))
        folder.mkdir()
        for name, text in rendered(export_input, trainer, "skypilot").items():
            (folder / name).write_text(text)
        folders.append(folder)
    invalid_task = folders[-1] / "task.yaml"
    task = yaml.safe_load(invalid_task.read_text())
    invalid_task.write_text(yaml.safe_dump(task | {"num_node": 3}))
    content = run_reader("skypilot", folders, python=peer_python("skypilot"))
    *accepted, refused = content["read"]
    for parsed in accepted:
        assert (parsed["settings"]["nodes"], parsed["settings"]["gpus"]) == (60, 8)
    assert accepted[0]["settings"]["secrets"] == ["HF_TOKEN", "WANDB_API_KEY"]
    assert "num_node" in refused["error"]
    print(f"\n{content['peer']}: {len(accepted)} tasks")


@pytest.mark.skipif(not TABLE_FILE.is_file(), reason="there is no docs/guides/export.md")
def test_the_table_in_the_docs_is_what_the_peers_parse(tmp_path):
    """What survives where; SWEEPCP_WRITE_TABLE writes it."""
    before, rest = TABLE_FILE.read_text().split(TABLE_BEGIN, 1)
    written, after = rest.split(TABLE_END, 1)
    table = survival_table(tmp_path)
    if os.environ.get("SWEEPCP_WRITE_TABLE"):
        TABLE_FILE.write_text(f"{before}{TABLE_BEGIN}{table}{TABLE_END}{after}")
    else:
        assert written == table


def survival_table(folder: Path) -> str:
    """Return a row per fact and a column per trainer, as Markdown."""
    peers, columns = [], []
    for trainer in TRAINERS:
        loaded = promoted(folder / trainer, "llama-3.1-70b-60x8")
        export_input = make_input(loaded, folder / trainer / "out")
        exports = [(export_input, rendered(export_input, trainer))]
        (verification,) = verify_exports(peer_python(trainer), trainer, exports)
        peers.append(verification.peer.split(", ")[0])
        columns.append({f.name: table_cell(f) for f in verification.findings if f.name in FACTS})
    rows = [["", *TRAINERS], ["", *peers]]
    rows += [[label, *(column[fact] for column in columns)] for fact, label in FACTS.items()]
    lines = [f"| {' | '.join(row)} |\n" for row in rows]
    separator = "|---" * (len(TRAINERS) + 1) + "|\n"
    return "".join([lines[0], separator, *lines[1:]])


def table_cell(finding: Finding) -> str:
    """Return in a few words whether a fact survives."""
    if finding.agrees is None:
        return "same, once written"
    if not finding.agrees:
        return "**differs**"
    if finding.name == "lr" and finding.detail != "area +0.0000%":
        return "off by one step"
    return "same"
