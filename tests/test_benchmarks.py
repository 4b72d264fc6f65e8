"""The benchmarks' own machinery: budgets, rows, tables and the published figures."""

import json
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_t

import benchmarks.__main__ as command_line
from benchmarks import (
    chains,
    evidence,
    first,
    first_models,
    heuristic,
    honest_cases,
    honesty,
    measure,
    methods,
    published,
    registry,
    rows,
    steps,
    table,
    timing,
)
from benchmarks.methods import Budget, Trainer

GRID = [(a, b) for a in (-5.0, 0.0, 5.0) for b in (-5.0, 0.0, 5.0)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2000", Budget(iterations=2000)),
        ("2000it", Budget(iterations=2000)),
        ("60s", Budget(seconds=60.0)),
        ("0.5s", Budget(seconds=0.5)),
    ],
)
def test_budget_is_read_and_written(text, expected):
    assert Budget.parse(text) == expected
    assert Budget.parse(str(expected)) == expected


@pytest.mark.parametrize("text", ["", "s", "it", "-3", "0", "2.5", "2.5it", "infs", "nan", "1m"])
def test_budget_refuses(text):
    with pytest.raises(ValueError, match="A budget is"):
        Budget.parse(text)


def test_published_figures_are_found_by_target_method_and_steps():
    assert published.find("gmm9", "dis", 128)["sinkhorn"] == 0.0203
    assert published.find("gmm9", "scds", 1)["abs_error_log_z"] == 1.07
    assert published.find("gmm9", "scds", 2) is None
    # The steps of OSDS's figures are not stated: beside no row, but listed.
    assert published.find("seeds", "osds", 1) is None
    assert {f["method"] for f in published.unmatched("seeds", {"osds"})} >= {"osds"}
    assert published.unmatched("gmm9", {"dis", "cdds", "scds", "pis", "dds"}) == []


def test_published_figures_name_what_there_is():
    data = published.load()
    for figure in data["figures"]:
        assert figure["target"] in registry.TARGETS
        assert figure["source"] in data["sources"]
    # Its cancer has no prior, and no log Z: nothing of ours compares.
    assert not any(f["target"] == "cancer" for f in data["figures"])


@pytest.mark.parametrize("budget_set", ["quick", "full"])
@pytest.mark.parametrize("name", ["scds", "osds"])
def test_plan_is_made_of_commands_that_can_be_read(name, budget_set):
    planned = table.plan(name, budget_set)
    parser = command_line._parser()
    paths = [(target, method) for target, method, _ in planned]
    assert len(set(paths)) == len(paths), "two rows would share a file"
    for target, method, line in planned:
        options = parser.parse_args(line.split()[3:])
        assert (options.command, options.method) == (target, method)
        expected = methods.STEPS | (methods.QUICK_STEPS if budget_set == "quick" else {})
        assert tuple(options.steps) == expected[method]
        # A row's own spelling of its command is the command that made it.
        assert line == rows.command(
            target, method, options.steps, Budget.parse(options.budget), options.seeds
        )


@pytest.mark.parametrize("name", ["gmm9", "gmm40", "mw54"])
def test_modes_are_those_of_the_target(name):
    entry = registry.TARGETS[name]
    draws = entry.build().sample(jax.random.key(0), 20_000)
    counts = np.bincount(np.asarray(entry.labels(draws)), minlength=entry.num_modes)
    assert len(counts) == entry.num_modes
    # Equal shares: each count is binomial; six standard deviations fail in one of 1e7 runs.
    mean = 20_000 / entry.num_modes
    assert np.abs(counts - mean).max() < 6 * math.sqrt(mean)
    coverage = measure.distance_row(draws[:2_000], entry, None)
    assert coverage["num_missed_modes"] == 0
    assert coverage["entropic_coverage"] > 0.98


def test_distance_row_sees_a_missed_mode_and_drops_what_is_not_finite():
    entry = registry.TARGETS["gmm9"]
    position = jnp.repeat(jnp.array(GRID[:8]), 3, axis=0).at[0, 0].set(jnp.nan)
    row = measure.distance_row(position, entry, (position[3:], position[3:], "itself"))
    assert row["num_missed_modes"] == 1
    assert row["nonfinite_share"] == pytest.approx(1 / 24)
    assert row["sinkhorn_num_points"] == [23, 21]


def test_summary_has_means_and_standard_errors():
    found = [{"k": 1, "elbo": value, "ess": 0.5} for value in (-1.0, -3.0)]
    found += [{"k": 2, "elbo": -4.0}, {"k": 2, "elbo": None}]
    first, second = measure.summarise(found, ("k",), ("elbo", "ess", "folded"))
    assert first["elbo"] == -2.0
    assert first["elbo_stderr"] == pytest.approx(math.sqrt(2) / math.sqrt(2))
    assert first["ess_stderr"] == 0.0
    assert "folded" not in first
    # A seed without the figure: no mean over the others.
    assert second["elbo"] is None
    assert second["num_seeds"] == 2


def test_json_is_strict_and_keeps_infinities(tmp_path):
    rows.write_json(tmp_path / "x.json", {"a": math.nan, "b": (-math.inf, 1.5)})
    back = json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)
    assert math.isnan(rows.number(back["a"]))
    assert [rows.number(v) for v in back["b"]] == [-math.inf, 1.5]


def test_base_weights_are_importance_weights():
    # Base equal to the target's own scale: log Z within five standard errors (1e-6).
    entry = registry.TARGETS["rosenbrock"]
    target = entry.build()
    base, words = registry.build_base(entry, target)
    assert "1.5²" in words
    sampler = Trainer("base", target, base, Budget(1), (1,)).train(0)
    row, draws = measure.evidence_row(jax.random.key(0), sampler, target, 4_000, 1, "map")
    expected = target.log_density(draws.position[0]) - jnp.sum(
        jax.scipy.stats.norm.logpdf(draws.position[0], scale=1.5)
    )
    np.testing.assert_allclose(draws.log_weight[0], expected, rtol=1e-4)
    assert row["elbo"] < target.log_z < row["eubo"]
    assert row["log_z_error"] < 5 * row["log_z_stderr"]
    assert row["network_evaluations"] == 0


def test_methods_refuse_what_cannot_be():
    target = registry.TARGETS["gmm9"].build()
    base, _ = registry.build_base(registry.TARGETS["gmm9"], target)
    with pytest.raises(ValueError, match="method must be one of"):
        Trainer("diss", target, base, Budget(1), (1,))
    with pytest.raises(ValueError, match="in iterations"):
        Trainer("recipe", target, base, Budget(seconds=1.0), (1,))


def test_heuristic_excess_needs_two_standard_errors():
    row = {"elbo_excess": 0.3, "elbo_stderr": 0.1}
    assert heuristic.exceeds(row)
    assert not heuristic.exceeds(row | {"elbo_stderr": 0.2})
    assert not heuristic.exceeds({"elbo_excess": None, "elbo_stderr": None})


@pytest.mark.slow
def test_row_and_table_end_to_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rows, "NUM_DISTANCE_POINTS", 100)
    # PIS: of all methods the least to compile.
    line = rows.command("gmm9", "pis", (1,), Budget(iterations=2), 1, num_samples=64)
    command_line.main([*line.split()[3:], "--output", str(tmp_path / "rows")])
    assert "ELBO" in capsys.readouterr().out
    row = json.loads((tmp_path / "rows" / "gmm9-pis.json").read_text())
    assert row["command"] == line
    assert row["training"][0]["stages"]["pis"]["iterations"] == 2
    assert row["training"][0]["stages"]["pis"]["diverged_at"] is None
    assert [e["bound"] for e in row["evidence"]] == ["lower", "lower-if-injective"]
    assert row["evidence"][0]["num_samples"] == 64
    assert [d["kind"] for d in row["distances"]] == ["path", "map"]
    assert row["noise_floor"]["sinkhorn"] > 0

    joined = table.lines(row)
    assert joined[0]["sinkhorn"] == row["summary"]["distances"][0]["sinkhorn"]
    results = {
        "command": "python -m benchmarks table scds",
        "failed": {},
        "lines": joined,
        "row_seconds": 90.0,
    }
    text = table.markdown("scds", [row], results)
    assert f"`{line}`" in text
    assert "| pis | 1 | lower-if-injective |" in text
    # Published figures that no row of ours matches are listed, not lost.
    assert "- dis @ 128 (scds)" in text


def test_evidence_rows_show_their_goals_and_what_is_missed():
    row = {
        "target": "funnel",
        "dim": 10,
        "base": "GaussianBase",
        "true_log_z": 0.0,
        "base_elbo": -2.2,
        "elbo": -0.2,
        "elbo_stderr": 0.01,
        "elbo_gap": 0.2,
        "log_z": -0.01,
        "log_z_stderr": 0.02,
        "ess": 0.6,
        "folded": 0.0,
        "seconds": 50.0,
        "valid": True,
        "goal": evidence.GOALS["funnel"]._asdict(),
        "stochastic": {"elbo_gap": 0.3},
        "baselines": {"AutoIAFNormal": {"elbo": -0.5, "log_z": -0.25}, "AutoBNAFNormal": None},
        "further": [
            {
                "what": "2 steps",
                "elbo_gap": 0.125,
                "log_z": 0.0,
                "log_z_stderr": 0.1,
                "ess": 0.75,
                "seconds": 9.0,
            }
        ],
        "reached": {"elbo_gap": False, "ess": True, "seconds": True},
    }
    text = evidence.markdown({"command": "python", "device": "cpu", "rows": [row]})
    (last,) = [line for line in text.splitlines() if line.startswith("| funnel | 10 |")]
    assert "| funnel | 2.2 | 0.2 | 0.3 | 0.5 |  | -0.01 |  | -0.25 |  |" in text
    assert "| funnel | 2 steps | 0.1250 | +0.0000 ± 0.1 | 0.75 | 9 |" in text
    assert "0.2000 ± 0.01 [0.15] ✗" in last
    assert "| 0.6 [0.5] |" in last and "| 50 [60] |" in last
    assert last.endswith("| yes |")
    assert set(evidence.GOALS) <= set(registry.TARGETS)
    with pytest.raises(ValueError, match="target must be one of"):
        evidence.run(["nothing"], 10, 1, ["recipe"], None)


@pytest.mark.slow
def test_steps_end_to_end(tmp_path, capsys):
    results = steps.run(["gmm9"], 256, 0, tmp_path)
    found = [(row["sampler"], row["num_steps"]) for row in results["rows"]]
    assert found[:3] == [
        ("base alone", 1),
        ("calibrated", 1),
        ("distilled, then calibrated", 1),
    ]
    assert found[3:] == [("distilled", k) for k in (1, 2, 4, 8, 16)]
    # The base alone is no map that could fold; the maps are, and on these modes they do not.
    assert [row["folded"] for row in results["rows"][:3]] == [None, 0.0, 0.0]
    assert all(np.isfinite([row["elbo"], row["ess"]]).all() for row in results["rows"])
    assert (tmp_path / "steps.md").read_text() in capsys.readouterr().out


def test_steps_are_shown_as_gaps():
    row = {
        "target": "funnel",
        "true_log_z": 0.5,
        "sampler": "calibrated",
        "num_steps": 1,
        "seconds": 20.4,
        "elbo": 0.25,
        "elbo_stderr": 0.01,
        "ess": 0.75,
        "folded": 0.0,
    }
    text = steps.markdown({"command": "python", "rows": [row, row | {"seconds": 0.0}]})
    assert "| funnel | calibrated | 1 | 0.25 ± 0.01 | 0.75 | 0 | 20 |" in text
    assert text.rstrip().endswith("| 0 |  |")
    with pytest.raises(ValueError, match="target must be one of"):
        steps.run(["nothing"], 10, 0, None)
    with pytest.raises(ValueError, match="not known"):
        steps.run(["dw4"], 10, 0, None)


def test_honesty_counts_what_passes_and_what_is_wrong():
    def run(fails: str, error: float, level: str, covered: bool) -> dict:
        return {
            "target": "funnel",
            "dim": 5,
            "dtype": "float64",
            "fails": fails,
            "seed": 0,
            "error": error,
            "log_z_stderr": 0.02,
            "covered": covered,
            "passed": level != "not to be used",
            "level": level,
            "weights_passed": True,
            "ess": 0.5,
        }

    rows = [
        run("", 0.01, "trusted", True),
        run("", 0.09, "usable", False),  # within five standard errors
        run("a missed mode", -0.7, "not to be used", False),
        run("a missed mode", -0.7, "trusted", False),
    ]
    text = honesty.markdown({"command": "python", "device": "cpu", "rows": rows})
    assert "4 runs on 1 densities, 4 of them in double precision and 2 of them meant to" in text
    assert (
        "3 runs pass, 2 of them trusted; the 95 % interval of log Z covers the truth in 1" in text
    )
    assert "pass and are off: **1**. Without the look for modes from outside it would be 2" in text
    assert "Of 2 runs that are off, 1 are flagged." in text
    assert "| funnel | 5 | a missed mode | 2 | 1 | 0 | 0 | 2 | 1 | -0.7 | 0.5 |" in text


def test_honest_cases_are_what_they_say():
    found = honest_cases.cases()
    assert len({(case.target.name, case.target.dim) for case in found}) >= 60
    assert {case.fails for case in found} >= {
        "",
        "a missed mode",
        "heavy tails",
        "a cut budget",
        "a folded map",
    }
    for case in found:
        assert 2 <= case.target.dim <= 20 and case.target.log_z is not None


def test_honest_cases_have_the_evidence_that_they_name():
    """By draws of a wide Student's t in two and three dimensions, where their weights are even."""
    rng, df, scale, n, measured = np.random.default_rng(0), 3, 4.0, 200_000, 0
    for target in {case.target.name: case.target for case in honest_cases.cases()}.values():
        if target.dim > 3:
            continue
        z = rng.normal(size=(n, target.dim)) / np.sqrt(rng.chisquare(df, n) / df)[:, None]
        log_prob = multivariate_t.logpdf(z, shape=np.eye(target.dim), df=df)
        values = jax.vmap(target.log_density)(jnp.asarray(scale * z, jnp.float32))
        log_weight = np.asarray(values, np.float64) - log_prob + target.dim * math.log(scale)
        weight = np.exp(log_weight - target.log_z)
        error = weight.std() / math.sqrt(n)
        if error < 0.02:
            measured += 1
            assert weight.mean() == pytest.approx(1.0, abs=5.0 * error + 1e-3), target.name
    assert measured >= 18


def test_posteriordb_errors_are_in_units_of_the_reference():
    pytest.importorskip("numpyro")
    from benchmarks import posteriordb

    reference = {
        "reference_mean": {"beta[1]": 1.0, "beta[2]": 0.0, "sigma": 2.0},
        "reference_std": {"beta[1]": 2.0, "beta[2]": 1.0, "sigma": 0.5},
    }
    z = np.array([-1.0, 1.0, 0.0])
    samples = {
        "beta": np.stack([1.0 + 2.0 * z, 0.3 + z], axis=1),  # second mean off by 0.3 deviations
        "sigma": 2.0 + 0.4 * z,  # deviation too small by 20 %
    }
    columns = posteriordb._columns(samples, reference)
    assert list(columns) == ["beta[1]", "beta[2]", "sigma"]
    found = posteriordb._moment_errors(columns, np.array([0.5, 0.5, 0.0]), reference)
    assert found["mean_error"] == pytest.approx(0.3)
    assert found["std_error"] == pytest.approx(0.2)


def test_posteriordb_needs_its_folder(tmp_path):
    from benchmarks import posteriordb

    with pytest.raises(ValueError, match=r"No reference or model .* by --folder"):
        posteriordb.run(None, 0, tmp_path, tmp_path)


def test_arithmetic_is_counted_with_loops_in_full():
    matrix = jnp.ones((8, 8))

    @jax.jit
    def looped(x):
        return jax.lax.fori_loop(0, 10, lambda _, y: y @ matrix, x)

    found = timing.counts(looped, jnp.ones((4, 8)))
    assert found["full_flops"] == pytest.approx(10 * 2 * 4 * 8 * 8, rel=0.05)
    # XLA's own figure takes the body once.
    assert found["flops"] < 0.5 * found["full_flops"]


def test_times_are_compared_round_by_round():
    # The second round was slowed down as a whole.
    assert timing.ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]) == dict.fromkeys(
        ("median", "low", "high"), 2.0
    )
    # Overheads at small sizes do not flatten the slope.
    assert timing.slope([1, 2, 4, 8], [7.0, 7.0, 16.0, 64.0]) == pytest.approx(2.0)


def test_nested_compilations_are_counted_once():
    intervals = [(2.0, 3.0, "a"), (0.0, 4.0, "b"), (3.5, 5.0, "a"), (7.0, 8.0, "a")]
    assert timing.covered(intervals) == 6.0


def test_first_draws_of_a_tiny_model_in_processes_of_their_own(tmp_path, capsys):
    line = ["first", "--models", "tiny", "--skip-nuts", "--repeats", "1", "--effective", "200"]
    command_line.main([*line, "--output", str(tmp_path)])
    results = json.loads((tmp_path / "first.json").read_text())
    (row,) = results["rows"]
    assert (row["model"], row["dim"], row["ratio"]) == ("tiny", 2, {})
    (one,), (two,) = row["runs"]["first"], row["runs"]["second"]
    for found in (one, two):
        assert found["effective"] >= 200
        assert 0.0 < found["compile_seconds"] < found["seconds"]
    # The second finds the programs of the first, and the same draws.
    assert two["compile_seconds"] < one["compile_seconds"]
    assert (two["log_z"], two["route"]) == (one["log_z"], one["route"])
    assert "| tiny | 2 | " in (tmp_path / "first.md").read_text()
    assert "tiny, second:" in capsys.readouterr().out
    with pytest.raises(ValueError, match="models among eight_schools"):
        first.run(["nothing"], True, 1, 200, tmp_path)


def test_first_draws_say_what_is_missed():
    of = dict.fromkeys(("median", "low", "high"), 4.0)
    row = {
        **{"model": "linear", "dim": 6, "route": "base", "log_z": -1.0, "log_z_stderr": 0.01},
        "seconds": {"first": of, "second": of, "nuts": of},
        "compiling": {"first": of, "second": of},
        "ratio": {"first": of, "second": of},
        "goals": {
            "second": {"limit": 5.0, "met": True},
            "compiling": {"limit": 2.5, "met": False},
            "ratio": {"limit": 1.0, "met": True},
        },
    }
    about = {"command": "python", "device": "cpu", "cores": 2, "effective": 10_000}
    text = first.markdown(about | {"rows": [row], "skipped": {"sonar": "no data"}})
    line = "| linear | 6 | base | 4 | 4 | 4 [5] | 4 [2.5] ✗ | 4 | 4 | 4 [1] | -1.000 ± 0.01 |"
    assert line in text
    assert text.rstrip().endswith("Skipped: sonar (no data)")
    data = {name: first_models.model_of(name)[1] for name in first_models.SHAPES}
    assert {name: x.shape for name, (x, _) in data.items()} == first_models.SHAPES


def test_blocks_of_nuts_are_charged_by_their_rate():
    numpyro = pytest.importorskip("numpyro")
    kernel = numpyro.infer.NUTS(potential_fn=lambda x: 0.5 * jnp.sum(x**2))
    start, sizes = jnp.ones((chains.CHAINS, 1)), {"warm_up": 50, "block": 50, "enough": 1}
    found = chains.race(kernel, jax.random.key(0), (), start, effective=10**6, **sizes)
    assert (found.draws, found.extrapolated) == (2 * 50 * chains.CHAINS, True)
    blocks = 2 * 10**6 / found.effective
    expected = found.first_seconds + (blocks - 1.0) * found.block_seconds
    assert found.seconds == pytest.approx(expected)
    assert found.rate == pytest.approx(0.5 * found.effective / found.block_seconds)


def test_speed_command_measures_a_part_and_keeps_others(tmp_path, capsys):
    kept = {
        "command": "an earlier one",
        "versions": {"jax": "1"},
        "device": "cpu",
        "cores": 2,
        "seconds": 1.0,
        "rows": [{"num": 10, "peak_bytes": 2**30}],
        "goals": [
            {
                "what": "peak memory",
                "measured": {"median": 1.5, "low": 1.4, "high": 1.6},
                "sense": "<=",
                "limit": 1.2,
                "met": False,
            }
        ],
    }
    rows.write_json(tmp_path / "speed.json", {"parts": {"memory": kept}})
    line = ["speed", "--parts", "draws", "--quick", "--keep", "--output", str(tmp_path)]
    command_line.main(line)
    assert "draws: measured in" in capsys.readouterr().out
    parts = json.loads((tmp_path / "speed.json").read_text())["parts"]
    assert list(parts) == ["draws", "memory"]
    assert parts["memory"] == kept
    (goal,) = parts["draws"]["goals"]
    assert (goal["sense"], goal["limit"]) == (">=", 0.6)
    assert goal["measured"]["low"] <= goal["measured"]["median"] <= goal["measured"]["high"]
    text = (tmp_path / "speed.md").read_text()
    assert "| memory | peak memory | 1.5 | 1.4 to 1.6 | ≤ 1.2 | NO |" in text
    assert "Made by `python -m benchmarks speed --parts draws --quick`" in text
    assert (tmp_path / "speed.png").stat().st_size > 0


def test_a_field_case_is_judged_by_truth_and_verdict():
    from benchmarks import field

    truth = {"log_z": 0.0, "quantiles": {"x": ([-1.0, 0.0, 1.0, 2.0, 3.0], 1.0, [0.0] * 5)}}
    right = {"log_z": 0.03, "log_z_stderr": 0.001, "level": "trusted", "distrusted": []}
    right |= {"quantiles": {"x": ([-1.0, 0.05, 1.0, 2.0, 3.0], [0.0] * 5)}}
    off = {"quantiles": {"x": ([-1.0, 0.0, 1.0, 2.0, 3.3], [0.0, 0.0, 0.0, 0.0, 0.05])}}

    def outcome(truth=truth, **changes):
        return field.judged(right | changes, truth)["outcome"]

    assert outcome() == "right"
    assert outcome(level="not to be used") == "cried wolf"
    assert outcome(log_z=-0.06) == "silently wrong"
    assert outcome(log_z=-0.06, log_z_stderr=0.02) == "right"
    assert outcome(log_z=-0.06, level="not to be used") == "flagged"
    assert outcome(**off) == "silently wrong"
    # Of a site that the verdict names nothing is claimed, unless all is not to be used.
    assert outcome(**off, distrusted=["x"]) == "right"
    assert outcome(**off, distrusted=["x"], level="not to be used") == "flagged"
    assert outcome(truth={"improper": True}) == "silently wrong"
    assert outcome(truth={}) == "no truth"
    assert field.judged({"error": "TypeError: x"}, {"improper": True})["outcome"] == "crash"
    assert field.judged({"error": "ValueError: x"}, {"improper": True})["outcome"] == "flagged"
    row = right | {"case": "a", "dim": 2, "ess": 0.5, "pareto_k": "inf", "route": "base"}
    rows = [row | field.judged(right, truth) | {"seconds": 1.0}]
    rows.append({"case": "b", "error": "boom", "outcome": "crash", "seconds": 2.0})
    text = field.markdown({"rows": rows, "command": "c", "device": "d"})
    assert "silently wrong: 0, crash: 1" in text and "| a | 2 | 0 | 0.03 ± 0.001 |" in text


def test_hangs_are_counted():
    from benchmarks import hang

    of = {"kind": "eigh", "targets_before": 0, "side_by_side": 1}
    runs = [of | {"end": "done", "seconds": 3.0}, of | {"end": "hang", "seconds": 9.0}]
    head = {"command": "c", "device": "d", "cores": 2, "versions": {"jax": "0"}}
    text = hang.markdown(head | {"runs": runs})
    assert "1 of 2 processes hung" in text and "| eigh | 2 | 0 | 1 | 3 | 3 |" in text


def test_a_process_ends_in_time_or_is_said_to_hang():
    from benchmarks.processes import run_module

    environment = dict(os.environ)
    assert run_module(["this"], environment, 60.0, None).error is None
    failed = run_module(["timeit", "-n1", "raise KeyError('gone')"], environment, 60.0, None)
    assert failed.error == "KeyError: 'gone'" and not failed.hung
    slow = run_module(["timeit", "-n1", "import time; time.sleep(30)"], environment, 0.5, None)
    assert slow.hung and slow.seconds < 20
