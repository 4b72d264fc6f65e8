"""The table of a summary: its numbers, its width, and the sites that are chosen."""

import math

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from consistent_samplers.integrations.numpyro import OneStepSampler
from consistent_samplers.integrations.numpyro.table import (
    MOST_ROWS,
    WIDTH,
    _in_digits,
    chosen,
    table,
    wrapped,
)

SITES = ["mu", "tau", "theta", "theta_raw", "beta_1", "beta_2"]


def model(num):
    for i in range(num):
        numpyro.sample(f"a_site_with_a_rather_long_name_of_{i}", dist.Normal(0.0, 1.0))
    with numpyro.plate("members", num):
        numpyro.sample("theta", dist.Normal(0.0, 1.0))


@pytest.fixture(scope="module")
def of_200():
    sampler = OneStepSampler(
        model, num_samples=500, effort="base", explore=False, progress_bar=False
    )
    sampler.run(jax.random.key(0), 100)
    return sampler


def in_table(shape=(), **sites):
    rng = np.random.default_rng(0)
    samples = {name: scale * rng.normal(size=(100, *shape)) for name, scale in sites.items()}
    more = {"n_eff": dict.fromkeys(sites, 123456.0), "r_hat": dict.fromkeys(sites, 1.0)}
    return table(samples, 0.9, more, shorten=True).splitlines()


def test_numbers_have_two_digits_of_their_spread():
    assert _in_digits([1.06e-4, 5e-5, 1.1e-4]) == ["0.000106", "0.000050", "0.000110"]
    assert _in_digits([-120.5, 33.0, 0.0]) == ["-120.50", "33.00", "0.00"]
    assert _in_digits([3e-12, 1e-12]) == ["3.000e-12", "1.000e-12"]
    assert _in_digits([1.0, 0.0]) == ["1.00", "0.00"]
    assert _in_digits([-1234567890.0, 1e-4]) == ["-1.235e+09", "1.000e-04"]


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e-9, 1e6, 1e30])
@pytest.mark.parametrize("length", [1, 30, 150])
def test_no_line_is_wider_than_a_screen(scale, length):
    name = "".join(chr(97 + i % 26) for i in range(length))
    lines = in_table(**{name: scale, "mu": 1e3})
    assert max(map(len, lines)) <= WIDTH
    row = lines[2].split()
    # Both ends of a name that is cut are there.
    assert row[0][:5] == name[:5] and row[0][-5:] == name[-5:]
    assert len(row) == 8
    if length == 150:  # a name that wants the room: no column is wider than its numbers
        assert lines[2].endswith("  1.00") and not lines[2].endswith("   1.00")


def test_long_sites_show_their_ends_where_the_table_is_long():
    assert len(in_table(shape=(MOST_ROWS,), theta=1.0)) == MOST_ROWS + 2
    lines = in_table(shape=(MOST_ROWS + 1,), theta=1.0)
    labels = [line.split()[0] for line in lines[2:8]]
    assert labels == [*(f"theta[{i}]" for i in range(5)), "..."]
    assert lines[7].split() == ["...", "55", "more"]
    assert lines[8].split()[0] == f"theta[{MOST_ROWS}]"
    assert "var_names" in lines[-1]


def test_names_and_patterns_choose_sites():
    assert chosen(SITES, "mu") == ["mu"]
    assert chosen(SITES, ["tau", "mu"]) == ["mu", "tau"]
    assert chosen(SITES, "beta_*") == ["beta_1", "beta_2"]
    assert chosen(SITES, "beta_?") == ["beta_1", "beta_2"]
    assert chosen(SITES, ["theta*", "~theta_raw"]) == ["theta"]
    assert chosen(SITES, "~theta*") == ["mu", "tau", "beta_1", "beta_2"]
    with pytest.raises(ValueError, match=r"no site is called 'nu'.* mu, tau, theta"):
        chosen(SITES, ["mu", "nu"])
    with pytest.raises(ValueError, match="leaves no site"):
        chosen(SITES, ["mu", "~mu"])


def test_what_is_said_below_keeps_to_the_width():
    said = wrapped("verdict   " + 40 * "not to be used " + "\nTo improve: " + "\n\nroute     base")
    lines = said.split("\n")
    assert max(map(len, lines)) <= WIDTH
    assert lines[1].startswith(" " * 10 + "not") or lines[1].startswith(" " * 10)
    assert lines[-3:] == ["To improve:", "", "route     base"]


def test_two_hundred_sites_are_readable(of_200, capsys):
    of_200.print_summary()
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= WIDTH and len(lines) < 80
    rows = [line for line in lines if "_name_of_" in line]
    assert any("more" in line for line in lines) and 30 < len(rows) <= 60
    assert any(line.split()[:1] == ["theta[99]"] for line in lines)
    of_200.print_summary(var_names=["theta", "*_of_7"])
    lines = capsys.readouterr().out.splitlines()
    labels = [line.split()[0] for line in lines if line.strip()]
    assert [x for x in labels if x.startswith("theta")] == [f"theta[{i}]" for i in range(100)]
    assert sum(x.endswith("_of_7") for x in labels) == 1
    with pytest.raises(ValueError, match="no site is called 'eta'"):
        of_200.print_summary(var_names="eta")


@pytest.mark.parametrize("prob", [90, 1.0, 0, math.nan])
def test_a_mass_is_a_share(prob):
    with pytest.raises(ValueError, match=r"prob must be between 0 and 1, such as 0\.9"):
        OneStepSampler(lambda: None).print_summary(prob=prob)
