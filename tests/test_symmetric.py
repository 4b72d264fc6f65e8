"""Bases that are the mean of their copies over a group, and what they are worth on DW4."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp

import consistent_samplers as cs

KEY = jax.random.key(0)
QUARTER = np.array([[0.0, -1.0], [1.0, 0.0]])
FLIP = np.diag([1.0, -1.0])
SQUARE = np.stack([QUARTER, FLIP])  # the symmetries of the square
MIXTURE = cs.bases.mixture(
    jnp.log(jnp.array([0.3, 0.7])),
    jnp.array([[3.0, 0.5], [1.0, 2.0]]),
    jnp.array([[[0.6, 0.0], [0.2, 0.4]], [[0.3, 0.0], [0.0, 0.8]]]),
)
GAUSSIAN = cs.bases.GaussianBase(jnp.array([2.0, 0.3]), jnp.diag(jnp.array([0.5, 0.8])))
of_each = pytest.mark.parametrize("inner", [MIXTURE, GAUSSIAN], ids=["mixture", "gaussian"])


@of_each
def test_the_density_is_the_mean_of_the_copies(inner):
    base = cs.bases.symmetric(inner, SQUARE)
    assert base.transformations.shape == (8, 2, 2)
    x = np.asarray(jax.random.normal(KEY, (5, 2))) * 2.0
    powers = [np.linalg.matrix_power(QUARTER, n) for n in range(4)]
    copies = [q @ f for q in powers for f in (np.eye(2), FLIP)]
    expected = logsumexp(jnp.stack([inner.log_prob(x @ q) for q in copies]), 0) - np.log(8.0)
    np.testing.assert_allclose(base.log_prob(x), expected, rtol=1e-5)
    for q in copies:
        np.testing.assert_allclose(base.log_prob(x @ q.T), base.log_prob(x), rtol=1e-5)
    # Draws are of that density.
    draws = base.sample(KEY, 20_000)
    axis = np.linspace(-8.0, 8.0, 161)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    mass = np.exp(np.asarray(base.log_prob(grid), float)) * 0.1**2
    assert abs(mass.sum() - 1.0) < 1e-3
    for q in ([1.0, 0.0], [0.6, 0.8]):
        inside = np.abs(grid @ q) < 1.05  # between the points of the grid
        share = float((np.abs(np.asarray(draws) @ q) < 1.05).mean())
        assert abs(share - mass[inside].sum()) < 0.02


@of_each
def test_frames_share_out_the_target(inner):
    base = cs.bases.symmetric(inner, SQUARE)
    keys = jax.random.split(KEY, 4_000)
    components = jax.vmap(base.draw_component)(keys)
    z = jax.random.normal(jax.random.key(1), (4_000, 2))
    x = jax.vmap(base.unwhiten)(z, components)
    np.testing.assert_allclose(jax.vmap(base.whiten)(x, components), z, atol=2e-4)
    # A component given its point is drawn as often as it was drawn.
    again = jax.vmap(base.component_at)(jax.random.split(jax.random.key(2), 4_000), x)
    for place in range(components.shape[1]):
        counts = [np.bincount(np.asarray(c[:, place]), minlength=8) for c in (components, again)]
        assert np.abs(counts[0] - counts[1]).max() < 5.0 * np.sqrt(2_000.0)
        assert (np.asarray(components[:, place]) == np.asarray(again[:, place])).mean() > 0.3
    # In every frame a sampler that stays where it is has the base's own weights.
    target = cs.Target(lambda x: base.log_prob(x) + 1.5, 2)
    weigh = jax.vmap(lambda z, c: base.whitened_log_density(target.log_density, c)(z))
    expected = 1.5 - 0.5 * np.sum(np.asarray(z) ** 2, 1) - np.log(2.0 * np.pi)
    np.testing.assert_allclose(weigh(z, components), expected, atol=1e-4)


def test_a_map_on_it_keeps_the_symmetries_and_its_weights():
    # The target lacks them: its weights are no less right.
    target = cs.targets.gaussian(jnp.array([1.0, 0.5]), jnp.array([[3.0, 0.5], [0.5, 4.0]]))
    # Wide enough to take all of it in.
    wide = cs.bases.mixture(jnp.zeros(2), MIXTURE.loc, jnp.tile(2.0 * jnp.eye(2), (2, 1, 1)))
    base = cs.bases.symmetric(wide, SQUARE)
    algorithm = cs.osds(target, base=base, max_steps=1, hidden=(8,), guidance=None)
    state = cs.fit(KEY, algorithm, 20, progress_bar=False).state
    draws = algorithm.sample(KEY, state, 8_000)
    evidence = cs.evidence(draws)
    assert abs(evidence.log_z - target.log_z) < 4.0 * evidence.log_z_stderr < 0.4
    z = jnp.array([0.4, -0.9])
    at = [algorithm.control.carry(state.ema_params, z, jnp.array([g, 1]), 1)[0] for g in range(8)]
    ends = [base.unwhiten(end, jnp.array([g, 1])) for g, end in enumerate(at)]
    for g, end in enumerate(ends):
        np.testing.assert_allclose(end, base.transformations[g] @ ends[0], atol=1e-5)
    assert float(jnp.abs(at[0] - z).max()) > 1e-3


def test_a_fit_is_modulo_the_symmetries():
    # Sixteen modes, two orbits of them.
    base = cs.bases.symmetric(
        cs.bases.mixture(
            jnp.log(jnp.array([0.2, 0.8])),
            jnp.array([[6.0, 1.0], [2.0, 3.5]]),
            jnp.tile(0.3 * jnp.eye(2), (2, 1, 1)),
        ),
        SQUARE,
    )
    target = cs.Target(lambda x: base.log_prob(x) + 2.0, 2)
    fitted = cs.bases.fit_symmetric(KEY, target, SQUARE)
    assert fitted.inner.num_components <= 4
    sampler = cs.Sampler.of_base(fitted)
    evidence = cs.evidence(sampler.sample(KEY, target, 4_000))
    assert evidence.ess > 0.9
    assert abs(evidence.log_z - 2.0) < 4.0 * evidence.log_z_stderr + 1e-3


@pytest.mark.slow
def test_evidence_of_dw4_is_valid_at_one_step():
    target = cs.targets.dw4()
    generators = cs.targets.particle_symmetries(4, 2, num_rotations=16)
    base = cs.bases.fit_symmetric(KEY, target, generators)
    evidence = cs.evidence(cs.Sampler.of_base(base).sample(KEY, target, 10_000))
    assert evidence.ess > 0.25 and evidence.bound == "lower"

    # Weights of a single wide Gaussian, four million of them.
    @jax.jit
    def plain(key):
        x = 2.2 * jax.random.normal(key, (200_000, 6))
        log_base = -0.5 * jnp.sum((x / 2.2) ** 2, 1) - 6.0 * jnp.log(2.2 * jnp.sqrt(2.0 * jnp.pi))
        return logsumexp(jax.vmap(target.log_density)(x) - log_base) - jnp.log(200_000)

    each = np.exp(np.array([plain(key) for key in jax.random.split(KEY, 20)], float) - 29.0)
    truth, stderr = 29.0 + np.log(each.mean()), each.std(ddof=1) / each.mean() / 20**0.5
    assert abs(evidence.log_z - truth) < 4.0 * np.hypot(stderr, evidence.log_z_stderr) < 0.2


def test_particle_symmetries_leave_the_density():
    for target, num, dim in ((cs.targets.dw4(), 4, 2), (cs.targets.lj13(), 13, 3)):
        x = 1.5 * jax.random.normal(KEY, (target.dim,))
        generators = cs.targets.particle_symmetries(num, dim)
        values = [float(target.log_density(jnp.asarray(g, x.dtype) @ x)) for g in generators]
        np.testing.assert_allclose(values, float(target.log_density(x)), rtol=1e-4)
    base = cs.bases.GaussianBase(jnp.arange(6.0), jnp.eye(6))
    assert len(cs.bases.symmetric(base, cs.targets.particle_symmetries(4, 2)).transformations) == (
        24 * 2 * 32
    )


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"shape \[n, 2, 2\]"):
        cs.bases.symmetric(GAUSSIAN, QUARTER)
    with pytest.raises(ValueError, match="orthogonal"):
        cs.bases.symmetric(GAUSSIAN, 2.0 * SQUARE)
    # Two rotations about axes that are no right angle apart make no finite group.
    turn, tilt = np.eye(3), np.eye(3)
    turn[:2, :2] = tilt[1:, 1:] = [[np.cos(1.0), -np.sin(1.0)], [np.sin(1.0), np.cos(1.0)]]
    with pytest.raises(ValueError, match="more than"):
        cs.bases.symmetric(cs.bases.standard_normal(3), np.stack([turn, tilt]))
    # Generators in single precision make the same group.
    single = cs.targets.particle_symmetries(4, 2).astype(np.float32)
    assert len(cs.bases.symmetric(cs.bases.standard_normal(6), single).transformations) == 1_536
    with pytest.raises(ValueError, match="num_rotations"):
        cs.targets.particle_symmetries(4, 2, num_rotations=0)
