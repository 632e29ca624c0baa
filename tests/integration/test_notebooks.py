"""The notebooks, from the first cell to the last, on runs that were just made."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from sweepcp.runs.run_folder import Run

FOLDER = Path(__file__).parents[2] / "notebooks"


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.ipynb")))
def test_a_notebook_runs_to_its_end(
    quickstart: Run, short_runs: list[Path], tmp_path: Path, name: str
):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(quickstart.path)
    (tmp_path / "runs" / "quickstart-seed-1").symlink_to(short_runs[0])
    (tmp_path / "notebooks").mkdir()
    notebook = nbformat.read(FOLDER / name, as_version=4)
    NotebookClient(
        notebook, timeout=100, resources={"metadata": {"path": str(tmp_path / "notebooks")}}
    ).execute()
    shown = [
        set(o["data"]) for cell in notebook.cells for o in cell.get("outputs", ()) if "data" in o
    ]
    plots = sum(any("plotly" in kind for kind in kinds) for kinds in shown)
    assert plots == sum(
        ".plot." in cell.source for cell in notebook.cells if cell.cell_type == "code"
    )


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_is_stored_without_output(path: Path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)
