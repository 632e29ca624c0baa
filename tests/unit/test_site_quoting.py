"""Values and paths of site files in exported files: bash, sbatch and YAML read exactly these."""

import json
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from sweepcp.errors import InvalidInput
from sweepcp.export.export_plan import ExportInput
from sweepcp.export.launchers.shell import torchrun_command
from sweepcp.export.launchers.slurm import _directive
from sweepcp.export.write import LAUNCHERS, TRAINERS
from tests.exports import make_site, promoted_short, rendered
from tests.unit.test_export_slurm import Job

VALUES = [
    "^lo,docker0",
    "gpu,gpu-long",
    "a b",
    " space at both ends ",
    "it's",
    'say "x"',
    "$HOME",
    "$(touch evil)",
    "`touch evil`",
    "$$(A) $(A) $$ $",
    "50%",
    "%j-%%x",
    "a#b",
    "# no comment",
    "a;touch evil",
    "a\\b\\",
    "\\n",
    "~",
    "*.py {a,b} [x] !! ?",
    "&& || > < |",
    "--flag=x",
    "tab\there",
    "grüße 日本 🚀",
    "null",
    "12:30:00",
]
ODD_FOLDER = "it's a (test) [v2] & #1 %j {x}! ~ ü🚀"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory):
    return promoted_short(tmp_path_factory.mktemp("sites") / "bundle")


def sbatch_argument(line: str) -> str:
    """The argument that sbatch reads in a line: `_get_argument` of Slurm's src/sbatch/opt.c."""
    argument, quote, characters = "", "", iter(line.removeprefix("#SBATCH").lstrip())
    for character in characters:
        if character == "\\":
            argument += next(characters)
        elif quote:
            quote, argument = (
                ("", argument) if character == quote else (quote, argument + character)
            )
        elif character in "\"'":
            quote = character
        elif character == "#" or character.isspace():
            break
        else:
            argument += character
    assert not quote
    return argument


@pytest.mark.parametrize("value", VALUES)
def test_sbatch_reads_exactly_the_value(value):
    assert sbatch_argument(_directive("comment", value)) == f"--comment={value}"


@pytest.mark.skipif(shutil.which("sbatch") is None, reason="Slurm is not installed")
def test_sbatch_itself_reads_exactly_the_values(tmp_path: Path):
    (tmp_path / "slurm.conf").write_text("ClusterName=x\nSlurmctldHost=localhost\n")
    lines = [_directive("comment", value) for value in VALUES]
    (tmp_path / "job").write_text("#!/bin/bash\n" + "\n".join([*lines, "--gres=none:x", "true"]))
    done = subprocess.run(
        ["sbatch", "-vvv", "--test-only", "--gres=gpu:none", "job"],
        cwd=tmp_path,
        env=os.environ | {"SLURM_CONF": str(tmp_path / "slurm.conf")},
        capture_output=True,
        text=True,
        timeout=30,
    )
    read = re.findall(r'Found in script, argument "--comment=(.*)"\n', done.stderr)
    assert read == VALUES


def recorder(folder: Path) -> str:
    """Write a program that records its arguments and its environment; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "python"
    program.write_text(
        f"#!/bin/bash\nprintf '%s\\0' \"$@\" >{shlex.quote(str(folder / 'arguments'))}\n"
        f"env -0 >{shlex.quote(str(folder / 'env'))}\n"
    )
    program.chmod(0o755)
    return str(program)


def recorded(folder: Path, name: str) -> list[str]:
    return (folder / name).read_text().split("\0")[:-1]


def expand(text: str) -> str:
    """What Kubernetes makes of `env`, `command` and `args` where no variable has the name.

    As `Expand` of third_party/forked/golang/expansion in kubernetes.
    """
    return re.sub(r"\$(\$|\([^)]*\))", lambda m: "$" if m[1] == "$" else f"EXPANDED{m[1]}", text)


def torchrun_words(export_input: ExportInput, trainer: str, launcher: str) -> list[str]:
    plan = TRAINERS[trainer].make_export_plan(export_input)
    if launcher == "kubeflow":
        options: list[str] = []
    elif launcher == "skypilot":
        options = ["--nnodes", "4", "--node-rank", "0", "--master-addr", "10.0.0.1"]
        options += ["--master-port", "29500"]
    else:
        options = ["--nnodes", "4", "--rdzv-backend", "c10d", "--rdzv-endpoint", "10.0.0.1:29500"]
        options += ["--rdzv-id", f"job-{export_input.bundle.recipe_id}"]
    return torchrun_command(export_input, plan, options)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_odd_values_and_paths_reach_the_trainer(loaded, tmp_path, trainer):
    """Shell code is run, YAML is loaded: nothing is expanded, split or executed."""
    out = tmp_path / ODD_FOLDER / "out"
    python = recorder(tmp_path / ODD_FOLDER / "bin")
    env = {f"VALUE_{number}": value for number, value in enumerate(VALUES)}
    target = loaded.bundle.target
    checkpoints = target.checkpoints.model_copy(update={"folder": str(out.parent / "checkpoints")})
    bundle = loaded.bundle.model_copy(
        update={"target": target.model_copy(update={"checkpoints": checkpoints})}
    )
    corpora = tuple(c.model_copy(update={"store": f"{out}/{c.name}"}) for c in bundle.corpora)
    bundle = bundle.model_copy(update={"corpora": corpora})
    odd = replace(loaded, path=out.parent / "bundle", bundle=bundle)
    export_input = ExportInput(odd, make_site(out, python=python, env=env), out)
    bash_env = os.environ | {
        "MASTER_ADDR": "10.0.0.1",
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NODE_RANK": "0",
    }
    for launcher in ("torchrun", "skypilot", "kubeflow"):
        files = rendered(export_input, trainer, launcher)
        expected = torchrun_words(export_input, trainer, launcher)
        if launcher == "kubeflow":
            job = yaml.safe_load(files["trainjob.yaml"])["spec"]["trainer"]
            words = [expand(word) for word in (*job["command"], *job["args"])]
            values = {entry["name"]: expand(entry["value"]) for entry in job["env"]}
        else:
            script = files["run.sh"] if launcher == "torchrun" else ""
            task = yaml.safe_load(files["task.yaml"]) if launcher == "skypilot" else {"envs": {}}
            script = script or task["run"]
            done = subprocess.run(
                ["bash", "-c", script], env=bash_env | task["envs"], cwd=tmp_path, check=False
            )
            assert done.returncode == 0
            words = [python, *recorded(Path(python).parent, "arguments")]
            values = dict(entry.split("=", 1) for entry in recorded(Path(python).parent, "env"))
        assert words == expected
        assert {name: values[name] for name in env} == env
    prepare = TRAINERS[trainer].make_export_plan(export_input).prepare
    lines = files["prepare.sh"].splitlines()[-len(prepare) :] if prepare else []
    assert [shlex.split(line) for line in lines] == [list(command) for command in prepare]
    assert not (tmp_path / "evil").exists()


def test_odd_values_and_paths_reach_the_processes_of_slurm(loaded, tmp_path):
    out = tmp_path / ODD_FOLDER / "out"
    python = recorder(tmp_path / ODD_FOLDER / "bin")
    env = {f"VALUE_{number}": value for number, value in enumerate(VALUES)}
    slurm = {
        "srun": {"container-image": "nvcr.io#nvidia/pytorch:24.01-py3", "cpu-bind": "none"},
        "wrapper": ["env", "-u", "nothing at all"],
        "setup": ['export FROM_SETUP="$HOME and $UNSET"', "false", "set -e"],
        "options": {"comment": VALUES[9], "exclusive": True, "gres": "gpu:a100:8,nvme:1T"},
        "cpus_per_gpu": 4,
    }
    for trainer in ("deepspeed", "hf-trainer"):
        (tmp_path / trainer).mkdir()
        job = Job(
            loaded,
            tmp_path / trainer,
            trainer,
            out,
            make_site(out, python=python, env=env, slurm=slurm),
        )
        save = f"printf '%s\\0' \"$@\" >{shlex.quote(str(tmp_path / 'options'))}; "
        run = 'while [ "$1" != env ] && [ "$1" != bash ]; do shift; done; "$@"'
        # Status 0 of a trainer other than sweepcp is the end, too.
        assert job.run(save + run) == (0, False)
        options = recorded(tmp_path, "options")
        assert "--container-image=nvcr.io#nvidia/pytorch:24.01-py3" in options
        assert f"--cpus-per-task={4 if trainer == 'deepspeed' else 32}" in options
        values = dict(entry.split("=", 1) for entry in recorded(Path(python).parent, "env"))
        assert {name: values[name] for name in env} == env
        assert values["FROM_SETUP"] == f"{os.environ['HOME']} and "
        lines = [sbatch_argument(x) for x in job.script.splitlines() if x.startswith("#SBATCH")]
        assert "--exclusive" in lines
        assert f"--comment={VALUES[9]}" in lines
        assert "--gres=gpu:a100:8,nvme:1T" in lines
        assert f"--output={str(out).replace('%', '%%')}/slurm-%j.log" in lines
        assert job.run(139) == (0, True)
        assert (out / "failures").is_file()
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_files_for_an_odd_path_have_the_syntax_of_their_format(loaded, tmp_path, launcher):
    out = tmp_path / (ODD_FOLDER if launcher != "ray" else "plain")
    export_input = ExportInput(loaded, make_site(out), out)
    for trainer in TRAINERS:
        for name, text in rendered(export_input, trainer, launcher).items():
            if name.endswith(("sh", "sbatch")):
                subprocess.run(["bash", "-n"], input=text, text=True, check=True)
            if name.endswith("yaml"):
                assert yaml.safe_load(text)
            if name.endswith(".py"):
                compile(text, name, "exec")
            if name.endswith(".json"):
                json.loads(text)
    (run,) = re.findall(r"Start: `(.*?)`\n", rendered(export_input, launcher)["SUMMARY.md"])
    assert any(word.startswith(f"{out}/") for word in shlex.split(run, comments=True))


def test_a_ray_job_takes_plain_paths_only(loaded, tmp_path):
    export_input = ExportInput(loaded, make_site(tmp_path), tmp_path / "a b")
    with pytest.raises(InvalidInput, match=r"--out(.|\n)*in a RayJob"):
        rendered(export_input, "ray")
