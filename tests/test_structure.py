"""The direction of the house: who may import whom, and what an import costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAME = "consistent_samplers"
# A module may import from earlier ones and from its own package only.
ORDER = [
    "guard",
    "types",
    "checks",
    "compilation",
    "registry",
    "store",
    "programs",
    "kernels",
    "targets",
    "bases",
    "schedules",
    "sharding",
    "log_det",
    "processes",
    "networks",
    "simulate",
    "losses",
    "maps",
    "sampler",
    "algorithms",
    "checkpoint",
    "training",
    "estimate",
    "streaming",
    "corrections",
    "diagnostics",
    "recipe",
    "plotting",
    "integrations",
]
FILES = sorted(p for p in (ROOT / NAME).rglob("*.py") if p != ROOT / NAME / "__init__.py")


def subject(path: Path) -> str:
    """Top-level module that a file is part of."""
    return path.relative_to(ROOT / NAME).parts[0].removesuffix(".py")


def imported_modules(source: str, package: str) -> set[str]:
    """Absolute names of everything a source imports anywhere, inside functions as well."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # One level is the package itself, each further one its parent.
            parents = package.split(".")[: -(node.level - 1) or None] if node.level else []
            origin = ".".join([*parents, *([node.module] if node.module else [])])
            names |= {origin, *(f"{origin}.{alias.name}" for alias in node.names)}
    return names


def imports_of(path: Path) -> set[str]:
    package = ".".join(path.relative_to(ROOT).parent.parts)
    return imported_modules(path.read_text(), package)


def subjects_of(names: set[str]) -> set[str]:
    """Our top-level modules among imported names."""
    ours = {name for name in names if name == NAME or name.startswith(f"{NAME}.")}
    return {name.split(".")[1] for name in ours if "." in name}


def test_reader_of_imports():
    # Guards the tests below: an import that is not seen cannot be refused.
    source = (
        "import jax.numpy as jnp\nfrom consistent_samplers import losses\n"
        "def f():\n    from consistent_samplers.recipe import x\n"
        "from ..bases import y\nfrom . import osds\n"
    )
    names = imported_modules(source, f"{NAME}.algorithms")
    assert "jax.numpy" in names
    assert subjects_of(names) == {"losses", "recipe", "bases", "algorithms"}


def test_files_were_found():
    assert {"types", "targets", "algorithms", "recipe"} <= {subject(path) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT / NAME)))
def test_imports_run_downward(path):
    assert subject(path) in ORDER, "a new module: give it its place in ORDER"
    place = ORDER.index(subject(path))
    for name in subjects_of(imports_of(path)) - {subject(path)}:
        assert name in ORDER, f"{path} imports {name}, which has no place in ORDER"
        assert ORDER.index(name) < place, f"{path} imports {name}, which stands after it"


@pytest.mark.parametrize(
    "package", ["targets", "bases", "networks", "maps", "algorithms", "diagnostics", "recipe"]
)
def test_no_cycles_within_a_package(package):
    files = {p.stem: p for p in FILES if subject(p) == package and p.stem != "__init__"}
    prefix = f"{NAME}.{package}."
    depends = {
        stem: {n.removeprefix(prefix).split(".")[0] for n in imports_of(p) if n.startswith(prefix)}
        & files.keys() - {stem}
        for stem, p in files.items()
    }
    while depends:
        free = {stem for stem, others in depends.items() if not others & depends.keys()}
        assert free, f"cycle among {sorted(depends)}"
        depends = {stem: others for stem, others in depends.items() if stem not in free}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT / NAME)))
def test_numpyro_is_imported_by_integrations_only(path):
    if subject(path) != "integrations":
        assert not any(name.split(".")[0] == "numpyro" for name in imports_of(path))


def loaded(statement: str) -> set[str]:
    """Top-level modules in memory after a statement in a fresh interpreter."""
    code = f"import sys\n{statement}\nprint(*sorted(m.split('.')[0] for m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        f"import {NAME}",
        # Every public name resolved, still without the heavy packages.
        f"import {NAME} as cs; [getattr(cs, name) for name in cs.__all__]",
    ],
    ids=["import", "names"],
)
def test_importing_is_light(statement):
    heavy = {"tensorflow_probability", "distrax", "numpyro", "arviz", "arviz_stats", "matplotlib"}
    modules = loaded(statement)
    assert NAME in modules
    assert not modules & heavy


def test_public_names():
    import consistent_samplers as cs

    assert sorted(cs.__all__) == list(cs.__all__)
    assert set(cs.__all__) <= set(dir(cs))
    with pytest.raises(AttributeError, match="no attribute 'osdss'"):
        _ = cs.osdss
