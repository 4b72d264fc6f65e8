"""Sphinx configuration: pages in MyST, the API from docstrings, notebooks as they are."""

import inspect
import re
import shutil
from pathlib import Path
from typing import Any

import optax
from sphinx.util.typing import stringify_annotation

import consistent_samplers as cs

project = "consistent_samplers"
author = "consistent_samplers contributors"
release = version = cs.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "myst_nb",
]
exclude_patterns = ["_build"]

# Single backticks in docstrings are cross references where there is something to refer to.
default_role = "py:obj"
add_module_names = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 88

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"

napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_attr_annotations = False

# Sphinx reads below this folder only, and links between notebooks need them where they are read:
# a copy, rather than a symbolic link.
_COPY = Path(__file__).parent / "notebooks"
_NOTEBOOKS = _COPY.parents[1] / "notebooks"
shutil.rmtree(_COPY, ignore_errors=True)
if _NOTEBOOKS.is_dir():
    shutil.copytree(_NOTEBOOKS, _COPY, ignore=shutil.ignore_patterns(".*"))
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath", "substitution", "colon_fence"]
myst_heading_anchors = 3

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"consistent_samplers {version}"
html_show_sourcelink = False


def _public_names() -> str:
    """The names of the package itself as a table, each with the first line of its docstring."""
    rows = ["| name | |", "| --- | --- |"]
    for name in cs.__all__:
        value = getattr(cs, name)
        summary = (inspect.getdoc(value) or "").split("\n")[0].replace("|", r"\|")
        if inspect.ismodule(value):
            link = f"{{py:mod}}`cs.{name} <{value.__name__}>`"
        else:
            link = f"{{py:obj}}`cs.{name} <{_home(name)}>`"
        rows.append(f"| {link} | {summary} |")
    return "\n".join(rows)


def _home(name: str) -> str:
    """Where a name of the package is documented."""
    return f"consistent_samplers.{cs._HOME[name]}.{name}"


myst_substitutions = {"public_names": _public_names()}


def _skip_member(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leaves out what flax and NamedTuple add to classes: the fields are in the class docstring."""
    doc = getattr(obj, "__doc__", None) or ""
    if doc.startswith("Alias for field number"):
        return True
    module = getattr(obj, "__module__", None) or ""
    if inspect.isfunction(obj) and module.split(".")[0] in ("flax", "dataclasses"):
        return True
    return None


def _escape_bars(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Absolute values are no substitutions: ``|det J|`` outside of literals and examples."""
    in_example = False
    for i, line in enumerate(lines):
        in_example = line.lstrip().startswith(">>>") or (in_example and bool(line.strip()))
        if not in_example:
            parts = re.split(r"(`+[^`]+`+)", line)
            parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
            lines[i] = "".join(parts)


def _name_schedules(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str
) -> tuple[str, str] | None:
    """A learning rate is an ``optax.Schedule``, not the long type which that stands for."""
    long = stringify_annotation(optax.Schedule, "smart")
    return None if signature is None else (signature.replace(long, "optax.Schedule"), returns)


def _resolve_by_ending(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Finds `losses.pull_weight` or `fit_mixture` by the end of its full name, the shortest."""
    if node.get("refdomain") != "py" or node.get("reftype") != "obj":
        return None
    domain, wanted = env.get_domain("py"), node["reftarget"]
    while True:
        found = [name for name in domain.objects if name.endswith(f".{wanted}")]
        if found:
            full = min(found, key=len)
            return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", full, node, content)
        # The module may be another than the one where the name is documented, the class not.
        module, dot, wanted = wanted.partition(".")
        if not dot or not module.islower():
            return None


def setup(app: Any) -> None:
    """Connects the hooks."""
    app.connect("autodoc-skip-member", _skip_member)
    app.connect("autodoc-process-signature", _name_schedules)
    app.connect("autodoc-process-docstring", _escape_bars)
    app.connect("missing-reference", _resolve_by_ending)
