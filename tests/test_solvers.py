"""Solvers of the flow and the SDE: their order, and weights that hold for any control."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consistent_samplers as cs
from consistent_samplers import networks
from consistent_samplers.processes import OrnsteinUhlenbeck
from consistent_samplers.simulate import solvers as steps
from consistent_samplers.solvers import learned_times, num_evaluations, solve

KEY = jax.random.key(0)
MEAN, STD = jnp.array([1.0, -0.5]), jnp.array([0.6, 1.3])
TARGET = cs.targets.gaussian(MEAN, jnp.diag(STD**2))
PROCESS = OrnsteinUhlenbeck()
SOLVERS = ("flow", "dpm++", "path", "sa", "restart")


def optimal(x, t, d=None):
    """u* = (E[x_1 | x_t] - a x) / (1 - a²) of the Gaussian target."""
    a = PROCESS.signal(t)
    gap = x - a * MEAN
    return (MEAN + a * STD**2 * gap / (a**2 * STD**2 + 1 - a**2) - a * x) / (1 - a**2)


def sampler_of(control):
    network = networks.Network(lambda key: jnp.ones(()), lambda p, x, t, d: p * control(x, t, d))
    algorithm = cs.dis(
        TARGET, base=cs.bases.standard_normal(2), network=network, guidance=None, max_steps=128
    )
    return algorithm.sampler(algorithm.init(KEY))


EXACT = sampler_of(optimal)
# Wrong, and not linear.
WRONG = sampler_of(lambda x, t, d: 0.5 * jnp.tanh(x) + t * 0.4)


def ends(solver, num_steps):
    """Where the exact control leads from four points, in float64 of a fine grid's accuracy."""
    x = jnp.array([[0.3, -1.0], [1.5, 0.2], [-0.7, 0.9], [0.0, 2.0]])
    times = jnp.linspace(0.0, 1.0, num_steps + 1)
    return np.asarray(jax.vmap(lambda x: solver(optimal, PROCESS, x, times))(x))


def test_the_multistep_solver_is_of_second_order_and_the_flow_of_first():
    with jax.enable_x64(True):
        truth = ends(steps.flow, 2**14)
        errors = {
            name: [np.abs(ends(solver, num) - truth).max() for num in (32, 64, 128)]
            for name, solver in (("flow", steps.flow), ("dpm++", steps.dpm_solver))
        }
    halved = {name: np.divide(e[:-1], e[1:]) for name, e in errors.items()}
    assert (halved["flow"] < 2.2).all() and (halved["flow"] > 1.8).all()
    assert (halved["dpm++"] > 2.8).all()
    assert errors["dpm++"][-1] < 0.4 * errors["flow"][-1]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("sampler", [EXACT, WRONG], ids=["exact", "wrong"])
def test_weights_hold_for_any_control(solver, sampler):
    # The stochastic Adams method's weights have tails where it takes many steps.
    draws = solve(jax.random.key(1), sampler, TARGET, 4_000, solver, 3 if solver == "sa" else 6)
    e = cs.evidence(draws)
    # Four standard errors, of ten runs: one in 1,500 fails by chance.
    assert abs(float(e.log_z) - float(TARGET.log_z)) < 4.0 * float(e.log_z_stderr) + 2e-3
    assert float(e.elbo) <= float(TARGET.log_z) + 4.0 * float(e.elbo_stderr)
    assert draws.bound == ("lower" if solver in ("path", "sa") else "lower-if-injective")
    weight = np.asarray(jax.nn.softmax(draws.log_weight))
    error = 5.0 * float(STD.max()) / np.sqrt(4_000 * float(e.ess))
    np.testing.assert_allclose(weight @ np.asarray(draws.position), MEAN, atol=error)


def gap(solver, num_steps):
    draws = solve(KEY, EXACT, TARGET, 2_000, solver, num_steps)
    return float(TARGET.log_z - cs.evidence(draws).elbo)


@pytest.mark.slow
def test_the_exact_control_is_exact_in_the_limit():
    # Not quite: a share a(0)² of the target is left in the base, which costs 0.017 nats.
    assert gap("path", 64) < 0.04 < 0.5 * gap("path", 8)
    # A first step of second order is worth several of first order; the same latent points.
    assert gap("dpm++", 4) < 0.5 * gap("flow", 4)


def test_a_learned_grid_has_a_tighter_bound():
    times = learned_times(KEY, EXACT, TARGET, 6, num_iterations=150)
    assert times.shape == (7,) and float(times[0]) == 0.0 and float(times[-1]) == 1.0
    assert (np.diff(times) > 0).all()

    def elbo(times):
        return cs.evidence(solve(jax.random.key(3), EXACT, TARGET, 40_000, "path", 6, times=times))

    plain, learned = elbo(None), elbo(times)
    error = np.hypot(plain.elbo_stderr, learned.elbo_stderr)
    assert float(learned.elbo - plain.elbo) > 4.0 * error
    assert float(learned.elbo) <= float(TARGET.log_z) + 4.0 * float(learned.elbo_stderr)


@pytest.mark.parametrize("solver", ["path", pytest.param("dpm++", marks=pytest.mark.slow)])
def test_a_grid_is_learned_from_where_the_rate_is_infinite(solver):
    algorithm = cs.pis(TARGET, base=cs.bases.standard_normal(2), hidden=(8,), max_steps=8)
    sampler = algorithm.sampler(algorithm.init(KEY))
    times = learned_times(KEY, sampler, TARGET, 4, solver, num_iterations=20)
    assert (np.diff(times) > 0).all()
    assert np.abs(times - np.linspace(0.0, 1.0, 5)).max() > 0.01


def test_a_grid_is_learned_from_the_draws_that_have_a_density():
    def log_density(x):
        return jnp.sum(0.5 * jnp.log(x) - x**1.5)  # NaN outside

    times = learned_times(KEY, WRONG, cs.Target(log_density, 2), 3, num_iterations=20)
    assert np.abs(times - np.linspace(0.0, 1.0, 4)).max() > 0.01
    nowhere = cs.Target(lambda x: log_density(x - 40.0), 2)
    with pytest.raises(ValueError, match=r"was not finite.* in any of 3 iterations"):
        learned_times(KEY, WRONG, nowhere, 3, num_iterations=3)


def test_a_mixture_base_and_a_legacy_key():
    base = cs.bases.mixture(
        jnp.zeros(2), jnp.array([[-1.0, 0.0], [1.0, 0.0]]), jnp.tile(jnp.eye(2), (2, 1, 1))
    )
    algorithm = cs.dis(TARGET, base=base, hidden=(8,), guidance="ratio", max_steps=8)
    sampler = algorithm.sampler(algorithm.init(KEY))
    e = cs.evidence(solve(jax.random.PRNGKey(1), sampler, TARGET, 4_000, "sa", 8))
    assert abs(float(e.log_z) - float(TARGET.log_z)) < 4.0 * float(e.log_z_stderr) + 2e-3


def test_what_a_solver_cannot_take_is_said():
    with pytest.raises(TypeError, match="trained control"):
        solve(KEY, cs.Sampler.of_base(cs.bases.standard_normal(2)), TARGET, 10)
    with pytest.raises(ValueError, match="solver"):
        solve(KEY, EXACT, TARGET, 10, "heun")
    with pytest.raises(ValueError, match="ascend from 0 to 1"):
        solve(KEY, EXACT, TARGET, 10, "path", times=jnp.array([0.0, 0.6, 0.5, 1.0]))
    with pytest.raises(ValueError, match="times hold 2 steps, but num_steps=16: pass num_steps=2"):
        solve(KEY, EXACT, TARGET, 10, "path", times=jnp.array([0.0, 0.5, 1.0]))
    with pytest.raises(ValueError, match="dimension 2, the target 3"):
        solve(KEY, EXACT, cs.targets.funnel(3), 10)
    with pytest.raises(ValueError, match="grid of its own"):
        learned_times(KEY, EXACT, TARGET, 4, "restart")
    with pytest.raises(ValueError, match="num_steps"):
        learned_times(KEY, EXACT, TARGET, 1)


@pytest.mark.parametrize("num_steps", [1, 4, 10])
def test_a_restart_takes_the_evaluations_that_are_said(num_steps):
    seen = []

    def control(x, t):
        jax.debug.callback(lambda t: seen.append(float(t)), t)
        return jnp.tanh(x)

    times = jnp.linspace(0.0, 1.0, num_steps + 1)
    jax.block_until_ready(steps.restart(KEY, control, PROCESS, jnp.ones(2), times))
    jax.effects_barrier()
    assert len(seen) == num_evaluations("restart", num_steps) > num_steps
    assert num_evaluations("flow", num_steps) == num_steps
