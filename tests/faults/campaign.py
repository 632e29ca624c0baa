"""Kill and signal a small search at random moments, resume it each time, and check what is left.

python tests/faults/campaign.py --kills 20 --seed 0 --work /tmp/campaign

Each start of the search suffers one fault at a random moment: SIGKILL, SIGTERM or SIGINT to the
driver, SIGKILL to a worker or to Ray's local daemon. A search that finishes gets a larger budget.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import NamedTuple

FAULTS = [
    ("driver", signal.SIGKILL),
    ("driver", signal.SIGTERM),
    ("driver", signal.SIGINT),
    ("worker", signal.SIGKILL),
    ("raylet", signal.SIGKILL),
]
NAMES = {"worker": "ray::TrialWorker", "raylet": "raylet/raylet"}
"""In the command lines of Ray's processes."""
EXPERIMENT = """
name: campaign
seed: 0
base:
  max_lr: 3e-3
  pretrain:
    config:
      model_type: llama
      hidden_size: 32
      num_hidden_layers: 2
      num_attention_heads: 2
      num_key_value_heads: 2
      intermediate_size: 64
      max_position_embeddings: 64
    tokenizer: bytes
    mixture: {prose: 1.0}
    tokens: 51_200
    training: {seq_len: 64, batch_tokens: 512}
sources:
  - {name: prose, role: general, language: en, files: [prose.jsonl], held_out: 0.2}
  - {name: code, role: domain, language: python, files: [code.jsonl], held_out: 0.2}
suites:
  domain: [{held_out: code, chars: 400}]
  general: [{held_out: prose, chars: 400}]
space: lr-mix
training: {seq_len: 64, batch_tokens: 512}
budget: {trials: 4, tokens: 20_480}
choose: {max_regression: 2.0}
"""
STEPS = 40
WORDS = {
    "prose": ["the", "sea", "was", "calm", "and", "a", "boat", "lay", "still"],
    "code": ["def ", "x = ", "(a, b)", "return ", "if ", "\n    ", "+ 1", "for i in ", "while "],
}
STOPPED = "Stopped. Finished work is kept. Run the same command to resume."
LEFT_OVER_SECONDS = 120
"""After which Ray's agents, too, have noticed that their driver was killed."""


class Start(NamedTuple):
    """How one start of the search ended."""

    fault: str
    moment: float
    status: int
    expected: tuple[int, ...]
    stderr: str


class Campaign:
    """A search in a folder of its own, with a cache and a temporary folder of its own."""

    def __init__(self, work: Path, seed: int, longest: float) -> None:
        self.work, self.longest = work, longest
        self.random = random.Random(seed)
        self.mark = f"SWEEPCP_CAMPAIGN={uuid.uuid4()}"
        self.trials = 4
        self.records: dict[str, bytes] = {}
        self.problems: list[str] = []
        (work / "tmp").mkdir(parents=True, exist_ok=True)
        (work / "campaign.yaml").write_text(EXPERIMENT)
        for name, words in WORDS.items():
            texts = [" ".join(self.random.choices(words, k=150)) for _ in range(1500)]
            lines = [json.dumps({"text": text}) + "\n" for text in texts]
            (work / f"{name}.jsonl").write_text("".join(lines))

    def command(self) -> list[str]:
        program = [sys.executable, "-m", "sweepcp", "search", str(self.work / "campaign.yaml")]
        return [*program, "--trials", str(self.trials), "--out", str(self.work / "run")]

    def report(self, problem: str) -> None:
        self.problems.append(problem)
        print(f"PROBLEM: {problem}", flush=True)

    def begin(self) -> subprocess.Popen[str]:
        name, _, value = self.mark.partition("=")
        own = {
            name: value,
            "SWEEPCP_CACHE": str(self.work / "cache"),
            "TMPDIR": str(self.work / "tmp"),
            "OMP_NUM_THREADS": "1",
        }
        with (self.work / "stderr").open("w") as stderr, (self.work / "stdout").open("w") as out:
            return subprocess.Popen(
                self.command(), stdout=out, stderr=stderr, text=True, env=os.environ | own
            )

    def suffer(self, target: str, number: signal.Signals) -> Start:
        """Start the search, and let one fault strike."""
        moment = self.random.uniform(1, self.longest)
        process = self.begin()
        deadline = time.monotonic() + moment
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        victim: int | None = process.pid
        while target != "driver" and process.poll() is None:
            if (victim := self.find(NAMES[target])) is not None:
                break
            time.sleep(0.02)
        if process.poll() is None and victim is not None:
            os.kill(victim, number)
        if target == "worker":
            # The trial starts again in another worker; then the search is stopped.
            wait(process, 30)
            if process.poll() is None:
                process.terminate()
        expected = {
            ("driver", signal.SIGKILL): (-9, 0),
            ("driver", signal.SIGTERM): (143, 0),
            ("driver", signal.SIGINT): (130, 0),
            ("worker", signal.SIGKILL): (143, 0),
            ("raylet", signal.SIGKILL): (1, 0),
        }[target, number]
        wait(process, 180)
        if process.poll() is None:
            self.report(f"{target} {number.name}: the search hangs")
            process.kill()
        status = process.wait()
        fault = f"{number.name} to the {target}"
        return Start(fault, moment, status, expected, (self.work / "stderr").read_text())

    def check(self, start: Start) -> None:
        """Check the status, the messages, and that every finished trial is as it was."""
        where = f"{start.fault} after {start.moment:.1f} s"
        if start.status not in start.expected:
            self.report(f"{where}: status {start.status}, not {start.expected}")
        if "Traceback" in start.stderr or "Exception ignored" in start.stderr:
            self.report(f"{where}: a traceback\n{start.stderr}")
        if start.status > 128 and start.stderr.strip() != STOPPED:
            self.report(f"{where}: other messages\n{start.stderr}")
        run = self.work / "run"
        for name, content in self.records.items():
            if not (run / name).exists() or (run / name).read_bytes() != content:
                self.report(f"{where}: {name} is lost or another one")
        files = [run / "base.json", *run.glob("trials/*/trial.json")]
        self.records |= {str(f.relative_to(run)): f.read_bytes() for f in files if f.exists()}

    def finish(self) -> None:
        """Finish the search, and check its trials and what is left over."""
        process = self.begin()
        if process.wait() != 0:
            error = (self.work / "stderr").read_text()
            self.report(f"the last start ends with {process.returncode}\n{error}")
        run = self.work / "run"
        folders = sorted(path.name for path in (run / "trials").iterdir())
        if folders != [f"{number:04d}" for number in range(self.trials)]:
            self.report(f"the trials are {folders}")
        for folder in folders:
            lines = (run / "trials" / folder / "metrics.jsonl").read_text().splitlines()
            if [json.loads(line)["step"] for line in lines] != list(range(1, STEPS + 1)):
                self.report(f"{folder}: its steps are not those of one attempt")
            trial = json.loads((run / "trials" / folder / "trial.json").read_text())
            if trial["status"] != "done":
                self.report(f"{folder}: {trial['status']}: {trial['reason']}")

    def check_left_overs(self) -> None:
        time.sleep(LEFT_OVER_SECONDS)
        if left := self.processes():
            self.report(f"processes are left: {left}")
        names = [path for path in self.work.rglob("*") if ".tmp-" in path.name]
        names += [path for path in (self.work / "tmp").iterdir() if "sweepcp" in path.name]
        if names:
            self.report(f"files are left: {names}")

    def processes(self) -> dict[int, str]:
        """Command lines of all processes of the campaign but this one."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    line = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(folder.name)] = line.decode(errors="replace").strip()
            except OSError:
                continue
        return {pid: line for pid, line in found.items() if line}

    def find(self, name: str) -> int | None:
        candidates = [pid for pid, line in self.processes().items() if name in line.split(" --")[0]]
        return self.random.choice(sorted(candidates)) if candidates else None


def wait(process: subprocess.Popen[str], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=25.0, help="latest moment, in seconds")
    parser.add_argument("--work", type=Path, required=True, help="a new folder")
    arguments = parser.parse_args()
    campaign = Campaign(arguments.work.absolute(), arguments.seed, arguments.longest)
    for number in range(arguments.kills):
        start = campaign.suffer(*FAULTS[number % len(FAULTS)])
        campaign.check(start)
        finished = len(campaign.records) - 1
        print(
            f"{number + 1:3} {start.fault:22} after {start.moment:5.1f} s: "
            f"status {start.status:4}, {max(0, finished)} of {campaign.trials} trials finished",
            flush=True,
        )
        if start.status == 0:
            campaign.trials += 2
    campaign.finish()
    print("checking what is left over", flush=True)
    campaign.check_left_overs()
    print(f"{arguments.kills} faults, {len(campaign.problems)} problems")
    sys.exit(1 if campaign.problems else 0)


if __name__ == "__main__":
    main()
