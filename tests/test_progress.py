"""What the screen shows: a line for each stage with the time left, and nothing where none looks."""

import re
import sys

import jax
import pytest

import consistent_samplers as cs
from consistent_samplers import progress

KEY = jax.random.key(0)


@pytest.fixture
def terminal(capsys, monkeypatch):
    # Of the class: capturing makes another stream for the test itself.
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: True)


def lines(capsys):
    """Everything that a line showed, one state after the other."""
    return [line.strip() for line in re.split(r"[\r\n]+", capsys.readouterr().err) if line.strip()]


def banana():
    def log_density(x):
        return -0.5 * x[0] ** 2 - 2.0 * (x[1] - x[0] ** 2) ** 2

    return cs.Target(log_density, dim=2)


def trained(progress_bar, **settings):
    budget = {"num_calibration_iterations": 20, "hidden": (8,), "explore": False}
    return cs.train_sampler(KEY, banana(), progress_bar=progress_bar, **budget | settings)


def test_a_stage_counts_its_loops_and_ends_with_its_time(terminal, capsys):
    with progress.stage("explore", progress_bar=True):
        assert list(progress.counted("climbs", range(4), 4)) == [0, 1, 2, 3]
        for i in progress.counted("particles", range(60), 20):
            if i == 2:
                break
    shown = lines(capsys)
    assert any(line.startswith("explore: climbs:   0%") and "0/4 [" in line for line in shown)
    assert any(line.startswith("explore: particles:   0%") and "0/20 [" in line for line in shown)
    assert re.fullmatch(r"explore \[\d\d:\d\d\]", shown[-1])


def test_a_stage_within_a_stage_is_a_part_of_its_line(terminal, capsys):
    with progress.stage("base", progress_bar=True), progress.stage("look", progress_bar=True):
        list(progress.counted("climbs", range(3), 3))
    shown = lines(capsys)
    assert shown and all(line.startswith("base") for line in shown)
    assert any("base: climbs" in line for line in shown)


def test_loops_outside_of_a_stage_show_nothing(terminal, capsys):
    assert list(progress.counted("climbs", "abc", 3)) == ["a", "b", "c"]
    assert progress.label("osds") == "osds"
    assert not lines(capsys)


def test_a_stage_that_fails_leaves_none_running(terminal, capsys):
    with pytest.raises(ValueError, match="no"), progress.stage("explore", progress_bar=True):
        raise ValueError("no")
    assert progress.label("osds") == "osds"


@pytest.mark.slow
def test_training_shows_its_stages_in_order(terminal, capsys):
    trained(True, effort="full")
    shown = lines(capsys)
    stages = list(dict.fromkeys(re.match(r"[a-z ]+", line)[0].strip() for line in shown))
    assert stages == ["fit a base", "base", "full"]
    assert any(re.match(r"full: 100%.* 20/20 \[\d\d:\d\d<\d\d:\d\d", line) for line in shown)
    assert any(line.startswith("fit a base: a Gaussian") for line in shown)


def test_training_is_quiet_when_asked(terminal, capsys):
    trained(False)
    assert not lines(capsys)


def test_training_is_quiet_where_standard_error_is_no_terminal(capsys):
    assert not sys.stderr.isatty()
    trained(True)
    assert not lines(capsys)


def test_a_notebook_shows_bars_although_its_stream_is_no_terminal(monkeypatch):
    monkeypatch.setattr(progress, "_IN_NOTEBOOK", True)
    assert progress.hidden(True) is False
    assert progress.hidden(False) is True
