"""The benchmarks' own machinery: budgets, rows, tables and the published figures."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import gamma, multivariate_t, norm

import benchmarks.__main__ as command_line
import consistent_samplers as cs
from benchmarks import (
    brackets,
    case,
    evidence,
    field,
    first,
    hang,
    hierarchical,
    honesty,
    particles,
    process,
    race,
    readme,
    registry,
    report,
    sbibm,
    table,
    timing,
)
from benchmarks.methods import Trainer
from benchmarks.models import honest, regressions
from benchmarks.models.sbibm import TASKS
from benchmarks.truth import judged

GRID = [(a, b) for a in (-5.0, 0.0, 5.0) for b in (-5.0, 0.0, 5.0)]


@pytest.mark.parametrize("text", ["2000", "2000it"])
def test_budget_is_read(text):
    assert table.iterations_of(text) == 2000


@pytest.mark.parametrize("text", ["", "s", "it", "-3", "0", "2.5", "2.5it", "60s", "nan", "1m"])
def test_budget_refuses(text):
    with pytest.raises(ValueError, match="A budget is"):
        table.iterations_of(text)


def test_published_figures_are_found_by_target_method_and_steps():
    assert table.published("gmm9", "dis", 128)["sinkhorn"] == 0.0203
    assert table.published("gmm9", "scds", 1)["abs_error_log_z"] == 1.07
    assert table.published("gmm9", "scds", 2) is None
    # The steps of OSDS's figures are not stated: beside no row, but listed.
    assert table.published("seeds", "osds", 1) is None
    rows = [{"target": "seeds", "method": "osds", "num_steps": 1}]
    assert {f["method"] for f in table._others(rows)} >= {"osds"}


def test_published_figures_name_what_there_is():
    for figure in table.PUBLISHED["figures"]:
        assert figure["target"] in registry.TARGETS
        assert figure["source"] in table.PUBLISHED["sources"]
    # Its cancer has no prior, and no log Z: nothing of ours compares.
    assert not any(f["target"] == "cancer" for f in table.PUBLISHED["figures"])


def _settings(name, *line):
    """A command's options, as its cases are told them."""
    benchmark = command_line.benchmark_of(name)
    settings = vars(benchmark.parser().parse_args(line))
    known = list(benchmark.names(settings))
    return benchmark, settings | {"names": settings["names"] or known}


@pytest.mark.parametrize("budget_set", ["quick", "full"])
@pytest.mark.parametrize("name", ["scds", "osds", "kernels", "heuristic", "field"])
def test_rows_of_a_table_have_commands_that_can_be_read(name, budget_set):
    benchmark, settings = _settings("table", name, "--budget-set", budget_set)
    planned = list(benchmark.cases(settings, []))
    assert len({(c.target, c.method) for c in planned}) == len(planned)
    for planned_case in planned:
        # A row's own spelling of its command is the command that makes it.
        target, *line = benchmark.line_of(planned_case).split()[3:]
        _, alone = _settings("table", "row", "--names", target, *line)
        (read,) = benchmark.cases(alone, [])
        assert (read.target, read.method, read.budget) == (
            planned_case.target,
            planned_case.method,
            planned_case.budget,
        )
        assert benchmark.line_of(read) == benchmark.line_of(planned_case)
        assert set(read.settings["steps"]) == set(planned_case.settings["steps"])


@pytest.mark.parametrize("name", ["gmm9", "gmm40", "mw54"])
def test_modes_are_those_of_the_target(name):
    entry = registry.TARGETS[name]
    draws = entry.build().sample(jax.random.key(0), 20_000)
    counts = np.bincount(np.asarray(entry.labels(draws)), minlength=entry.num_modes)
    assert len(counts) == entry.num_modes
    # Equal shares: each count is binomial; six standard deviations fail in one of 1e7 runs.
    mean = 20_000 / entry.num_modes
    assert np.abs(counts - mean).max() < 6 * math.sqrt(mean)
    coverage = table.distances(draws[:2_000], entry, None)
    assert coverage["num_missed_modes"] == 0
    assert coverage["entropic_coverage"] > 0.98


def test_distances_see_a_missed_mode_and_drop_what_is_not_finite():
    entry = registry.TARGETS["gmm9"]
    position = jnp.repeat(jnp.array(GRID[:8]), 3, axis=0).at[0, 0].set(jnp.nan)
    row = table.distances(position, entry, (position[3:], position[3:], "itself"))
    assert row["num_missed_modes"] == 1
    assert row["nonfinite_share"] == pytest.approx(1 / 24)
    assert math.isfinite(row["sinkhorn"])


def test_summary_has_means_and_standard_errors():
    found = [{"k": 1, "elbo": value, "ess": 0.5} for value in (-1.0, -3.0)]
    found += [{"k": 2, "elbo": -4.0}, {"k": 2, "elbo": None}]
    one, two = table.summarised(found, ("k",), ("elbo", "ess", "folded"))
    assert one["elbo"] == -2.0
    assert one["elbo_stderr"] == pytest.approx(math.sqrt(2) / math.sqrt(2))
    assert one["ess_stderr"] == 0.0
    assert "folded" not in one
    # A seed without the figure: no mean over the others.
    assert two["elbo"] is None
    assert two["num_seeds"] == 2


def test_rows_are_strict_json_and_keep_infinities(tmp_path):
    row = {"a": math.nan, "b": (-math.inf, np.float32(1.5)), "c": np.bool_(True)}
    case.write(tmp_path / "x.jsonl", [row])
    (text,) = (tmp_path / "x.jsonl").read_text().splitlines()
    back = json.loads(text, parse_constant=pytest.fail)
    assert math.isnan(report.number(back["a"]))
    assert [report.number(v) for v in back["b"]] == [-math.inf, 1.5]
    assert back["c"] is True


def test_rows_share_what_the_ones_before_say(tmp_path):
    rows = [
        {"a": 1, "command": "x", "date": "monday"},
        {"a": 2, "command": "x", "date": "tuesday"},
        {"a": 3, "command": "y", "date": "tuesday"},
        {"a": 4},
        {"a": 5, "command": "y"},
    ]
    case.write(tmp_path / "x.jsonl", rows)
    assert case.read(tmp_path / "x.jsonl") == rows
    lines = (tmp_path / "x.jsonl").read_text().splitlines()
    assert json.loads(lines[1]) == {"a": 2, "date": "tuesday"}
    assert json.loads(lines[2]) == {"a": 3, "command": "y"}


def _benchmark(measure, **more):
    shown = report.Table("target: {target} | found: {found:.1f}@found")
    words, summary = "{met} of {goals} met, {most}.", lambda rows: {"most": 7}
    about = report.Report("Toys.\n\nMany.\n", shown, words, summary)
    names = lambda settings: ["a", "b", "c"]  # noqa: E731
    options = {"--size": (1, "of it"), "--loud": (False, "or not")}
    return case.Benchmark("toy", names, measure, about, options=options, **more)


def test_rows_are_kept_one_by_one_and_measured_again_where_asked(tmp_path):
    measured = []

    def measure(one):
        if one.target == "c" and len(measured) < 3:
            raise KeyboardInterrupt
        measured.append(one.target)
        return [{"found": len(measured), "goals": {"found": report.goal(len(measured), "<=", 1)}}]

    toy = _benchmark(measure)
    settings = {"size": 2, "loud": True}
    with pytest.raises(KeyboardInterrupt):
        case.run(toy, settings, output=tmp_path)
    # What was measured before it ended is there, with the command of each.
    rows = case.read(tmp_path / "toy.jsonl")
    assert [row["target"] for row in rows] == ["a", "b"]
    assert rows[0]["command"] == "python -m benchmarks toy --size 2 --loud --names a"
    case.run(toy, settings, ["b"], tmp_path)
    assert measured == ["a", "b", "b"]
    # Rows of the same command and version are left, those of another are not.
    case.run(toy, settings, None, tmp_path, keep=True)
    assert measured == ["a", "b", "b", "c"]
    case.run(toy, {"size": 1, "loud": True}, ["a"], tmp_path, keep=True)
    assert measured[-1] == "a"
    text = (tmp_path / "toy.md").read_text()
    assert (
        "Made by `python -m benchmarks toy --loud`, `python -m benchmarks toy --size 2 --loud`"
        in text
    )
    assert (
        "# Toys\n\nMade by" in text
        and "\nMany.\n\n0 of 3 met, 7.\n" in text
        and "| a | 5.0 [1] ✗ |" in text
    )
    with pytest.raises(ValueError, match="names must be among a, b, c; got d"):
        case.run(toy, settings, ["d"], tmp_path)


def test_cases_run_side_by_side_where_their_settings_say():
    plan = [
        case.Case(name, settings={"jobs": jobs}) for name, jobs in (("a", 1), ("b", 2), ("c", 2))
    ]
    found = case._measured(lambda one: [{"found": one.target}], plan)
    assert [(one.target, rows[0]["found"]) for one, rows in found] == [(x, x) for x in "abc"]


def test_spans_are_filled_from_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(case, "RESULTS", tmp_path)
    toy = _benchmark(None)
    monkeypatch.setattr(readme, "_report", lambda name: toy.report)
    rows = [{"target": "a", "found": 2.25}, {"target": "b", "method": "x", "found": 3.0}]
    case.write(tmp_path / "toy.jsonl", rows)
    assert readme.content("toy most") == "7"
    assert readme.content("toy a.found .1f") == "2.2"
    assert readme.content("toy b@x.found") == "3"
    assert readme.content("toy table: found") == "\n| found |\n| --- |\n| 2.2 |\n| 3.0 |\n"
    for wrong in ("toy none", "toy c.found", "nothing at all", "toy table: lost"):
        with pytest.raises(ValueError, match="No "):
            readme.content(wrong)
    page = tmp_path / "page.md"
    page.write_text("It is <!-- from: toy a.found -->2<!-- end -->, I say.")
    assert len(readme.run(check=True, paths=[page])) == 1
    assert "2<!-- end -->" in page.read_text()
    readme.run(paths=[page])
    assert page.read_text() == "It is <!-- from: toy a.found -->2.25<!-- end -->, I say."
    assert readme.run(check=True, paths=[page]) == []


def test_pages_and_tables_show_what_the_rows_say():
    assert readme.run(check=True) == []


def test_base_weights_are_importance_weights():
    # Base equal to the target's own scale: log Z within five standard errors (1e-6).
    entry = registry.TARGETS["rosenbrock"]
    target = entry.build()
    base, words = registry.build_base(entry, target)
    assert "1.5²" in words
    sampler = Trainer("base", target, base, 1, (1,)).train(0)
    row, draws = table.evidence(jax.random.key(0), sampler, 4_000, 1, "map")
    expected = target.log_density(draws.position[0]) - jnp.sum(
        jax.scipy.stats.norm.logpdf(draws.position[0], scale=1.5)
    )
    np.testing.assert_allclose(draws.log_weight[0], expected, rtol=1e-4)
    assert row["elbo"] < target.log_z < row["eubo"]
    assert row["log_z_error"] < 5 * float(cs.evidence(draws).log_z_stderr)


@pytest.mark.slow
@pytest.mark.parametrize("name", table.UNTRAINED)
def test_methods_without_training_have_draws_and_a_cost(name):
    target = cs.targets.gaussian(jnp.array([0.5, -0.2]), jnp.diag(jnp.array([0.6, 1.1])))
    base = cs.bases.standard_normal(2)
    row, draws = table.untrained(jax.random.key(0), name, target, base, 800)
    assert draws.position.shape == (800, 2) and row["density_evaluations"] >= 800
    # Of chains and of biased draws the error is larger than that of independent ones.
    np.testing.assert_allclose(draws.position.mean(0), [0.5, -0.2], atol=0.35)
    assert row.get("log_z_error", 0.0) < 0.2


def test_methods_refuse_what_cannot_be():
    target = registry.TARGETS["gmm9"].build()
    base, _ = registry.build_base(registry.TARGETS["gmm9"], target)
    with pytest.raises(ValueError, match="method must be one of"):
        Trainer("diss", target, base, 1, (1,))


@pytest.mark.slow
def test_row_end_to_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(table, "_NUM_POINTS", 100)
    # PIS: of all methods the least to compile.
    line = "gmm9 --method pis --steps 1 --budget 2it --seeds 1 --num-samples 64"
    command_line.main([*line.split(), "--output", str(tmp_path)])
    assert "lower-if-injective" in capsys.readouterr().out
    rows = case.read(tmp_path / "table-row.jsonl")
    assert {row["command"] for row in rows} == {f"python -m benchmarks {line}"}
    assert [row["bound"] for row in rows] == ["lower", "lower-if-injective"]
    assert rows[0]["noise_floor"] > 0 and rows[0]["sinkhorn"] > 0
    text = (tmp_path / "table-row.md").read_text()
    assert "| gmm9 | pis | 1 | lower-if-injective |" in text
    # Published figures that no row of ours matches are listed, not lost.
    assert "| gmm9 | dis | 128 | scds |" in text


def test_evidence_rows_show_their_goals_and_what_is_missed():
    one = {"target": "funnel", "method": "one step", "seed": 0, "dim": 10, "base": "Gaussian"}
    one |= {"true_log_z": 0.0, "base_gap": 2.2, "elbo": -0.2, "elbo_stderr": 0.01, "elbo_gap": 0.2}
    one |= {"log_z_error": -0.01, "log_z_stderr": 0.02, "ess": 0.6, "folded": 0.0, "seconds": 50.0}
    one |= {"valid": True, "goals": evidence.goals("funnel", one)}
    rows = [one]
    for method, gap, error in (("one stochastic step", 0.3, 0.1), ("AutoIAFNormal", 0.5, -0.25)):
        row = {"target": "funnel", "method": method, "seed": 0, "elbo_gap": gap}
        rows.append(row | {"log_z_error": error})
    text = evidence.BENCHMARK.report.text(rows)
    (line,) = [line for line in text.splitlines() if line.startswith("| funnel | 10 |")]
    assert "0.2000 ± 0.01 [0.15] ✗" in line
    assert "| 0.6 [0.5] |" in line and "| 50 [60] |" in line
    assert line.endswith("| yes |")
    assert "| funnel | 2.2 | 0.2 | 0.3 | 0.5 |  | -0.01 |  | -0.25 |  |  |" in text
    assert "3 of 4 goals are met, and 1 of 1 targets are valid" in text
    assert set(evidence.GOALS) <= set(registry.TARGETS)


def test_baselines_take_the_time_of_the_recipe():
    benchmark, settings = _settings("evidence", "--names", "funnel", "--parts", "baselines")
    with pytest.raises(ValueError, match="No row of funnel, seed 0"):
        list(benchmark.cases(settings, []))
    row = {"target": "funnel", "method": "one step", "seed": 0, "seconds": 12.5}
    found = list(benchmark.cases(settings, [row]))
    assert [one.method for one in found] == ["tempered SMC", "AutoIAFNormal", "AutoBNAFNormal"]
    assert {one.budget for one in found} == {"12.5s"}


def test_honesty_counts_what_passes_and_what_is_wrong():
    def run(method, error, level, covered):
        row = {"target": "funnel, 5-d", "method": method, "double": True, "error": error}
        row |= {"log_z_stderr": 0.02, "covered": covered, "level": level, "ess": 0.5}
        return row | {"weights_passed": True}

    rows = [
        run("meant to work", 0.01, "trusted", True),
        run("meant to work", 0.09, "usable", False),  # within five standard errors
        run("a missed mode", -0.7, "not to be used", False),
        run("a missed mode", -0.7, "trusted", False),
    ]
    text = honesty.BENCHMARK.report.text(rows)
    assert (
        "4 runs on 1 densities, 4 of them in double precision and 2 of them meant to fail" in text
    )
    assert (
        "3 runs pass, 2 of them trusted; the 95 % interval of log Z covers the truth in 1" in text
    )
    assert "pass and are off: **1**. Without the look for modes from outside it would be 2" in text
    assert "Of 2 runs that are off, 1 are flagged." in text
    assert "| funnel, 5-d | a missed mode | 2 | 1 | 0 | 0 | 2 | 1 | -0.7 | 0.5 |" in text


def test_honest_cases_are_what_they_say():
    found = honest.cases()
    assert len({(one.target.name, one.target.dim) for one in found}) >= 60
    assert {one.fails for one in found} >= {
        "",
        "a missed mode",
        "heavy tails",
        "a cut budget",
        "a folded map",
    }
    for one in found:
        assert 2 <= one.target.dim <= 20 and one.target.log_z is not None


@pytest.mark.slow
def test_honest_cases_have_the_evidence_that_they_name():
    """By draws of a wide Student's t in two and three dimensions, where their weights are even."""
    rng, df, scale, n, measured = np.random.default_rng(0), 3, 4.0, 200_000, 0
    for target in {one.target.name: one.target for one in honest.cases()}.values():
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
    columns = posteriordb.columns(samples, reference)
    assert list(columns) == ["beta[1]", "beta[2]", "sigma"]
    found = posteriordb.moment_errors(columns, np.array([0.5, 0.5, 0.0]), reference)
    assert found["mean_error"] == pytest.approx(0.3)
    assert found["std_error"] == pytest.approx(0.2)


def test_posteriordb_needs_its_folder(tmp_path, capsys):
    pytest.importorskip("numpyro")
    with pytest.raises(SystemExit):
        command_line.main(["posteriordb", "--folder", str(tmp_path), "--output", str(tmp_path)])
    assert "No reference of any posterior in" in capsys.readouterr().err


def test_times_are_compared_round_by_round():
    # The second round was slowed down as a whole.
    ratio = np.array([2.0, 20.0, 2.0]) / np.array([1.0, 10.0, 1.0])
    assert timing.spread(ratio) == dict.fromkeys(("median", "low", "high"), 2.0)
    # Overheads at small sizes do not flatten the slope.
    assert timing.slope([1, 2, 4, 8], [7.0, 7.0, 16.0, 64.0]) == pytest.approx(2.0)


def test_nested_compilations_are_counted_once():
    intervals = [(2.0, 3.0), (0.0, 4.0), (3.5, 5.0), (7.0, 8.0)]
    assert timing.covered(intervals) == 6.0


@pytest.mark.slow
def test_first_draws_of_a_tiny_model_in_processes_of_their_own(tmp_path, capsys):
    line = ["first", "--models", "tiny", "--skip-nuts", "--repeats", "1", "--effective", "200"]
    command_line.main([*line, "--output", str(tmp_path)])
    (row,) = case.read(tmp_path / "first.jsonl")
    assert (row["target"], row["dim"], row["goals"]) == ("tiny", 2, {})
    assert row["least_effective"] >= 200
    # The second finds the programs of the first.
    assert 0.0 < row["second_compiling"] < row["first_compiling"] < row["first"]
    assert "| tiny | 2 | " in (tmp_path / "first.md").read_text()
    assert "tiny, second:" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command_line.main(["first", "--models", "nothing", "--output", str(tmp_path)])
    assert "names must be among eight_schools" in capsys.readouterr().err


def test_first_draws_say_what_is_missed():
    row = {"target": "linear", "dim": 6, "route": "base", "log_z": -1.0, "log_z_stderr": 0.01}
    row |= dict.fromkeys(("first", "second", "nuts", "first_compiling", "second_compiling"), 4.0)
    row |= dict.fromkeys(("over_first", "over_second"), 4.0)
    rows = [row | {"goals": first.goals("linear", row)}, {"target": "sonar", "error": "no data"}]
    text = first.BENCHMARK.report.text(rows)
    line = "| linear | 6 | base | 4 | 4 | 4 [5] | 4 [2.5] ✗ | 4 | 4 | 4 [1] |  | -1.000 ± 0.01 |"
    assert line in text and "| sonar | no data |" in text and "2 of 3 goals are met" in text
    data = {name: regressions.model_of(name)[1] for name in regressions.SHAPES}
    assert {name: x.shape for name, (x, _) in data.items()} == regressions.SHAPES


@pytest.mark.slow
def test_blocks_of_nuts_are_charged_by_their_rate():
    target = cs.Target(lambda x: -0.5 * jnp.sum(x**2), 1)
    sizes = {"warm_up": 50, "block": 50, "enough": 1}
    found = race.nuts(race.Subject(target), jax.random.key(0), effective=10**6, **sizes).row
    assert (found["draws"], found["extrapolated"]) == (2 * 50 * race.CHAINS, True)
    blocks = 2 * 10**6 / found["effective"]
    expected = found["first_seconds"] + (blocks - 1.0) * found["block_seconds"]
    assert found["call_seconds"] == pytest.approx(expected)
    assert found["rate"] == pytest.approx(0.5 * found["effective"] / found["block_seconds"])


def test_speed_command_measures_a_part_and_keeps_others(tmp_path, capsys):
    kept = {"target": "memory", "subject": "stream", "what": "peak memory", "command": "another"}
    kept |= {"measured": {"median": 1.5, "low": 1.4, "high": 1.6}, "versions": "jax 1"}
    kept["goals"] = {"measured": report.goal(1.5, "<=", 1.2)}
    case.write(tmp_path / "speed.jsonl", [kept])
    command_line.main(["speed", "--parts", "draws", "--quick", "--output", str(tmp_path)])
    assert "draws without weights" in capsys.readouterr().out
    draws, _, memory = case.read(tmp_path / "speed.jsonl")
    assert memory == kept
    goal = draws["goals"]["measured"]
    assert (draws["target"], goal["sense"], goal["limit"]) == ("draws", ">=", 0.6)
    assert draws["measured"]["low"] <= draws["measured"]["median"] <= draws["measured"]["high"]
    text = (tmp_path / "speed.md").read_text()
    assert "| memory | peak memory | 1.5 | 1.4 to 1.6 | ≤ 1.2 | no |" in text
    assert "Made by `python -m benchmarks speed --quick`" in text


def test_log_z_of_hierarchies_is_held_against_bridges_whose_chains_agree():
    def rows(target, level, log_z, r_hat):
        about = {"target": target, "seed": 0}
        ours = {"method": "ours", "level": level, "log_z": log_z, "log_z_stderr": 0.03}
        bridge = {"method": "bridge", "log_z": 0.0, "log_z_stderr": 0.04, "r_hat": r_hat}
        return [about | ours, about | bridge]

    found = rows("right", "trusted", 0.1, 1.0) + rows("off", "usable", -0.2, 1.01)
    found += rows("told", "not to be used", 5.0, 1.0) + rows("unmixed", "trusted", 5.0, 1.1)
    summary = hierarchical.BENCHMARK.report.values(found)
    assert (summary["bridged"], summary["agreeing"]) == (2, 1)
    (table,) = hierarchical.BENCHMARK.report.tables
    apart = [line[0] for line in table.cells(found, ["apart, standard errors"])]
    assert apart == ["+2.0", "-4.0", "+100.0", ""]


def test_distances_between_particles_are_those_of_a_shift():
    target, x = (
        cs.targets.gaussian(np.zeros(2), np.ones(2)),
        np.random.default_rng(0).normal(size=(50, 2)),
    )
    found = particles.distances(target, x + np.array([3.0, 4.0]), x)
    assert found["w2"] == pytest.approx(5.0, rel=1e-4) and found["energy_w2"] > 5.0
    assert particles.distances(target, x[:40], x) == {}
    same = particles.distances(target, x, x)
    assert same["w2"] == pytest.approx(0.0, abs=1e-6)
    for row in (found, same):
        assert sum(row["histogram"]["shares"]) == pytest.approx(1.0)  # what lies beyond as well
    rows = [row | {"target": "a", "method": str(i)} for i, row in enumerate((found, same))]
    figure = particles.BENCHMARK.report.figure([*rows, {"target": "b", "method": "0"}])
    assert [ax.get_title() for ax in figure.axes] == ["a"]
    assert len(figure.axes[0].patches) == 2


@pytest.mark.slow
def test_solvers_are_measured_beside_their_base(tmp_path):
    small = ["--steps", "2", "--iterations", "2", "--num-samples", "64", "--names", "gmm40"]
    command_line.main(["solvers", *small, "--output", str(tmp_path)])
    rows = {row["solver"]: row for row in case.read(tmp_path / "solvers.jsonl")}
    assert len(rows) == 8 and rows["base alone"]["evaluations"] is None
    assert rows["flow"]["evaluations"] == 2 < rows["restart"]["evaluations"]
    assert rows["path, learned"]["times"][0] == 0.0 and len(rows["path, learned"]["times"]) == 3
    assert (tmp_path / "solvers.png").is_file()


def test_a_field_case_is_judged_by_truth_and_verdict():
    truth = {"log_z": 0.0, "quantiles": {"x": ([-1.0, 0.0, 1.0, 2.0, 3.0], 1.0, [0.0] * 5)}}
    right = {"log_z": 0.03, "log_z_stderr": 0.001, "level": "trusted", "distrusted": []}
    right |= {"quantiles": {"x": ([-1.0, 0.05, 1.0, 2.0, 3.0], [0.0] * 5)}}
    off = {"quantiles": {"x": ([-1.0, 0.0, 1.0, 2.0, 3.3], [0.0, 0.0, 0.0, 0.0, 0.05])}}

    def outcome(truth=truth, **changes):
        return judged(right | changes, truth)["outcome"]

    assert outcome() == "right"
    assert outcome(level="not to be used") == "cried wolf"
    assert outcome(log_z=-0.06) == "silently wrong"
    assert outcome(log_z=-0.06, log_z_stderr=0.02) == "right"
    assert outcome(log_z=-0.06, level="not to be used") == "flagged"
    assert outcome(**off) == "silently wrong"
    # What says nothing is not right.
    nothing = {"quantiles": {"x": ([np.nan] * 5, [0.0] * 5)}}
    for unknown in ({"log_z": np.nan}, {"log_z_stderr": np.nan}, {"log_z_stderr": 0.3}, nothing):
        assert outcome(**unknown) == "silently wrong"
        assert outcome(**unknown, level="not to be used") == "flagged"
    # Of a site that the verdict names nothing is claimed, unless all is not to be used.
    assert outcome(**off, distrusted=["x"]) == "right"
    assert outcome(**off, distrusted=["x"], level="not to be used") == "flagged"
    assert outcome(truth={"improper": True}) == "silently wrong"
    assert outcome(truth={}) == "no truth"
    assert judged({"error": "TypeError: x"}, {"improper": True})["outcome"] == "crash"
    assert judged({"error": "ValueError: x"}, {"improper": True})["outcome"] == "flagged"
    row = right | {"target": "a", "dim": 2, "ess": 0.5, "pareto_k": "inf", "route": "base"}
    rows = [row | judged(right, truth) | {"seconds": 1.0}]
    rows.append({"target": "b", "error": "boom", "outcome": "crash", "seconds": 2.0})
    text = field.BENCHMARK.report.text(rows)
    assert "silently wrong: 0, crash: 1" in text and "| a | 2 | 0 | 0.03 ± 0.001 |" in text
    assert "| b | boom |" in text


def test_errors_of_many_quantiles_are_simultaneous():
    noise = np.random.default_rng(0).normal(size=(200, 64, 5))

    def outcome(shift, noise):
        sites = {f"x[{i}]": ([0.0] * 5, 1.0, [0.06] * 5) for i in range(64)}
        own = {f"x[{i}]": ((shift + 0.06 * z).tolist(), [0.0] * 5) for i, z in enumerate(noise)}
        answer = {"log_z": 0.0, "log_z_stderr": 0.01, "level": "trusted", "distrusted": []}
        return judged(answer | {"quantiles": own}, {"log_z": 0.0, "quantiles": sites})["outcome"]

    right = [outcome(0.0, z) == "right" for z in noise]
    assert np.mean(right) > 0.99  # of two standard errors each: 0.91
    assert outcome(0.45, 0.0 * noise[0]) == "silently wrong"


def test_hangs_are_counted():
    of = {"target": "eigh", "before": 0, "jobs": 1}
    runs = [of | {"end": "done", "seconds": 3.0}, of | {"end": "hang", "seconds": 9.0}]
    text = hang.BENCHMARK.report.text(runs)
    assert "1 of 2 processes hung" in text and "| eigh | 2 | 0 | 1 | 3 | 3 |" in text


def test_a_process_ends_in_time_or_is_said_to_hang():
    found = process.isolated("builtins:dict", {"a": 1, "end": 2.0}, 60.0)
    # Until the time that it gives, not to its end.
    assert found["a"] == 1 and found["seconds"] < 0.0
    failed = process.isolated("json:loads", {"s": "{"}, 60.0)
    assert failed["error"].startswith("json.decoder.JSONDecodeError") and "hung" not in failed
    slow = process.isolated("signal:pause", {}, 0.5)
    assert slow["hung"] and slow["seconds"] < 20


def _bracket_row(seed, **changes):
    row = {"target": "funnel", "method": "brackets", "seed": seed, "true": 0.0, "log_z": 0.01}
    row |= {"lower": -0.03, "lower_stderr": 0.005, "upper": 0.04, "upper_stderr": 0.01, "ess": 0.6}
    row |= {"stderr": 0.008, "level": "trusted", "of": "bridge", "seconds": 2.0, "training": 30.0}
    row |= {"importance": {"log_z": 0.02, "stderr": 0.01}, "dim": 10, **changes}
    return brackets.judged(row, 0.0)


def test_brackets_are_judged_by_the_truth():
    good = _bracket_row(0)
    assert good["inside"] and good["covered"] and good["width"] == pytest.approx(0.07)
    assert good["ratio"] == pytest.approx(0.8) and not good["flagged"]
    # Three standard errors below the truth, and beyond.
    assert _bracket_row(0, upper=-0.029)["inside"] and not _bracket_row(0, upper=-0.031)["inside"]
    assert not _bracket_row(0, lower=0.016)["inside"]
    assert not _bracket_row(0, log_z=0.017)["covered"]
    without = _bracket_row(0, upper=None, upper_stderr=None)
    assert without["inside"] and "width" not in without
    # A truth with an error of its own.
    assert brackets.judged(good | {"log_z": 0.03}, 0.02)["covered"]


def test_goals_of_brackets_count_what_carries_no_flag():
    lost = _bracket_row(1, level="not to be used", log_z=-9.0, upper=None, upper_stderr=None)
    rows = [_bracket_row(0), lost, _bracket_row(2, upper=0.09, log_z=0.05)]
    found = {row["target"]: row for row in brackets.goals(rows)}
    assert found["truth inside the bracket, %"]["found"] == 100.0
    assert found["at most 0.1 nats wide at an ESS of 0.5, %"]["found"] == 50.0
    assert not found["at most 0.1 nats wide at an ESS of 0.5, %"]["goals"]["found"]["met"]
    covers = found["95 % interval of the bridge covers, %"]
    assert covers["found"] == 50.0 and covers["goals"]["found"]["limit"] == pytest.approx(
        64.8, 0.01
    )
    assert len(found) == 5  # nothing is asked of parts that were not run
    compared = {"target": "nested_regressions", "method": "comparison", "covered": True}
    rows += [compared | {"seed": i, "wrong": i == 1, "decisive": True} for i in range(3)]
    ours = {"log_z": 0.0, "stderr": 0.1, "seconds": 5.0}
    nested = {"target": "seeds", "method": "nested", "ours": ours}
    rows += [nested | {"seed": 0, "error": "not done"}, nested | {"seed": 1, "apart": -2.0}]
    rows[-1] |= {"covered": True, "log_z": -0.2, "stderr": 0.1, "evaluations": 1e6, "true": 0.1}
    stream = {"target": "logistic_stream", "method": "streaming", "seed": 0, "covered": True}
    rows.append(stream | {"shift": 0.12, "spread": 0.02, "off": 0.01, "stderr": 0.02})
    text = brackets.BENCHMARK.report.text(rows)
    assert "| wrong decisive Bayes factors | 1 [0] ✗ |" in text
    assert "| from nested sampling, standard errors | 2 [3] |" in text
    assert "| shift of a stream's means, standard deviations | 0.12 [0.1] ✗ |" in text
    assert "| funnel | brackets | 10 | 3 | 0 | 1 | 100 | 50 |" in text
    assert "| seeds | 0 | not done |" in text and "3 of 10 goals" not in text


def test_brackets_have_cases_of_each_part_and_nested_sampling_a_bracket_beside_it():
    benchmark, settings = _settings("brackets", "--seeds", "2", "--data-sets", "3", "--nested", "0")
    planned = list(benchmark.cases(settings, []))
    counts = {part: sum(c.method == part for c in planned) for part in ("brackets", "comparison")}
    assert counts == {"brackets": 40, "comparison": 3} and len(brackets.TARGETS) == 20
    assert benchmark.line_of(planned[0]) == (
        "python -m benchmarks brackets --parts brackets --names eight_schools"
    )
    benchmark, settings = _settings("brackets", "--parts", "nested", "--names", "seeds")
    with pytest.raises(ValueError, match="No bracket of seeds, seed 0: run it first"):
        list(benchmark.cases(settings, []))
    rows = [_bracket_row(seed, target="seeds") for seed in range(3)]
    planned = list(benchmark.cases(settings, rows))
    assert [c.settings["ours"]["seed"] for c in planned] == [0, 1, 2]


@pytest.mark.slow
def test_models_of_brackets_have_the_evidence_that_they_name():
    """By importance weights: of draws of a Gaussian that is wider, and of the prior."""
    from benchmarks.models import brackets as models

    target = models.hierarchical(groups=3, rows=2)
    base = cs.bases.fit_gaussian(jax.random.key(0), target, num_iterations=400)
    wide = cs.Sampler.of_base(cs.bases.GaussianBase(base.loc, 1.4 * base.scale_tril))
    found = cs.evidence(wide.sample(jax.random.key(1), target, 40_000))
    assert abs(found.log_z - target.log_z) < 4.0 * found.log_z_stderr < 0.1
    # In the unit cube the mean likelihood is the same evidence.
    rng = np.random.default_rng(0)
    dim, log_likelihood = models.NESTED["eight_schools"]()
    values = jax.vmap(log_likelihood)(jnp.asarray(rng.uniform(size=(100_000, dim)), jnp.float32))
    weight = np.exp(np.asarray(values, float) - models.eight_schools().log_z)
    assert weight.mean() == pytest.approx(1.0, abs=4.0 * weight.std() / 316.0)
    # Seeds' likelihood is its density over that of the prior.
    _, log_likelihood = models.NESTED["seeds"]()
    u = rng.uniform(0.2, 0.8, 26)
    u[0] = 0.97
    tau, normal = gamma.ppf(u[0], 0.01, scale=100.0), norm.ppf(u[1:])
    a, b = 10.0 * normal[:4], normal[4:] / math.sqrt(tau)
    x = jnp.asarray(np.r_[a[0], a[1], a[3], a[2], b, math.log(tau)], jnp.float32)
    log_prior = norm.logpdf(a, scale=10.0).sum() + norm.logpdf(b, scale=tau**-0.5).sum()
    log_prior += gamma.logpdf(tau, 0.01, scale=100.0) + math.log(tau)
    expected = float(cs.targets.seeds().log_density(x)) - log_prior
    assert float(log_likelihood(jnp.asarray(u))) == pytest.approx(expected, rel=1e-3)


def test_streams_and_nested_regressions_have_closed_forms():
    from benchmarks.models import brackets as models

    batches, (mean, std), log_z = models.stream(0)
    x, y = (np.concatenate(part) for part in zip(*batches, strict=True))
    assert len(batches) == 10 and x.shape == (300, 2)
    rng = np.random.default_rng(0)
    beta = mean + 1.3 * std * rng.normal(size=(20_000, 3))
    design = np.c_[np.ones(300), x] * (2.0 * y - 1.0)[:, None]
    log_weight = -np.logaddexp(0.0, -beta @ design.T).sum(1) - 0.125 * (beta**2).sum(1)
    log_weight += 0.5 * (((beta - mean) / (1.3 * std)) ** 2).sum(1) + np.log(1.3 * std / 2.0).sum()
    weight = np.exp(log_weight - log_z)
    assert weight.mean() == pytest.approx(1.0, abs=4.0 * weight.std() / 141.0)
    np.testing.assert_allclose(np.average(beta, axis=0, weights=weight), mean, atol=0.1 * std.min())
    true = [models.nested_regressions(seed)[1] for seed in range(50)]
    assert min(true) < 0.0 and max(true) > 5.0


def test_c2st_is_a_half_for_equal_samples_and_one_for_samples_apart():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 500, 2))
    assert abs(sbibm.c2st(first, second) - 0.5) < 4.0 * np.sqrt(0.25 / 1_000)
    assert sbibm.c2st(first, 10.0 + second) > 0.99


def test_two_moons_have_a_density_of_which_their_draws_are():
    """It integrates to one, and radii and angles of draws are those of the task."""
    from numpyro.handlers import substitute, trace

    given = {"theta": jnp.array([0.2, -0.1])}
    moon = trace(substitute(TASKS["two_moons"].model, given)).get_trace(1, y=jnp.zeros(2))["y"][
        "fn"
    ]
    centre = np.asarray(moon.centre)
    np.testing.assert_allclose(centre, [0.25 - 0.1 / np.sqrt(2.0), -0.3 / np.sqrt(2.0)], rtol=1e-5)
    axis = (np.arange(800) + 0.5) / 800 * 0.4 - 0.2
    grid = centre + np.stack(np.meshgrid(axis, axis), -1)
    mass = np.exp(np.asarray(moon.log_prob(jnp.asarray(grid)), float)).sum() * (0.4 / 800) ** 2
    assert mass == pytest.approx(1.0, abs=2e-3)
    away = np.asarray(moon.sample(jax.random.key(0), (10_000,))) - centre
    radius = np.linalg.norm(away, axis=1)
    assert (radius.mean(), radius.std()) == pytest.approx((0.1, 0.01), abs=4e-4)
    assert (away[:, 0] > 0.0).all() and abs(away[:, 1].mean()) < 4.0 * away[:, 1].std() / 100.0


def test_the_generalised_linear_task_has_the_stimulus_of_sbibm():
    design = np.asarray(TASKS["bernoulli_glm"].argument(100))
    assert design.shape == (100, 10) and (design[:, 0] == 1.0).all()
    np.testing.assert_allclose(design[:3, 1], [0.496714, -0.138264, 0.647689], atol=1e-6)
    np.testing.assert_array_equal(design[1:, 2], design[:-1, 1])
