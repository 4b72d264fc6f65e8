"""The path gradient of calibration, and networks whose determinants are cheap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consistent_samplers as cs
from consistent_samplers import log_det, losses, networks, simulate
from consistent_samplers.processes import OrnsteinUhlenbeck

DIM = 3
PROCESS = OrnsteinUhlenbeck()
ZERO, ONE = jnp.zeros(()), jnp.ones(())


def shaken(network: networks.Network, scale: float = 0.1):
    """Parameters of a network that is no longer at its start, where it is zero."""
    return shaken_params(network.init(jax.random.key(0)), scale)


def shaken_params(params, scale: float = 0.1):
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [
        leaf + scale * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, moved)


def shaken_state(algorithm):
    params = shaken_params(algorithm.init(jax.random.key(0)).params)
    return algorithm.init(jax.random.key(0))._replace(params=params, ema_params=params)


def bound(kind: str) -> simulate.ControlFn:
    if kind == "general":
        network = networks.step_conditioned_mlp(DIM, hidden=(8,))
        params = shaken(network)
        return lambda x, t, d: network.apply(params, x, t, d)
    network = networks.structured(DIM, rank=5)
    params = shaken(network)
    assert network.jacobian is not None
    return simulate.StructuredControl(
        lambda x, t, d: network.apply(params, x, t, d),
        lambda x, t, d: network.jacobian(params, x, t, d),
    )


def log_density(x):
    return -0.5 * jnp.sum(x**2) - jnp.sum(jnp.cos(x))


@pytest.mark.parametrize("time", [(0.0, 1.0), (0.25, 0.25)])
def test_structured_jacobian_is_the_network_s_own(time):
    control = bound("structured")
    t, d = map(jnp.asarray, time)
    x = jnp.array([0.3, -1.2, 2.0])
    expected = jax.jacfwd(lambda y: control(y, t, d))(x)
    assert float(jnp.abs(expected).max()) > 0.05
    np.testing.assert_allclose(control.jacobian(x, t, d).dense(), expected, atol=1e-5)


@pytest.mark.parametrize("integrator", ["exponential", "denoising", "euler_maruyama"])
def test_structured_step_has_the_jacobian_of_the_step(integrator):
    process = OrnsteinUhlenbeck(integrator=integrator)
    control, x, t, d = bound("structured"), jnp.array([0.3, -1.2, 2.0]), 0.5 * ONE, 0.25 * ONE
    landed, jacobian = simulate.flow_step_and_jacobian(control, process, x, t, d)
    plain, expected = log_det.value_and_jacobian(
        lambda y: simulate.flow_step(control, process, y, t, d), x
    )
    np.testing.assert_allclose(landed, plain, atol=1e-6)
    np.testing.assert_allclose(jacobian.dense(), expected, atol=1e-5)


def test_an_untrained_structured_network_is_zero_and_many_dimensions_are_cheap():
    network = networks.structured(1_000, rank=8)
    params = network.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (1_000,))
    np.testing.assert_array_equal(network.apply(params, x, ZERO, ONE), 0.0)
    assert network.jacobian is not None
    shapes = jax.eval_shape(network.jacobian, params, x, ZERO, ONE)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) < 20_000


@pytest.mark.parametrize("kind", ["general", "structured"])
def test_path_gradient_is_the_score_difference_where_the_map_lands(kind):
    num_steps = 2
    control, x0 = bound(kind), jnp.array([0.4, -0.9, 1.1])
    path, log_weight, gradient = jax.jit(
        lambda x: simulate.flow_path_gradient(control, PROCESS, x, log_density, num_steps)
    )(x0)
    plain = simulate.flow_path(control, PROCESS, x0, num_steps)
    np.testing.assert_allclose(log_weight, simulate.flow_log_weight(plain, log_density), rtol=1e-5)

    def log_q(y):
        """Density of T(x0), by the inverse of the map."""
        back = simulate.flow_path(
            control, PROCESS, simulate.invert_flow(control, PROCESS, y, num_steps), num_steps
        )
        return simulate.standard_normal_log_prob(back.position[0]) - back.log_abs_det.sum()

    y, step = path.position[-1], 1e-2
    around = y + step * jnp.concatenate([jnp.eye(DIM), -jnp.eye(DIM)])
    values = jax.jit(jax.vmap(log_q))(around)
    numeric = (values[:DIM] - values[DIM:]) / (2 * step)
    expected = np.asarray(numeric) - np.asarray(jax.grad(log_density)(y))
    np.testing.assert_allclose(gradient, expected, atol=2e-2)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.0])
def test_pull_is_the_gradient_of_its_divergence(alpha):
    # x = θ z against N(0, 1): E_q[w^α] has a closed form, and with it the divergence's gradient.
    theta = 1.25
    z = jax.random.normal(jax.random.key(0), (400_000,))
    x = theta * z
    log_q = jax.scipy.stats.norm.logpdf(x, 0.0, theta)
    log_weight = jax.scipy.stats.norm.logpdf(x) - log_q
    pulled = losses.pull_weight(log_weight, alpha) * (-x / theta**2 + x)
    estimate = float(jnp.mean(pulled * z))

    def divergence(theta):
        if alpha == 0.0:
            return 0.5 * theta**2 - jnp.log(theta)
        if alpha == 1.0:
            return jnp.log(theta) + 0.5 / theta**2
        # log E_q[w²] / 2: normalised weights give the gradient of the logarithm.
        return 0.5 * (jnp.log(theta) - 0.5 * jnp.log(2.0 - 1.0 / theta**2))

    expected = float(jax.grad(divergence)(theta))
    error = 4.0 * float(jnp.std(pulled * z)) / len(z) ** 0.5
    assert abs(estimate - expected) < error < 0.1 * abs(expected)


def test_calibration_along_the_path_gradient_has_no_noise_at_the_optimum():
    target = cs.targets.gaussian(jnp.zeros(2), jnp.eye(2))
    algorithm = cs.osds(target, guidance=None)
    step = cs.calibration(algorithm, batch_size=8)
    state = step.init(jax.random.key(0))
    # The untrained map is the exact answer: every batch's gradient is zero, not only their mean.
    _, info = jax.jit(step.step)(jax.random.key(1), state)
    assert float(info.gradient_norm) < 1e-4


@pytest.mark.slow
def test_mode_covering_calibration_spreads_over_both_modes():
    def log_density(x):
        return jnp.logaddexp(-0.5 * jnp.sum((x - 2.0) ** 2), -0.5 * jnp.sum((x + 2.0) ** 2))

    target = cs.Target(log_density, 1, "two modes")
    algorithm = cs.osds(target, guidance=None, elementwise_gain=False, hidden=(2,))
    found = []
    for alpha in (0.0, 1.0):
        step = cs.calibration(algorithm, alpha=alpha, batch_size=512, learning_rate=2e-2)
        state = cs.fit(jax.random.key(0), step, 150, progress_bar=False, chunk_size=150).state
        draws = step.sample(jax.random.key(1), state, 4_000)
        found.append((float(draws.position.std()), cs.evidence(draws)))
    (narrow, reverse), (wide, forward) = found
    # Two hidden units cannot follow the gap between the modes: each divergence gives its own best.
    assert wide > narrow + 0.03
    assert float(forward.ess) > float(reverse.ess) and float(reverse.elbo) > float(forward.elbo)


def test_a_negative_alpha_is_refused():
    algorithm = cs.osds(cs.targets.gmm9(), guidance=None)
    with pytest.raises(ValueError, match="alpha must not be negative"):
        cs.calibration(algorithm, alpha=-1.0)


def test_structured_network_and_guidance_do_not_go_together():
    with pytest.raises(ValueError, match="guidance=None"):
        cs.osds(cs.targets.gmm9(), network="structured")
    with pytest.raises(ValueError, match="network must be"):
        cs.osds(cs.targets.gmm9(), network="deep")


@pytest.mark.slow
def test_structured_osds_is_calibrated_and_weighed():
    target = cs.targets.funnel(dim=4)
    base = cs.bases.GaussianBase(jnp.zeros(4), jnp.diag(jnp.array([2.0, 1.5, 1.5, 1.5])))
    algorithm = cs.osds(
        target, base=base, guidance=None, network="structured", max_steps=4, hidden=(16,)
    )
    step = cs.calibration(algorithm, learning_rate=1e-2, batch_size=64)
    start = algorithm.init(jax.random.key(1))
    state = cs.fit(jax.random.key(2), step, 200, state=start, progress_bar=False).state
    before, e = (cs.evidence(algorithm.sample(jax.random.key(3), s, 4_000)) for s in (start, state))
    assert float(before.elbo) + 0.2 < float(e.elbo) <= 4.0 * float(e.elbo_stderr)
    assert float(e.folded) == 0.0 and float(e.round_trip_error) < 1e-2


@pytest.mark.slow
def test_a_structured_teacher_and_its_student_weigh_their_maps_exactly():
    """With the full Jacobian of the whole map, whichever step size the network is shown."""
    target = cs.targets.funnel(dim=DIM)
    base = cs.bases.standard_normal(DIM, 1.5)
    settings = {"network": "structured", "hidden": (6,), "max_steps": 2}
    teacher = cs.dis(target, base=base, **settings)
    taught = teacher.restart(shaken_state(teacher))
    student = cs.cdds(target, teacher=teacher, teacher_state=taught, num_points=2, max_steps=1)
    scds = cs.scds(target, base=base, **settings)
    for algorithm, num_steps, at in ((teacher, 2, 0.5), (scds, 2, None), (student, 1, 0.5)):
        state = algorithm.restart(shaken_state(algorithm))
        draws = algorithm.sample(jax.random.key(4), state, 8, num_steps, bound="lower-if-injective")
        control = algorithm.control
        assert control.network.jacobian is not None and control.shown_step == at
        u = control.bind(state.params)

        def by_brute_force(z1, control=control, u=u, num_steps=num_steps):
            def whole(z):
                return simulate.flow_map(u, control.process, z, num_steps)

            z0 = simulate.invert_flow(u, control.process, z1, num_steps)
            log_abs_det = jnp.linalg.slogdet(jax.jacfwd(whole)(z0))[1]
            log_p0 = simulate.standard_normal_log_prob(z0)
            return control.log_density(whole(z0)) - log_p0 + log_abs_det

        z1 = jax.vmap(lambda x: base.whiten(x, ()))(draws.position)
        np.testing.assert_allclose(
            draws.log_weight, jax.jit(jax.vmap(by_brute_force))(z1), atol=2e-3
        )
