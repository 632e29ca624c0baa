"""Every block of README and docs: commands and Python are run, YAML is validated, in one folder.

A comment above a block marks one that cannot run here, <!-- not run: needs a GPU -->, or one that
is saved for the commands below it, <!-- file: target.yaml -->.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from sweepcp.config.deepspeed_settings import DeepSpeedSettings
from sweepcp.config.experiment import TargetBudget
from sweepcp.config.experiment_file import parse_experiment
from sweepcp.config.site import Site
from sweepcp.config.source import Source
from sweepcp.config.space import Space
from sweepcp.config.target import Target
from sweepcp.config.validation import validate
from sweepcp.config.yaml_values import parse_yaml
from sweepcp.runs.run_folder import Run

ROOT = Path(__file__).parents[2]
NAV = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
PAGES = [ROOT / "README.md", *(ROOT / "docs" / name for name in NAV)]
"""README, then the pages of the site in its order."""
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]*) -->\n)?(?:<!-- file: (?P<file>[^>]*) -->\n)?"
    r"```(?P<kind>console|python|yaml)\n(?P<text>.*?)```",
    re.DOTALL,
)
REASONS = (
    "installs the package",
    "needs a GPU",
    "needs a cluster",
    "needs a hub model",
    "needs a second run",
    "needs a trainer's own environment",
    "needs your own corpus",
    "opens a server",
    "takes many minutes",
)


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    line: int
    kind: str
    text: str
    reason: str | None
    """Why it is not run."""
    file: str | None
    """The file that it is saved as."""

    @property
    def name(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks() -> Iterator[Block]:
    for page in PAGES:
        content = page.read_text()
        for match in BLOCK.finditer(content):
            line = content[: match.start("text")].count("\n") + 1
            yield Block(page, line, match["kind"], match["text"], match["reason"], match["file"])


def commands(block: Block) -> list[str]:
    """The commands of a console block; a line that ends in a backslash continues."""
    joined = block.text.replace("\\\n", " ")
    return [line.removeprefix("$ ") for line in joined.splitlines() if line.startswith("$ ")]


def test_every_block_is_run_or_says_why_not():
    reasons = [block.reason for block in blocks() if block.reason is not None]
    assert [r for r in reasons if not r.startswith(REASONS)] == []
    for page in PAGES:
        fences = re.findall(r"^```(\w*)", page.read_text(), flags=re.MULTILINE)
        kinds = set(fences[::2])
        assert kinds <= {"console", "python", "yaml", "text"}, page


@pytest.mark.parametrize(
    "block", [b for b in blocks() if b.kind == "yaml"], ids=lambda block: block.name
)
def test_yaml_is_valid(block: Block, tmp_path: Path):
    content = parse_yaml(block.text, block.name)
    if isinstance(content, dict) and {"base", "suites"} <= content.keys():
        (tmp_path / "experiment.yaml").write_text(block.text)
        parse_experiment(tmp_path / "experiment.yaml")
    elif isinstance(content, list) or "sources" in content:
        for source in content if isinstance(content, list) else content["sources"]:
            validate(Source, source, block.name)
    elif "hardware" in content:
        validate(Target, content, block.name)
    elif "space" in content:
        validate(Space, content["space"], block.name)
    elif "target" in content:
        validate(TargetBudget, content["target"], block.name)
    elif "deepspeed" in content:
        validate(DeepSpeedSettings, content["deepspeed"], block.name)
    else:
        validate(Site, content, block.name)


@pytest.mark.slow
def test_commands_and_python_run(quickstart: Run, tmp_path: Path):
    """The pages in order, in a folder in which README's `sweepcp search` finds its run finished."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(quickstart.path)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    python_path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PATH": path, "PYTHONPATH": python_path, "COLUMNS": "110"}
    env["OMP_NUM_THREADS"] = "1"
    count = 0
    for block in blocks():
        if block.file is not None:
            (tmp_path / block.file).write_text(block.text)
        if block.reason is not None or block.kind == "yaml":
            continue
        programs = [["bash", "-c", command] for command in commands(block)]
        if block.kind == "python":
            programs = [[sys.executable, "-c", block.text]]
        for program in programs:
            done = subprocess.run(
                program, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600
            )
            said = f"{block.name}: {program[-1]}\n{done.stdout}\n{done.stderr}"
            assert done.returncode == 0, said
            assert "Traceback" not in done.stderr, said
            count += 1
    assert count >= 30
