"""From a shell: ``python -m workbench serve EXPORT``."""

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

from workbench.core.errors import InvalidInput, WorkbenchError
from workbench.serving.application import POLICIES
from workbench.serving.deploy import check
from workbench.serving.replica import ROWS
from workbench.serving.service import serve
from workbench.serving.smoke import FACTS

KEY = "WORKBENCH_KEY"


def main(arguments: list[str] | None = None) -> int:
    """Serve until the process is told to end; what was begun is answered first. Gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m workbench", description="The workbench, from a shell.")
    serving = parser.add_subparsers(required=True).add_parser(
        "serve", help="answer clients of OpenAI's interface with an export, a model's folder or a .gguf file"
    )
    serving.add_argument("path", help="export, model's folder or .gguf file")
    serving.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; others than this machine's need a key"
    )
    serving.add_argument("--port", type=int, default=8000)
    serving.add_argument(
        "--key-file", help=f"file with the key that clients must give; by default {KEY} of the environment"
    )
    serving.add_argument("--name", help="what clients call the model")
    serving.add_argument("--replicas", type=int, default=1, help="processes that answer")
    serving.add_argument("--policy", default="power of two", choices=POLICIES, help="how one is chosen for a request")
    serving.add_argument("--threads", type=int, help="of each replica on a CPU")
    serving.add_argument("--ranks", type=int, default=1, help="processes that share each replica's matrices")
    serving.add_argument("--rows", type=int, default=ROWS, help="requests that a replica answers at once")
    serving.add_argument("--waiting", type=int, default=100, help="further ones that wait")
    given = vars(parser.parse_args(arguments))
    told = threading.Event()
    try:
        key, path = _key(given.pop("key_file")), Path(given.pop("path"))
        for folder in (path, path.parent):
            if (folder / FACTS).is_file():  # it says in words if a file was cut off on its way here
                check(folder)
        with serve(path, key=key, **given) as service:
            for number in (signal.SIGINT, signal.SIGTERM):  # Ray has set its own by now
                signal.signal(number, lambda *_: told.set())
            print(f"{service!r}: Ctrl+C ends it.", flush=True)
            told.wait()
            print("Answering what was begun, then ending.", flush=True)
    except WorkbenchError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _key(file: str | None) -> str | None:
    if file is None:
        return os.environ.get(KEY) or None
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"The key cannot be read from '{file}': {error}.") from None


if __name__ == "__main__":
    sys.exit(main())
