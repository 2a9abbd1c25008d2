"""docs/article.ipynb: it runs, a cell that is interrupted runs again, and the file holds the outputs of a full run."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

PATH = Path(__file__).parents[1] / "docs" / "article.ipynb"
SHORT = "EPOCHS = 1\nSEEDS = 1\nSWEEP_STEPS = 40"
# As Ctrl-C, or the stop button: SIGINT while the loop takes its second block of steps.
INTERRUPTED = """\
import os, signal

def interrupted(loop, *rates, run=clr_loop.TrainLoop.run, calls=[]):
    calls.append(loop)
    if len(calls) == 2:
        clr_loop.TrainLoop.run = run
        os.kill(os.getpid(), signal.SIGINT)
    return run(loop, *rates)

clr_loop.TrainLoop.run = interrupted
"""


def tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def data_of(cell, kind="text/plain"):
    return [output.data[kind] for output in cell.outputs if kind in output.get("data", {})]


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(PATH, as_version=4)


@pytest.fixture(scope="module")
def executed(notebook, tmp_path_factory):
    """The notebook after a short run, in which each cell that trains was interrupted once and then run again."""
    cells = []
    for cell in nbformat.from_dict(notebook).cells:
        if "trains" in cell.metadata.get("tags", []):
            broken = nbformat.v4.new_code_cell(cell.source, metadata={"tags": ["raises-exception", "interrupted"]})
            cells += [nbformat.v4.new_code_cell(INTERRUPTED), broken]
        cells.append(nbformat.from_dict(cell))
    short = nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata)
    (parameters,) = tagged(short, "parameters")
    parameters.source = SHORT
    place = tmp_path_factory.mktemp("notebook")
    waits = dict.fromkeys(("timeout", "iopub_timeout", "startup_timeout"), 300)
    NotebookClient(short, **waits, resources={"metadata": {"path": str(place)}}).execute()
    return short


def test_a_cell_that_is_interrupted_runs_again(executed):
    interrupted, again = tagged(executed, "interrupted"), tagged(executed, "trains")
    assert len(interrupted) == len(again) == 3
    for cell in interrupted:
        assert [output.ename for output in cell.outputs if output.output_type == "error"] == ["KeyboardInterrupt"]
    for cell in again:
        assert data_of(cell, "image/png")
    assert data_of(again[0])[0].startswith("TrainingResult(1 epochs, 600 steps: loss ")


def test_every_thing_shows_itself_as_a_line_and_a_table_or_a_picture(executed):
    shown = [cell for cell in executed.cells if cell.cell_type == "code" and data_of(cell)]
    assert len(shown) == 7
    for cell in shown:
        (line,) = data_of(cell)
        assert len(line.splitlines()) == 1, line
        assert data_of(cell, "text/html") or data_of(cell, "image/png") or data_of(cell, "text/markdown")


def test_it_holds_the_outputs_of_its_own_settings(notebook):
    assert tagged(notebook, "parameters")[0].source == "EPOCHS = 15\nSEEDS = 3\nSWEEP_STEPS = 1000"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    text = PATH.read_text()
    assert "TrainingResult(15 epochs, 9,000 steps: " in text
    assert "Comparison(4 arms, 3 seeds, by val_accuracy)" in text
    assert len(text) < 2_000_000
