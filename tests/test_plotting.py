"""Figures: what is drawn, on which axes, and what is said of bad input."""

import sys

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")

import matplotlib.pyplot as plt

import consistent_samplers as cs
from consistent_samplers import plotting
from consistent_samplers.algorithms.calibration import CalibrationInfo
from consistent_samplers.algorithms.on_paths import PathInfo
from consistent_samplers.estimate import Evidence
from consistent_samplers.plotting import style

RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=(400, 3))


@pytest.fixture(autouse=True)
def closed_figures():
    plt.close("all")  # those of other files
    settings = dict(mpl.rcParams)
    yield
    assert dict(mpl.rcParams) == settings
    plt.close("all")


def labelled(ax, label):
    """The line of a label."""
    lines = [line for line in ax.get_lines() if line.get_label() == label]
    assert len(lines) == 1, [line.get_label() for line in ax.get_lines()]
    return lines[0]


def bars(ax, label):
    """The container of an errorbar."""
    found = [c for c in ax.containers if c.get_label() == label]
    assert found, [c.get_label() for c in ax.containers]
    return found


def legend_words(ax):
    return {text.get_text() for text in ax.get_legend().get_texts()}


def an_evidence(elbo=-1.0, log_z=-0.5, bound="lower", k=0.2, ess=0.5, **kwargs):
    numbers = {
        "log_z": log_z,
        "log_z_stderr": 0.1,
        "elbo": elbo,
        "elbo_stderr": 0.05,
        "ess": ess,
        "pareto_k": k,
    }
    arrays = {name: np.asarray(value) for name, value in numbers.items()}
    return Evidence(**arrays, bound=bound, num_samples=4_000, **kwargs)


# --- what all share ----------------------------------------------------------------------------

CALLS = {
    "marginals": (lambda **k: plotting.plot_marginals(NORMAL[:, :2], **k), 2),
    "pairs": (lambda **k: plotting.plot_pairs(NORMAL[:, :2], **k), (2, 2)),
    "training": (
        lambda **k: plotting.plot_training(PathInfo(*NORMAL[:9].T, NORMAL[:9, 0]), **k),
        3,
    ),
    "weights": (lambda **k: plotting.plot_weights(NORMAL[:, 0], **k), 2),
    "trajectories": (lambda **k: plotting.plot_trajectories(NORMAL[None], **k), None),
    "quality": (lambda **k: plotting.plot_quality(([1, 2], [3.0, 4.0]), **k), None),
    "evidence": (lambda **k: plotting.plot_evidence({"a": an_evidence()}, **k), None),
}


@pytest.mark.parametrize("name", CALLS)
def test_draws_on_the_axes_given(name):
    call, shape = CALLS[name]
    figure = plt.figure()
    if shape is None:
        given = figure.subplots()
        assert call(ax=given) is given
        assert given.has_data()
    else:
        given = figure.subplots(*np.atleast_1d(shape), squeeze=np.ndim(shape) > 0).reshape(shape)
        returned = call(axes=given)
        assert returned.shape == given.shape
        assert all(a is b for a, b in zip(returned.flat, given.flat, strict=True))
        assert returned.flat[0].has_data()
    assert plt.get_fignums() == [figure.number]


@pytest.mark.parametrize("name", CALLS)
def test_makes_one_figure_and_does_not_show_it(name, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *a, **k: pytest.fail("shown"))
    CALLS[name][0]()
    assert len(plt.get_fignums()) == 1


def test_absent_matplotlib_is_named_with_its_cure(monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    for call, _ in CALLS.values():
        with pytest.raises(ImportError, match=r'pip install "consistent_samplers\[plot\]"'):
            call()


def test_colours_have_one_meaning():
    roles = (style.DRAWS, style.REFERENCE, style.TRUTH, style.BASE, style.NO_BOUND, style.ESTIMATE)
    assert len(set(roles)) == len(roles)
    assert len(set(style.CYCLE)) == len(style.CYCLE)


# --- draws -------------------------------------------------------------------------------------


def stairs(ax):
    """Heights and edges by colour."""
    return {
        mpl.colors.to_hex(
            patch.get_facecolor() if patch.get_fill() else patch.get_edgecolor()
        ): patch.get_data()[:2]
        for patch in ax.patches
        if isinstance(patch, mpl.patches.StepPatch)
    }


def test_marginals_are_densities_of_all_draws():
    heavy = RNG.standard_cauchy(size=(20_000, 1))
    (ax,) = plotting.plot_marginals(heavy, NORMAL[:, :1])
    heights, edges = stairs(ax)[style.DRAWS]
    # The middle 98 % by quantiles, and a little more on either side; not the outermost draw.
    assert heights @ np.diff(edges) == pytest.approx(0.98, abs=5e-3)
    assert np.abs(edges).max() < 40 < np.abs(heavy).max()
    heights, edges = stairs(ax)[style.REFERENCE]
    assert heights @ np.diff(edges) == pytest.approx(1.0)
    assert ax.get_ylim()[0] == 0.0


def test_marginals_weigh_the_draws():
    x = RNG.uniform(-1, 1, size=(40_000, 1))
    log_weight = np.where(x[:, 0] > 0, np.log(3.0), 0.0) + 700.0
    (ax,) = plotting.plot_marginals(x, log_weight=log_weight, num_bins=20)
    heights, edges = stairs(ax)[style.DRAWS]
    middle = 0.5 * (edges[1:] + edges[:-1])
    inside = np.abs(middle) > 0.1
    inside[[0, -1]] = False
    expected = np.where(middle > 0, 0.75, 0.25)
    np.testing.assert_allclose(heights[inside], expected[inside], rtol=0.1)
    ax = plotting.plot_marginals(x, label="ours")[0]
    assert {t.get_text() for t in ax.figure.legends[0].get_texts()} == {"ours"}


def test_marginals_of_sites():
    samples = {"mu": NORMAL[:, 0], "theta": RNG.normal(size=(400, 2, 2))}
    axes = plotting.plot_marginals(samples, dict(reversed(samples.items())), dims=[0, 3])
    assert [ax.get_xlabel() for ax in axes] == ["mu", "theta[1,0]"]
    heights, edges = stairs(axes[1])[style.DRAWS]
    counts, _ = np.histogram(samples["theta"][:, 1, 0], edges)
    np.testing.assert_allclose(heights * np.diff(edges) * 400, counts, atol=1e-9)
    assert [ax.get_xlabel() for ax in plotting.plot_marginals(samples, names=["mu"])] == ["mu"]


def test_marginals_say_how_many_they_leave_out():
    axes = plotting.plot_marginals(RNG.normal(size=(50, 30)), max_panels=5)
    assert len(axes) == len(axes[0].figure.axes) == 5
    assert "first 5 of 30" in axes[0].figure.get_suptitle()


def test_marginals_of_a_constant_and_of_one_draw():
    for x in (np.full((20, 1), 3.0), np.zeros((1, 1))):
        (ax,) = plotting.plot_marginals(x)
        low, high = ax.get_xlim()
        assert low < x[0, 0] < high


def test_pairs_hold_the_lower_triangle():
    grid = plotting.plot_pairs(NORMAL, 2.0 + NORMAL, max_points=100, names=["a", "b", "c"])
    assert grid.shape == (3, 3)
    for row in range(3):
        for column in range(3):
            assert grid[row, column].axison == (column <= row)
            assert len(grid[row, column].collections) == (2 if column < row else 0)
    reference, draws = grid[2, 1].collections
    # In the order of the draws, and draws on top.
    points = np.asarray(draws.get_offsets())
    assert len(points) == 100
    assert {tuple(p) for p in points} <= {(b, c) for _, b, c in NORMAL}
    assert np.asarray(reference.get_offsets()).mean() > 1.5
    assert mpl.colors.to_hex(draws.get_facecolor()[0]) == style.DRAWS
    assert [ax.get_xlabel() for ax in grid[2]] == ["a", "b", "c"]


def test_pairs_resample_weighted_draws():
    x = np.stack([np.arange(100.0), np.arange(100.0)], axis=1)
    log_weight = np.where(np.arange(100) < 50, -np.inf, 0.0)
    grid = plotting.plot_pairs(x, log_weight=log_weight)
    points = np.asarray(grid[1, 0].collections[0].get_offsets())[:, 0]
    np.testing.assert_array_equal(points, np.repeat(np.arange(50.0, 100.0), 2))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"samples": NORMAL[:, 0]}, r"shape \[n, dim\]"),
        ({"samples": cs.Draws(jnp.zeros((2, 2)))}, "draws.position"),
        ({"samples": np.full((3, 1), np.nan)}, "3 of the 3 numbers in samples"),
        ({"samples": {}}, "at least one name"),
        ({"samples": {"a": NORMAL[:, 0]}, "names": ["b"]}, "'b' not among 'a'"),
        ({"samples": {"a": NORMAL[:, 0], "b": NORMAL[:9, 0]}}, "same number of draws"),
        ({"samples": {"a": NORMAL[:, 0]}, "reference": NORMAL}, "both be arrays"),
        ({"samples": NORMAL, "reference": NORMAL[:, :2]}, "coordinates"),
        ({"samples": NORMAL, "names": ["a"]}, "each of the 3 coordinates"),
        ({"samples": NORMAL, "names": "abc"}, "sequence of strings"),
        ({"samples": NORMAL, "dims": [3]}, "from 0 to 2"),
        ({"samples": NORMAL, "dims": []}, "from 0 to 2"),
        ({"samples": NORMAL, "log_weight": np.zeros(3)}, "one entry a draw"),
        ({"samples": NORMAL, "log_weight": np.full(400, -np.inf)}, "no draw has a finite weight"),
        ({"samples": NORMAL, "num_bins": 0}, "num_bins must be a positive integer"),
    ],
)
@pytest.mark.parametrize("plot", [plotting.plot_marginals, plotting.plot_pairs])
def test_bad_draws(plot, kwargs, message):
    with pytest.raises(ValueError, match=message):
        plot(**kwargs)
    assert not plt.get_fignums()


def test_bad_axes():
    with pytest.raises(ValueError, match="at least 3 Axes, got 1"):
        plotting.plot_marginals(NORMAL, axes=plt.figure().subplots())
    with pytest.raises(ValueError, match=r"shape \(3, 3\)"):
        plotting.plot_pairs(NORMAL, axes=plt.figure().subplots(2, 2))
    with pytest.raises(ValueError, match="at least two coordinates"):
        plotting.plot_pairs(NORMAL, dims=[0])


# --- paths -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixture_sampler():
    target = cs.targets.gmm9()
    base = cs.bases.mixture(
        jnp.zeros(2),
        jnp.asarray([[-5.0, 0.0], [5.0, 0.0]]),
        jnp.stack([jnp.eye(2), 0.5 * jnp.eye(2)]),
    )
    algorithm = cs.osds(target, base=base, max_steps=4, hidden=(8,), guidance=None)
    state = algorithm.init(jax.random.key(0))
    # Far from the identity, that a wrong frame or time shows.
    params = jax.tree.map(lambda p: p + 0.1, state.ema_params)
    return algorithm, state._replace(params=params, ema_params=params)


@pytest.mark.slow
def test_trajectories_end_at_the_draws(mixture_sampler):
    algorithm, state = mixture_sampler
    num_steps = 2
    key = jax.random.key(3)
    paths = plotting.trajectories(key, algorithm, 5, num_steps, state=state)
    assert paths.shape == (5, num_steps + 1, 2)
    draws = algorithm.sample(key, state, 5, num_steps, weights=False)
    np.testing.assert_allclose(paths[:, -1], draws.position, rtol=1e-4, atol=1e-4)
    # From the base's modes, not from its whitened coordinates.
    assert np.all(np.abs(np.abs(paths[:, 0, 0]) - 5.0) < 4.5)
    assert np.abs(paths[:, -1] - paths[:, 0]).max() > 1e-2


def test_stochastic_trajectories_end_at_the_draws(mixture_sampler):
    algorithm, state = mixture_sampler
    key = jax.random.key(3)
    paths = plotting.trajectories(key, algorithm, 5, 4, state=state, stochastic=True)
    draws = algorithm.sample(key, state, 5, 4, method="path")
    np.testing.assert_allclose(paths[:, -1], draws.position, rtol=1e-4, atol=1e-4)


def test_trajectories_of_a_hierarchical_map_end_at_the_draws():
    target = cs.Target(lambda x: -0.5 * (x[0] ** 2 + jnp.sum((x[1:] - x[0]) ** 2)), dim=11)
    base = cs.bases.DiagonalBase(jnp.zeros(11), jnp.ones(11))
    algorithm = cs.algorithms.hierarchical(target, base=base)
    key, state = jax.random.key(3), algorithm.init(jax.random.key(0))
    moved = jax.tree.map(lambda x: x + 0.1, state.ema_params)
    state = state._replace(ema_params=moved)
    paths = plotting.trajectories(key, algorithm, 5, 1, state=state)
    draws = algorithm.sample(key, state, 5, 1, weights=False)
    np.testing.assert_allclose(paths[:, -1], draws.position, rtol=1e-4, atol=1e-4)
    assert np.abs(paths[:, -1] - paths[:, 0]).max() > 1e-2


def test_bad_trajectories(mixture_sampler):
    algorithm, state = mixture_sampler
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="needs the state"):
        plotting.trajectories(key, algorithm, 5, 4)
    with pytest.raises(ValueError, match="num_steps=3"):
        plotting.trajectories(key, algorithm, 5, 3, state=state)
    with pytest.raises(ValueError, match="num_particles"):
        plotting.trajectories(key, algorithm, 0, 4, state=state)


def test_paths_in_a_plane_and_over_time():
    paths = RNG.normal(size=(7, 5, 3))
    ax = plotting.plot_trajectories(paths, dims=(2, 0), max_paths=6)
    lines = [line for line in ax.get_lines() if len(line.get_xdata()) == 5]
    assert len(lines) == 6
    np.testing.assert_array_equal(lines[1].get_xydata(), paths[1][:, [2, 0]])
    np.testing.assert_array_equal(labelled(ax, "end, t = 1").get_xydata(), paths[:6, -1][:, [2, 0]])
    assert labelled(ax, "end, t = 1").get_color() == style.DRAWS
    ax = plotting.plot_trajectories(paths, dims=[1])
    np.testing.assert_allclose(ax.get_lines()[0].get_xdata(), np.linspace(0, 1, 5))
    np.testing.assert_array_equal(ax.get_lines()[0].get_ydata(), paths[0, :, 1])
    # One dimension needs no dims.
    assert "time" in plotting.plot_trajectories(paths[..., :1]).get_xlabel()


def test_contours_hold_their_mass():
    target = cs.targets.gaussian(jnp.asarray([1.0, 0.0]), jnp.eye(2))
    paths = RNG.uniform(-5, 5, size=(500, 2, 2))
    ax = plotting.plot_trajectories(paths, target=target, max_paths=500)
    (contours,) = ax.collections
    radii = sorted(
        np.linalg.norm(path.vertices - [1.0, 0.0], axis=-1).mean() for path in contours.get_paths()
    )
    np.testing.assert_allclose(radii, np.sqrt(-2 * np.log([0.5, 0.1, 0.01])), rtol=0.03)


@pytest.mark.parametrize(
    ("paths", "kwargs", "message"),
    [
        (NORMAL, {}, r"num_steps \+ 1, dim"),
        (NORMAL[None, :1], {}, "at least one step"),
        (np.full((1, 2, 2), np.inf), {}, "NaN or infinite"),
        (NORMAL[None], {"dims": (0, 3)}, "from 0 to 2"),
        (NORMAL[None], {"dims": (0, 1, 2)}, "one or two coordinates"),
        (NORMAL[None], {"names": ["a"]}, "each of the 3"),
        (NORMAL[None], {"target": cs.targets.rings()}, "target in two dimensions"),
        (NORMAL[None], {"max_paths": 0}, "max_paths"),
    ],
)
def test_bad_paths(paths, kwargs, message):
    with pytest.raises(ValueError, match=message):
        plotting.plot_trajectories(paths, **kwargs)
    assert not plt.get_fignums()


# --- training ----------------------------------------------------------------------------------


def test_training_shows_stages_one_after_another():
    first = PathInfo(np.full(30, 9.0), np.arange(30.0), np.full(30, 4), np.ones(30))
    zeros = np.zeros(20)
    second = CalibrationInfo(zeros, np.arange(30.0, 50.0), zeros, zeros, zeros + 2.0)
    axes = plotting.plot_training({"one": first, "two": second}, log_z=60.0, window=3)
    titles = [ax.get_title() for ax in axes]
    # Without num_steps, which is a setting.
    assert titles == [
        "ELBO [nats]",
        "loss",
        "monotonicity penalty",
        "share folded",
        "gradient norm",
    ]
    line = labelled(axes[0], "two")
    np.testing.assert_array_equal(line.get_xdata(), np.arange(30, 50))
    np.testing.assert_allclose(line.get_ydata()[2:], np.arange(31.0, 49.0))
    np.testing.assert_allclose(labelled(axes[0], "true log Z").get_ydata(), 60.0)
    assert axes[0].get_ylim()[1] > 60.0
    assert axes[-1].get_yscale() == "log"
    assert [line.get_label() for line in axes[2].get_lines()][-1] == "two"


def test_training_of_a_result_passes_over_nan():
    loss = np.array([1.0, np.nan, 3.0, 100.0, 5.0])
    state = cs.SamplerState((), (), (), jnp.zeros(()))
    history = PathInfo(loss, loss, loss, loss)
    (ax, _) = plotting.plot_training(
        cs.FitResult(state, history), quantities=["loss", "elbo"], window=3
    )
    # Medians of the finite ones among the last three.
    np.testing.assert_allclose(labelled(ax, "training").get_ydata(), [1.0, 1.0, 2.0, 51.5, 5.0])


def test_bad_training():
    history = PathInfo(*np.full((4, 5), np.nan))
    with pytest.raises(ValueError, match="NaN from the start"):
        plotting.plot_training(history)
    with pytest.raises(ValueError, match="no iterations"):
        plotting.plot_training({})
    with pytest.raises(ValueError, match="got ndarray"):
        plotting.plot_training(np.zeros(4))
    with pytest.raises(ValueError, match=r"fields of the history.*\['ebo'\]"):
        plotting.plot_training(PathInfo(*np.ones((4, 5))), quantities=["ebo"])
    with pytest.raises(ValueError, match="window"):
        plotting.plot_training(history, window=0)


# --- weights and evidence ----------------------------------------------------------------------


@pytest.mark.parametrize(("k", "words"), [(0.4, "standard error to rely on"), (1.2, "unreliable")])
def test_pareto_line_has_the_slope_of_k(k, words):
    n = 10_000
    # Exact quantiles of a Pareto distribution: P(w > x) = x^(-1/k).
    log_weight = -k * np.log((np.arange(n) + 0.5) / n)
    _, ax = plotting.plot_weights(log_weight + 50.0)
    line = next(x for x in ax.get_lines() if str(x.get_label()).startswith("fitted"))
    x, above = np.log(line.get_data())
    slope = np.polyfit(x[len(x) // 2 :], above[len(x) // 2 :], 1)[0]
    assert -1.0 / slope == pytest.approx(k, rel=0.1)
    assert float(line.get_label().split("=")[1]) == pytest.approx(k, abs=0.05)
    assert words in ax.get_title()
    # The weights lie on the law they were made from, relative to their mean.
    points = np.log(labelled(ax, "the largest weights").get_data())
    mean = np.log(np.mean(np.exp(log_weight)))
    np.testing.assert_allclose(points[1], -(points[0] + mean) / k, atol=1e-2)
    # The limits pass through the fitted median, and end in the order of their k.
    ends = [
        labelled(ax, f"k = {limit:g}: {what}")
        for limit, what in ((0.5, "variance ends"), (0.7, "mean unreliable"))
    ]
    assert ends[0].get_xdata()[0] == pytest.approx(ends[1].get_xdata()[0])
    assert ends[0].get_xdata()[-1] < ends[1].get_xdata()[-1]


def test_weights_show_elbo_and_log_z():
    log_weight = 0.5 * RNG.normal(size=10_000)
    log_weight[:3] = -1e3
    histogram, _ = plotting.plot_weights(log_weight)
    found = cs.evidence(cs.Draws(jnp.zeros((10_000, 1)), jnp.asarray(log_weight), bound="lower"))
    gap = float(found.elbo - found.log_z)
    elbo, log_z = histogram.get_lines()[1], histogram.get_lines()[0]
    assert elbo.get_xdata()[0] == pytest.approx(gap, rel=1e-4)
    assert log_z.get_xdata()[0] == 0.0
    (patch,) = histogram.patches
    heights, edges, _ = patch.get_data()
    assert edges[0] > -5.0
    outside = round(10_000 * (1.0 - heights @ np.diff(edges)))
    assert outside >= 3
    assert f"{outside} further left" in histogram.get_title()


def test_weights_without_a_tail_to_fit():
    for log_weight, words in (
        (np.zeros(400), "k 0.00"),
        (np.arange(12.0), "too short"),
    ):
        _, ax = plotting.plot_weights(log_weight)
        assert not [x for x in ax.get_lines() if str(x.get_label()).startswith("fitted")]
        assert words in ax.get_title()
    zero = np.where(np.arange(400) % 4 == 0, -np.inf, NORMAL[:, 0])
    assert "100 of weight zero" in plotting.plot_weights(zero)[0].get_title()


@pytest.mark.parametrize(
    ("log_weight", "message"),
    [
        (NORMAL, r"shape \[n\]"),
        (np.full(5, -np.inf), "Every weight is zero"),
        (np.array([0.0, np.nan]), "1 of 2 log weights are NaN"),
        (np.zeros(1), "at least 2 draws"),
    ],
)
def test_bad_weights(log_weight, message):
    with pytest.raises(ValueError, match=message):
        plotting.plot_weights(log_weight)
    assert not plt.get_fignums()


def test_evidence_tells_bounds_apart():
    ax = plotting.plot_evidence(
        {
            1: an_evidence(),
            2: an_evidence(-2.0, bound="lower-if-injective", folded=np.asarray(0.1)),
            4: an_evidence(3.0, 4.0, bound="heuristic"),
            8: an_evidence(-np.inf, k=0.9),
        },
        log_z=-0.25,
    )
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "2", "4", "8"]
    np.testing.assert_allclose(labelled(ax, "true log Z").get_ydata(), -0.25)
    (lower,), (injective,), (none,) = (
        bars(ax, "ELBO: lower bound"),
        bars(ax, "ELBO: lower bound if injective"),
        bars(ax, "ELBO, heuristic: no bound"),
    )
    looks = {(c[0].get_marker(), c[0].get_markerfacecolor()) for c in (lower, injective, none)}
    assert len(looks) == 3
    assert float(injective[0].get_ydata()[0]) == -2.0
    # Two standard errors to either side.
    segment = lower[2][0].get_segments()[0]
    np.testing.assert_allclose(segment[:, 1], [-1.1, -0.9])
    (segment,) = bars(ax, "log Z, estimated")[0][2][0].get_segments()
    np.testing.assert_allclose(segment[:, 1], [-0.7, -0.3])
    assert bars(ax, "log Z, standard error not reliable")[0][0].get_markerfacecolor() == "white"
    assert {"the map folds: no bound", "log Z, heuristic"} <= legend_words(ax)
    assert "ELBO of minus infinity: a weight is zero" in legend_words(ax)
    low, high = ax.get_ylim()
    assert np.isfinite(low)
    assert low < -2.1
    assert high > 4.2


@pytest.mark.parametrize(
    ("evidences", "message"),
    [
        ({}, "at least one label"),
        (an_evidence(), "must be a mapping"),
        ({"a": 1.0}, "must be one Evidence"),
        ({"a": an_evidence(np.nan)}, "is NaN"),
    ],
)
def test_bad_evidence(evidences, message):
    with pytest.raises(ValueError, match=message):
        plotting.plot_evidence(evidences)
    assert not plt.get_fignums()


# --- quality -----------------------------------------------------------------------------------


def test_quality_curves():
    ax = plotting.plot_quality(
        {"a": ([4, 1, 2], [1.0, 4.0, np.nan], [0.1, 0.2, 0.3]), "b": ([1, 8], [9.0, 8.0])},
        reference={"exact": 0.5},
        ylabel="cost",
    )
    (a,), (b,) = bars(ax, "a"), bars(ax, "b")
    np.testing.assert_array_equal(a[0].get_xydata(), [[1.0, 4.0], [4.0, 1.0]])
    np.testing.assert_allclose(a[2][0].get_segments()[0][:, 1], [3.6, 4.4])
    assert b[0].get_color() != a[0].get_color()
    assert b[0].get_marker() != a[0].get_marker()
    np.testing.assert_allclose(labelled(ax, "exact").get_ydata(), 0.5)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "2", "4", "8"]


def test_quality_is_linear_where_values_are_not_positive():
    ax = plotting.plot_quality(([1, 2], [-1.0, 2.0]))
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")
    assert plotting.plot_quality(([1, 2], [1.0, 2.0]), reference=0.0).get_yscale() == "linear"


@pytest.mark.parametrize(
    ("curves", "kwargs", "message"),
    [
        ({}, {}, "at least one method"),
        (([1, 2],), {}, "must be"),
        ({"a": ([1, 2], [1.0])}, {}, "of one length"),
        ({"a": ([0, 2], [1.0, 2.0])}, {}, "not positive"),
        ({"a": ([1], [np.nan])}, {}, "no finite value"),
        ({"a": ([1], [1.0], [-1.0])}, {}, "negative standard error"),
        (([1], [1.0]), {"reference": np.nan}, "must be finite"),
    ],
)
def test_bad_quality(curves, kwargs, message):
    with pytest.raises(ValueError, match=message):
        plotting.plot_quality(curves, **kwargs)
    assert not plt.get_fignums()
