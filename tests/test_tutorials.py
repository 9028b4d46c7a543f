"""Notebooks as they are committed; ``make tutorials`` runs them."""

import re
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "tutorials"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
#: An absolute path, which names a machine or a user: ``tutorials/refresh.py`` leaves none.
ABSOLUTE = re.compile(r"(?<![\w.:/<)\]])/[\w.-]+/[\w./-]*|\b[A-Z]:\\\S+")


def test_there_are_notebooks():
    assert {"quickstart", "kang", "benchmark", "gallery"} <= {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_as_it_ran(path):
    assert path.stat().st_size < 1e6
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert [o for o in outputs if o.output_type == "error"] == []
    shown = "".join(o.get("text", "") for o in outputs)
    assert not re.search(r"Traceback|it/s|Warning:", shown)
    text = [cell.source for cell in notebook.cells] + [o.get("text", "") for o in outputs]
    data = [o.get("data", {}) for o in outputs]
    text += ["".join(v) for d in data for kind, v in d.items() if not kind.startswith("image/")]
    assert [found for part in text for found in ABSOLUTE.findall(part)] == []
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert all(cell.metadata == {} for cell in notebook.cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_names_files_that_exist(path):
    notebook = nbformat.read(path, as_version=4)
    text = "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert [
        n for n in re.findall(r"`(\w+\.(?:ipynb|py))`", text) if not (FOLDER / n).exists()
    ] == []
