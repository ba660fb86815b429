"""What README.md says of the code, from the code: the steps and the tree. Checks it; with --write, rewrites it."""

import ast
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
COLUMN = 26  # where the words begin behind the names


def steps() -> str:
    """One Markdown row a step: family, name, the first line of its docstring, its source."""
    from workbench.steps import families

    rows = ["| family | step | what it does | source |", "|---|---|---|---|"]
    for family, found in families().items():
        for step in found:
            summary = (step.__doc__ or "").strip().splitlines()[0].replace("|", r"\|")
            rows.append(f"| {family} | `{step.__name__}` | {summary} | [paper]({step.paper}) |")
    return "\n".join(rows)


def tree() -> str:
    """A line a folder and a module, with the first line of its docstring; wings in the order of their floors."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    floors = {
        each["containers"][0]: each["layers"]
        for each in settings["tool"]["importlinter"]["contracts"]
        if each["type"] == "layers"
    }
    lines = ["```"]
    for package, order in floors.items():
        lines.append(line(f"{package}/", ROOT / package / "__init__.py", 0))
        lines += folder(ROOT / package, 1, lambda path, order=order: (order.index(path.stem), path.name))
    return "\n".join([*lines, "```"])


def folder(path: Path, depth: int, key: Callable[[Path], object]) -> Iterator[str]:
    """The lines of what is in a folder; what a package says of itself stands beside its name."""
    found = [each for each in path.iterdir() if each.suffix == ".py" or (each / "__init__.py").exists()]
    for each in sorted((it for it in found if it.name != "__init__.py"), key=key):
        if each.is_dir():
            yield line(f"{each.name}/", each / "__init__.py", depth)
            yield from folder(each, depth + 1, lambda path: path.name)
        else:
            yield line(each.name, each, depth)


def line(name: str, module: Path, depth: int) -> str:
    """A name, and what its docstring says first."""
    said = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    return f"{'  ' * depth + name:<{COLUMN}} {said.partition(chr(10))[0].rstrip('.')}"


PARTS: dict[str, Callable[[], str]] = {"steps": steps, "tree": tree}


def updated(text: str) -> str:
    """The README's text with both parts as they should be, each between two comments that name it."""
    for name, part in PARTS.items():
        before, rest = text.split(f"<!-- {name} -->")
        after = rest.split(f"<!-- /{name} -->")[1]
        text = f"{before}<!-- {name} -->\n{part()}\n<!-- /{name} -->{after}"
    return text


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    if "--write" in sys.argv[1:]:
        README.write_text(updated(text), encoding="utf-8")
    elif updated(text) != text:
        sys.exit("README.md is out of date: run `make readme`.")
