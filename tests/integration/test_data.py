"""Corpora on a Ray cluster of two nodes, and a check of a whole experiment."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from sweepcp.data import records
from sweepcp.data.build import build_store
from sweepcp.data.source_files import resolve_source
from sweepcp.util.files import shipped_folder
from sweepcp.util.progress import NoProgress
from tests.make import jsonl, source
from tests.unit.test_build import BYTES, RECORDS


@pytest.mark.slow
def test_a_cluster_builds_the_same_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(records, "SHARD_BYTES", 5000)
    jsonl(tmp_path / "a.jsonl", RECORDS)
    s = source()
    contents = []
    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=1, include_dashboard=False)
        cluster.add_node(num_cpus=1)
        for address in (None, cluster.address):
            monkeypatch.setenv("SWEEPCP_CACHE", str(tmp_path / f"cache-{address is None}"))
            store = build_store(
                s,
                resolve_source(s, folder=tmp_path),
                tokenizer_id="bytes",
                make_encoder=lambda: BYTES,
                progress=NoProgress(),
                address=address,
            )
            contents.append(
                [
                    (store.path / n).read_bytes()
                    for n in ("train.bin", "train.idx", "held_out.jsonl")
                ]
            )
    finally:
        cluster.shutdown()
    assert contents[0] == contents[1]


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment on generated listings and on German text that is declared as English.

    One listing repeats a held-out document.
    """
    folder = tmp_path_factory.mktemp("catalogue")
    rng = random.Random(0)
    nouns, verbs = (
        ["lamp", "cup", "table", "chair", "shelf"],
        ["shines", "holds", "stands", "moves", "fits"],
    )

    def sentence() -> str:
        return f"the {rng.choice(nouns)} {rng.choice(verbs)} number {rng.randrange(10**6)}"

    texts = [" ".join(sentence() for _ in range(12)) for _ in range(400)]
    valid, train = texts[:40], texts[40:]
    filler = " ".join(f"filler{n}" for n in range(60))
    leak = f"A long introduction to something else altogether: {filler}. {valid[3]}"
    jsonl(folder / "train.jsonl", [{"text": t} for t in [*train, leak]])
    jsonl(folder / "valid.jsonl", [{"text": t} for t in valid])
    spoken = re.findall(
        r"\w+", "der die das Stuhl Tisch steht und wartet aber nicht Gäste kommen schön über Straße"
    )
    german = [" ".join(rng.choice(spoken) for _ in range(40)) for _ in range(300)]
    jsonl(folder / "web.jsonl", [{"text": t} for t in german])
    content = (shipped_folder("experiments") / "quickstart.yaml").read_text()
    head, tail = content.split("sources:")[0], content.split("space:")[1]
    content = f"""{head}sources:
  - {{name: python-docs, role: domain, files: [train.jsonl], held_out_files: [valid.jsonl]}}
  - {{name: web, role: general, language: en, files: [web.jsonl], near_duplicates: keep}}
suites:
  domain: [{{held_out: python-docs}}]
  general: [{{held_out: web}}]
space:{tail}"""
    (folder / "mine.yaml").write_text(content)
    return folder


def sweepcp(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sweepcp", *map(str, args)]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "140"}
    )


def test_check_reports_overlaps_and_its_list_excludes_them(catalogue: Path):
    overlaps = catalogue / "overlaps.jsonl"
    done = sweepcp("data", "check", catalogue / "mine.yaml", "--write", overlaps)
    assert done.returncode == 1, done.stderr
    assert "warning: web is declared as en, which was detected in 0% of a sample" in done.stdout
    found = [json.loads(line) for line in overlaps.read_text().splitlines()]
    assert [(f["source"], f["place"], f["overlap"]) for f in found] == [
        ("python-docs", f"{catalogue}/train.jsonl:361", 1.0)
    ]
    assert (
        f"train.jsonl:361 (python-docs, id {found[0]['id']}) contains 100% of held_out_python-docs"
        in done.stdout
    )
    again = sweepcp(
        "data",
        "check",
        catalogue / "mine.yaml",
        "--set",
        "sources.python-docs.exclude=overlaps.jsonl",
    )
    assert again.returncode == 0, again.stderr
    assert "left out: 1 excluded" in again.stdout


def test_build_reports_its_stores_and_refuses_bad_records(catalogue: Path):
    first = sweepcp("data", "build", catalogue / "mine.yaml")
    assert first.returncode == 0, first.stderr
    assert "361" in first.stdout
    bad = sweepcp("data", "build", catalogue / "mine.yaml", "--set", "sources.web.field=txt")
    assert bad.returncode == 2
    assert f"{catalogue}/web.jsonl:1: txt" in bad.stderr
