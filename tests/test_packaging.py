"""What is declared in one place agrees with what is declared in the others."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import browser
import pytest
import readme
import run_tests
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
    from workbench.models.loading import DEFAULT_PACKAGE

    assert DEFAULT_PACKAGE in constraint_lines()


def test_the_wheel_holds_the_two_packages():
    packages = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert packages == ["workbench", "widgets"]
    assert all((ROOT / package / "__init__.py").is_file() for package in packages)
    assert not list(ROOT.glob("data/**/__init__.py")) + list(ROOT.glob("notebooks/**/__init__.py"))


def test_readme_says_what_the_code_says():
    text = readme.README.read_text(encoding="utf-8")
    assert readme.updated(text) == text, "run `make readme`"


def test_every_module_has_a_line_in_the_tree():
    tree = readme.tree()
    files = [path for package in ("workbench", "widgets") for path in (ROOT / package).rglob("*.py")]
    lines = [path.name for path in files if path.name != "__init__.py"] + [
        f"{path.parent.name}/" for path in files if path.name == "__init__.py"
    ]
    assert sorted(each.split()[0] for each in tree.splitlines()[1:-1]) == sorted(lines)
    assert all(len(each.split()) > 2 for each in tree.splitlines()[1:-1]), "every module says what it is"


def test_no_package_bears_the_name_of_a_verb():
    import workbench

    verbs = {name for name in workbench.__all__ if callable(getattr(workbench, name)) and name.islower()}
    names = {path.stem for path in (ROOT / "workbench").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not verbs & names


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


# ---- the rounds of `make test`


def outcome(name, code, **counts):
    return run_tests.Outcome(name, code, 61.0, {"passed": 0, "failed": 0, "skipped": 0} | counts, [])


@pytest.mark.parametrize(
    ("codes", "expected"), [((0, 0), 0), ((0, 1), 1), ((1, 0), 1), ((5, 0), 0), ((5, 5), 5), ((-9, 0), 1), ((0, 2), 1)]
)
def test_a_round_that_fails_fails_the_whole(codes, expected):
    assert run_tests.exit_code([outcome(str(at), code) for at, code in enumerate(codes)]) == expected


def test_every_round_is_run_and_summed_up_once(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(run_tests, "ROOT", tmp_path)
    monkeypatch.setattr(run_tests, "REPORTS", tmp_path)
    (tmp_path / "test_one.py").write_text("def test_bad(): assert 0\ndef test_good(): pass\n")
    (tmp_path / "test_two.py").write_text("import pytest\ndef test_skipped(): pytest.skip()\n")
    given = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    found = [run_tests.run(run_tests.Round(name, (f"test_{name}.py",), {}), given) for name in ("one", "two")]
    assert [each.code for each in found] == [1, 0]
    assert "1 failed, 1 passed" in capfd.readouterr().out
    said = run_tests.summary(found).splitlines()
    assert said[-1] == "1 passed, 1 failed, 1 skipped"
    assert "FAILED test_one::test_bad" in said
    assert run_tests.exit_code(found) == 1


def test_a_round_that_broke_off_says_so():
    said = run_tests.summary([outcome("quick", -9), outcome("real", 0, passed=3)])
    assert "pytest ended with code -9" in said
    assert said.endswith("3 passed, 0 failed, 0 skipped")
