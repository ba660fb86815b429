"""A page as a file: HTML, or PDF by a browser that is there."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from workbench.core import files
from workbench.core.drawn import PAGE, drawn
from workbench.core.errors import InvalidInput, NotAvailable

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
PATIENCE = 120.0  # seconds for a browser to print


class Paged:
    """A value that can be written as a page."""

    def report(self, path: str | Path, question: str = "") -> Path:
        """Write all of it as one page that needs neither script nor kernel: ``.html``, or ``.pdf`` by a browser.

        Args:
            path: of the file.
            question: that it answers; it stands on top.

        Raises:
            InvalidInput: the file's name ends otherwise.
            NotAvailable: there is no browser to print a PDF.
        """
        return write_page(drawn(self, PAGE, question=question), path)


def write_page(html: str, path: str | Path) -> Path:
    """Write a page as ``.html`` or ``.pdf``, whole or not at all; gives where it is.

    Raises:
        InvalidInput: the file's name ends otherwise.
        NotAvailable: there is no browser to print a PDF, or it fails.
        WorkbenchError: the file cannot be written.
    """
    place = files.home(path)
    match place.suffix.lower():
        case ".html" | ".htm":
            files.write_text(place, html)
        case ".pdf":
            _print(html, place)
        case _:
            raise InvalidInput(f"A report is written as .html or .pdf, not as '{place.name}'.")
    return place


def _print(html: str, place: Path) -> None:
    browser = os.environ.get("WORKBENCH_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise NotAvailable("A PDF is printed by Chromium or Chrome, which is not there: write .html, or install one.")
    with tempfile.TemporaryDirectory() as folder:
        page, printed = Path(folder) / "page.html", Path(folder) / "page.pdf"
        page.write_text(html, encoding="utf-8")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer", f"--print-to-pdf={printed}"]
        command = [browser, *flags, f"--user-data-dir={folder}/profile", page.as_uri()]
        try:
            subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NotAvailable(f"'{browser}' could not print the page ({error}): write .html instead.") from None
        if not printed.exists():
            raise NotAvailable(f"'{browser}' printed nothing: write .html instead.")
        with files.whole(place) as temporary:
            shutil.copyfile(printed, temporary)
