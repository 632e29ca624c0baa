"""Exports, parsed by the peers themselves; see tests/peers/run, which installs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sweepcp.export.recipe_facts import FACTS
from sweepcp.export.verify import run_reader
from sweepcp.promote.bundle import load_bundle
from tests.exports import (
    CASES,
    at_fixed_places,
    cases_of,
    promoted,
    rendered,
    short,
    source,
    verdicts,
)
from tests.exports import with_each_key_altered as altered_keys
from tests.make import write_bundle

FOLDER = Path(os.environ.get("SWEEPCP_PEERS", "/nowhere"))
TRAINERS = ["deepspeed", "hf-trainer", "axolotl", "llama-factory", "megatron-lm", "torchtitan"]


def python(peer: str) -> str:
    """The interpreter in which a peer is installed."""
    if peer in ("deepspeed", "hf-trainer"):
        return sys.executable
    found = FOLDER / peer / "bin" / "python"
    if not found.exists():
        pytest.skip(f"$SWEEPCP_PEERS has no {peer}: run tests/peers/run")
    return str(found)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_what_is_exported_is_what_is_parsed(tmp_path, trainer):
    found = dict(
        zip(CASES, verdicts(python(trainer), trainer, cases_of(tmp_path, trainer)), strict=True)
    )
    for case, checked in found.items():
        assert checked.good, (case, checked.wrong, checked.missing)
    print(f"\n{found['cosine'].peer}: {len(CASES)} recipes")


@pytest.mark.parametrize("trainer", TRAINERS[1:])
def test_every_key_that_is_exported_is_checked(tmp_path, trainer):
    variants = altered_keys(tmp_path / "out", short(tmp_path / "bundle"), trainer)
    checked = dict(
        zip(variants, verdicts(python(trainer), trainer, list(variants.values())), strict=True)
    )
    assert checked.pop("nothing").good
    assert [what for what, found in checked.items() if found.good] == []
    print(f"\n{trainer}: {len(checked)} keys, each altered, each found")


@pytest.mark.parametrize("trainer", TRAINERS)
def test_e_llama_at_70b_on_480_gpus(tmp_path, trainer):
    made = source(promoted(tmp_path, "llama-3.1-70b-60x8"), tmp_path / "out")
    (checked,) = verdicts(python(trainer), trainer, [(made, rendered(made, trainer))])
    assert checked.good, (checked.wrong, checked.missing)
    stated = set(checked.differences)
    assert {f.what for f in checked.findings if f.agrees is False} == stated
    lr = next(f for f in checked.findings if f.what == "lr")
    print(
        f"\n{checked.peer}: {sum(f.agrees is True for f in checked.findings)} agree, {lr.detail}, differs: {stated}"
    )


@pytest.mark.parametrize(
    ("trainer", "rows"), [("axolotl", "documents"), ("llama-factory", "sequences")]
)
def test_the_mix_is_read_and_packed_as_the_stream_was(tmp_path, trainer, rows):
    """Axolotl's own sampler fills every pack; the shares are the recipe's; another mix is noticed."""
    (tmp_path / "made").mkdir()
    bundle, out = write_bundle(tmp_path / "made"), tmp_path / "out"
    made = source(load_bundle(bundle), out)
    (checked,) = verdicts(python(trainer), trainer, [(made, rendered(made, trainer))])
    assert checked.good
    assert [f.what for f in checked.open] == ["shares"]

    command = [
        sys.executable,
        "-m",
        "sweepcp",
        "data",
        "mix",
        str(bundle),
        "--out",
        str(out / "mix"),
        "--rows",
        rows,
    ]
    subprocess.run(command, check=True, capture_output=True)
    content = run_reader(python(trainer), trainer, [out])["read"][0]
    assert content["facts"]["shares"] == {"code": 0.6, "docs": 0.4}

    record = json.loads((out / "mix" / "mix.json").read_text())
    (out / "mix" / "mix.json").write_text(json.dumps(record | {"rows": record["rows"] - 1}))
    assert "has not the" in run_reader(python(trainer), trainer, [out])["read"][0]["error"]


LOADER = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np, torch
from pathlib import Path
from sweepcp.data.store import Store
from sweepcp.data.stream import Stream
from sweepcp.promote.bundle import open_bundle
from sweepcp_run import StreamLoader

opened = open_bundle(Path(sys.argv[2]))
recipe = opened.bundle.recipe
stream = Stream(recipe, [Store(Path(c.store), c.name) for c in opened.bundle.corpora])

def loader(rank, ranks):
    config = StreamLoader.Config(bundle=str(opened.path), bundle_hash=opened.id)
    return config.build(dp_world_size=ranks, dp_rank=rank, tokenizer=None, seq_len=32, local_batch_size=2)

def pull(loaders, pieces):
    rows = [[next(it) for _ in range(pieces)] for it in loaders]
    return [torch.cat([(x["input"], x["positions"], y)[i] for row in rows for x, y in row]) for i in range(3)]

loaders = [loader(rank, 2) for rank in range(2)]
iterators = [iter(l) for l in loaders]
for step in range(1, 8):
    batch = stream.batch(step)
    for got, want in zip(pull(iterators, 4), (batch.input_ids, batch.position_ids, batch.targets)):
        assert np.array_equal(got.numpy(), want), step
state = loaders[0].state_dict()
resumed = loader(0, 1)
resumed.load_state_dict(state)
got = pull([iter(resumed)], 8)[0]
assert np.array_equal(got.numpy(), stream.batch(8).input_ids)
assert len(list(iter(resumed))) == (recipe.steps - 8) * 8
print("the loader gives the stream, and goes on with another number of ranks")
"""


def test_torchtitans_loader_gives_the_stream(tmp_path):
    (tmp_path / "made").mkdir()
    bundle = write_bundle(tmp_path / "made")
    made = source(short(tmp_path / "short"), tmp_path / "out")
    made.out.mkdir()
    for name, text in rendered(made, "torchtitan").items():
        (made.out / name).write_text(text)
    command = [python("torchtitan"), "-c", LOADER, str(made.out), str(bundle)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    print(f"\n{done.stdout.strip()}")


def test_skypilot_takes_its_task(tmp_path):
    made = at_fixed_places(promoted(tmp_path, "llama-3.1-70b-60x8"))
    for i, trainer in enumerate(TRAINERS):
        (tmp_path / str(i)).mkdir()
        for name, text in rendered(made, trainer, "skypilot").items():
            (tmp_path / str(i) / name).write_text(text)
    bad = tmp_path / "bad"
    bad.mkdir()
    for path in (tmp_path / "0").iterdir():
        (bad / path.name).write_text(path.read_text())
    task = yaml.safe_load((bad / "task.yaml").read_text())
    (bad / "task.yaml").write_text(yaml.safe_dump(task | {"num_node": 3}))
    folders = [tmp_path / str(i) for i in range(len(TRAINERS))]
    content = run_reader(python("skypilot"), "skypilot", [*folders, bad])
    *good, last = content["read"]
    assert all(
        found["settings"]["nodes"] == 60 and found["settings"]["gpus"] == 8 for found in good
    )
    assert good[0]["settings"]["secrets"] == ["HF_TOKEN", "WANDB_API_KEY"]
    assert "num_node" in last["error"]
    print(f"\n{content['peer']}: {len(good)} tasks")


def test_the_table_in_the_readme_is_what_the_peers_say(tmp_path):
    """What survives where; SWEEPCP_WRITE_TABLE writes it."""
    columns = {}
    for trainer in TRAINERS:
        made = source(
            promoted(tmp_path / trainer, "llama-3.1-70b-60x8"), tmp_path / trainer / "out"
        )
        (checked,) = verdicts(python(trainer), trainer, [(made, rendered(made, trainer))])
        columns[trainer] = {f.what: _cell(f) for f in checked.findings if f.what in FACTS}
        columns[trainer]["peer"] = checked.peer.split(", ")[0]
    rows = [["", *TRAINERS], ["", *(columns[t]["peer"] for t in TRAINERS)]]
    rows += [
        [called, *(columns[trainer][fact] for trainer in TRAINERS)]
        for fact, called in FACTS.items()
    ]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    table = "\n".join([lines[0], "|---" * (len(TRAINERS) + 1) + "|", *lines[1:]])
    path = Path(__file__).parents[2] / "README.md"
    before, rest = path.read_text().split("<!-- table -->\n", 1)
    old, after = rest.split("<!-- end of table -->", 1)
    if os.environ.get("SWEEPCP_WRITE_TABLE"):
        path.write_text(f"{before}<!-- table -->\n{table}\n<!-- end of table -->{after}")
    else:
        assert old == f"{table}\n"


def _cell(finding) -> str:
    if finding.agrees is None:
        return "same, once written"
    if not finding.agrees:
        return "**differs**"
    if finding.what == "lr" and finding.detail != "area +0.0000%":
        return "a step apart"
    return "same"
