"""What the notebooks are made of. The same test run executes them (nbmake, notebooks/conftest)."""

import json
import re
from pathlib import Path

import pytest

import benchmarks.__main__ as command_line
from benchmarks import case, notebooks

FOLDER = Path(__file__).parents[1] / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))


def _cells(path):
    return json.loads(path.read_text())["cells"]


def _source(cell):
    return "".join(cell["source"])


def test_they_are_numbered():
    assert [path.name[:2] for path in PATHS] == [f"{i}_" for i in range(1, len(PATHS) + 1)]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path):
    book = json.loads(path.read_text())
    assert book["metadata"]["kernelspec"]["name"] == "python3"
    assert set(book["metadata"]) == {"kernelspec", "language_info"}
    for cell in book["cells"]:
        assert not cell["metadata"]
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_opens_with_badge_and_install(path):
    title, install, setup = _cells(path)[:3]
    assert title["cell_type"] == "markdown" and _source(title).startswith("# ")
    assert "https://colab.research.google.com/assets/colab-badge.svg" in _source(title)
    assert f"/blob/main/notebooks/{path.name})" in _source(title)
    assert 'find_spec("consistent_samplers") is None' in _source(install)
    assert "%pip install" in _source(install)
    assert 'QUICK = bool(os.environ.get("CONSISTENT_SAMPLERS_QUICK"))' in _source(setup)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_has_pictures_and_links_that_lead_somewhere(path):
    cells = _cells(path)
    assert any("plt.show()" in _source(c) for c in cells if c["cell_type"] == "code")
    for cell in cells:
        if cell["cell_type"] == "markdown":
            for link in re.findall(r"\]\((?!https?:)([^)]+)\)", _source(cell)):
                assert (FOLDER / link).exists(), link


def test_full_run_keeps_copies_and_pictures(tmp_path, monkeypatch, capsys):
    pytest.importorskip("nbclient")
    cells = ["import matplotlib.pyplot as plt", "plt.plot([1, 2])\nplt.show()", "print(6 * 7)"]
    book = {
        "cells": [
            {
                "cell_type": "code",
                "execution_count": None,
                "id": f"c{i}",
                "metadata": {},
                "outputs": [],
                "source": source,
            }
            for i, source in enumerate(cells)
        ],
        "metadata": {"kernelspec": {"display_name": "Python 3", "name": "python3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    (tmp_path / "7_seven.ipynb").write_text(json.dumps(book))
    (tmp_path / "8_eight.ipynb").write_text(json.dumps(book).replace("6 * 7", "1 / 0"))
    monkeypatch.setattr(notebooks, "SOURCES", tmp_path)
    monkeypatch.delenv("MPLBACKEND", raising=False)
    options = ["--folder", str(tmp_path / "copies"), "--output", str(tmp_path / "results")]

    command_line.main(["notebooks", "--names", "7_seven", *options])
    assert "42" in (tmp_path / "copies" / "7_seven.ipynb").read_text()
    assert (tmp_path / "copies" / "7_seven-1.png").read_bytes().startswith(b"\x89PNG")
    (row,) = case.read(tmp_path / "results" / "notebooks.jsonl")
    assert (row["target"], row["pictures"], row.get("error")) == ("7_seven", 1, None)
    assert "| 7_seven | " in (tmp_path / "results" / "notebooks.md").read_text()

    # A cell that fails fails the command, and what was reached is kept.
    with pytest.raises(RuntimeError, match=r"8_eight: ZeroDivisionError"):
        command_line.main(["notebooks", "--names", "8_eight", *options])
    assert "ZeroDivisionError" in (tmp_path / "copies" / "8_eight.ipynb").read_text()
    with pytest.raises(SystemExit):
        command_line.main(["notebooks", "--names", "9_nine", *options])
    assert "names must be among 7_seven, 8_eight" in capsys.readouterr().err
