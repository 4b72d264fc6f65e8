"""Every public name is documented: a docstring with an example, and the arguments it has."""

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from flax import linen as nn

import consistent_samplers
from consistent_samplers.algorithms import Constructor

ROOT = Path(__file__).resolve().parents[1]


def public_modules(package: ModuleType) -> Iterator[ModuleType]:
    """Modules with public names: packages that list theirs, and modules."""
    for found in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{found.name}")
        if found.ispkg and not hasattr(module, "__all__"):
            yield from public_modules(module)
        else:
            yield module


def assigned(node: ast.stmt) -> list[str]:
    """Names that a statement assigns to."""
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def defined_in(path: Path) -> dict[str, str | None]:
    """Public names that a file defines, and the docstring below each constant or alias."""
    body = ast.parse(path.read_text()).body
    names: dict[str, str | None] = {}
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names[node.name] = None
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            below = following.value if isinstance(following, ast.Expr) else None
            text = below.value if isinstance(below, ast.Constant) else None
            names |= dict.fromkeys(assigned(node), text)
    return {name: text for name, text in names.items() if not name.startswith("_")}


def public_names(module: ModuleType) -> list[str]:
    return list(getattr(module, "__all__", defined_in(Path(module.__file__))))


def is_documented_object(value: Any) -> bool:
    """Whether it carries a docstring of its own: a class, a function or one wrapped."""
    ours = str(getattr(value, "__module__", "")).startswith(consistent_samplers.__name__)
    return ours and (inspect.isclass(value) or callable(value))


# Modules whose names the package alone uses: their docstrings need neither example nor arguments.
INTERNAL = {
    *("checkpoint", "checks", "compilation", "guard", "programs", "progress", "registry", "store")
}
MODULES = list(public_modules(consistent_samplers))
NAMES = [(module, name) for module in MODULES for name in public_names(module)]
OBJECTS = [(m, n) for m, n in NAMES if is_documented_object(getattr(m, n))]
CONSTANTS = [(m, n) for m, n in NAMES if (m, n) not in OBJECTS]


def said_below(module: ModuleType) -> dict[str, str]:
    """What the files of a module, or of a package, say below their constants and aliases."""
    file = Path(module.__file__)
    files = file.parent.rglob("*.py") if file.name == "__init__.py" else [file]
    return {name: text for path in files for name, text in defined_in(path).items() if text}


def label(value: Any) -> str:
    if isinstance(value, ModuleType):
        return value.__name__.partition(".")[2]
    return str(value)


def test_modules_and_names_were_found():
    found = {label(module) for module in MODULES}
    assert {"types", "targets", "algorithms", "integrations.numpyro"} <= found
    assert found >= INTERNAL
    assert len(OBJECTS) > 200
    assert len(CONSTANTS) > 40
    assert len(WITH_ARGUMENTS) > 50
    assert len(WITH_FIELDS) > 50


def test_names_of_the_package_are_documented_in_their_modules():
    for name in consistent_samplers.__all__:
        value = getattr(consistent_samplers, name)
        if inspect.ismodule(value):
            assert value in MODULES
        else:
            assert any(n == name and getattr(m, n) is value for m, n in OBJECTS), name


@pytest.mark.parametrize(("module", "name"), OBJECTS, ids=label)
def test_public_name_has_an_example(module, name):
    value = getattr(module, name)
    doc = inspect.getdoc(value)
    assert doc, f"{name} has no docstring"
    assert doc != type(value).__doc__
    if label(module) in INTERNAL:
        return
    assert re.search(r"^Example:\n(.*\n)*?  >>> ", doc, re.MULTILINE), f"{name} has no example"


@pytest.mark.parametrize(("module", "name"), CONSTANTS, ids=label)
def test_constant_is_documented(module, name):
    assert name in said_below(module), "say below it what it is"


def test_constants_on_the_pages_are_there():
    pages = "\n".join(page.read_text() for page in (ROOT / "docs" / "api").rglob("*.rst"))
    shown = re.findall(r"^\.\. autodata:: (\S+)::(\w+)$", pages, re.MULTILINE)
    assert shown
    for module, name in shown:
        assert hasattr(importlib.import_module(module), name), f"{module} has no {name}"


def described(value: Any, section: str) -> list[str] | None:
    """Names that a section of a docstring says something of; None without the section."""
    doc = inspect.getdoc(value) or ""
    found = re.search(rf"^{section}:\n((?:  .*\n|\n)+)", doc + "\n", re.MULTILINE)
    return None if found is None else re.findall(r"^  (\*{0,2}\w+): ", found[1], re.MULTILINE)


def settings_of(constructor: Constructor) -> list[str]:
    """Settings that the classes behind an algorithm document, those of the parents first."""
    classes = reversed(constructor._objective.__mro__)
    own = [described(c, "Attributes") or [] for c in classes if c.__module__ != "builtins"]
    return list(dict.fromkeys(name for names in own for name in names))


WITH_ARGUMENTS = [(m, n) for m, n in OBJECTS if described(getattr(m, n), "Args") is not None]


@pytest.mark.parametrize(("module", "name"), WITH_ARGUMENTS, ids=label)
def test_documented_arguments_are_those_of_the_signature(module, name):
    value = getattr(module, name)
    documented = described(value, "Args")
    if isinstance(value, Constructor):
        # What it hands on is documented once, by the class of its settings.
        assert documented[-1] == "**settings"
        rest = [setting for setting in settings_of(value) if setting not in documented]
        documented = [*documented[:-1], *rest]
    parameters = inspect.signature(value).parameters.values()
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    assert documented == [stars.get(p.kind, "") + p.name for p in parameters]


def fields_of(value: Any) -> list[str]:
    """Names of what a dataclass or named tuple is made of, less what linen adds."""
    if not inspect.isclass(value):
        return []
    if dataclasses.is_dataclass(value):
        own = {"parent", "name"} if issubclass(value, nn.Module) else set()
        return [f.name for f in dataclasses.fields(value) if f.init and f.name not in own]
    return list(getattr(value, "_fields", []))


WITH_FIELDS = [(m, n) for m, n in OBJECTS if fields_of(getattr(m, n)) and label(m) not in INTERNAL]


@pytest.mark.parametrize(("module", "name"), WITH_FIELDS, ids=label)
def test_every_field_is_documented_by_its_class_or_a_parent(module, name):
    value = getattr(module, name)
    sections = [described(c, s) or [] for c in value.__mro__ for s in ("Attributes", "Args")]
    documented = {field for section in sections for field in section}
    assert documented == set(fields_of(value))


@pytest.mark.parametrize("module", MODULES, ids=label)
def test_module_has_a_page(module):
    page = ROOT / "docs" / "api" / f"{label(module)}.rst"
    assert f"automodule:: {module.__name__}\n" in page.read_text()
    assert f"\n{label(module)}\n" in (page.parent / "index.md").read_text()
