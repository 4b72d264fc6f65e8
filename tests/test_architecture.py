"""The house has one direction: a module uses only those below it in the list of the API pages."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "consistent_samplers"
FILES = sorted((ROOT / PACKAGE).rglob("*.py"))


def listed():
    """Modules in the order of the list, those that use others first."""
    page = (ROOT / "docs" / "api" / "index.md").read_text()
    return page.split(":maxdepth: 1\n\n")[1].split("\n```")[0].split()


def place(module, modules):
    """The entry of the list that a module is a part of, the closest; None of the package itself."""
    parts = module.split(".")[1:]
    ends = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next((end for end in ends if end in modules), None)


def imported(path):
    """Modules of the package that a file imports anywhere, each name of a package its module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downward(path):
    modules = listed()
    own = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    mine = place(own, modules)
    if mine is None:  # the package's own names, loaded when they are used
        return
    for name in imported(path):
        if name.startswith(f"{PACKAGE}."):
            other = place(name, modules)
            assert other is None or modules.index(other) >= modules.index(mine), f"uses {name}"


def test_every_file_has_a_place():
    modules = listed()
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in FILES]
    missing = [n for n in names if place(n, modules) is None and not n.endswith("__init__")]
    assert not missing
