"""Site files: what people write is in the exported files, and the systems read exactly that."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from sweepcp.config.kubernetes import Kubernetes
from sweepcp.config.safe_text import is_secret
from sweepcp.config.site import Site
from sweepcp.config.skypilot import SkyPilot
from sweepcp.config.slurm import Slurm, is_time, time_limit
from sweepcp.errors import InvalidInput
from sweepcp.export.export_plan import ExportInput
from sweepcp.util.files import shipped_folder
from tests.exports import make_site, promoted_short, rendered


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory):
    return promoted_short(tmp_path_factory.mktemp("sites") / "bundle")


def refusal(**content: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        make_site(Path("/tmp/out"), **content)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("24:00:00", 86_400),
        ("1-12", 129_600),
        ("1-12:30", 131_400),
        ("7-00:00:05", 604_805),
        ("0", None),
        ("unlimited", None),
    ],
)
def test_times_of_slurm(text, seconds):
    assert is_time(text)
    assert time_limit(text) == seconds


@pytest.mark.parametrize(
    "text", ["forever", "1-", "-1:00", "1:2:3:4", "1-2:3:4:5", "1.5", "1h", "", "٩٠", "9" * 5000]
)
def test_what_is_no_time_of_slurm(text):
    assert "a time as Slurm writes it" in refusal(slurm={"time": text})


def test_an_integer_is_a_time_in_minutes(loaded, tmp_path):
    site = make_site(tmp_path, slurm={"time": 90})
    script = rendered(ExportInput(loaded, site, tmp_path), "slurm")["job.sbatch"]
    assert "#SBATCH --time=90\n" in script


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("HF_TOKEN", "abc", True),
        ("hf_token", "abc", True),
        ("GITHUB_TOKEN2", "abc", True),
        ("WANDB_API_KEY", "abc", True),
        ("AWS_SECRET_ACCESS_KEY", "abc", True),
        ("DB_PASSWORD", "abc", True),
        ("GOOGLE_CREDENTIALS", "abc", True),
        ("TOKENIZERS_PARALLELISM", "false", False),
        ("TOKENIZER_PATH", "x", False),
        ("PAD_TOKEN", "<pad>", False),
        ("EOS_TOKEN", "</s>", False),
        ("MAX_TOKENS", "4096", False),
        ("MAX_TOKEN", "4096", False),
        ("TOKENS_PER_BATCH", "4096", False),
        ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1", False),
        ("GOOGLE_APPLICATION_CREDENTIALS", "/shared/keys.json", False),
        ("HF_TOKEN_PATH", "/shared/token", False),
        ("SSH_KEYBOARD", "us", False),
        ("KEY", "x", False),
        ("SECRETARY", "x", False),
    ],
)
def test_secrets_are_known_by_whole_words_of_their_names(name, value, secret):
    assert is_secret(name, value) == secret
    if secret:
        message = refusal(env={name: f"{value}-very-secret"})
        assert "very-secret" not in message
        assert f"{name} is a secret by its name" in message


REFUSED = [
    ({"slurm": {"options": {"nodes": 2}}}, "the `hardware` of the target"),
    ({"slurm": {"options": {"job-name": "x"}}}, "what is meant is `job`"),
    ({"slurm": {"options": {"time": "1:00:00"}}}, "what is meant is `slurm.time`"),
    ({"slurm": {"options": {"signal": "USR1@60"}}}, "what is meant is `grace`"),
    ({"slurm": {"options": {"array": "0-3"}}}, "a full run is one job"),
    ({"slurm": {"options": {"no-requeue": True}}}, "`slurm.max_failures`"),
    ({"slurm": {"options": {"gpus": 8}}}, "`gres` or `gpus-per-node` names their type"),
    ({"slurm": {"options": {"mem": 0, "mem-per-gpu": "80G"}}}, "exclude each other"),
    ({"slurm": {"options": {"gres": "gpu:8", "gpus-per-node": 8}}}, "exclude each other"),
    ({"slurm": {"options": {"arr": "0-3"}}}, "the whole name of an option"),
    ({"slurm": {"options": {"n": 3}}}, "the whole name of an option"),
    ({"slurm": {"srun": {"kill": 0}}}, "the whole name of an option"),
    ({"slurm": {"options": {"--mem": 0}}}, "the long name of an option"),
    ({"slurm": {"options": {"Mem": 0}}}, "the long name of an option"),
    ({"slurm": {"options": {"mem=0\n#SBATCH --uid": 0}}}, "the long name of an option"),
    ({"slurm": {"options": {"comment": "a\n#SBATCH --uid=0"}}}, "text of one line"),
    ({"slurm": {"options": {"comment": "a\u2028b"}}}, "text of one line"),
    ({"slurm": {"options": {"comment": "x" * 1025}}}, "at most 1,024 characters"),
    ({"slurm": {"options": {"exclusive": False}}}, "remove the option"),
    ({"slurm": {"options": {"mem": None}}}, "a value, or true"),
    ({"slurm": {"options": {"mem": 1.5}}}, "write it in quotes"),
    ({"slurm": {"options": {"mem": ["1G"]}}}, "text"),
    ({"slurm": {"options": {"export": "ALL,HF_TOKEN=abc"}}}, "HF_TOKEN of `export` is a secret"),
    ({"slurm": {"options": {"export": "NONE"}}, "secrets": ["HF_TOKEN"]}, "add ALL, or these"),
    ({"slurm": {"options": {"time-min": "soon"}}}, "`time-min`: a time as Slurm"),
    ({"slurm": {"srun": {"ntasks": 1}}}, "the `hardware` of the target"),
    ({"slurm": {"srun": {"export": "NONE"}}}, "`env` and `setup`"),
    ({"slurm": {"setup": ["export HF_TOKEN=abc"]}}, "HF_TOKEN is a secret by its name"),
    ({"slurm": {"setup": ["echo 'open"]}}, "complete shell code"),
    ({"slurm": {"setup": ["cat <<X", "text"]}}, "complete shell code"),
    ({"slurm": {"setup": ["if true; then"]}}, "complete shell code"),
    ({"slurm": {"setup": ["module load \\"]}}, "remove the backslash"),
    ({"slurm": {"setup": ["a\0b"]}}, "without control characters"),
    ({"slurm": {"partition": "gpu gpu"}}, "a name of letters"),
    ({"env": {"A": "x\ny"}}, "text of one line"),
    ({"env": {"A": "x\0y"}}, "text of one line"),
    ({"env": {"A": 1.5}}, "write it in quotes"),
    ({"env": {"A": True}}, "write it in quotes"),
    ({"env": {"RANK": "0"}}, "set by launchers"),
    ({"env": {"1A": "0"}}, "the name of an environment variable"),
    ({"python": "/a/$(id)/python"}, "an absolute path"),
    ({"megatron": "/a/`id`"}, "an absolute path"),
    ({"kubernetes": {"labels": {"a b": "x"}}}, "a key of Kubernetes"),
    ({"kubernetes": {"labels": {"a": "x y"}}}, "the value of a label"),
    ({"kubernetes": {"labels": {"a": "x" * 64}}}, "the value of a label"),
    ({"kubernetes": {"labels": {"a" * 64: "x"}}}, "a key of Kubernetes"),
    ({"kubernetes": {"labels": {"Not.A.Domain/a": "x"}}}, "a key of Kubernetes"),
    ({"kubernetes": {"labels": {"kueue.x-k8s.io/queue-name": "x"}}}, "set `queue_name`"),
    ({"kubernetes": {"annotations": {"sweepcp/recipe": "x"}}}, "set by the export"),
    ({"kubernetes": {"annotations": {f"a{i}": "x" * 4000 for i in range(70)}}}, "256 KiB"),
    ({"kubernetes": {"queue_name": "a" * 64}}, "at most 63 characters"),
    ({"kubernetes": {"image": "docker://nvcr.io/x:1"}}, "the name of a container image"),
    ({"kubernetes": {"image": "a b"}}, "the name of a container image"),
    ({"skypilot": {"image": "docker:nvcr.io/x:1"}}, "the name of a container image"),
    ({"kubernetes": {"claim": "a_b"}}, "a Kubernetes name"),
    ({"kubernetes": {"claim": "a" * 254}}, "a Kubernetes name"),
    ({"kubernetes": {"namespace": "a.b"}}, "a Kubernetes name"),
    ({"kubernetes": {"namespace": "a" * 64}}, "a Kubernetes name"),
    ({"kubernetes": {"memory": "1 TB"}}, "a quantity of Kubernetes"),
    ({"kubernetes": {"memory": "0"}}, "a quantity of Kubernetes"),
    ({"kubernetes": {"resources": {"rdma": 8}}}, "an extended resource with its domain"),
    ({"kubernetes": {"resources": {"rdma/ib": 0}}}, "an integer of at least 1"),
    ({"kubernetes": {"resources": {"nvidia.com/gpu": 8}}}, "the `hardware` of the target"),
    ({"kubernetes": {"mount": "/"}}, "a folder in a container"),
    ({"kubernetes": {"mount": "/a:b"}}, "a folder in a container"),
    ({"kubernetes": {"tolerations": [{"value": "x"}]}}, "add `operator: Exists`"),
    (
        {"kubernetes": {"tolerations": [{"key": "a", "operator": "Exists", "value": "x"}]}},
        "no value with the operator Exists",
    ),
    (
        {"kubernetes": {"tolerations": [{"key": "a", "toleration_seconds": 3}]}},
        "only with the effect NoExecute",
    ),
    ({"skypilot": {"infra": "aws", "any_of": ["gcp"]}}, "exclude each other"),
    ({"skypilot": {"cpus": "many"}}, "a number, or `32+`"),
    ({"skypilot": {"file_mounts": {"relative": "x"}}}, "an absolute path"),
    ({"skypilot": {"setup": "echo 'open"}}, "complete shell code"),
]


@pytest.mark.parametrize(("content", "rule"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_a_system_does_not_take_is_refused(content, rule):
    message = refusal(**content)
    assert rule in message
    assert "fix:" in message


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ({}, "--gres=gpu:8"),
        ({"gres": "gpu:a100:8"}, "--gres=gpu:a100:8"),
        ({"gres": "nvme:1T"}, "--gres=gpu:8,nvme:1T"),
        ({"gpus-per-node": "h100:8"}, "--gpus-per-node=h100:8"),
        ({"gpus-per-node": 8}, "--gpus-per-node=8"),
        ({"gres": "gpu:a100:4"}, None),
        ({"gres": "gpu:a100"}, None),
        ({"gres": "gpu"}, None),
        ({"gres": "gpu:²"}, None),
        ({"gpus-per-node": "²"}, None),
        ({"gpus-per-node": "h100:4"}, None),
        ({"gpus-per-node": "h100"}, None),
    ],
)
def test_gpus_may_have_a_type_and_have_the_number_of_the_target(loaded, tmp_path, given, written):
    site = make_site(tmp_path, slurm={"options": given})
    export_input = ExportInput(loaded, site, tmp_path)
    if written is None:
        with pytest.raises(InvalidInput, match="8 GPUs per node"):
            rendered(export_input, "slurm")
    else:
        script = rendered(export_input, "slurm")["job.sbatch"]
        assert re.findall(r"#SBATCH (--g\S+)", script) == [written]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"grace": 65_536}, "grace"),
        ({"slurm": {"time": "00:19"}}, "slurm.time"),
        ({"slurm": {"time": 19}}, "slurm.time"),
        ({"slurm": {"options": {"time-min": "19"}}}, "slurm.options.time-min"),
    ],
)
def test_a_job_of_slurm_has_time_to_save_and_to_train(loaded, tmp_path, changes, key):
    export_input = ExportInput(loaded, make_site(tmp_path, **changes), tmp_path)
    with pytest.raises(InvalidInput) as caught:
        rendered(export_input, "slurm")
    assert caught.value.key == key


@pytest.mark.parametrize(("launcher", "longest"), [("ray", 47), ("kubeflow", 48)])
def test_names_of_jobs_leave_room_for_what_the_launcher_adds(loaded, tmp_path, launcher, longest):
    """A pod of a TrainJob on 4 nodes is named `<job>-node-0-3-abcde`."""
    for length in (longest, longest + 1):
        site = make_site(tmp_path, job="j" * length)
        export_input = ExportInput(loaded, site, tmp_path)
        if length == longest:
            assert rendered(export_input, launcher)
        else:
            with pytest.raises(InvalidInput, match=rf"job(.|\n)*at most {longest} characters"):
                rendered(export_input, launcher)


@pytest.mark.parametrize("name", ["a---b", "a_", "a.-.b"])
def test_names_that_skypilot_refuses_are_refused(loaded, tmp_path, name):
    export_input = ExportInput(loaded, make_site(tmp_path, job=name), tmp_path)
    with pytest.raises(InvalidInput, match="a name of SkyPilot"):
        rendered(export_input, "skypilot")


KUBERNETES: dict[str, Any] = {
    "image_pull_secrets": ["registry"],
    "resources": {"rdma/ib": 8},
    "node_selector": {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "labels": {"team": "nlp", "cost-centre": 4711},
    "annotations": {"k8s.v1.cni.cncf.io/networks": '[{"name": "rdma"}]'},
    "queue_name": "nlp",
}


@pytest.mark.parametrize("launcher", ["kubeflow", "ray"])
def test_pods_have_what_the_site_states(loaded, tmp_path, launcher):
    site = make_site(tmp_path, kubernetes=KUBERNETES)
    files = rendered(ExportInput(loaded, site, tmp_path), launcher)
    job = yaml.safe_load(next(text for name, text in files.items() if name.endswith("yaml")))
    labels = {"team": "nlp", "cost-centre": "4711"}
    assert job["metadata"]["labels"] == labels | {"kueue.x-k8s.io/queue-name": "nlp"}
    assert KUBERNETES["annotations"].items() <= job["metadata"]["annotations"].items()
    if launcher == "kubeflow":
        (patch,) = job["spec"]["runtimePatches"]
        (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
        pods = [replicated["template"]["spec"]["template"]]
        resources = job["spec"]["trainer"]["resourcesPerNode"]
    else:
        cluster = job["spec"]["rayClusterSpec"]
        groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        pods = [group["template"] for group in groups]
        resources = pods[1]["spec"]["containers"][0]["resources"]
    assert resources["limits"] == resources["requests"] == {"nvidia.com/gpu": "8", "rdma/ib": "8"}
    for pod in pods:
        assert pod["metadata"] == {"labels": labels, "annotations": KUBERNETES["annotations"]}
        assert pod["spec"]["imagePullSecrets"] == [{"name": "registry"}]
        assert pod["spec"]["nodeSelector"] == KUBERNETES["node_selector"]
        assert pod["spec"]["tolerations"] == KUBERNETES["tolerations"]


def test_a_priority_class_is_of_pods_and_not_of_train_jobs(loaded, tmp_path):
    site = make_site(tmp_path, kubernetes={"priority_class_name": "high"})
    export_input = ExportInput(loaded, site, tmp_path)
    job = yaml.safe_load(rendered(export_input, "ray")["rayjob.yaml"])
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert head["priorityClassName"] == "high"
    with pytest.raises(InvalidInput, match="a TrainJob cannot state"):
        rendered(export_input, "kubeflow")


def test_a_toleration_has_the_keys_of_kubernetes(loaded, tmp_path):
    toleration = {"key": "a", "effect": "NoExecute", "value": "b", "toleration_seconds": 30}
    site = make_site(tmp_path, kubernetes={"tolerations": [toleration]})
    assert isinstance(site.kubernetes, Kubernetes)
    files = rendered(ExportInput(loaded, site, tmp_path), "ray")
    assert "tolerationSeconds: 30" in files["rayjob.yaml"]
    assert "operator: Equal" in files["rayjob.yaml"]


def test_a_task_of_skypilot_has_what_the_site_states(loaded, tmp_path):
    skypilot = {
        "any_of": ["aws/us-east-1", "gcp"],
        "use_spot": True,
        "cpus": "96+",
        "memory": 1024,
        "disk_size": 500,
        "file_mounts": {"/data": "s3://bucket/data"},
        "setup": "source /shared/venv/bin/activate\n",
    }
    site = make_site(tmp_path, skypilot=skypilot)
    files = rendered(ExportInput(loaded, site, tmp_path), "skypilot")
    task = yaml.safe_load(files["task.yaml"])
    assert task["setup"] == skypilot["setup"]
    assert task["file_mounts"] == skypilot["file_mounts"]
    resources = task["resources"]
    assert resources["any_of"] == [{"infra": "aws/us-east-1"}, {"infra": "gcp"}]
    assert (resources["use_spot"], resources["disk_size"]) == (True, 500)
    assert (resources["cpus"], resources["memory"]) == ("96+", "1024")


def test_options_of_sbatch_in_the_setup_are_none(loaded, tmp_path):
    """sbatch reads options up to the first command."""
    site = make_site(tmp_path, slurm={"setup": ["#SBATCH --uid=0", "module load cuda"]})
    script = rendered(ExportInput(loaded, site, tmp_path), "slurm")["job.sbatch"]
    first_command = next(line for line in script.splitlines() if line and not line.startswith("#"))
    assert script.index(first_command) < script.index("#SBATCH --uid=0")


@pytest.mark.parametrize(
    "image",
    [
        "ubuntu",
        "localhost:5000/a/b",
        "nvcr.io/nvidia/pytorch:24.01-py3",
        f"ghcr.io/nlp/train_2.a__b@sha256:{'0a' * 32}",
        f"registry.example.com:443/x:v1@sha256:{'0a' * 32}",
    ],
)
def test_images_with_registries_tags_and_digests(image):
    kubernetes = make_site(Path("/tmp/out"), kubernetes={"image": image}).kubernetes
    assert kubernetes is not None
    assert kubernetes.image == image


def test_the_shipped_example_shows_every_key():
    text = (shipped_folder("experiments") / "sites" / "example.yaml").read_text()
    for model in (Site, Slurm, Kubernetes, SkyPilot):
        for key in model.model_fields:
            assert re.search(rf"\b{key}:", text), key


def test_setup_is_a_list_or_a_block_and_may_use_patterns_of_bash():
    block = "shopt -s extglob\nrm -f !(keep)\nexport TOKEN=$(cat /run/token) # read there\n"
    for setup in (block, block.splitlines()):
        site = make_site(Path("/tmp/out"), slurm={"setup": setup})
        assert site.slurm.setup == tuple(block.splitlines())
