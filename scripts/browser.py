"""Find Chromium for the browser tests, or install it; run as a script, print its path."""

import os
import shutil
import subprocess
import sys

NAMES = ("/usr/bin/chromium", "chromium", "chromium-browser", "google-chrome")


def find() -> str | None:
    """The path of a Chromium that starts: $WORKBENCH_CHROMIUM, the system's, else Playwright's own."""
    if given := os.environ.get("WORKBENCH_CHROMIUM"):
        if not _starts(given):
            raise FileNotFoundError(f"WORKBENCH_CHROMIUM is '{given}', which does not start: correct or unset it.")
        return given
    found = (path for name in NAMES if (path := shutil.which(name)) and _starts(path))
    return next(found, None) or _playwrights_own()


def install() -> str | None:
    """Let Playwright download Chromium or, as root, apt install it; None if neither works."""
    _run([sys.executable, "-m", "playwright", "install", "chromium"])
    if path := find():
        return path
    if os.geteuid() == 0 and shutil.which("apt-get"):
        _run(["apt-get", "update"]) and _run(["apt-get", "install", "-y", "chromium"])
    return find()


def _playwrights_own() -> str | None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if _starts(path) else None


def _starts(path: str) -> bool:
    return _run([path, "--version"], output=subprocess.DEVNULL)


def _run(command: list[str], output: object = sys.stderr) -> bool:
    try:
        return subprocess.run(command, stdout=output, stderr=output, timeout=300).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


if __name__ == "__main__":
    try:
        path = find() or install()
    except FileNotFoundError as error:
        sys.exit(str(error))
    if path:
        print(path)
    elif os.environ.get("CI") == "true":
        sys.exit("No Chromium was found and none could be installed: the browser tests cannot run.")
    else:
        print("No Chromium was found and none could be installed: browser tests will be skipped.", file=sys.stderr)
