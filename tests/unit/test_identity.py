"""What a run's numbers depend on: by content, compared whenever a run is resumed or reused."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml

from sweepcp.config.base_model import BaseSpec
from sweepcp.config.suites import Suites
from sweepcp.corpora.experiment import load_experiment
from sweepcp.corpora.permissions import check_permissions, remember_permissions
from sweepcp.corpora.provenance import base_model_of_run, check_tasks_of_run, stores_of_run
from sweepcp.corpora.task_files import task_fingerprint
from sweepcp.errors import InvalidInput
from sweepcp.full_run.preflight import check_content, check_ready
from sweepcp.models.base import max_sequence_length, pin_base, tokenizer_id
from sweepcp.models.files import model_fingerprint, model_identity, read_shards
from sweepcp.promote.bundle import load_bundle
from sweepcp.runs import trial as trial_records
from sweepcp.runs.run_folder import Run, RunWriter, read_run
from sweepcp.runs.trial import BaseRecord, check_environment, numeric_environment
from sweepcp.search import cluster, resume, search
from sweepcp.search.devices import TrialSlots
from sweepcp.search.worker_io import WorkerSpec
from sweepcp.util import file_hashes
from sweepcp.util.progress import NoProgress
from tests.make import items, jsonl, update_store, write_bundle, write_model

TASK = {
    "task": "quiz",
    "include": "_template",
    "dataset_kwargs": {"data_files": {"test": "data/items.jsonl"}},
}


@pytest.fixture(autouse=True)
def _unrehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load no task: its items are not what these tests are about, and loading takes seconds."""
    monkeypatch.setattr(search, "check_readiness", lambda e, **_: remember_permissions(e.suites))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment of everything that a run can depend on, and its files."""
    folder = tmp_path_factory.mktemp("inputs")
    write_model(folder / "base")
    for name in ("dom", "gen"):
        records = [{"text": f"{name}: the text of document {n * n}, {n}."} for n in range(300)]
        jsonl(folder / f"{name}.jsonl", records)
    jsonl(folder / "drop.jsonl", [{"id": "0" * 16}])
    write_tasks(folder / "tasks")
    content = {
        "name": "small",
        "base": {"path": "base", "max_lr": 3e-3},
        "sources": [
            {"name": "dom", "role": "domain", "files": ["dom.jsonl"], "exclude": "drop.jsonl"},
            {"name": "gen", "role": "general", "files": ["gen.jsonl"]},
        ],
        "suites": {
            "domain": [{"held_out": "dom"}],
            "general": [
                {"held_out": "gen"},
                {"task": "quiz", "path": "tasks", "allow_code": True},
            ],
        },
        "space": "lr-mix",
        "training": {"seq_len": 32, "batch_tokens": 1024},
        "budget": {"trials": 2, "tokens": 10_240},
        "choose": {"max_regression": 2.0},
    }
    (folder / "exp.yaml").write_text(yaml.safe_dump(content))
    return folder


def write_tasks(folder: Path) -> None:
    (folder / "data").mkdir(parents=True)
    (folder / "quiz.yaml").write_text(yaml.safe_dump(TASK))
    (folder / "_template").write_text("output_type: multiple_choice\ndoc_to_text: !function u.f\n")
    (folder / "u.py").write_text("def f(doc):\n    return doc['q']\n")
    (folder / "words.txt").write_text("what u.py reads\n")
    (folder / "data" / "items.jsonl").write_text('{"q": "?"}\n')
    (folder / "other.yaml").write_text("task: another\ndoc_to_text: x\n")


@pytest.fixture
def folder(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the inputs, and searches that score the base and run no trial."""
    monkeypatch.setattr(search, "_run_missing_trials", score_base_only)
    monkeypatch.setattr(cluster, "ray_cluster", lambda *_, **__: nullcontext(TrialSlots(0.0, 1)))
    shutil.copytree(inputs, tmp_path / "inputs")
    return tmp_path / "inputs"


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache whose stores a test may damage."""
    monkeypatch.setenv("SWEEPCP_CACHE", str(tmp_path / "cache"))


def score_base_only(writer: RunWriter, run: Run, *_: object, **__: object) -> None:
    if run.base is None:
        writer.write_base(
            base_record(
                numeric_environment(
                    device="cpu",
                    precision="fp32",
                    attention="sdpa",
                    prompts="",
                    items="",
                    scoring="shared",
                )
            )
        )


def base_record(environment: dict[str, str]) -> BaseRecord:
    scores = (items("domain", [1.0] * 4), items("general", [1.0] * 4))
    return BaseRecord(
        model="base", parameters=1, max_lr=1, items=scores, environment=environment, versions={}
    )


def run_search(folder: Path, *overrides: str, out: Path | None = None) -> Run:
    experiment, files = load_experiment(str(folder / "exp.yaml"), overrides)
    return search.run_search(experiment, files, out or folder.parent / "run", progress=NoProgress())


def change_text(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def change_json(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


def change_weights(folder: Path) -> None:
    """Change one byte of the weights, and restore the time of the file."""
    path = folder / "base" / "model.safetensors"
    content, times = bytearray(path.read_bytes()), path.stat()
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights": (change_weights, "the base's weights"),
    "config": (lambda f: change_json(f / "base/config.json", rms_norm_eps=1e-5), "base's config"),
    "generation": (
        lambda f: change_json(f / "base/generation_config.json", repetition_penalty=1.1),
        "the base's config",
    ),
    "adapter": (lambda f: change_json(f / "base/adapter_config.json", r=8), "the base's config"),
    "tokenizer": (
        lambda f: change_text(f / "base/tokenizer.json", '"</s>"', '"</t>"'),
        "the base's tokenizer",
    ),
    "tokenizer settings": (
        lambda f: change_json(f / "base/tokenizer_config.json", add_bos_token=True),
        "the base's tokenizer",
    ),
    "corpus": (lambda f: change_text(f / "gen.jsonl", "document", "documend"), "the text of gen"),
    "exclude": (lambda f: change_text(f / "drop.jsonl", "0", "1"), "the text of dom"),
    "task": (lambda f: change_text(f / "tasks/quiz.yaml", "test:", "train:"), "items of quiz"),
    "template": (lambda f: change_text(f / "tasks/_template", "u.f", "u.g"), "items of quiz"),
    "code": (lambda f: change_text(f / "tasks/u.py", "'q'", "'a'"), "the items of quiz"),
    "file beside the code": (lambda f: change_text(f / "tasks/words.txt", "w", "v"), "of quiz"),
    "data": (lambda f: change_text(f / "tasks/data/items.jsonl", "?", "!"), "items of quiz"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_search_refuses_to_resume_with_other_inputs(folder: Path, name: str):
    run_search(folder)
    change, found = CHANGES[name]
    change(folder)
    with pytest.raises(InvalidInput) as error:
        run_search(folder)
    assert found in str(error.value.found)
    assert ";" not in str(error.value.found).replace("the base's config; ", "")
    assert error.value.key == "--out"


def test_a_search_resumes_with_other_numbers_for_estimates(folder: Path):
    identity = run_search(folder).identity
    resumed = run_search(folder, "base.parameters=5", "budget.sustained_tflops=1")
    assert resumed.identity == identity
    stated, _ = load_experiment("e-llama")
    other, _ = load_experiment("e-llama", ["base.shape.num_hidden_layers=5"])
    assert resume._fixed_settings(stated) == resume._fixed_settings(other)


def test_a_search_resumes_with_another_micro_batch_but_not_with_another_attention(folder: Path):
    identity = run_search(folder).identity
    changes = ("training.micro_batch=2", "training.recompute=true")
    assert run_search(folder, *changes).identity == identity
    with pytest.raises(InvalidInput) as refused:
        run_search(folder, "training.attention=eager")
    assert refused.value.found == 'training.attention: "auto" → "eager"'


def test_a_run_of_an_earlier_version_resumes(folder: Path):
    run = run_search(folder)
    file = run.path / "experiment.json"
    content = json.loads(file.read_text())
    training, budget = content["experiment"]["training"], content["experiment"]["budget"]
    for key in ("attention", "recompute", "compile"):
        del training[key]
    training["micro_batch"], budget["gpus_per_trial"] = None, 0
    file.write_text(json.dumps(content))
    base = json.loads((run.path / "base.json").read_text())
    del base["environment"]["attention"]
    (run.path / "base.json").write_text(json.dumps(base))
    assert run_search(folder).identity == run.identity


def test_a_resumed_search_computes_attention_as_it_began(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    used: list[str] = []

    def record(writer: RunWriter, run: Run, spec: WorkerSpec, *_: object, **__: object) -> None:
        used.append(spec.attention)
        score_base_only(writer, run)

    monkeypatch.setattr(search, "_run_missing_trials", record)
    base = run_search(folder).base
    run_search(folder)
    assert base is not None
    del base.environment["attention"]  # as earlier versions recorded it
    RunWriter(folder.parent / "run").write_base(base)
    run_search(folder)
    assert used == ["auto", "sdpa", "sdpa"]


def test_a_search_resumes_with_another_share_of_a_gpu_but_not_on_another_device(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    run_search(folder)
    run_search(folder, "budget.gpus_per_trial=0")
    slots = TrialSlots(1.0, 1)
    monkeypatch.setattr(cluster, "ray_cluster", lambda *_, **__: nullcontext(slots))
    monkeypatch.setattr(search, "prepare_worker", None)
    with pytest.raises(InvalidInput) as refused:
        run_search(folder)
    assert refused.value.found == "device cuda"
    assert refused.value.fix == "set budget.gpus_per_trial to 0, or pass another --out"


def test_a_search_resumes_wherever_and_whenever_its_inputs_were_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    run_search(folder)
    before = read_run(folder.parent / "run").identity
    for file in folder.rglob("*"):
        os.utime(file, ns=(1, 1))
    (folder / "base" / "README.md").write_text("what no number depends on")
    (folder / "base" / "chat_template.jinja").write_text("{{ messages }}")
    change_json(folder / "base" / "tokenizer_config.json", chat_template="{{ messages }}")
    change_text(folder / "tasks" / "other.yaml", "doc_to_text", "doc_to_target")
    moved = folder.parent / "moved"
    shutil.move(folder, moved)
    (moved / "base").rename(moved / "model")
    (moved / "tasks").rename(moved / "my_tasks")
    change_text(moved / "exp.yaml", "path: base", "path: model")
    change_text(moved / "exp.yaml", "path: tasks", "path: my_tasks")
    change_text(moved / "exp.yaml", "- gen.jsonl", "- g*.jsonl")
    assert run_search(moved, "budget.trials=3", out=folder.parent / "run").identity == before
    monkeypatch.setattr(file_hashes, "_read_hash", lambda file: pytest.fail(f"read {file}"))
    assert run_search(moved, out=folder.parent / "run").identity == before


def test_what_a_run_depends_on_is_recorded_whole(folder: Path):
    identity = run_search(folder).identity
    assert set(identity.sources) == set(identity.stores) == {"dom", "gen"}
    assert set(identity.base) == {"weights", "config", "tokenizer"}
    assert set(identity.tasks) == {"quiz"}


@pytest.mark.usefixtures("own_cache")
def test_a_store_that_is_not_as_it_was_built_is_refused(folder: Path):
    run = run_search(folder)
    stores = stores_of_run(run)
    tokens = stores["gen"].path / "train.bin"
    content = bytearray(tokens.read_bytes())
    tokens.write_bytes(bytes([content[0] ^ 1, *content[1:]]))
    for use in (stores_of_run, lambda _: run_search(folder)):
        with pytest.raises(InvalidInput, match="the file that was built") as error:
            use(run)
        assert error.value.file == str(tokens)


@pytest.mark.usefixtures("own_cache")
def test_a_store_that_was_built_anew_with_other_tokens_is_refused(folder: Path):
    run = run_search(folder)
    path = stores_of_run(run)["dom"].path
    (path / "held_out.jsonl").write_text('"other text"\n')
    update_store(path, {})
    for use in (stores_of_run, lambda _: run_search(folder)):
        with pytest.raises(InvalidInput, match="the token store of dom"):
            use(run)


def test_what_was_changed_after_a_run_is_not_reused(folder: Path):
    run = run_search(folder)
    assert base_model_of_run(run) == str(folder / "base")
    check_tasks_of_run(run)
    CHANGES["data"][0](folder)
    with pytest.raises(InvalidInput, match="the items of quiz"):
        check_tasks_of_run(run)
    CHANGES["tokenizer"][0](folder)
    # The run's stores are those of its own tokenizer.
    assert set(stores_of_run(run)) == {"dom", "gen"}
    with pytest.raises(InvalidInput, match="the base's tokenizer"):
        base_model_of_run(run)
    shutil.rmtree(folder / "base")
    with pytest.raises(InvalidInput, match="the model that the run began with"):
        base_model_of_run(run)


def test_a_base_that_was_pretrained_anew_is_not_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def pretrained(*_: object, **__: object) -> str:
        return str(folder / "base")

    monkeypatch.setattr(search, "find_or_pretrain_base", pretrained)
    monkeypatch.setattr(search, "check_base", lambda *_, **__: None)
    content = yaml.safe_load((folder / "exp.yaml").read_text())
    config = json.loads((folder / "base" / "config.json").read_text())
    content["base"] = {
        "pretrain": {
            "config": config,
            "mixture": {"gen": 1.0},
            "tokens": 10_240,
            "training": {"seq_len": 32, "batch_tokens": 1024},
        },
        "max_lr": 3e-3,
    }
    (folder / "exp.yaml").write_text(yaml.safe_dump(content))
    first = run_search(folder).identity
    assert run_search(folder).identity == first
    assert first.base["tokenizer"] == "bytes"
    change_weights(folder)
    with pytest.raises(InvalidInput, match="the base's weights"):
        run_search(folder)


@pytest.mark.parametrize("name", ["torch", "lm_eval"])
def test_a_driver_of_other_versions_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    run_search(folder)
    versions = trial_records.numeric_versions()
    monkeypatch.setattr(resume, "numeric_versions", lambda: versions | {name: "0.1"})
    with pytest.raises(InvalidInput) as error:
        run_search(folder)
    assert error.value.found == f"{name} 0.1"
    assert f"{name} {versions[name]}" in error.value.rule


def test_a_run_resumes_in_the_mode_in_which_its_answers_were_computed(folder: Path):
    writer = folder.parent / "run"
    base = run_search(folder).base
    assert base is not None
    recorded = {"shared; exact: quiz (recurrent layers)": "shared", "exact": "exact", "": "exact"}
    for scoring, mode in recorded.items():
        environment = base.environment | {"scoring": scoring}
        if not scoring:  # as earlier versions recorded it
            del environment["scoring"]
        RunWriter(writer).write_base(base.model_copy(update={"environment": environment}))
        run_search(folder, f"suites.scoring={mode}")
        other = "exact" if mode == "shared" else "shared"
        with pytest.raises(InvalidInput) as refused:
            run_search(folder, f"suites.scoring={other}")
        assert refused.value.found == f"scoring {other}"
        assert refused.value.fix == f"pass --set suites.scoring={mode}, or another --out"


def test_environments_are_compared_value_by_value():
    base = {"device": "cpu", "precision": "fp32", "torch": "2"}
    check_environment(dict(base), base, where="a worker", fix="…")
    check_environment({"torch": "2"}, base, where="a worker", fix="…")
    with pytest.raises(InvalidInput) as error:
        check_environment(
            base | {"device": "cuda", "precision": "bf16"}, base, where="a worker", fix="…"
        )
    assert error.value.found == "device cuda, precision bf16"
    assert error.value.rule.endswith("device cpu, precision fp32")


def test_a_model_counts_by_its_content(tmp_path: Path):
    model = write_model(tmp_path / "model", shard="60KB")
    before = model_identity(model, read_shards(model))
    assert len(read_shards(model)) > 1
    copied = Path(shutil.copytree(model, tmp_path / "copy"))
    assert model_identity(copied, read_shards(copied)) == before
    assert model_fingerprint(copied, read_shards(copied)) == model_fingerprint(
        model, read_shards(model)
    )
    last = read_shards(copied)[-1].path
    content = bytearray(last.read_bytes())
    content[-1] ^= 1
    last.write_bytes(content)
    after = model_identity(copied, read_shards(copied))
    assert {key for key in after if after[key] != before[key]} == {"weights"}


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "tokenizer.model",
        "spiece.model",
        "source.spm",
        "qwen.tiktoken",
        "config.json",
    ],
)
def test_every_file_that_decides_tokens_is_part_of_the_tokenizer(tmp_path: Path, name: str):
    def stamp() -> str:
        return tokenizer_id(BaseSpec(path=str(tmp_path), max_lr=1))

    before = stamp()
    (tmp_path / name).write_text('{"model_type": "one"}')
    first = stamp()
    (tmp_path / name).write_text('{"model_type": "two"}')
    assert len({before, first, stamp()}) == 3


def test_tags_groups_and_data_of_a_task_count(tmp_path: Path):
    write_tasks(tmp_path)
    group = {"group": "all", "task": ["quiz", {"task": "more"}]}
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(group))
    (tmp_path / "more.yaml").write_text("task: more\ntag: [hard]\ndataset_path: ./questions\n")
    (tmp_path / "questions").mkdir()
    names = ("all", "quiz", "hard")
    before = {name: task_fingerprint(tmp_path, name) for name in names}
    (tmp_path / "questions" / "a.jsonl").write_text("{}\n")
    after = {name: task_fingerprint(tmp_path, name) for name in names}
    assert {name for name in names if before[name] != after[name]} == {"all", "hard"}
    (tmp_path / "notes.yaml").write_text("name: no task\n")
    assert {name: task_fingerprint(tmp_path, name) for name in names} == after


def test_what_a_task_includes_counts(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("task: a\ninclude: _template\n")
    (tmp_path / "_template").write_text("output_type: multiple_choice\n")
    before = task_fingerprint(tmp_path, "a")
    (tmp_path / "_template").write_text("output_type: generate_until\n")
    assert task_fingerprint(tmp_path, "a") != before


def test_packages_beside_the_functions_of_a_task_count(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("task: a\nprocess_docs: !function utils.run\n")
    for name in ("utils.py", "package/__init__.py", "package/inner/more.py", "other/more.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    before = task_fingerprint(tmp_path, "a")
    (tmp_path / "other/more.py").write_text("x = 1\n")
    assert task_fingerprint(tmp_path, "a") == before
    (tmp_path / "package/inner/more.py").write_text("x = 1\n")
    assert task_fingerprint(tmp_path, "a") != before


def test_what_lm_eval_cannot_load_has_no_fingerprint(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("task: a\ninclude: b.yaml\n")
    (tmp_path / "b.yaml").write_text("include: a.yaml\ntag: x\n")
    with pytest.raises(InvalidInput, match="included twice"):
        task_fingerprint(tmp_path, "a")


def test_code_that_a_record_allows_runs_where_a_person_has_allowed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A run folder or a bundle may come from somebody else."""
    monkeypatch.setenv("SWEEPCP_CACHE", str(tmp_path / "cache"))
    write_tasks(tmp_path / "tasks")
    members = [
        {"task": "quiz", "path": str(tmp_path / "tasks"), "allow_code": True},
        {"task": "humaneval", "allow_code": True},
    ]
    content = {"domain": members, "general": [{"held_out": "gen"}]}
    suites = Suites.model_validate_json(json.dumps(content))
    with pytest.raises(InvalidInput, match=r"quiz\.allow_code"):
        check_permissions(suites, "a run")
    remember_permissions(suites)
    check_permissions(suites, "a run")
    (tmp_path / "tasks" / "u.py").write_text("import os\n")
    with pytest.raises(InvalidInput, match=r"quiz\.allow_code"):
        check_permissions(suites, "a run")


def test_a_commit_is_pinned_without_the_hub_and_a_branch_is_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    pinned = BaseSpec(hub="org/name", revision="a" * 40, max_lr=1)
    assert pin_base(pinned) == pinned
    assert tokenizer_id(pinned) == f"org/name@{'a' * 40}"
    with pytest.raises(InvalidInput) as error:
        pin_base(BaseSpec(hub="org/no-such-name", revision="main", max_lr=1))
    assert error.value.found == "org/no-such-name@main"


def test_the_content_of_a_bundle_is_verified(tmp_path: Path):
    """By one process for all; what every process checks takes no reading."""
    bundle = load_bundle(write_bundle(tmp_path))
    check_content(bundle)
    files = [
        (tmp_path / "model" / "model.safetensors", "the model that the bundle was made with"),
        (tmp_path / "stores" / "code" / "train.bin", "the file that was built"),
        (tmp_path / "stores" / "docs" / "held_out.jsonl", "the file that was built"),
    ]
    for path, rule in files:
        before = path.read_bytes()
        path.write_bytes(before[:-3] + bytes([before[-3] ^ 1]) + before[-2:])
        with pytest.raises(InvalidInput) as error:
            check_content(bundle)
        assert rule in error.value.rule
        check_ready(bundle)
        path.write_bytes(before)
    check_content(bundle)


def test_sizes_of_a_language_model_may_be_stated_in_a_section_of_their_own(tmp_path: Path):
    config = {"model_type": "gemma3", "text_config": {"max_position_embeddings": 512}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert max_sequence_length(BaseSpec(path=str(tmp_path), max_lr=1)) == 512
