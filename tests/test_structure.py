"""Guards of the repository's layout: what is imported from where, and what must not exist."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "sequences": set(),
    "renderers": {"sequences"},
    "sources": {"sequences", "renderers"},
    "manifests": {"sequences"},
    "tokenize": {"sequences", "manifests"},
    "trainer": {"sequences", "manifests", "tokenize"},
    "pipeline": {"sequences", "renderers", "sources", "manifests", "tokenize", "trainer", "configs"},
}


def imported_packages(path: Path) -> set[str]:
    """Packages of uvd that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("uvd.")}
    return found


def test_tokenize_is_no_regular_package():
    # With an __init__.py, anything run from the root would get our folder for Python's own tokenize module.
    assert not (ROOT / "tokenize" / "__init__.py").exists()


def test_pythons_own_tokenize_wins_from_the_root():
    code = "import tokenize, inspect, linecache; print(tokenize.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not done.stdout.startswith(str(ROOT / "tokenize"))


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_one_way(package):
    for path in (ROOT / package).rglob("*.py"):
        foreign = imported_packages(path) - MAY_IMPORT[package] - {package}
        assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


def test_every_package_is_shipped():
    import tomllib

    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    there = {
        "uvd." + ".".join(path.parent.relative_to(ROOT).parts)
        for package in MAY_IMPORT
        for path in (ROOT / package).rglob("*.py")
    }
    assert there <= listed


def test_files_stay_small():
    for package in MAY_IMPORT:
        for path in (ROOT / package).rglob("*.py"):
            lines = len(path.read_text().splitlines())
            assert lines < 400, f"{path.relative_to(ROOT)} has {lines} lines"
