"""What is declared in one place agrees with what is declared in the others."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import browser
import pytest
import step_table
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]


def bounds(lines):
    """Canonical name to version bounds."""
    found = [Requirement(line) for line in lines]
    return {canonicalize_name(each.name): each.specifier for each in found}


def constraint_lines():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def pins():
    """Canonical name to the one version that constraints.txt allows."""
    return {name: str(specifier).removeprefix("==") for name, specifier in bounds(constraint_lines()).items()}


def test_conda_environment_has_the_same_requirements():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda = [each for each in environment["dependencies"] if isinstance(each, str)]
    (pip,) = [each["pip"] for each in environment["dependencies"] if isinstance(each, dict)]
    assert bounds(conda)["python"] == PROJECT["requires-python"]
    assert bounds(line for line in pip if not line.startswith("-")) == bounds(PROJECT["dependencies"])


@pytest.mark.parametrize("part", ["dependencies", *PROJECT["optional-dependencies"]])
def test_constraints_satisfy_every_requirement(part):
    required = PROJECT["dependencies"] if part == "dependencies" else PROJECT["optional-dependencies"][part]
    for name, specifier in bounds(required).items():
        assert name in pins(), f"constraints.txt does not pin {name}"
        assert specifier.contains(pins()[name]), f"{name} is pinned to {pins()[name]}, outside {specifier}"


def test_constraints_are_exact_sorted_and_without_this_project():
    lines = constraint_lines()
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    assert lines == sorted(lines, key=str.lower)
    assert not {"torchao", canonicalize_name(PROJECT["name"])} & set(pins())


def test_the_embedded_model_is_the_one_the_engine_expects():
    from workbench.model import DEFAULT_PACKAGE

    assert DEFAULT_PACKAGE in constraint_lines()


def test_the_wheel_holds_the_two_packages():
    packages = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert packages == ["workbench", "widgets"]
    assert all((ROOT / package / "__init__.py").is_file() for package in packages)
    assert not list(ROOT.glob("data/**/__init__.py")) + list(ROOT.glob("notebooks/**/__init__.py"))


def test_readme_step_table_is_up_to_date():
    text = step_table.README.read_text(encoding="utf-8")
    assert step_table.updated(text) == text, "run `make readme`"


def test_readme_tree_names_every_module():
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("## Where things are")[1].split("```")[1]
    named, folders = set(), []
    for line in tree.strip().splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        folders[depth:] = [name]
        named.add("".join(folders))
    files = {
        str(path.relative_to(ROOT)) for package in ("workbench", "widgets") for path in ROOT.glob(f"{package}/**/*.py")
    }
    assert files - named == set(), "add a line to the tree in README.md"
    assert {name for name in named if not (ROOT / name).exists()} == set(), "named in the tree, but not there"


def test_readme_example_is_python():
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL):
        compile(block, "README.md", "exec")


def test_make_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (targets,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert set(targets.split()) == set(re.findall(r"^([a-z]+):.* ## ", makefile, re.MULTILINE))


def test_a_named_browser_is_used_and_a_wrong_one_is_reported(monkeypatch, tmp_path):
    chosen = tmp_path / "chromium"
    chosen.write_text("#!/bin/sh\nexit 0\n")
    chosen.chmod(0o755)
    monkeypatch.setenv("WORKBENCH_CHROMIUM", str(chosen))
    assert browser.find() == str(chosen)
    monkeypatch.setenv("WORKBENCH_CHROMIUM", str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match="WORKBENCH_CHROMIUM"):
        browser.find()


@pytest.mark.parametrize(("ci", "code"), [("true", 1), ("", 0)])
def test_a_missing_browser_fails_only_under_ci(ci, code):
    script = ROOT / "scripts" / "browser.py"
    nothing = "import runpy, subprocess; subprocess.run = lambda *a, **k: subprocess.CompletedProcess(a, 1);"
    run = subprocess.run(
        [sys.executable, "-c", f"{nothing} runpy.run_path({str(script)!r}, run_name='__main__')"],
        env={"PATH": "", "CI": ci},
        capture_output=True,
        text=True,
    )
    assert run.returncode == code, run.stderr
    assert run.stdout == ""
    assert "No Chromium" in run.stderr
