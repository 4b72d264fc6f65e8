"""The path gradient of calibration, and networks whose determinants are cheap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consistent_samplers as cs
from consistent_samplers import log_det, losses, networks, simulate
from consistent_samplers.maps import DenoisingProcess
from consistent_samplers.processes import INTEGRATORS, OrnsteinUhlenbeck

DIM = 3
PROCESS = OrnsteinUhlenbeck()
OTHER_PROCESSES = [
    *(OrnsteinUhlenbeck(integrator=name) for name in INTEGRATORS if name != PROCESS.integrator),
    DenoisingProcess(skip="flow"),
]
ZERO, ONE = jnp.zeros(()), jnp.ones(())


def fresh(network):
    """Parameters of a network at its start, where it is zero."""
    return jax.jit(network.init)(jax.random.key(0), jnp.zeros(network.dim), ZERO, ONE)


def shaken(network, scale: float = 0.1):
    """Parameters of a network that is no longer at its start."""
    return jax.jit(shaken_params)(fresh(network), scale)


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


def split(network: networks.Structured, params) -> simulate.StructuredControl:
    return simulate.StructuredControl(lambda *args: network.apply(params, *args, method="split"))


def control_of(kind: str) -> simulate.ControlFn:
    if kind == "general":
        network = networks.StepConditionedMLP(DIM, hidden=(8,))
        params = shaken(network)
        return lambda x, t, d: network.apply(params, x, t, d)
    network = networks.Structured(DIM, rank=5)
    return split(network, shaken(network, 0.1))


def log_density(x):
    return -0.5 * jnp.sum(x**2) - jnp.sum(jnp.cos(x))


@pytest.mark.parametrize(
    ("dim", "rank", "process"),
    [
        (1, 3, PROCESS),
        (20, 7, PROCESS),
        *(pytest.param(4, 4, p, marks=pytest.mark.slow) for p in OTHER_PROCESSES),
    ],
)
def test_structured_step_has_the_jacobian_and_determinant_of_the_step(dim, rank, process):
    network = networks.Structured(dim, rank=rank)
    params = [shaken(network, scale) for scale in (0.1, 1.0, 4.0)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    x = jax.random.normal(jax.random.key(2), (dim,))

    def by_parts_and_in_full(params, t, d):
        control = split(network, params)
        landed, jacobian = simulate.flow_step_and_jacobian(control, process, x, t, d)
        full = log_det.value_and_jacobian(
            lambda y: simulate.flow_step(control, process, y, t, d), x
        )
        return landed, jacobian.dense(), log_det.slogdet(jacobian), full

    # All parameters, each at three times.
    at_times = jax.vmap(by_parts_and_in_full, (None, 0, 0))
    times = jnp.array([0.0, 0.25, 0.5]), jnp.array([1.0, 0.25, 0.125])
    landed, dense, det, (plain, expected) = jax.jit(jax.vmap(at_times, (0, None, None)))(
        stacked, *times
    )
    assert float(jnp.abs(expected - jnp.eye(dim)).max((-2, -1)).min()) > 1e-3
    np.testing.assert_allclose(landed, plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dense, expected, rtol=1e-4, atol=1e-4)
    sign, log_abs = np.linalg.slogdet(np.asarray(expected, np.float64))
    # Injective by construction, whatever the parameters.
    assert (sign == 1.0).all() and (det.sign == 1.0).all()
    np.testing.assert_allclose(det.log_abs_det, log_abs, rtol=1e-4, atol=1e-4)


def test_a_structured_step_is_undone_whatever_its_parameters():
    x0 = jax.random.normal(jax.random.key(3), (64, 20))
    network = networks.Structured(20, rank=7)

    @jax.jit
    def there_and_back(params):
        def one(x):
            control = split(network, params)
            y = simulate.flow_map(control, PROCESS, x, 2)
            return y, simulate.invert_flow(control, PROCESS, y, 2)

        return jax.vmap(one)(x0)

    for scale in (0.3, 2.0):
        landed, back = there_and_back(shaken(network, scale))
        assert float(jnp.abs(landed - x0).max()) > 0.5
        np.testing.assert_allclose(back, x0, atol=1e-3)


def test_gradients_of_a_structured_step_are_finite_from_the_start_on():
    network = networks.Structured(8, rank=5)
    x = jax.random.normal(jax.random.key(4), (8,))

    @jax.jit
    @jax.grad
    def by_params(params):
        control = split(network, params)
        path = simulate.flow_path(control, PROCESS, x, 1)
        return path.log_abs_det.sum() + path.position[-1].sum()

    start = fresh(network)
    # Columns along their unit vectors, where a reflection is no more than the identity.
    along = jax.tree.map(lambda leaf: leaf, start)
    along["params"]["u"] = jnp.eye(8, 5)
    for params in (start, along, shaken(network, 3.0)):
        grads = by_params(params)
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(grads))
    # The hidden units start to move at once.
    assert float(jnp.abs(by_params(start)["params"]["v"]).max()) > 0.0


def test_an_untrained_structured_network_is_zero_and_many_dimensions_are_cheap():
    network = networks.Structured(1_000, rank=8)
    params = fresh(network)
    x = jax.random.normal(jax.random.key(1), (1_000,))
    np.testing.assert_array_equal(network.apply(params, x, ZERO, ONE), 0.0)
    # Of a batch, each point has a diagonal and a gain of its own, and shares all else.
    axes = log_det.Sylvester(0, 0, None, None, None)
    jax.eval_shape(
        jax.vmap(lambda x: split(network, params).split(x, ZERO, ONE, ONE), out_axes=(0, axes)),
        jnp.stack([x, x]),
    )


@pytest.mark.parametrize("kind", ["general", "structured"])
def test_path_gradient_is_the_score_difference_where_the_map_lands(kind):
    num_steps = 2
    control, x0 = control_of(kind), jnp.array([0.4, -0.9, 1.1])
    path, log_weight, gradient = jax.jit(
        lambda x: simulate.flow_path_gradient(control, PROCESS, x, log_density, num_steps)
    )(x0)
    plain = jax.jit(lambda x: simulate.flow_path(control, PROCESS, x, num_steps))(x0)
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
    algorithm = cs.osds(target, base=cs.bases.standard_normal(2), guidance=None)
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
    base = cs.bases.standard_normal(1)
    algorithm = cs.osds(target, base=base, guidance=None, elementwise_gain=False, hidden=(2,))
    found, start = [], None
    for alpha in (0.0, 1.0):
        step = cs.calibration(algorithm, alpha=alpha, batch_size=512, learning_rate=2e-2)
        # Both from one place: either has several local optima.
        start = step.restart(start) if start else None
        state = cs.fit(jax.random.key(0), step, 300, state=start, progress_bar=False).state
        start = state
        draws = step.sample(jax.random.key(1), state, 4_000)
        found.append((float(draws.position.std()), cs.evidence(draws)))
    (narrow, reverse), (wide, forward) = found
    # Two hidden units cannot follow the gap between the modes: each divergence gives its own best.
    assert wide > narrow + 0.03
    assert float(forward.ess) > float(reverse.ess) and float(reverse.elbo) > float(forward.elbo)


def test_a_negative_alpha_is_refused():
    algorithm = cs.osds(cs.targets.gmm9(), base=cs.bases.standard_normal(2), guidance=None)
    with pytest.raises(ValueError, match="alpha must not be negative"):
        cs.calibration(algorithm, alpha=-1.0)


def test_structured_network_and_guidance_do_not_go_together():
    target, base = cs.targets.gmm9(), cs.bases.standard_normal(2)
    with pytest.raises(ValueError, match="guidance=None"):
        cs.osds(target, base=base, network="structured", guidance="ratio")
    with pytest.raises(ValueError, match="network must be"):
        cs.osds(target, base=base, network="deep")


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
        draws = algorithm.sample(jax.random.key(4), state, 8, num_steps, method="map")
        # Injective by construction, but for the jump of a consistency model.
        assert draws.bound == ("lower-if-injective" if algorithm is student else "lower")
        control = algorithm.control
        assert control.structured and control.shown_step == at
        u = control.bind(state.params)

        def by_brute_force(z1, control=control, u=u, num_steps=num_steps):
            def whole(z):
                return simulate.flow_map(u, control.process, z, num_steps)

            z0 = simulate.invert_flow(u, control.process, z1, num_steps)
            log_abs_det = jnp.linalg.slogdet(jax.jacfwd(whole)(z0))[1]
            log_p0 = simulate.standard_normal_log_prob(z0)
            log_rho = base.whitened_log_density(target.log_density, ())(whole(z0))
            return log_rho - log_p0 + log_abs_det

        z1 = jax.vmap(lambda x: base.whiten(x, ()))(draws.position)
        np.testing.assert_allclose(
            draws.log_weight, jax.jit(jax.vmap(by_brute_force))(z1), atol=2e-3
        )
