"""Invalid input exits with status 2, names file, key, value, rule and fix, and writes nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sweepcp.cli import main
from sweepcp.corpora.experiment import load_experiment
from sweepcp.util.files import shipped_folder

QUICKSTART = (shipped_folder("experiments") / "quickstart.yaml").read_text()
TRAINING = "training:\n  seq_len: 128"
LOW = "space: {lr_fraction: {low: 1.0, high: 0.1, scale: log}, general_share: {low: 0, high: 1}}"


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str
) -> tuple[int, str]:
    """Exit status and the error message of a command."""
    monkeypatch.setattr(sys, "argv", ["sweepcp", *args])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            TRAINING,
            "training:\n  seq_lenn: 128",
            ["training.seq_lenn", "128", "unknown key", "`seq_len`"],
        ),
        ("choose:", "chose:", ["chose", "unknown key", "`choose`"]),
        ("seed: 0", "seed: 0\nseed: 1", [":5: seed", "duplicate key", "remove one"]),
        (
            "max_lr: 3e-3",
            'max_lr: "1e-4"',
            ["base.max_lr", "'1e-4'", "a number, not text", "without quotes"],
        ),
        (
            "python-docs: 1.0",
            "python-docs: 0.9",
            ["base.pretrain.mixture", "0.9", "sum to 1", "correct the shares"],
        ),
        ("trials: 16", "trials: 0", ["budget.trials", "0", "an integer of at least 1"]),
        ("space: lr-mix", LOW, ["space.lr_fraction", "low 1 is below high 0.1", "swap them"]),
        (
            "python: {part: code}",
            "files: [empty.jsonl]",
            ["sources.python-code.files", "empty.jsonl", "empty"],
        ),
        (
            TRAINING,
            "training:\n  seq_len: 512",
            ["training.seq_len", "512", "at most 256 tokens", "256 or less"],
        ),
        (
            "python: {part: code}",
            "files: [no.jsonl]",
            ["sources.python-code.files", "no.jsonl", "correct the path"],
        ),
        ("role: domain", "role: general", ["sources", "a source of role domain", "add a source"]),
        (
            "tokens: 102_400",
            "tokens: 100_000",
            ["budget.tokens", "100000", "multiple", "use 100352"],
        ),
        (
            "- {held_out: python-code,",
            "- {held_out: python,",
            ["suites.domain", "python", "one of the sources"],
        ),
        ("max_regression: 2.0", "max_regresion: 2.0", ["choose.max_regresion", "`max_regression`"]),
        ("name: quickstart", "name: [a", ["line", "valid YAML"]),
    ],
)
def test_invalid_experiments(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    old: str,
    new: str,
    expected: list[str],
):
    assert old in QUICKSTART
    (tmp_path / "empty.jsonl").touch()
    path = tmp_path / "mine.yaml"
    path.write_text(QUICKSTART.replace(old, new, 1))
    monkeypatch.setenv("SWEEPCP_CACHE", str(tmp_path / "cache"))
    before = sorted(tmp_path.rglob("*"))
    code, message = run(monkeypatch, capsys, "search", str(path), "--out", str(tmp_path / "out"))
    assert code == 2
    assert str(path) in message
    for part in [*expected, "found:", "rule:", "fix:"]:
        assert part in message
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["search", "none.yaml"], ["none.yaml", "e-llama, quickstart"]),
        (["search", "--set", "budget.trails=4"], ["--set budget.trails=4", "`trials`"]),
        (["search", "--set", "budget"], ["key=value"]),
        (["search", "--trials", "0"], ["--set budget.trials=0", "an integer of at least 1"]),
        (
            ["search", "--set", "space.lr_fraction.low=2"],
            ["--set space.lr_fraction.low=2", "low 2 is below high 1"],
        ),
        (["search", "--set", "sources.nope.weight=1"], ["python-docs, python-code"]),
        (["search", "e-llama"], ["sources.listings-en.planned_tokens", "add its `files`"]),
        (["front", "nowhere"], ["nowhere", "experiment.json"]),
        (
            ["plan", "--set", "choose.knee=true"],
            ["exactly one of max_regression, knee and weights"],
        ),
    ],
)
def test_invalid_commands(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    expected: list[str],
):
    monkeypatch.chdir(tmp_path)
    code, message = run(monkeypatch, capsys, *args)
    assert code == 2
    assert all(part in message for part in expected)
    assert not list(tmp_path.iterdir())


def test_numbers_in_scientific_notation_are_numbers(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    for text in ("1e-4", "1E-4", "1.0e-4", "0.0001"):
        path.write_text(QUICKSTART.replace("max_lr: 3e-3", f"max_lr: {text}"))
        assert load_experiment(str(path))[0].base.max_lr == 1e-4


@pytest.mark.parametrize(
    "path", sorted(shipped_folder("experiments").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_shipped_experiment_loads_by_name(path: Path):
    experiment, _ = load_experiment(path.stem)
    assert experiment.name == path.stem
    first = experiment.space.anchors[0]
    assert (first["lr_fraction"], first["general_share"]) == (0.1, 0.5)


@pytest.mark.parametrize(
    "path", sorted(shipped_folder("search_spaces").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_shipped_space_loads_in_an_experiment_that_has_its_sources(path: Path):
    experiment, _ = load_experiment("e-llama", [f"space={path.stem}"])
    assert experiment.space.axes


def test_overrides_reach_every_key():
    sets = [
        "budget.trials=3",
        "sources.python-code.weight=2",
        "space.lr_fraction.high=0.5",
        "suites.domain.1.items=80",
    ]
    experiment, _ = load_experiment("quickstart", sets)
    assert experiment.budget.trials == 3
    assert experiment.sources[1].weight == 2
    assert experiment.space.lr_fraction.high == 0.5  # type: ignore[union-attr]
    assert experiment.suites.domain[1].items == 80


def test_help_version_plan_and_schema_need_no_heavy_imports(tmp_path: Path):
    code = """
import sys
from sweepcp.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code
print("HEAVY", [m for m in ("torch", "ray", "transformers", "pandas") if m in sys.modules])
"""
    out = tmp_path / "schema.json"
    for args in (["--version"], ["plan", "--help"], ["plan"], ["schema", "--out", str(out)]):
        done = subprocess.run(
            [sys.executable, "-c", code, *args], capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == "HEAVY []"
    schema = json.loads(out.read_text())
    assert schema["additionalProperties"] is False
    assert "max_regression" in json.dumps(schema)


def test_plan_shows_the_budget_and_warnings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["sweepcp", "plan", "e-llama"])
    monkeypatch.setenv("COLUMNS", "140")
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for part in (
        "480 steps",
        "3e-05",
        "350,000,000,000 planned",
        "9.7e+18 FLOPs",
        "67.4 GiB per trial, estimated; 79.0 GiB available (a GPU of 80 GB)",
        "not a commit",
    ):
        assert part in text


def test_the_path_of_a_base_is_relative_to_the_experiment_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(
        '{"model_type": "llama", "max_position_embeddings": 256}'
    )
    save_file({"weight": torch.zeros(2, 3)}, tmp_path / "model" / "model.safetensors")
    head, tail = QUICKSTART.split("  pretrain:")[0], QUICKSTART.split("sources:", 1)[1]
    (tmp_path / "mine.yaml").write_text(f"{head}  path: model\n\nsources:{tail}")
    monkeypatch.chdir("/")
    assert load_experiment(str(tmp_path / "mine.yaml"))[0].base.path == str(tmp_path / "model")


def test_what_is_found_after_loading_names_the_file_or_the_override(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "e.yaml"
    file.write_text(QUICKSTART.replace("{cloze: python-docs, items: 160}", "{task: arc_eazy}"))
    status, message = run(monkeypatch, capsys, "plan", str(file))
    assert (status, message.splitlines()[0]) == (2, f"Error: {file}: suites.general")
    cores = "budget.cpus_per_trial=999"
    status, message = run(monkeypatch, capsys, "search", "--set", cores, "--out", str(tmp_path))
    assert (status, message.splitlines()[0]) == (2, f"Error: --set {cores}: {cores[:-4]}")
