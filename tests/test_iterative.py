"""The iterative samplers (DIS, DDS, PIS), their losses, learned kernels and the replay buffer."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import consistent_samplers as cs
from consistent_samplers import losses, networks, schedules, simulate
from consistent_samplers.algorithms import objectives, replay
from consistent_samplers.algorithms.protocol import Now
from consistent_samplers.bases import GaussianBase
from consistent_samplers.maps import Control
from consistent_samplers.processes import OrnsteinUhlenbeck

MEAN = np.array([1.0, -0.5])
COVARIANCE = np.array([[0.8, 0.4], [0.4, 0.5]])
TARGET = cs.targets.gaussian(MEAN, COVARIANCE)
KEY = jax.random.key(0)
CONSTRUCTORS = {"dis": cs.dis, "dds": cs.dds, "pis": cs.pis}
SCHEDULES = {
    "dis": {"schedule": schedules.linear(0.1, 10.0)},
    "dds": {"schedule": schedules.cosine(0.01, 10.0)},
    "pis": {},
}
by_name = pytest.mark.parametrize("name", CONSTRUCTORS)


def build(name: str, target=TARGET, **settings) -> cs.Algorithm:
    """A small sampler whose settings do not depend on anyone's defaults."""
    small = {
        "base": cs.bases.standard_normal(2),
        "max_steps": 8,
        "batch_size": 64,
        "hidden": (16,),
        "learning_rate": 5e-3,
        "loss": "log_variance",
        "guidance": None,
        "elementwise_gain": True,
        "ema_decay": 0.99,
        "gradient_clip": 1.0,
        # The whole target from the start, on paths of all the steps.
        "anneal_iterations": 0,
        "train_steps": (settings.get("max_steps", 8),),
    }
    return CONSTRUCTORS[name](target, **(small | SCHEDULES[name] | settings))


def optimal_control(process: OrnsteinUhlenbeck, x, t, d):
    """u* = (E[x_1 | x_t] - a x) / (1 - a²) for the Gaussian target."""
    a = process.signal(t)
    covariance = jnp.asarray(COVARIANCE, jnp.float32)
    (p, q), (r, s) = a**2 * covariance + (1 - a**2) * jnp.eye(2)
    gap = x - a * jnp.asarray(MEAN, jnp.float32)
    # Two by two: the inverse by hand, to stay away from LAPACK inside a scan.
    solved = jnp.stack([s * gap[0] - q * gap[1], p * gap[1] - r * gap[0]]) / (p * s - q * r)
    expected_end = jnp.asarray(MEAN, jnp.float32) + a * covariance @ solved
    return (expected_end - a * x) / (1 - a**2)


def perturbed(state, scale: float):
    """The state with noise on every parameter that samples."""
    leaves, structure = jax.tree.flatten(state.ema_params)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    noisy = [x + scale * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return state._replace(ema_params=jax.tree.unflatten(structure, noisy))


# ---- the papers' formulas


@pytest.mark.parametrize("t", [0.0, 0.25, 0.875])
def test_pis_kernels_are_euler_maruyama_of_the_pinned_brownian_motion(t):
    process, d = build("pis").control.process, 0.125
    x, x_next, u = np.random.default_rng(0).normal(size=(3, 2))
    forward = process.forward_kernel(jnp.asarray(x), jnp.asarray(u), t, d)
    # X' = X + u d + √d ε for X = √t x, in units of √(t + d).
    np.testing.assert_allclose(forward.mean, (t**0.5 * x + u * d) / (t + d) ** 0.5, rtol=1e-5)
    np.testing.assert_allclose(forward.std, (d / (t + d)) ** 0.5, rtol=1e-5)
    # The bridge to the origin: X_t | X_{t+d} ~ N(t X' / (t + d), t d / (t + d)); in units of √t.
    backward = process.backward_kernel(jnp.asarray(x_next), t, d)
    np.testing.assert_allclose(backward.mean, (t / (t + d)) ** 0.5 * x_next, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(backward.std, (d / (t + d)) ** 0.5, rtol=1e-5)
    flow = process.flow_step(jnp.asarray(x), jnp.asarray(u), t, d)
    np.testing.assert_allclose(flow, x + ((t + d) ** 0.5 - t**0.5) * u, rtol=1e-5)


def test_the_first_step_of_pis_forgets_its_start():
    kernels = simulate.noising_kernels(lambda x, t, d: jnp.ones(2), build("pis").control.process)
    step = functools.partial(jax.jit(kernels.forward), t=jnp.zeros(()), d=jnp.asarray(0.125))
    here, there = step(jnp.zeros(2)), step(jnp.full(2, 30.0))
    chex.assert_tree_all_finite((here, there))
    np.testing.assert_array_equal(here.mean, there.mean)
    np.testing.assert_allclose(here.std, 1.0, rtol=1e-6)


@pytest.mark.parametrize("t", [0.0, 0.25, 0.875])
def test_dds_kernel_is_the_papers(t):
    process, d = build("dds").control.process, 0.125
    x, u = np.random.default_rng(0).normal(size=(2, 2))
    # β = 0.01 + 9.99 cos²(πt/2), integrated by quadrature.
    integral = functools.partial(
        scipy.integrate.quad, lambda s: 0.01 + 9.99 * np.cos(0.5 * np.pi * s) ** 2
    )
    alpha = 1 - np.exp(-integral(t, t + d)[0])
    f = np.exp(-0.5 * integral(t, 1.0)[0]) * u
    kept = (1 - alpha) ** 0.5
    kernel = process.forward_kernel(jnp.asarray(x), jnp.asarray(u), t, d)
    np.testing.assert_allclose(kernel.mean, kept * x + 2 * (1 - kept) * f, rtol=1e-4)
    np.testing.assert_allclose(kernel.std, alpha**0.5, rtol=1e-4)


@by_name
def test_path_weight_compares_with_the_uncontrolled_paths(name):
    # The form of the papers: log ρ/p0 at the end, less the log ratio of the controlled kernels
    # to the uncontrolled ones, which keep the base as it is.
    process, num_steps = build(name).control.process, 8

    def control(x, t, d):
        return jnp.tanh(2.0 * x + t)

    kernels = simulate.noising_kernels(control, process)
    path = simulate.stochastic_path(
        KEY, jnp.array([0.4, -1.2]), kernels, TARGET.log_density, num_steps
    )
    position, d = np.asarray(path.position, np.float64), 1 / num_steps
    end = position[-1]
    expected = float(TARGET.log_density(path.position[-1])) - scipy.stats.norm.logpdf(end).sum()
    for k in range(num_steps):
        u = control(path.position[k], k * d, d)
        controlled = process.forward_kernel(path.position[k], u, k * d, d)
        free = process.forward_kernel(path.position[k], jnp.zeros(2), k * d, d)
        for kernel, sign in ((controlled, -1), (free, 1)):
            log_prob = scipy.stats.norm.logpdf(
                position[k + 1], np.asarray(kernel.mean), np.asarray(kernel.std)
            )
            expected += sign * log_prob.sum()
    np.testing.assert_allclose(path.log_weight, expected, rtol=1e-3, atol=1e-3)


# ---- the closed-form control on a Gaussian target


@by_name
def test_the_optimal_control_closes_both_bounds(name):
    process, num, num_steps = build(name).control.process, 1_000, 128
    kernels = simulate.noising_kernels(functools.partial(optimal_control, process), process)

    @jax.jit
    def log_weights(x1):
        def back(key, x):
            position = simulate.backward_path(key, x, kernels, num_steps)
            log_ratio = simulate.path_log_ratio(position, kernels, num_steps)
            return simulate.path_log_weight(position, log_ratio, TARGET.log_density)

        keys = jax.random.split(KEY, num)
        x0 = jax.random.normal(jax.random.key(1), (num, 2))
        there = jax.vmap(
            lambda k, x: simulate.stochastic_path(k, x, kernels, TARGET.log_density, num_steps)
        )(keys, x0)
        return there.log_weight, jax.vmap(back)(keys, x1)

    below, above = log_weights(TARGET.sample(jax.random.key(2), num))
    elbo, eubo = float(below.mean()) - TARGET.log_z, float(above.mean()) - TARGET.log_z
    # Bounds are met within four standard errors, and tight.
    assert -0.05 < elbo < 4 * float(below.std()) / num**0.5
    assert -4 * float(above.std()) / num**0.5 < eubo < 0.05
    assert float(losses.log_variance(below).mean()) < 0.1


def control_error(algorithm, state, num_steps=8):
    """Mean squared distance to the optimal control on the optimal marginals."""
    process, rng = algorithm.control.process, np.random.default_rng(0)
    x, t = [], []
    for k in range(num_steps):
        a = float(process.signal(k / num_steps))
        covariance = a**2 * COVARIANCE + (1 - a**2) * np.eye(2)
        x.append(rng.multivariate_normal(a * MEAN, covariance, size=200))
        t.append(np.full(200, k / num_steps))
    x = jnp.asarray(np.concatenate(x), jnp.float32)
    t = jnp.asarray(np.concatenate(t), jnp.float32)
    d = jnp.asarray(1.0 / num_steps)
    found = jax.vmap(algorithm.control.bind(state.ema_params), (0, 0, None))(x, t, d)
    best = jax.vmap(functools.partial(optimal_control, process), (0, 0, None))(x, t, d)
    return float(jnp.mean((found - best) ** 2))


@functools.cache
def trained(name: str, **settings):
    algorithm = build(name, **settings)
    return algorithm, cs.fit(KEY, algorithm, 300, progress_bar=False)


@pytest.mark.slow
@by_name
def test_training_approaches_the_optimal_control(name):
    algorithm, (state, history) = trained(name)
    untrained = algorithm.init(KEY)
    draws = algorithm.sample(jax.random.key(3), state, 4_000)
    assert draws.bound == "lower"
    evidence = cs.evidence(draws)
    before, after = control_error(algorithm, untrained), control_error(algorithm, state)
    assert after < 0.1 * before
    assert history.elbo[0] < TARGET.log_z - 0.5
    assert -0.2 < evidence.elbo - TARGET.log_z < 4 * evidence.elbo_stderr


# ---- weights of any parameters, forwards and in reverse


def scaled_base(scale: float) -> GaussianBase:
    return GaussianBase(jnp.asarray(MEAN), scale * jnp.asarray(np.linalg.cholesky(COVARIANCE)))


def check_mean_is_one(log_ratio) -> None:
    """At four standard errors: a false alarm in 16,000 runs."""
    ratio = np.exp(np.asarray(log_ratio, np.float64))
    stderr = ratio.std() / len(ratio) ** 0.5
    # A large error bar would let anything pass, and so would weights that are all alike.
    assert stderr < 0.03
    assert ratio.std() > 0.05
    assert abs(ratio.mean() - 1.0) < 4 * stderr


@pytest.mark.parametrize(
    "learned_kernels", ["both", pytest.param("backward", marks=pytest.mark.slow)]
)
def test_mean_weight_is_z_with_learned_kernels(learned_kernels):
    # A base wider than the target, for weights of finite variance.
    settings = {"base": scaled_base(1.3), "max_steps": 4}
    algorithm = build("dis", learned_kernels=learned_kernels, **settings)
    state = perturbed(algorithm.init(KEY), 0.04)
    assert ("forward_scale" in state.params) == (learned_kernels == "both")
    draws = algorithm.sample(KEY, state, 20_000, 4)
    check_mean_is_one(draws.log_weight - TARGET.log_z)
    # The same control between the process's own kernels weighs otherwise.
    own = build("dis", **settings).sample(KEY, state, 1_000, 4)
    assert abs(float(jnp.std(own.log_weight) - jnp.std(draws.log_weight))) > 1e-3


@pytest.mark.parametrize(
    ("method", "learned_kernels"),
    [("path", None), ("path", "both"), pytest.param("map", None, marks=pytest.mark.slow)],
)
def test_reverse_weights_of_exact_draws_bound_the_evidence_from_above(method, learned_kernels):
    # A base narrower than the target, for reciprocal weights of finite variance.
    algorithm = build("dis", base=scaled_base(0.8), max_steps=4, learned_kernels=learned_kernels)
    state, num = perturbed(algorithm.init(KEY), 0.04), 20_000
    exact = TARGET.sample(jax.random.key(1), num)
    log_weight = algorithm.reverse_log_weight(KEY, state, exact, 4, method=method)
    assert log_weight.shape == (num,)
    chex.assert_tree_all_finite(log_weight)
    check_mean_is_one(TARGET.log_z - log_weight)
    eubo = float(log_weight.mean()) - TARGET.log_z
    draws = algorithm.sample(KEY, state, 2_000, 4, method=method)
    elbo = float(draws.log_weight.mean()) - TARGET.log_z
    assert eubo > 4 * float(log_weight.std()) / num**0.5
    assert elbo < -4 * float(draws.log_weight.std()) / 2_000**0.5
    if method == "map":
        # A deterministic map has one weight at each point, whichever way it is run.
        again = algorithm.reverse_log_weight(KEY, state, draws.position, 4, method=method)
        np.testing.assert_allclose(again, draws.log_weight, atol=2e-2)


# ---- learned kernels


def test_kernel_corrections_are_none_at_first_and_bounded():
    network = networks.KernelCorrection(2, hidden=(8,), max_shift=1.5, max_log_scale=0.7)
    t, d = jnp.asarray(0.25), jnp.asarray(0.125)
    params = network.init(KEY, jnp.ones(2), t, d)
    chex.assert_trees_all_equal(network.apply(params, jnp.ones(2), t, d), (jnp.zeros(2),) * 2)
    wild = jax.tree.map(lambda p: p + 30.0 * jax.random.normal(KEY, p.shape), params)
    x = 10.0 * jax.random.normal(KEY, (100, 2))
    shift, log_scale = jax.vmap(lambda x: network.apply(wild, x, t, d))(x)
    # Smaller for short steps, for which the kernels are right as they are.
    assert 1.4 < float(jnp.abs(shift).max()) / d**0.5 < 1.5001
    assert 0.6 < float(jnp.abs(log_scale).max()) / d**0.5 < 0.7001


def test_corrections_are_in_units_of_the_kernel():
    algorithm = build("dis", learned_kernels="both")
    control, params = algorithm.control, perturbed(algorithm.init(KEY), 0.1).ema_params
    own = simulate.noising_kernels(control.bind(params), control.process)
    x, t, d = jnp.array([0.3, -0.8]), jnp.asarray(0.25), jnp.asarray(0.125)
    kernels = control.kernels(params)
    shift, log_scale = control.backward.apply(params["backward"], x, t, d)
    expected = own.backward(x, t, d)
    found = kernels.backward(x, t, d)
    np.testing.assert_allclose(found.mean, expected.mean + expected.std * shift, rtol=1e-5)
    np.testing.assert_allclose(found.std, expected.std * jnp.exp(log_scale), rtol=1e-5)
    assert float(jnp.abs(found.mean - expected.mean).min()) > 1e-3
    # Nothing but the scale of the generative kernel is learned beside its control.
    _, log_scale = control.forward_scale.apply(params["forward_scale"], x, t, d)
    expected, found = own.forward(x, t, d), kernels.forward(x, t, d)
    np.testing.assert_array_equal(found.mean, expected.mean)
    np.testing.assert_allclose(found.std, expected.std * jnp.exp(log_scale), rtol=1e-5)


@pytest.mark.slow
def test_learned_kernels_raise_the_elbo_of_few_steps():
    elbos = []
    for learned_kernels in (None, "both"):
        algorithm, (state, _) = trained("dis", max_steps=4, learned_kernels=learned_kernels)
        evidence = cs.evidence(algorithm.sample(jax.random.key(3), state, 4_000))
        assert evidence.bound == "lower"
        elbos.append(evidence.elbo - TARGET.log_z)
    assert elbos[0] < elbos[1] - 0.1
    assert elbos[1] < 4 * evidence.elbo_stderr


# ---- losses

SHIFT = jnp.array([0.8, -0.4])
LOG_Z = 1.3


def shifted_log_density(x):
    """N(SHIFT, I) times exp(LOG_Z): with the constant control SHIFT, PIS is exact."""
    return LOG_Z + simulate.standard_normal_log_prob(x - SHIFT)


def tiny_control(integrator="exponential"):
    """A control of three parameters: optimal for the target above at (1, 0, 0)."""

    def apply(params, x, t, d):
        return params[0] * SHIFT + params[1] * jnp.tanh(x) + params[2] * t * x

    network = networks.Network(lambda key: jnp.zeros(3), apply)
    process = OrnsteinUhlenbeck(schedules.brownian(), integrator)
    return Control(cs.bases.standard_normal(2), network, process, 8)


def path_loss(kind, batch_size, num_steps, **settings):
    """A loss on paths of the tiny control: its own parameters, and ``(params, key) -> loss``."""
    control, evaluate = tiny_control(), jax.vmap(shifted_log_density)
    loss = objectives.PathLoss(kind, batch_size, (4,), (num_steps,), **settings)

    def of(params, rng_key=KEY, **further):
        return loss(params, Now(rng_key, control, None), rng_key, evaluate, **further)

    return loss.init(KEY, control, evaluate), of


OPTIMUM, ELSEWHERE = jnp.array([1.0, 0.0, 0.0]), jnp.array([0.5, 0.5, 0.6])


def test_balance_losses_vanish_at_the_optimum_alone():
    control, num_steps = tiny_control(), 8

    def balances(params, log_flow_shift):
        kernels = control.kernels({"control": params})
        path = simulate.stochastic_path(KEY, jnp.ones(2), kernels, shifted_log_density, num_steps)
        t = jnp.arange(num_steps + 1) / num_steps
        # The marginals of the optimal paths, N(√t SHIFT, I), times Z.
        log_flow = LOG_Z + jax.vmap(
            lambda x, t: simulate.standard_normal_log_prob(x - jnp.sqrt(t) * SHIFT)
        )(path.position, t)
        log_flow = log_flow + log_flow_shift * t
        return (
            losses.trajectory_balance(path.log_weight, jnp.asarray(LOG_Z)),
            losses.sub_trajectory_balance(log_flow, path.log_ratio),
            losses.sub_trajectory_balance(log_flow[2:5], path.log_ratio[2:4], 0.9),
        )

    np.testing.assert_allclose(balances(OPTIMUM, 0.0), 0.0, atol=1e-9)
    assert min(float(x) for x in balances(ELSEWHERE, 0.0)) > 1e-3
    assert min(float(x) for x in balances(OPTIMUM, 0.5)[1:]) > 1e-3
    assert losses.trajectory_balance(jnp.asarray(LOG_Z), jnp.asarray(LOG_Z + 0.5)) == 0.25


def test_sub_trajectory_balance_averages_over_all_pieces():
    rng, decay = np.random.default_rng(0), 0.8
    log_flow, log_ratio = rng.normal(size=5), rng.normal(size=4)
    total = norm = 0.0
    for m in range(5):
        for n in range(m + 1, 5):
            gap = log_flow[n] + log_ratio[m:n].sum() - log_flow[m]
            total += decay ** (n - m) * gap**2
            norm += decay ** (n - m)
    found = losses.sub_trajectory_balance(jnp.asarray(log_flow), jnp.asarray(log_ratio), decay)
    np.testing.assert_allclose(found, total / norm, rtol=1e-5)


def test_sub_trajectory_balance_takes_the_weights_of_long_paths():
    # 2^128 is no number in single precision.
    rng = np.random.default_rng(0)
    log_flow, log_ratio = rng.normal(size=129), rng.normal(size=128)
    balance = log_flow + np.concatenate([[0.0], np.cumsum(log_ratio)])
    m, n = np.triu_indices(129, 1)
    expected = np.average((balance[n] - balance[m]) ** 2, weights=2.0 ** (n - m))
    found = losses.sub_trajectory_balance(jnp.asarray(log_flow), jnp.asarray(log_ratio), 2.0)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_pieces_that_leave_the_support_have_no_say_in_sub_trajectory_balance():
    log_ratio, kept = jnp.array([-1.0, 0.5, 2.0]), jnp.array([0.3, 1.0, -0.4])

    def loss(flow):
        # The last point is outside.
        return losses.sub_trajectory_balance(jnp.append(flow, -jnp.inf), log_ratio, 0.9)

    expected = jax.value_and_grad(
        lambda flow: losses.sub_trajectory_balance(flow, log_ratio[:2], 0.9)
    )(kept)
    chex.assert_trees_all_close(jax.value_and_grad(loss)(kept), expected, rtol=1e-5)
    assert losses.sub_trajectory_balance(jnp.full(4, -jnp.inf), log_ratio) == 0.0


def written_out_log_ratio(params, path):
    """Log B - log F of each step of a PIS path, in the coordinates of the Brownian motion."""
    num_steps = len(path) - 1
    d = 1.0 / num_steps
    ratios = []
    for k in range(num_steps):
        t = k * d
        u = params[0] * SHIFT + params[1] * jnp.tanh(path[k]) + params[2] * t * path[k]
        variance = d / (t + d)
        forward = path[k + 1] - (t**0.5 * path[k] + d * u) / (t + d) ** 0.5
        backward = path[k] - (t / (t + d)) ** 0.5 * path[k + 1]
        ratios.append(0.5 * (jnp.sum(forward**2) - jnp.sum(backward**2)) / variance)
    return jnp.stack(ratios)


@pytest.mark.parametrize("loss", ["log_variance", "trajectory_balance", "sub_trajectory_balance"])
def test_losses_on_given_paths_and_their_gradients(loss):
    # The whole path is the stretch of sub-trajectory balance here.
    num_steps, num = 4, 32
    own, of = path_loss(loss, num, num_steps, segment_share=1.0)
    params = {"control": ELSEWHERE} | own
    (value, batch), grads = jax.jit(jax.value_and_grad(of, has_aux=True))(params)
    assert batch.position.shape == (num, num_steps + 1, 2) and batch.log_weight.shape == (num,)
    log_flow = networks.ScalarMLP(hidden=(4,))

    def by_hand(params):
        log_z = 10.0 * params["log_z"] if "log_z" in params else 0.0

        def one(path):
            log_ratio = written_out_log_ratio(params["control"], path)
            log_p0 = -0.5 * jnp.sum(path**2, axis=1) - jnp.log(2 * jnp.pi)
            log_rho = LOG_Z - 0.5 * jnp.sum((path - SHIFT) ** 2, axis=1) - jnp.log(2 * jnp.pi)
            log_weight = log_rho[-1] - log_p0[0] + log_ratio.sum()
            if loss != "sub_trajectory_balance":
                return log_weight, 0.0
            flow = [log_z + log_p0[0]]
            for k in range(1, num_steps):
                t = k / num_steps
                learned = log_flow.apply(params["log_flow"], path[k], jnp.asarray(t))
                flow.append((1 - t) * (log_z + log_p0[k]) + t * log_rho[k] + learned)
            flow.append(log_rho[-1])
            pairs = [(m, n) for m in range(num_steps) for n in range(m + 1, num_steps + 1)]
            gaps = [flow[n] + log_ratio[m:n].sum() - flow[m] for m, n in pairs]
            return log_weight, sum(gap**2 for gap in gaps) / len(gaps)

        log_weight, balance = jax.vmap(one)(batch.position)
        if loss == "log_variance":
            return jnp.sum((log_weight - log_weight.mean()) ** 2) / (num - 1), log_weight
        if loss == "trajectory_balance":
            return jnp.mean((log_weight - log_z) ** 2), log_weight
        return balance.mean(), log_weight

    (expected, log_weight), expected_grads = jax.jit(jax.value_and_grad(by_hand, has_aux=True))(
        params
    )
    np.testing.assert_allclose(batch.log_weight, log_weight, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(value, expected, rtol=1e-3)
    chex.assert_trees_all_close(grads, expected_grads, rtol=5e-3, atol=1e-3)
    assert float(jnp.abs(grads["control"]).min()) > 0.02


def test_replayed_end_points_count_in_the_loss():
    # The sampler is exact, so that every path has weight Z, wherever it ends.
    _, of = path_loss("trajectory_balance", 8, 4)
    points = 1.5 + jax.random.normal(KEY, (16, 2))
    of = jax.jit(
        lambda theta, points, of=of: of(
            {"control": theta, "log_z": jnp.asarray(LOG_Z / 10.0)}, replayed=points
        )
    )
    loss, batch = of(OPTIMUM, points)
    np.testing.assert_allclose(loss, 0.0, atol=1e-9)
    assert batch.position.shape == (8, 5, 2)
    losses_of = [of(ELSEWHERE, p)[0] for p in (points, points + 3.0)]
    assert abs(float(losses_of[0] - losses_of[1])) > 0.1


def test_annealing_starts_from_the_base():
    exponent = jax.vmap(lambda i: schedules.annealing(i, 4))(jnp.arange(6))
    np.testing.assert_allclose(exponent, [1 / 16, 1 / 4, 9 / 16, 1.0, 1.0, 1.0])
    assert schedules.annealing(jnp.zeros((), jnp.int32), 0) == 1.0
    # At exponent 0 the zero control is right; the weights reported are the target's all along.
    _, of = path_loss("log_variance", 16, 4)
    of = jax.jit(lambda theta, temper, of=of: of({"control": theta}, temper=temper))
    cold, batch = of(jnp.zeros(3), 0.0)
    whole, same_batch = of(jnp.zeros(3), 1.0)
    np.testing.assert_allclose(cold, 0.0, atol=1e-9)
    assert float(whole) > 0.05
    np.testing.assert_allclose(batch.log_weight, same_batch.log_weight, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(batch.log_weight.var(ddof=1), whole, rtol=1e-3)


@pytest.mark.slow
def test_path_gradient_has_the_mean_of_reverse_kl_and_no_noise_at_the_optimum():
    num = 1_000

    def gradients(loss, params):
        _, of = path_loss(loss, 16, 4)
        keys = jax.random.split(KEY, num)
        one = jax.grad(lambda p, key: of({"control": p}, key)[0])
        return jax.jit(jax.vmap(one, (None, 0)))(params, keys)

    kl, path = (np.asarray(gradients(loss, ELSEWHERE)) for loss in ("reverse_kl", "path_gradient"))
    # Three means at 4.5 standard errors: a false alarm in 50,000 runs.
    stderr = (kl - path).std(0) / num**0.5
    np.testing.assert_array_less(np.abs((kl - path).mean(0)), 4.5 * stderr)
    assert np.all(stderr > 1e-4)
    assert np.all(np.abs(kl.mean(0)) > 5 * kl.std(0) / num**0.5)
    kl, path = (np.asarray(gradients(loss, OPTIMUM)) for loss in ("reverse_kl", "path_gradient"))
    np.testing.assert_allclose(path, 0.0, atol=1e-4)
    assert kl.std() > 0.05


# ---- the replay buffer


def filled(*batches, capacity=6):
    buffer = replay.init(capacity, 1)
    for log_weight in batches:
        log_weight = jnp.asarray(log_weight, jnp.float32)
        # Each point holds its own number.
        first = float(buffer.num_added)
        position = first + jnp.arange(len(log_weight), dtype=jnp.float32)[:, None]
        buffer = replay.add(buffer, position, log_weight)
    return buffer


def test_new_points_take_the_place_of_the_oldest():
    buffer = filled([0.0] * 4, [1.0] * 4, [2.0] * 4)
    assert buffer.num_added == 12
    np.testing.assert_array_equal(buffer.position[:, 0], [6.0, 7.0, 8.0, 9.0, 10.0, 11.0])
    np.testing.assert_array_equal(buffer.log_weight, [1.0, 1.0, 2.0, 2.0, 2.0, 2.0])
    part = filled([0.0] * 4, [1.0] * 4)
    np.testing.assert_array_equal(part.position[:, 0], [6.0, 7.0, 2.0, 3.0, 4.0, 5.0])


def test_draws_are_by_rank_and_never_from_an_empty_slot():
    log_weight = [300.0, -5.0, jnp.nan, 2.0, jnp.inf]
    buffer = filled(log_weight, capacity=8)
    num, offset = 20_000, 0.25
    drawn = np.asarray(replay.draw(KEY, buffer, num, offset))[:, 0].astype(int)
    # Ranks 0, 2 and 1 of points 0, 1 and 3; NaN, inf and what was never filled do not count.
    weight = np.zeros(8)
    weight[[0, 1, 3]] = 1 / (offset * 8 + np.array([0, 2, 1]))
    found = np.bincount(drawn, minlength=8)
    assert found[weight == 0].sum() == 0
    kept = weight > 0
    # A false alarm in 10,000 runs.
    expected = num * weight[kept] / weight.sum()
    assert scipy.stats.chisquare(found[kept], expected).pvalue > 1e-4


def test_a_point_that_is_not_finite_waits():
    buffer = replay.add(replay.init(4, 2), jnp.array([[1.0, jnp.nan], [2.0, 3.0]]), jnp.zeros(2))
    chex.assert_tree_all_finite(buffer.position)
    np.testing.assert_array_equal(replay.draw(KEY, buffer, 50), np.tile([[2.0, 3.0]], (50, 1)))


# ---- settings


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits():
    settings = {"max_steps": 2, "replay_share": 0.5, "replay_capacity": 128, "train_steps": (1, 2)}

    def run():
        # Built anew, so that nothing that they hold is shared.
        algorithm = build("pis", loss="trajectory_balance", **settings)
        state, history = cs.fit(KEY, algorithm, 12, progress_bar=False)
        return state, history, algorithm.sample(KEY, state, 100, method="path")

    first, second = run(), run()
    chex.assert_trees_all_equal(first, second)
    state, history, _ = first
    # Both numbers of steps took part, and the buffer went round.
    assert set(history.num_steps.tolist()) == {1, 2}
    assert state.memory.num_added == 12 * 64
    assert bool(jnp.isfinite(state.memory.log_weight).all())


@pytest.mark.parametrize("loss", ["reverse_kl", "path_gradient"])
def test_losses_of_their_own_paths_take_no_replayed_ones(loss):
    with pytest.raises(ValueError, match=r"replay_share=0\.5 with loss"):
        build("dis", loss=loss, replay_share=0.5)


@by_name
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "logvariance"}, "loss must be one of .*log_variance"),
        ({"train_steps": (4, 16)}, r"train_steps=16 .* \[1, 2, 4, 8\]"),
        ({"train_steps": (3,)}, "train_steps=3"),
        ({"train_steps": ()}, "at least one"),
        ({"max_steps": 12}, "power of two"),
        ({"replay_share": -0.1}, "negative"),
        ({"replay_share": 0.5, "replay_capacity": 8}, "at least the batch size 64, got 8"),
        ({"guidance": "score"}, "guidance"),
        ({"learned_kernels": "forward"}, "learned_kernels"),
        ({"base": cs.bases.standard_normal(3)}, "dimension 3"),
    ],
)
def test_wrong_settings(name, settings, message):
    with pytest.raises(ValueError, match=message):
        build(name, **settings)


def test_wrong_positions_and_methods_in_reverse():
    algorithm = build("pis")
    state = algorithm.init(KEY)
    with pytest.raises(ValueError, match=r"shape \[n, 2\]"):
        algorithm.reverse_log_weight(KEY, state, jnp.zeros((4, 3)))
    for function in (
        functools.partial(algorithm.sample, KEY, state, 10),
        functools.partial(algorithm.reverse_log_weight, KEY, state, jnp.zeros((4, 2))),
    ):
        # Infinite rates have no traces to add up.
        with pytest.raises(ValueError, match=r"method must be one of .*'path', 'map'"):
            function(method="heuristic")


def test_the_papers_presets_take_overrides():
    for name, constructor in CONSTRUCTORS.items():
        algorithm = constructor.paper(TARGET, max_steps=4, hidden=(8,))
        assert (algorithm.name, algorithm.max_steps) == (f"{name}.paper", 4)
        assert algorithm.methods[0] == "path"


@by_name
def test_the_papers_guidance_is_finite_from_the_base_on(name):
    # The Brownian motion of PIS has no signal of the target there.
    algorithm = build(name, guidance="interpolated")
    state = algorithm.init(KEY)
    control = algorithm.control.bind(state.params, (), jax.grad(TARGET.log_density))
    x, t, d = jnp.array([0.3, -2.0]), jnp.zeros(()), jnp.asarray(0.125)
    # An untrained network is zero and its gate one.
    np.testing.assert_allclose(control(x, t, d), jnp.zeros(2), atol=1e-6)
    late = jnp.asarray(0.75)
    score = jax.grad(TARGET.log_density)(x)
    expected = late * (score + x) / algorithm.control.process.signal(late)
    np.testing.assert_allclose(control(x, late, d), expected, rtol=1e-4)
    assert jnp.isfinite(algorithm.sample(KEY, state, 100).log_weight).all()
