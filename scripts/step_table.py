"""The README's table of steps, from the steps themselves. Checks it; with --write, rewrites it."""

import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- steps -->", "<!-- /steps -->"


def table() -> str:
    """One Markdown row a step: family, name, the first line of its docstring, its source."""
    from workbench.steps import families

    rows = ["| family | step | what it does | source |", "|---|---|---|---|"]
    for family, steps in families().items():
        for step in steps:
            summary = (step.__doc__ or "").strip().splitlines()[0].replace("|", r"\|")
            rows.append(f"| {family} | `{step.__name__}` | {summary} | [paper]({step.paper}) |")
    return "\n".join(rows)


def updated(text: str) -> str:
    """The README's text with the table as it should be."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    if "--write" in sys.argv[1:]:
        README.write_text(updated(text), encoding="utf-8")
    elif updated(text) != text:
        sys.exit("The step table in README.md is out of date: run `make readme`.")
