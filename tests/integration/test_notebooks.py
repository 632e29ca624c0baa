"""The notebooks, executed from the first cell to the last on made runs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.make_run import write_run

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shows_plot(cell: nbformat.NotebookNode) -> bool:
    formats = [kind for output in cell.outputs for kind in output.get("data", ())]
    return any("plotly" in kind for kind in formats)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_runs_and_draws_its_plots(tmp_path: Path, path: Path):
    write_run(tmp_path / "runs" / "quickstart", 24, t0003="diverged")
    write_run(tmp_path / "runs" / "quickstart-seed-1", 6)
    (tmp_path / "notebooks").mkdir()
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path / "notebooks")}}
    NotebookClient(notebook, timeout=100, resources=resources).execute()
    cells = code_cells(notebook)
    drawn = [cell.source for cell in cells if shows_plot(cell)]
    assert drawn == [cell.source for cell in cells if ".plot." in cell.source]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_is_stored_without_output(path: Path):
    for cell in code_cells(nbformat.read(path, as_version=4)):
        assert cell.outputs == []
        assert cell.execution_count is None
