"""What a part leaves in the folder that the parts share."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Result:
    """How a part ended."""

    status: str
    """`done`, `skipped`, `failed` or `timed out`."""
    text: str
    """What it found, or why it found nothing."""
    numbers: dict[str, Any]
    seconds: float = 0.0

    @property
    def line(self) -> str:
        """The RESULT line, without the part's name."""
        return {
            "done": self.text,
            "skipped": f"skipped: {self.text}",
            "failed": f"FAILED, {self.text}",
            "timed out": f"FAILED, {self.text}",
        }[self.status]


def result_file(work: Path, name: str) -> Path:
    """Return the file in which a part leaves its result."""
    return work / f"{name}.result.json"


def read_result(work: Path, name: str) -> Result | None:
    """Return the result of a part that has run, or None."""
    file = result_file(work, name)
    return Result(**json.loads(file.read_text())) if file.exists() else None


def write_result(work: Path, name: str, result: Result) -> None:
    """Write the result of a part."""
    result_file(work, name).write_text(json.dumps(asdict(result)))
