"""Bundles and sites with injected content: refused with exit status 2, nothing is written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sweepcp.promote.bundle import write_manifest
from sweepcp.util.files import write_json
from tests.exports import promoted
from tests.unit.test_cli import run


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = promoted(tmp_path_factory.mktemp("bundle"), "llama-3.1-8b-4x8").path
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture
def bundle(original: dict[str, str], tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name, text in original.items():
        (folder / name).write_text(text)
    return folder


def change_bundle(bundle: Path, key: str, value: Any) -> None:
    """Change a value of bundle.json, and its hash in the manifest."""
    content = json.loads((bundle / "bundle.json").read_text())
    *path, last = [int(part) if part.isdigit() else part for part in key.split(".")]
    parent = content
    for part in path:
        parent = parent[part]
    parent[last] = value
    write_json(bundle / "bundle.json", content)
    write_manifest(bundle)


@pytest.fixture
def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Return a function that exports a bundle, requires that this is refused, and returns why."""

    def refuse(bundle: Path, *arguments: str, out: str = "out") -> str:
        folder = bundle.parent / out
        options = ("--out", str(folder), *(arguments or ("--to", "slurm")))
        status, message = run(monkeypatch, capsys, "export", str(bundle), *options)
        assert status == 2, message
        assert not folder.exists()
        assert "fix:" in message
        return message

    return refuse


HOSTILE = [
    ("name", "job\n#SBATCH --wrap=evil"),
    ("name", "job$(touch /tmp/evil)"),
    ("name", "job`id`"),
    ("name", "a b"),
    ("name", "-rf"),
    ("name", "x" * 200),
    ("target.name", "#SBATCH --uid=0"),
    ("corpora.0.name", "../../etc/passwd"),
    ("corpora.0.name", "$(id)"),
    ("corpora.0.store", "/stores/../../etc"),
    ("corpora.0.store", "stores/relative"),
    ("corpora.0.store", "/stores/a;rm -rf ~"),
    ("corpora.0.store", "/stores/a\n--data-path x"),
    ("model.hub", "--upload-pack=evil"),
    ("model.hub", "../../x"),
    ("model.revision", "main; id"),
    ("target.checkpoints.folder", "/ckpt/'$(id)'"),
    ("target.hardware.nodes", -1),
    ("target.hardware.nodes", 0),
    ("recipe.lr_fraction", -0.1),
]
SECRETS = [
    ("name", "hf_" + "a1B2" * 8),
    ("corpora.0.store", "/stores/ghp_" + "a1B2" * 8),
    ("model.revision", "AKIA" + "ABCD1234" * 2),
]


@pytest.mark.parametrize(
    ("key", "value"), [*HOSTILE, *SECRETS], ids=lambda value: repr(str(value)[:20])
)
def test_a_hostile_bundle_with_correct_hashes_is_refused(refused, bundle, key, value):
    change_bundle(bundle, key, value)
    message = refused(bundle)
    if (key, value) in SECRETS:
        assert value not in message


@pytest.mark.parametrize("name", ["bundle.json", "ds_config.json"])
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_not_finite_are_refused(refused, bundle, name, number):
    content = (bundle / name).read_text()
    old = '"clip": 1.0' if name == "bundle.json" else '"gradient_clipping": 1.0'
    assert old in content
    (bundle / name).write_text(content.replace(old, old.replace("1.0", number)))
    write_manifest(bundle)
    refused(bundle)


def test_a_manifest_that_names_files_outside_the_bundle_is_refused(refused, bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    for name in ("../../etc/passwd", "/etc/passwd"):
        write_json(
            bundle / "manifest.json", manifest | {"files": manifest["files"] | {name: "0" * 64}}
        )
        assert "files of the bundle itself" in refused(bundle)


def test_an_edited_bundle_is_refused(refused, bundle):
    path = bundle / "ds_config.json"
    path.write_text(path.read_text().replace("1.0", "2.0"))
    assert "SHA-256" in refused(bundle)


def test_a_configuration_that_names_modules_is_refused(refused, bundle):
    """DeepSpeed imports the modules of `lower_precision_safe_modules`."""
    path = bundle / "ds_config.json"
    autocast = {"enabled": True, "lower_precision_safe_modules": ["evil.Module"]}
    write_json(path, json.loads(path.read_text()) | {"torch_autocast": autocast})
    write_manifest(bundle)
    assert "torch_autocast" in refused(bundle)


@pytest.mark.parametrize(
    "settings",
    [
        {"torch_autocast": {"enabled": True, "lower_precision_safe_modules": ["evil.Module"]}},
        {"zero_optimization": {"leaf_module": {"classes": ["evil.Module"]}}},
        {"zero_optimization": {"offload_optimizer": {"device": "nvme", "nvme_path": "/etc"}}},
        {"autotuning": {"enabled": True, "results_dir": "/tmp/evil"}},
        {"tensorboard": {"enabled": True, "output_path": "/tmp/evil"}},
        {"zero_optimization": {"stage": 0}},
        {"unknown": 1},
    ],
    ids=str,
)
def test_deepspeed_keys_that_a_target_may_not_state_are_refused_in_a_bundle(
    refused, bundle, settings
):
    """Also where ds_config.json has the same keys, as if it followed from the target."""
    change_bundle(bundle, "target.deepspeed", settings)
    path = bundle / "ds_config.json"
    content = json.loads(path.read_text())
    write_json(path, content | settings | {"zero_optimization": content["zero_optimization"]})
    write_manifest(bundle)
    assert "bundle.json: target.deepspeed" in refused(bundle)


SITES = [
    ("job: 'a\\nb'\n", "a name of letters"),
    ('job: "$(id)"\n', "a name of letters"),
    ("python: bin/python\n", "python"),
    ('env: {A: "x\\ny"}\n', "text of one line"),
    ("env: {'A-B': x}\n", "environment variable"),
    ("env: {HF_TOKEN: abc}\n", "name it under `secrets`"),
    (f"env: {{A: hf_{'a1B2' * 8}}}\n", "no secret is ever written"),
    ("secrets: ['A=b']\n", "environment variable"),
    ("slurm: {partition: 'gpu\\n#SBATCH --uid=0'}\n", "a name of letters"),
    ("slurm: {time: forever}\n", "a time as Slurm writes it"),
    ("slurm: {nodes: 3}\n", "unknown key"),
    ("megatron: /opt/../etc\n", "without `..`"),
    ("env: {A: x}\nsecrets: [A]\n", "one source"),
]


@pytest.mark.parametrize(("content", "rule"), SITES, ids=[c.strip()[:30] for c, _ in SITES])
def test_a_hostile_site_is_refused(refused, bundle, content, rule):
    site = bundle.parent / "site.yaml"
    site.write_text(content)
    assert rule in refused(bundle, "--to", "slurm", "--site", str(site))


def kubernetes_site(bundle: Path, job: str, mount: str | None = None, **changes: str) -> Path:
    """Write a site file for Kubernetes beside the bundle."""
    section = {
        "image": "registry/x:1",
        "claim": "shared",
        "mount": mount or str(bundle.parent),
    } | changes
    site = bundle.parent / "site.yaml"
    site.write_text(json.dumps({"job": job, "kubernetes": section}))
    return site


@pytest.mark.parametrize("name", ["Upper", "a.b", "a_b", "9a", "a-", "a" * 64])
def test_job_names_that_kubernetes_refuses_are_refused(refused, bundle, name):
    for launcher in ("kubeflow", "ray"):
        site = kubernetes_site(bundle, name)
        assert "RFC 1123" in refused(bundle, "--to", launcher, "--site", str(site))


def test_paths_outside_the_mounted_storage_are_refused(refused, bundle):
    site = kubernetes_site(bundle, "job", mount="/elsewhere")
    assert "a path below /elsewhere" in refused(bundle, "--to", "kubeflow", "--site", str(site))
    site = kubernetes_site(bundle, "job", claim="Bad_Claim")
    assert "a Kubernetes name" in refused(bundle, "--to", "kubeflow", "--site", str(site))


def test_launchers_name_the_section_that_a_site_lacks(refused, bundle):
    assert "add `kubernetes:`" in refused(bundle, "--to", "kubeflow")
    assert "add `skypilot:`" in refused(bundle, "--to", "skypilot")
    assert "one of: example" in refused(bundle, "--to", "slurm", "--site", "nowhere")


def test_a_folder_that_cannot_be_created_is_refused(refused, bundle):
    (bundle.parent / "file").write_text("")
    assert "a path where files can be created" in refused(bundle, out="file/out")


def test_a_folder_with_an_unsafe_name_is_refused(refused, bundle):
    for character in '$`"\\;|<>*?\n':
        assert "--out" in refused(bundle, out=f"a{character}b")


def test_no_message_repeats_a_secret_of_a_site(refused, bundle):
    site = bundle.parent / "site.yaml"
    for content in ("env: {HF_TOKEN: abcdef}", "slurm: {setup: [export HF_TOKEN=abcdef]}"):
        site.write_text(content)
        message = refused(bundle, "--to", "slurm", "--site", str(site))
        assert "HF_TOKEN is a secret by its name" in message
        assert "abcdef" not in message


def test_a_relative_bundle_with_dots_and_spaces_is_exported(bundle, monkeypatch, capsys):
    """All paths in the files are absolute and without `..`."""
    elsewhere = bundle.parent / "some where"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    status, message = run(
        monkeypatch, capsys, "export", "../bundle", "--to", "deepspeed", "--out", "../my out"
    )
    assert status == 0, message
    script = (bundle.parent / "my out" / "run.sh").read_text()
    assert f"sweepcp train \\\n    {bundle}" in script or str(bundle) in script
    assert ".." not in script


@pytest.mark.parametrize("python", ["/nowhere/python", "/bin/true"])
def test_a_file_that_is_no_interpreter_is_refused(refused, bundle, python):
    assert "--verify" in refused(bundle, "--to", "torchtitan", "--verify", python)
