"""The labs as notebooks: stored clean, with holes, and run from top to bottom once they are filled."""

import ast
import json
import os
from pathlib import Path

import nbformat
import pytest
from lab import ROOT, workspace
from nbclient import NotebookClient

import workbench as wb
from workbench.teaching.labs import cells_of, solved

LABS = sorted((ROOT / "labs").glob("*.ipynb"))
WIDGET = "application/vnd.jupyter.widget-view+json"
every_lab = pytest.mark.parametrize("path", LABS, ids=lambda path: path.stem)


def solution(path: Path) -> str:
    return (path.parent / "solutions" / f"{path.stem}.py").read_text(encoding="utf-8")


def test_there_are_four() -> None:
    assert [path.stem for path in LABS] == ["01_wanda", "02_gptq", "03_lora", "04_predict_the_speed"]
    assert {each.stem for each in (ROOT / "labs" / "solutions").glob("*.py")} == {path.stem for path in LABS}


@every_lab
def test_stored_clean(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert [cell.id for cell in notebook.cells] == [f"cell-{number:02}" for number in range(len(notebook.cells))]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None
            ast.parse(cell.source)


@every_lab
def test_the_solution_fills_what_is_left_open_and_nothing_else(path: Path) -> None:
    cells = {cell["id"]: "".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]}
    filled = cells_of(solution(path))
    left_open = {name for name, text in cells.items() if "NotImplementedError" in text or " = None  #" in text}
    assert left_open == filled.keys()
    for name, text in filled.items():
        assert "NotImplementedError" not in text
        if "class " in text:  # all but the holes is there already: what learners see is what is checked
            mine, theirs = (
                {each.name for each in ast.walk(ast.parse(it)) if isinstance(each, ast.ClassDef | ast.FunctionDef)}
                for it in (cells[name], text)
            )
            assert mine <= theirs


def test_a_solution_of_another_notebook_is_refused() -> None:
    with pytest.raises(wb.WorkbenchError, match="no cell 'cell-99'"):
        solved({"cells": [{"id": "cell-00", "source": ""}]}, "# %% cell-99\nx = 1\n")


@pytest.mark.model
@pytest.mark.timeout(900)
@every_lab
def test_runs_with_its_solution(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    notebook = nbformat.from_dict(solved(nbformat.read(path, as_version=4), solution(path)))
    folder = workspace(tmp_path) / "notebooks"
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    shown = [output.data for output in outputs if "data" in output]
    checks = [data["text/plain"] for data in shown if "points are as they should be" in data.get("text/plain", "")]
    assert len(checks) == 1
    assert ": passed, " in checks[0].splitlines()[0], checks[0]
    assert sum(WIDGET in data for data in shown) == (path.stem != "04_predict_the_speed")
