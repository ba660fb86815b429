"""A real JupyterLab, or a Notebook 7, in a folder of its own, and a Chromium that looks at it."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[1]
CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def lab(folder: Path, app: str = "lab", port: int | None = None, token: str = "") -> Iterator[str]:
    """Start a server on a folder, with settings and run files of its own; yields its address with the token.

    Args:
        folder: what it shows.
        app: `lab` for JupyterLab, `notebook` for Notebook 7.
        port: where it was before, with `token`, if a page is to find it again; by default one that is free.
        token: that lets a page in; by default a new one.
    """
    settings = folder / ".jupyter" / "settings" / "@jupyterlab"
    for name, values in {
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
        "apputils-extension/themes": {"adaptive-theme": False},
        "docmanager-extension/plugin": {"autosave": False},
    }.items():
        file = settings / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    own = {
        "JUPYTERLAB_SETTINGS_DIR": settings.parent,
        "JUPYTERLAB_WORKSPACES_DIR": folder / ".jupyter" / "workspaces",
        "JUPYTER_CONFIG_DIR": folder / ".jupyter" / "config",
        "JUPYTER_RUNTIME_DIR": folder / ".jupyter" / "runtime",
        "IPYTHONDIR": folder / ".jupyter" / "ipython",
        "PYTHONPATH": ROOT,
    }
    port, token = port or free_port(), token or secrets.token_hex(16)
    address = f"http://127.0.0.1:{port}"
    quiet = ("--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.news_url=None")
    command = [
        *(sys.executable, "-m", "jupyter", app, "--no-browser", "--allow-root", "--expose-app-in-browser"),
        *("--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder}"),
        *(f"--IdentityProvider.token={token}", *(quiet if app == "lab" else ())),
    ]
    with (folder / "lab.log").open("ab") as log:
        server = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | {name: str(value) for name, value in own.items()},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            _until_ready(server, f"{address}/api?token={token}", folder / "lab.log")
            yield f"{address}/{app}?token={token}"
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _until_ready(server: subprocess.Popen, address: str, log: Path) -> None:
    for _ in range(600):
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(address, timeout=1):
                return
        except OSError:
            try:
                server.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
    raise RuntimeError(f"Jupyter did not start:\n{log.read_text()[-2000:]}")


def workspace(folder: Path) -> Path:
    """Lay out a folder as the repository is: the notebooks copied, the data linked."""
    (folder / "notebooks").mkdir()
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        (folder / "notebooks" / notebook.name).write_bytes(notebook.read_bytes())
    (folder / "data").symlink_to(ROOT / "data")
    return folder


def write_notebook(path: Path, *cells: str) -> None:
    """A notebook of code cells that opens without asking for a kernel."""
    notebook = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
        cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
    )
    nbformat.write(notebook, path)
