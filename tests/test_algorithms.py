"""One protocol for every algorithm, and what training must achieve on a Gaussian target."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consistent_samplers as cs
from consistent_samplers.algorithms.learning import _updated
from consistent_samplers.bases import GaussianBase
from consistent_samplers.maps import moving
from consistent_samplers.types import BOUND_OF, METHODS

MEAN = np.array([1.0, -0.5])
COVARIANCE = np.array([[0.8, 0.4], [0.4, 0.5]])
TARGET = cs.targets.gaussian(MEAN, COVARIANCE)
# Neither centred, nor isotropic, nor the target.
BASE = GaussianBase(jnp.array([0.5, -0.2]), jnp.array([[1.1, 0.0], [0.3, 0.9]]))
KEY = jax.random.key(0)
# More than round trips are measured on.
NUM = 300


@functools.cache
def build(name: str):
    # Cached: the calibration below shares the compiled samplers of the algorithm it is made from.
    if name == "osds":
        return cs.osds(TARGET, base=BASE, max_steps=4, batch_size=16, hidden=(16,))
    if name == "osds.paper":
        return cs.osds.paper(TARGET, base=BASE, max_steps=8, batch_size=16, hidden=(16,))
    if name == "osds.calibration":
        return cs.calibration(build("osds"), batch_size=16)
    small = {"base": BASE, "max_steps": 4, "batch_size": 16, "hidden": (8,)}
    if name == "scds":
        return cs.scds(TARGET, first_steps=2, **small)
    if name in ("dis", "dds", "pis"):
        return getattr(cs, name)(TARGET, **small)
    if name in ("cmcd", "adjoint_sampling", "snf", "dgfs", "contrastive"):
        return getattr(cs.algorithms, name)(TARGET, **small)
    if name == "gflownet":
        searching = {"num_searched": 8, "search_steps": 4, "burn_in": 1, "replay_capacity": 64}
        return cs.algorithms.gflownet(TARGET, **small, **searching)
    if name == "dis.learned":
        named = cs.dis(TARGET, learned_kernels="both", train_steps=(2, 4), **small)
        return dataclasses.replace(named, name=name)
    # The flow of an untrained teacher is the identity, which leaves a student nothing to learn.
    teacher = {"teacher": build("dis"), "teacher_state": perturbed(initial_state("dis"), 0.05)}
    if name == "progressive":
        return cs.progressive_distillation(TARGET, batch_size=16, **teacher)
    distil = {"cdds": cs.cdds, "cdds.paper": cs.cdds.paper}[name]
    return distil(TARGET, num_points=3, max_steps=4, batch_size=16, **teacher)


@functools.cache
def initial_state(name: str):
    return build(name).init(KEY)


NAMES = ["osds", "osds.paper", "osds.calibration"]
by_name = pytest.mark.parametrize("name", NAMES)
# Their own sampling is tested in fewer compilations: most of it is the same code.
MORE_NAMES = [
    "scds",
    "dis",
    "dds",
    "pis",
    "cmcd",
    "adjoint_sampling",
    "snf",
    "dgfs",
    "gflownet",
    "contrastive",
    "dis.learned",
    "cdds",
    "cdds.paper",
    "progressive",
]
# The others are variants of another's code: for the long run.
FAST = ("scds", "dis", "gflownet", "cdds")
MORE = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in MORE_NAMES]
by_any_name = pytest.mark.parametrize("name", [*NAMES, *MORE])


def perturbed(state, scale: float):
    """The state with noise on every parameter that samples: a control that is not zero."""
    leaves, structure = jax.tree.flatten(state.ema_params)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    noisy = [x + scale * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return state._replace(ema_params=jax.tree.unflatten(structure, noisy))


# ---- protocol


@by_any_name
def test_name(name):
    assert build(name).name == name


@by_any_name
def test_state_is_a_named_tuple_of_arrays(name):
    state = initial_state(name)
    assert isinstance(state, tuple) and hasattr(state, "_fields")
    leaves = jax.tree.leaves(state)
    assert leaves and all(isinstance(leaf, jax.Array) for leaf in leaves)
    assert state.iteration == 0


@by_any_name
def test_step_traces_once_and_is_deterministic(name):
    algorithm, state = build(name), initial_state(name)
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(algorithm.step, n=1))
    first, info = step(KEY, state)
    # A state that has been through a step must not look new to the compiler.
    second, _ = step(jax.random.key(1), first)
    assert second.iteration == 2
    chex.assert_trees_all_equal_shapes_and_dtypes(state, first, second)
    assert isinstance(info, tuple) and {"loss", "elbo"} <= set(info._fields)
    for value in info:
        assert value.shape == () and bool(jnp.isfinite(value))
    # Places of a buffer that are still empty have no weight.
    chex.assert_tree_all_finite(second._replace(memory=()))
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.params, first.params)
    assert max(jax.tree.leaves(moved)) > 0

    again, info_again = step(KEY, state)
    chex.assert_trees_all_equal((again, info_again), (first, info))
    _, other = step(jax.random.key(2), state)
    assert other.loss != info.loss


@pytest.mark.parametrize(
    "name", ["osds", pytest.param("osds.paper", marks=pytest.mark.slow), "osds.calibration"]
)
def test_sample_takes_every_allowed_number_of_steps(name):
    algorithm = build(name)
    num_steps = 1
    while num_steps <= algorithm.max_steps:
        # Weights for two of them: they are what takes long to compile.
        weights = num_steps <= 2
        draws = algorithm.sample(KEY, initial_state(name), NUM, num_steps, weights=weights)
        assert draws.position.shape == (NUM, 2)
        chex.assert_tree_all_finite(draws.position)
        if weights:
            assert draws.log_weight.shape == draws.log_density.shape == (NUM,)
            chex.assert_tree_all_finite(draws.log_weight)
        num_steps *= 2


@by_name
@pytest.mark.parametrize("method", METHODS)
def test_sample_says_what_its_weights_are_worth(name, method):
    algorithm, state = build(name), perturbed(initial_state(name), 0.1)
    draws = algorithm.sample(KEY, state, NUM, 2, method=method)
    assert draws.bound == BOUND_OF[method]
    assert cs.evidence(draws).bound == BOUND_OF[method]
    chex.assert_tree_all_finite((draws.position, draws.log_weight))
    expected = jax.vmap(TARGET.log_density)(draws.position)
    np.testing.assert_allclose(draws.log_density, expected, rtol=1e-4, atol=1e-4)
    assert (draws.flow is not None) == (method == "map")
    again = algorithm.sample(KEY, state, NUM, 2, method=method)
    chex.assert_trees_all_equal(draws, again)
    other = algorithm.sample(jax.random.key(1), state, NUM, 2, method=method)
    assert bool((draws.position != other.position).all())


@pytest.mark.parametrize("name", MORE)
def test_sample_and_its_reverse(name):
    algorithm, state = build(name), perturbed(initial_state(name), 0.05)
    assert (algorithm.max_steps, algorithm.target, algorithm.base) == (4, TARGET, BASE)
    first = algorithm.methods[0]
    assert first == ("map" if name in ("scds", "cdds", "cdds.paper", "progressive") else "path")
    few_steps = ("scds", "cdds", "cdds.paper", "progressive")
    assert first == ("map" if name in few_steps else "path")
    draws = algorithm.sample(KEY, state, NUM, 2)
    assert draws.bound == BOUND_OF[first]
    assert (draws.flow is not None) == (first == "map")
    chex.assert_tree_all_finite((draws.position, draws.log_weight))
    expected = jax.vmap(TARGET.log_density)(draws.position)
    np.testing.assert_allclose(draws.log_density, expected, rtol=1e-4, atol=1e-4)
    log_weight = algorithm.reverse_log_weight(KEY, state, draws.position, 2)
    assert log_weight.shape == (NUM,)
    chex.assert_tree_all_finite(log_weight)
    # Another seed, other points.
    other = algorithm.sample(jax.random.key(1), state, NUM, 2)
    assert bool((draws.position != other.position).all())
    for wrong in (0, 3, 8):
        with pytest.raises(ValueError, match=r"\[1, 2, 4\]"):
            algorithm.sample(KEY, state, NUM, wrong)
    with pytest.raises(ValueError, match=f"method must be one of .*{first}"):
        algorithm.sample(KEY, state, NUM, method="upper")


@by_name
def test_sample_without_weights(name):
    algorithm, state = build(name), perturbed(initial_state(name), 0.1)
    draws = algorithm.sample(KEY, state, NUM, 2, weights=False)
    assert (draws.log_weight, draws.log_density, draws.flow, draws.bound) == (None,) * 4
    # The same map from the same base draws as with exact weights.
    weighted = algorithm.sample(KEY, state, NUM, 2)
    np.testing.assert_allclose(draws.position, weighted.position, rtol=1e-5, atol=1e-5)


@by_name
def test_default_weights_are_never_heuristic(name):
    # Not even for the paper's preset: its weight is there for comparison only.
    draws = build(name).sample(KEY, initial_state(name), NUM)
    assert draws.bound == "lower-if-injective"
    assert draws.flow is not None


@by_name
def test_sample_is_vmappable_over_keys(name):
    algorithm, state = build(name), perturbed(initial_state(name), 0.1)
    keys = jax.random.split(KEY, 3)
    draws = jax.vmap(lambda key: algorithm.sample(key, state, NUM, 2, method="path"))(keys)
    assert draws.position.shape == (3, NUM, 2)
    single = algorithm.sample(keys[1], state, NUM, 2, method="path")
    np.testing.assert_allclose(draws.position[1], single.position, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(draws.log_weight[1], single.log_weight, rtol=1e-4, atol=1e-4)


@by_name
@pytest.mark.parametrize("num_steps", [0, 3, 64])
def test_wrong_num_steps(name, num_steps):
    allowed = {"osds.paper": r"\[1, 2, 4, 8\]"}.get(name, r"\[1, 2, 4\]")
    with pytest.raises(ValueError, match=allowed):
        build(name).sample(KEY, initial_state(name), NUM, num_steps)


@by_name
def test_wrong_arguments(name):
    algorithm, state = build(name), initial_state(name)
    with pytest.raises(ValueError, match="method"):
        algorithm.sample(KEY, state, NUM, method="upper")
    for num_samples in (0, -1, 2.5):
        with pytest.raises(ValueError, match="num_samples"):
            algorithm.sample(KEY, state, num_samples)


@pytest.mark.parametrize("constructor", [cs.osds, cs.osds.paper], ids=["osds", "paper"])
def test_wrong_base(constructor):
    with pytest.raises(ValueError, match="dimension 3"):
        constructor(TARGET, base=cs.bases.standard_normal(3))
    with pytest.raises(ValueError, match="power of two"):
        constructor(TARGET, max_steps=12)


def test_wrong_guidance():
    with pytest.raises(ValueError, match="guidance"):
        cs.osds(TARGET, base=BASE, guidance="target")


def test_wrong_calibration_steps():
    with pytest.raises(ValueError, match=r"\[1, 2, 4\]"):
        cs.calibration(build("osds"), num_steps=3)


# ---- the earlier spelling


@pytest.mark.parametrize(
    ("bound", "settings"),
    [
        ("lower", {"method": "path"}),
        ("lower-if-injective", {"method": "map"}),
        ("heuristic", {"method": "heuristic"}),
        (None, {"weights": False}),
    ],
)
def test_a_bound_is_still_taken_for_the_method_that_gives_it(bound, settings):
    algorithm, state = build("osds"), perturbed(initial_state("osds"), 0.1)
    said = "weights=False" if bound is None else f'method="{settings["method"]}"'
    with pytest.warns(DeprecationWarning, match=f"bound={bound!r} .* deprecated: say {said}"):
        old = algorithm.sample(KEY, state, NUM, 2, bound=bound)
    draws = algorithm.sample(KEY, state, NUM, 2, **settings)
    chex.assert_trees_all_equal(old, draws)
    assert old.bound == draws.bound == bound
    if bound in ("lower", "lower-if-injective"):
        with pytest.warns(DeprecationWarning, match="deprecated"):
            old = algorithm.reverse_log_weight(KEY, state, draws.position, 2, bound=bound)
        new = algorithm.reverse_log_weight(KEY, state, draws.position, 2, **settings)
        np.testing.assert_array_equal(old, new)


def test_a_bound_that_there_is_not_is_refused():
    with (
        pytest.warns(DeprecationWarning),
        pytest.raises(ValueError, match="bound must be one of"),
    ):
        build("osds").sample(KEY, initial_state("osds"), NUM, bound="upper")


# ---- the base of an algorithm that is given none


@pytest.mark.parametrize(
    "constructor",
    [
        cs.osds,
        *(pytest.param(c, marks=pytest.mark.slow) for c in (cs.scds, cs.dis, cs.dds, cs.pis)),
    ],
    ids=lambda constructor: constructor.__wrapped__.__name__.strip("_"),
)
def test_without_a_base_one_is_fitted_that_covers_every_mode(constructor):
    target = cs.targets.gmm9()
    base = constructor(target, max_steps=2, hidden=(8,)).base
    # Each of the nine modes has a ninth of the mass of both.
    exact, draws = target.sample(KEY, 9_000), base.sample(KEY, 9_000)
    shares = [mode_shares(x) for x in (exact, draws)]
    np.testing.assert_allclose(shares[0], 1 / 9, atol=0.02)
    np.testing.assert_allclose(shares[1], 1 / 9, atol=0.04)
    # And the presets of the papers keep theirs.
    chex.assert_trees_all_equal(constructor.paper(target).base, cs.bases.standard_normal(2))


def mode_shares(x):
    """Shares of points that are nearest to each place of a grid of nine."""
    grid = np.stack(np.meshgrid([-5.0, 0.0, 5.0], [-5.0, 0.0, 5.0]), -1).reshape(9, 2)
    nearest = np.linalg.norm(np.asarray(x)[:, None] - grid, axis=-1).argmin(1)
    return np.bincount(nearest, minlength=9) / len(x)


# ---- weights


@pytest.mark.parametrize("method", METHODS)
def test_untrained_weights_are_those_of_the_base(method):
    # An untrained control is zero: the map is the identity, the paths are the base's own.
    draws = build("osds").sample(KEY, initial_state("osds"), NUM, 2, method=method)
    expected = draws.log_density - BASE.log_prob(draws.position)
    np.testing.assert_allclose(draws.log_weight, expected, atol=1e-3 if method == "path" else 1e-4)
    assert draws.log_weight.std() > 0.1
    if method == "map":
        assert not draws.flow.folded.any()
        np.testing.assert_allclose(draws.flow.round_trip_error[:256], 0.0, atol=1e-5)
        # Measured on a part only, and says so.
        assert bool(jnp.isnan(draws.flow.round_trip_error[256:]).all())


@pytest.mark.parametrize("method", ["path", "map"])
@pytest.mark.parametrize("num_steps", [1, 4])
def test_mean_weight_is_z_for_any_parameters(method, num_steps):
    # A base wider than the target, for weights of finite variance.
    base = GaussianBase(BASE.loc, 1.3 * BASE.scale_tril)
    algorithm = cs.osds(TARGET, base=base, max_steps=4, hidden=(16,), guidance=None)
    state = perturbed(algorithm.init(KEY), 0.04)
    draws = algorithm.sample(KEY, state, 20_000, num_steps, method=method)
    if method == "map":
        assert not draws.flow.folded.any()
    weight = np.exp(np.asarray(draws.log_weight, np.float64) - TARGET.log_z)
    stderr = weight.std() / len(weight) ** 0.5
    assert stderr < 0.05
    assert abs(weight.mean() - 1.0) < 4 * stderr
    # The control has moved the points: these are not the base's weights.
    base_weight = draws.log_density - base.log_prob(draws.position)
    assert float(jnp.abs(draws.log_weight - base_weight).max()) > 0.05


def test_heuristic_weight_is_not_the_exact_one():
    algorithm, state = build("osds.paper"), perturbed(initial_state("osds.paper"), 0.1)
    heuristic = algorithm.sample(KEY, state, NUM, 2, method="heuristic")
    exact = algorithm.sample(KEY, state, NUM, 2)
    assert heuristic.bound == "heuristic"
    np.testing.assert_allclose(heuristic.position, exact.position, rtol=1e-5, atol=1e-5)
    assert float(jnp.abs(heuristic.log_weight - exact.log_weight).max()) > 0.1


def test_folds_are_counted():
    algorithm = build("osds.paper")
    draws = algorithm.sample(KEY, perturbed(initial_state("osds.paper"), 3.0), NUM, 1)
    assert 0.0 < float(draws.flow.folded.mean()) < 1.0


@pytest.mark.parametrize("method", METHODS)
def test_points_without_density_have_no_weight(method):
    # Its gradient is NaN outside, as that of a careless density is.
    half = cs.Target(lambda x: jnp.where(x[0] > 0, jnp.sqrt(x[0]) - x @ x, -jnp.inf), 2)
    assert jnp.isnan(jax.grad(half.log_density)(-jnp.ones(2))).any()
    algorithm = cs.osds(half, base=cs.bases.standard_normal(2), max_steps=2, hidden=(8,))
    draws = algorithm.sample(KEY, algorithm.init(KEY), NUM, 1, method=method)
    outside = draws.position[:, 0] <= 0
    assert 0.3 < float(outside.mean()) < 0.7
    assert bool(jnp.isneginf(draws.log_weight[outside]).all())
    assert bool(jnp.isfinite(draws.log_weight[~outside]).all())


@pytest.mark.parametrize("name", [*NAMES, *MORE])
def test_draws_do_not_depend_on_how_many_are_asked_for(name):
    algorithm, state = build(name), perturbed(initial_state(name), 0.1)
    few, many = (algorithm.sample(KEY, state, num, 2) for num in (10, 200))  # of one block
    assert few.position.shape == (10, 2)
    chex.assert_trees_all_equal(few, jax.tree.map(lambda x: x[:10], many))


def test_draws_in_blocks_of_other_sizes_are_the_same():
    algorithm, state = build("osds"), perturbed(initial_state("osds"), 0.1)
    few, many = (algorithm.sample(KEY, state, num) for num in (10, 4_000))
    first = jax.tree.map(lambda x: x[:10], many)
    # To the rounding of sums that are vectorised otherwise.
    chex.assert_trees_all_close(few, first, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_blocks_of_draws_are_the_draws(monkeypatch):
    """Draws in blocks, the last one filled up, are those that are made at once."""
    small = moving._LIMITS["cpu"]._replace(points=50, blocks=(64,), cheap_blocks=(64,))
    algorithm, state = build("osds"), perturbed(initial_state("osds"), 0.3)
    for num in (32, 64, 150):
        with monkeypatch.context() as patch:
            patch.setitem(moving._LIMITS, "cpu", small)
            blocks = algorithm.sample(KEY, state, num)
        # Inside of what JAX compiles there are none.
        at_once = jax.jit(lambda key, num=num: algorithm.sample(key, state, num))(KEY)
        assert blocks.position.shape == (num, 2)
        errors, others = blocks.flow.round_trip_error, at_once.flow.round_trip_error
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
            dataclasses.replace(blocks, flow=blocks.flow.folded),
            dataclasses.replace(at_once, flow=at_once.flow.folded),
        )
        # Where Newton's method hardly arrives, or does not, is a matter of rounding.
        first, second = np.asarray(errors) < 1e-2, np.asarray(others) < 1e-2
        assert np.mean(first != second) < 0.05
        arrived = first & second
        assert arrived.mean() > 0.8
        np.testing.assert_allclose(errors[arrived], others[arrived], atol=1e-4)


@pytest.mark.slow
def test_numbers_of_draws_share_what_is_compiled():
    calls = 0

    def density(x):
        nonlocal calls
        calls += 1
        return -0.5 * x @ x

    base = cs.bases.standard_normal(2)
    algorithm = cs.osds(cs.Target(density, 2), base=base, max_steps=2, hidden=(8,), guidance=None)
    state = algorithm.init(KEY)
    first = algorithm.sample(KEY, state, 4_000)
    before = calls
    others = [algorithm.sample(KEY, state, num) for num in (3_000, 4_096, 10_001)]
    assert calls == before > 0
    for draws in others:
        np.testing.assert_allclose(draws.position[:3_000], first.position[:3_000])
    # In a function of one's own as well.
    within = jax.jit(lambda key: algorithm.sample(key, state, 4_000))(KEY)
    np.testing.assert_allclose(within.log_weight, first.log_weight, atol=1e-5)


def test_more_draws_than_a_block_and_a_chunk_hold():
    num, limits = 130_000, moving._LIMITS["cpu"]
    # Two of the largest blocks, the last one cut, each of several chunks.
    assert num > limits.cheap_blocks[-1] > limits.points
    assert moving.block_size(num, 2, False) == limits.cheap_blocks[-1] < num
    draws = build("osds").sample(KEY, initial_state("osds"), num, weights=False)
    assert draws.position.shape == (num, 2)
    np.testing.assert_allclose(draws.position.mean(0), BASE.loc, atol=0.04)
    covariance = BASE.scale_tril @ BASE.scale_tril.T
    np.testing.assert_allclose(np.cov(draws.position.T), covariance, atol=0.06)
    assert len(np.unique(np.asarray(draws.position[:, 0]))) > 0.99 * num


# ---- settings of OSDS


@pytest.mark.parametrize(
    "settings",
    [{"control_loss": "log_variance", "volume": "hutchinson", "guidance": None}, {"max_steps": 1}],
    ids=["log_variance", "one_step"],
)
def test_osds_settings_train(settings):
    settings = {"max_steps": 2, "batch_size": 8, "hidden": (8,)} | settings
    algorithm = cs.osds(TARGET, base=BASE, **settings)
    state, info = jax.jit(algorithm.step)(KEY, algorithm.init(KEY))
    chex.assert_tree_all_finite((state, info))
    if settings["max_steps"] == 1:
        assert info.state_consistency == info.volume_consistency == 0.0


# ---- training on a Gaussian target, from a standard normal


@pytest.fixture(scope="module")
def trained():
    algorithm = cs.osds(
        TARGET,
        base=cs.bases.standard_normal(2),
        max_steps=8,
        batch_size=64,
        hidden=(32,),
        learning_rate=5e-3,
        warmup_iterations=50,
        anneal_iterations=0,
    )
    result = cs.fit(KEY, algorithm, 200, progress_bar=False)
    return algorithm, algorithm.init(KEY), result


def test_consistency_weight_warms_up(trained):
    history = trained[2].history
    expected = np.minimum(np.arange(200) / 50, 1.0)
    np.testing.assert_allclose(history.consistency_weight, expected, rtol=1e-5)
    # At the start the loss is the control loss alone, later consistency is part of it.
    np.testing.assert_allclose(history.loss[0], -history.elbo[0], rtol=1e-5)
    gaps = np.stack([history.state_consistency, history.volume_consistency])
    # None at the start, where the control is zero.
    assert (gaps[:, 0] == 0).all() and (gaps[:, 1:] > 0).all()
    rest = (history.loss + history.elbo)[1:]
    assert np.all(rest > (history.consistency_weight * history.state_consistency)[1:] - 1e-5)


def gap(algorithm, state, num_steps, method):
    draws = algorithm.sample(jax.random.key(3), state, 4_000, num_steps, method=method)
    return TARGET.log_z - float(cs.evidence(draws).elbo)


def test_osds_approaches_the_optimal_control(trained):
    algorithm, untrained, (state, _) = trained
    rng = np.random.default_rng(0)
    num_steps = algorithm.max_steps
    gradient = jax.grad(TARGET.log_density)

    @functools.partial(jax.jit, static_argnums=3)
    def control(params, x, t, d):
        u = algorithm.control.bind(params, (), gradient)
        return jax.vmap(lambda x: u(x, t, jnp.asarray(d)))(x)

    errors = {"untrained": [], "trained": []}
    for k in range(num_steps):
        t = jnp.asarray(k / num_steps)
        a = float(algorithm.control.process.signal(t))
        marginal = a**2 * COVARIANCE + (1 - a**2) * np.eye(2)
        x = rng.multivariate_normal(a * MEAN, marginal, size=300)
        best = (x - np.linalg.solve(marginal, (x - a * MEAN).T).T) / a
        for name, params in (("untrained", untrained.ema_params), ("trained", state.ema_params)):
            u = control(params, jnp.asarray(x, jnp.float32), t, 1.0 / num_steps)
            errors[name].append(np.mean((u - best) ** 2))
    # The fine steps are finite, so that the best control of theirs is not quite u*.
    assert np.mean(errors["trained"]) < 0.1 * np.mean(errors["untrained"])


@pytest.mark.parametrize("method", ["path", "map"])
def test_osds_closes_the_gap_of_the_elbo(trained, method):
    algorithm, untrained, (state, _) = trained
    before = gap(algorithm, untrained, 8, method)
    after = gap(algorithm, state, 8, method)
    assert before > 1.0
    assert -0.02 < after < 0.3


def test_calibration_makes_the_single_step_exact(trained):
    algorithm, _, (state, _) = trained
    calibrated = cs.calibration(algorithm, num_steps=1)
    start = calibrated.restart(state)
    assert start.iteration == 0
    chex.assert_trees_all_equal(start.params, start.ema_params, state.ema_params)
    result = cs.fit(KEY, calibrated, 300, state=start, progress_bar=False)
    before = gap(algorithm, state, 1, "map")
    after = gap(algorithm, result.state, 1, "map")
    assert -0.01 < after < 0.02
    assert after < 0.5 * before
    assert result.history.folded[-1] == 0.0


@pytest.mark.parametrize(
    "setting", [{"control_loss": "logvariance"}, {"volume": "exakt"}, {"guidance": "score"}]
)
def test_misspelt_choices_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        cs.osds(cs.targets.gmm9(), base=cs.bases.standard_normal(2), **setting)
    if "volume" not in setting:
        with pytest.raises(ValueError, match=next(iter(setting))):
            cs.scds(cs.targets.gmm9(), base=cs.bases.standard_normal(2), **setting)


def test_a_gradient_that_is_not_finite_changes_nothing_but_the_count():
    optimizer = optax.adam(0.1)
    params = {"w": jnp.ones(3)}
    state = cs.SamplerState(params, params, optimizer.init(params), jnp.zeros((), jnp.int32))
    bad = {"w": jnp.array([0.0, jnp.nan, 0.0])}
    skipped = _updated(optimizer, state, bad, 0.9)
    chex.assert_trees_all_equal(skipped, state._replace(iteration=state.iteration + 1))
    good = _updated(optimizer, state, {"w": jnp.ones(3)}, 0.9)
    assert not jnp.allclose(good.params["w"], params["w"])
