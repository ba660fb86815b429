"""Runs lessons and solved labs into static pages in a folder, with an index; readable without a kernel.

Figures are in the pages; the formulas of the labs are set by MathJax, which a browser fetches.

    python scripts/demo.py out 00_quickstart 01_wanda    # these; all without names

A page that was made already is made again; what else lies in the folder stays.
"""

import os
import re
import sys
from html import escape
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from traitlets.config import Config

from workbench.teaching.labs import solved

ROOT = Path(__file__).parents[1]
PATIENCE = 1800  # seconds a cell
STATIC = Config()  # each output's static form, and a streamed answer as one text, not a line a token
STATIC.NbConvertBase.display_data_priority = [
    "text/html",
    "application/pdf",
    "text/latex",
    "image/svg+xml",
    "image/png",
    "image/jpeg",
    "text/markdown",
    "text/plain",
]
STATIC.CoalesceStreamsPreprocessor.enabled = True
WIDGET = "application/vnd.jupyter.widget-view+json"
KINDS = {"notebooks": "Lessons", "labs": "Labs, solved"}
HEAD = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>LLM optimization workbench</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
:root { color-scheme: light dark; } body { font: 16px/1.6 system-ui, sans-serif; max-width: 45rem; margin: 2rem auto; }
</style></head><body><main><h1>LLM optimization workbench</h1>
<p>Run before, to be read in class: nobody waits. Sliders and buttons need the notebooks themselves.</p>
"""


def chosen(names: list[str]) -> list[Path]:
    """The notebooks of these names, or all."""
    known = [path for kind in KINDS for path in sorted((ROOT / kind).glob("*.ipynb"))]
    if missing := set(names) - {path.stem for path in known}:
        sys.exit(f"There is no notebook '{min(missing)}': there are {', '.join(path.stem for path in known)}.")
    return [path for path in known if not names or path.stem in names]


def page(path: Path) -> str:
    """A notebook, run here, as HTML; of a lab, with its solution."""
    notebook = nbformat.read(path, as_version=4)
    solution = path.parent / "solutions" / f"{path.stem}.py"
    if solution.exists():
        notebook = nbformat.from_dict(solved(notebook, solution.read_text(encoding="utf-8")))
    NotebookClient(notebook, timeout=PATIENCE, resources={"metadata": {"path": str(path.parent)}}).execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            still(output)
    text: str = HTMLExporter(config=STATIC).from_notebook_node(notebook, {"metadata": {"name": path.stem}})[0]
    return text


def still(output: nbformat.NotebookNode) -> None:
    """Say that an output is a panel, where it has no form of its own without a kernel."""
    if WIDGET in output.get("data", {}) and "text/html" not in output.data:
        output.data = nbformat.from_dict({"text/plain": "A panel: open the notebook itself to use it."})


def index(folder: Path) -> str:
    """Links to all pages that are there, each under its notebook's title."""
    parts = [HEAD]
    for kind, title in KINDS.items():
        found = [path for path in sorted((ROOT / kind).glob("*.ipynb")) if (folder / name_of(path)).exists()]
        links = "".join(f'<li><a href="{name_of(path)}">{escape(heading(path))}</a></li>' for path in found)
        parts.append(f"<h2>{title}</h2><ul>{links}</ul>" if found else "")
    return "".join([*parts, "</main></body></html>\n"])


def name_of(path: Path) -> str:
    """Of a notebook's page."""
    return "quickstart.html" if path.stem == "00_quickstart" else f"{path.parent.name}-{path.stem}.html"


def heading(path: Path) -> str:
    """A notebook's first heading."""
    found = re.search(r"^# (.+)$", nbformat.read(path, as_version=4).cells[0].source, re.MULTILINE)
    return found[1] if found else path.stem


def main(folder: Path, names: list[str]) -> None:
    """Make the pages and the index."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["WORKBENCH_PROGRESS"] = "off"  # lines that are gone at the end of a cell
    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype+notebook"  # figures that need no network
    for path in chosen(names):
        print(f"{path.stem} ...", flush=True)
        (folder / name_of(path)).write_text(page(path), encoding="utf-8")
    (folder / "index.html").write_text(index(folder), encoding="utf-8")
    print(folder / "index.html")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
