"""What depends on what is read off Hessians, and a map that follows it is exact."""

import dataclasses
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import consistent_samplers as cs
from consistent_samplers.recipe import map_choice
from consistent_samplers.recipe.plan import Plan, Start
from consistent_samplers.targets import structure
from consistent_samplers.targets.evaluation import _equations as equations

KEY = jax.random.key(0)
PLAN = Plan(1_000, "auto", 1, (64, 64), "general", None, 0, (250, 1_250), True, False, None)


def gaussian(precision):
    return lambda x: -0.5 * x @ jnp.asarray(precision) @ x


def nested(num_hubs, num_leaves):
    """A mean and two scales, hubs around the mean, and leaves around each hub."""

    def log_density(x):
        mean, between, within = x[:3]
        hubs = x[3 : 3 + num_hubs]
        leaves = x[3 + num_hubs :].reshape(num_hubs, num_leaves)
        prior = -0.5 * (mean**2 + between**2 + within**2)
        of_hubs = -0.5 * jnp.sum((hubs - mean) ** 2) * jnp.exp(-2 * between) - num_hubs * between
        squares = jnp.sum((leaves - hubs[:, None]) ** 2)
        of_leaves = -0.5 * squares * jnp.exp(-2 * within) - leaves.size * within
        return prior + of_hubs + of_leaves - 0.1 * jnp.sum(leaves**4)

    return log_density, 3 + num_hubs * (1 + num_leaves)


def correlated(num_members, size):
    """Members of several coordinates each, which depend on each other and on globals."""
    coupling = 0.5 * np.eye(size) + 0.5

    def log_density(x):
        loc, members = x[:size], x[size:].reshape(num_members, size)
        away = members - loc
        squares = jnp.einsum("jp,pq,jq->", away, coupling, away)
        return -0.5 * (loc @ loc + squares) - 0.1 * jnp.sum(members**4)

    return log_density, size * (num_members + 1)


def walk(x):
    scale, states = x[0], x[1:]
    steps = jnp.sum((states[1:] - states[:-1]) ** 2) * jnp.exp(-2 * scale)
    return -0.5 * (scale**2 + states[0] ** 2 + steps) - (len(states) - 1) * scale


@pytest.mark.parametrize(("num_hubs", "num_leaves"), [(5, 4), (20, 30)])  # of the two ways to look
def test_levels_are_found(num_hubs, num_leaves):
    log_density, dim = nested(num_hubs, num_leaves)
    assert (dim > structure.MAX_DENSE) == (num_hubs == 20)
    found = cs.Target(log_density, dim).structure
    assert found.globals.tolist() == [0, 1, 2] and found.depth == 2
    hubs, leaves = found.groups
    assert hubs.members.ravel().tolist() == list(range(3, 3 + num_hubs)) and hubs.own.shape[1] == 0
    assert leaves.members.ravel().tolist() == list(range(3 + num_hubs, dim))
    assert leaves.shared.tolist() == [2]  # the scale within
    assert leaves.own[:, 0].tolist() == np.repeat(hubs.members[:, 0], num_leaves).tolist()


def test_coordinates_that_belong_together_are_joined():
    log_density, dim = correlated(10, 3)
    found = cs.Target(log_density, dim).structure
    (group,) = found.groups
    assert found.globals.tolist() == [0, 1, 2] and group.own.shape == (10, 0)
    blocks = np.sort(group.members, axis=1).tolist()
    assert sorted(blocks) == np.arange(3, dim).reshape(10, 3).tolist()


def test_a_state_space_falls_apart_by_halves():
    found = structure.find_structure(walk, 65)
    assert 0 in found.globals and len(found.globals) <= 6
    assert found.depth <= 7
    last = found.groups[-1]
    assert len(last.members) >= 30
    near = np.where(last.own >= 0, last.own, last.members)
    assert np.abs(near - last.members).max() == 1


def test_what_does_not_fall_apart_is_dense():
    root = np.random.default_rng(0).normal(size=(40, 40))
    assert structure.find_structure(gaussian(root @ root.T), 40).is_dense
    with pytest.raises(ValueError, match="does not fall apart into members"):
        cs.algorithms.hierarchical(cs.Target(gaussian(root @ root.T), 40))


def test_sites_name_the_parts():
    log_density, dim = nested(3, 4)
    sites = (("mean", 1), ("between", 1), ("within", 1), ("hub", 3), ("leaf", 12))
    said = str(cs.Target(log_density, dim, sites=sites).structure)
    assert said.startswith("3 globals: mean, between, within\n3 members of 1: hub[0], given")
    assert "12 members of 1: leaf[0], given within and 1 of their own" in said


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 30))
def test_parents_separate_members(seed, dim):
    """Of a Gaussian: given all that comes before it, a member depends on its parents alone."""
    random = np.random.default_rng(seed)
    mask = np.triu(random.random((dim, dim)) < 2.0 / dim, 1)
    off = np.where(mask | mask.T, 0.3, 0.0)
    off[0, 1:] = off[1:, 0] = 0.2
    precision = off + np.diag(1.0 + off.sum(1))
    found = structure._taken_apart(structure.sparse.csr_array(precision != 0))
    if found.is_dense:
        return
    covariance = np.linalg.inv(precision)
    before = list(found.globals)
    for group in found.groups:
        for member, own in zip(group.members, group.own, strict=True):
            parents = {*group.shared.tolist(), *own[own >= 0].tolist()}
            assert parents <= set(before)
            to = covariance[np.ix_(before, member)]
            slopes = np.linalg.solve(covariance[np.ix_(before, before)], to)
            for of_other, other in zip(slopes, before, strict=True):
                assert np.abs(of_other).max() < 1e-8 or other in parents
        before += group.members.ravel().tolist()
    assert sorted(before) == list(range(dim))


@pytest.fixture(
    scope="module", params=[pytest.param("nested", marks=pytest.mark.slow), "correlated"]
)
def made(request):
    log_density, dim = {"nested": nested, "correlated": correlated}[request.param](5, 4)
    target = cs.Target(log_density, dim)
    base = cs.bases.DiagonalBase(0.1 * jnp.arange(dim), 1.0 + 0.02 * jnp.arange(dim))
    control = cs.maps.hierarchical_map(base, target.structure, hidden=4)
    leaves, tree = jax.tree.flatten(jax.jit(control.init)(KEY))
    keys = jax.random.split(KEY, len(leaves))
    moved = [x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return target, control, jax.tree.unflatten(tree, moved)


def test_the_map_and_its_determinant(made):
    _, control, params = made
    z = jax.random.normal(KEY, (20, control.dim))
    y, log_det = jax.jit(jax.vmap(control.forward, (None, 0)))(params, z)
    jacobian = jax.jit(jax.vmap(jax.jacfwd(lambda z: control.forward(params, z)[0])))(z)
    sign, expected = jnp.linalg.slogdet(jacobian)
    assert (sign > 0).all()
    assert_allclose(log_det, expected, rtol=1e-4, atol=1e-4)
    back, again = jax.jit(jax.vmap(control.inverse, (None, 0)))(params, y)
    assert_allclose(back, z, atol=2e-4)
    assert_allclose(again, log_det, rtol=1e-4, atol=1e-4)


def test_no_member_has_a_product_of_matrices_of_its_own(made):
    """XLA has a call for each matrix of a batched product: iterations took three times as long."""
    target, control, params = made

    def both(params, z):
        y, _ = jax.vmap(control.forward, (None, 0))(params, z)
        return jax.vmap(control.inverse, (None, 0))(params, y)[1].sum()

    z = jnp.zeros((7, control.dim))
    batches = [
        equation.invars[0].aval.shape[axis]
        for equation in equations(jax.make_jaxpr(jax.grad(both))(params, z))
        if equation.primitive.name == "dot_general"
        for axis in equation.params["dimension_numbers"][1][0]
    ]
    assert not {group.members.shape[0] for group in target.structure.groups} & set(batches)


def test_it_starts_as_its_base(made):
    target, control, _ = made
    start = control.replace(start=control.start.at[1].set(0.0))
    params = jax.jit(start.init)(KEY)
    y, _ = jax.jit(start.forward)(params, jnp.zeros(control.dim))
    members = np.concatenate([group.members.ravel() for group in target.structure.groups])
    # What the members share is weak by then.
    assert_allclose(y[members], 0.98 * start.start[0, members], atol=0.02)


def test_weights_of_draws_and_of_points_agree(made):
    target, control, params = made
    sampler = cs.Sampler(control, params, 1, ("map",), 1)
    draws = sampler.sample(KEY, target, 200)
    assert draws.bound == "lower"
    assert float(jnp.std(draws.log_weight)) > 0.5  # the map is no fit
    again = sampler.log_weight(KEY, target, draws.position)
    assert_allclose(again, draws.log_weight, rtol=1e-3, atol=5e-3)


def conjugate(num=60):
    """A mean with members around it and a datum each: a Gaussian, with its log evidence."""
    datum = np.random.default_rng(1).normal(1.0, 1.5, num)
    covariance = np.eye(num) * (1.0 + 4.0) + 4.0
    log_z = scipy.stats.multivariate_normal(np.zeros(num), covariance).logpdf(datum)

    def log_density(x):
        of = jax.scipy.stats.norm.logpdf
        members = of(x[1:], x[0], 1.0).sum() + of(datum, x[1:], 2.0).sum()
        return of(x[0], 0.0, 2.0) + members

    return cs.Target(log_density, num + 1), float(log_z)


def test_a_conjugate_hierarchy_is_met_exactly():
    target, log_z = conjugate()
    base = cs.bases.fit_diagonal(KEY, target)
    algorithm = cs.algorithms.hierarchical(target, base=base, hidden=8, batch_size=64)
    before = cs.evidence(algorithm.sample(KEY, algorithm.init(KEY), 2_000))
    result = cs.fit(KEY, algorithm, 300, progress_bar=False)
    after = cs.evidence(algorithm.sample(KEY, result.state, 4_000))
    assert before.ess < 0.5 < 0.9 < after.ess
    assert abs(float(after.log_z) - log_z) < 4.0 * float(after.log_z_stderr) + 1e-2
    assert float(after.elbo) > log_z - 0.05


def test_a_base_of_another_kind_is_refused():
    target, _ = conjugate()
    with pytest.raises(TypeError, match=r"cs\.bases\.fit_diagonal"):
        cs.algorithms.hierarchical(target, base=cs.bases.standard_normal(target.dim))


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_the_mean_field_base_does_not_care_for_scales(scale):
    target = cs.targets.gaussian(
        scale * jnp.array([2.0, -1.0]), scale**2 * jnp.array([[1.0, 0.6], [0.6, 1.0]])
    )
    base = cs.bases.fit_diagonal(KEY, target, init_position=scale * jnp.ones(2))
    assert_allclose(base.loc / scale, jnp.array([2.0, -1.0]), atol=0.25)
    # Standard deviations given the other coordinate.
    assert_allclose(base.scale / scale, 0.8, atol=0.08)


@pytest.mark.slow
def test_the_recipe_takes_it_above_a_hundred_dimensions(tmp_path):
    target, log_z = conjugate(num=120)
    trained = cs.train_sampler(KEY, target, progress_bar=False)
    assert isinstance(trained.one_step.control, cs.maps.HierarchicalMap)
    assert trained.route.name in ("short", "full")
    evidence = trained.evidence(KEY, 10_000)
    assert evidence.bound == "lower" and evidence.ess > 0.8
    assert abs(float(evidence.log_z) - log_z) < 4.0 * float(evidence.log_z_stderr) + 0.01
    assert trained.verdict(evidence).level != "not to be used"
    trained.save(tmp_path / "kept")
    again = cs.load(tmp_path / "kept", target)
    draws = [t.sample(KEY, 50).log_weight for t in (trained, again)]
    assert_allclose(*draws, rtol=1e-5, atol=1e-5)


def test_a_product_is_left_to_a_base_that_sees_its_modes():
    wells = cs.targets.many_well(128)
    assert not wells.structure.is_dense and not len(wells.structure.globals)
    assert map_choice.of_many_dimensions(wells, False, "auto", 0) == "structured"
    hierarchy, _ = conjugate(num=120)
    assert map_choice.of_many_dimensions(hierarchy, False, "auto", 0) == "hierarchical"
    assert map_choice.of_many_dimensions(hierarchy, True, "auto", 0) == "structured"
    assert map_choice.of_many_dimensions(hierarchy, False, "base", 0) == "structured"


def around(scale, num=45):
    """Members around half of a global, which is at -4 or 4 with such a standard deviation."""

    def log_density(x):
        sides = jax.scipy.stats.norm.logpdf(x[0], jnp.array([-4.0, 4.0]), scale)
        members = jax.scipy.stats.norm.logpdf(x[1:], 0.5 * x[0])
        return jax.scipy.special.logsumexp(sides + jnp.log(jnp.array([0.7, 0.3]))) + members.sum()

    return cs.Target(log_density, num, log_z=0.0)


def test_members_that_fan_out_have_a_map_of_theirs_where_a_general_one_is_dear():
    fan, small = conjugate(num=44)[0], conjugate(num=8)[0]
    walk = cs.Target(lambda x: -0.5 * x[0] ** 2 - 0.5 * jnp.sum((x[1:] - x[:-1]) ** 2), 45)
    asked = [map_choice.is_dear_fan(target, PLAN) for target in (fan, small, walk)]
    assert asked == [True, False, False]
    trained = cs.train_sampler(
        KEY, fan, num_calibration_iterations=3, explore=False, progress_bar=False
    )
    assert isinstance(trained.many_steps.control, cs.maps.HierarchicalMap)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.05, 1.0])
def test_a_fan_of_two_modes_is_left_to_a_base_that_has_them(scale):
    """The map of a fan is of one mode: where the look finds another, all begins anew."""
    trained = cs.train_sampler(KEY, around(scale), progress_bar=False)
    found = trained.evidence(jax.random.key(1), 10_000)
    assert abs(float(found.log_z)) < 0.05 and trained.verdict(found).level == "trusted"
    draws = cs.corrections.resample(KEY, trained.sample(KEY, 4_000))
    share = float((draws.position[:, 0] > 0).mean())
    assert abs(share - 0.3) < 0.04


@pytest.mark.parametrize(
    ("short", "of_several", "elbo", "kept"),
    [
        # The ELBO of a map that falls short says little.
        ((True, False), False, 1e3, False),
        ((True, True), False, 1e3, True),
        ((True, True), False, -1e3, False),
        # A fan on a base of several components, which may be the shape of one mode.
        ((False, False), True, 1e3, True),
        ((False, False), True, -1e3, False),
        ((False, True), True, -1e3, True),
        ((False,), False, -1e3, True),
    ],
)
def test_another_map_is_taken_by_whether_it_falls_short_and_by_its_elbo(
    monkeypatch, short, of_several, elbo, kept
):
    target, _ = conjugate(num=8)
    loc = jnp.zeros((2 if of_several else 1, 9))
    one = cs.bases.mixture(jnp.zeros(len(loc)), loc, jnp.tile(jnp.eye(9), (len(loc), 1, 1)))
    base = one if of_several else cs.bases.standard_normal(9)
    trained = cs.train_sampler(KEY, target, base=base, effort="base", progress_bar=False)
    stages = {"base": dataclasses.replace(trained.stages["base"], elbo=jnp.asarray(elbo))}
    taken = trained.route._replace(name="short")
    trained = dataclasses.replace(trained, stages=stages, route=taken)
    answers = iter(short)
    monkeypatch.setattr(map_choice.chain_stage, "falls_short", lambda *_: next(answers))
    monkeypatch.setattr(map_choice, "HIERARCHICAL_ROUNDS", (20,))
    found, interrupted, shown = map_choice.or_hierarchical(
        KEY, trained, Start(trained.base, False), PLAN, 0.0
    )
    assert not interrupted and (found is trained) is kept and not list(answers)
    assert bool(shown) is (short[0] if kept else short[1])  # draws that fall short, or none


def conditional(num=10):
    """A hierarchy, the base of its members given its global, and a short training."""
    target, _ = conjugate(num=num)
    base = cs.bases.DiagonalBase(jnp.full(num + 1, 0.5), jnp.ones(num + 1))
    return target, {"base": base, "num_calibration_iterations": 3, "progress_bar": False}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The warm start")
def test_a_warm_start_keeps_its_map_in_any_dimension():
    target, settings = conditional()
    first = cs.train_sampler(KEY, target, network="hierarchical", **settings)
    again = cs.train_sampler(KEY, target, start=first, **settings)
    assert isinstance(again.one_step.control, cs.maps.HierarchicalMap)
    general = cs.train_sampler(KEY, target, **settings)
    again = cs.train_sampler(KEY, target, start=general, network="hierarchical", **settings)
    assert isinstance(again.one_step.control, cs.maps.Control)


def test_members_without_globals_have_a_map():
    target = cs.Target(lambda x: -0.5 * jnp.sum(x**2) - 0.1 * jnp.sum(jnp.cosh(x)), 6)
    _, settings = conditional(5)
    trained = cs.train_sampler(KEY, target, network="hierarchical", **settings)
    assert not len(target.structure.globals)
    assert jnp.isfinite(trained.evidence(KEY, 200).log_z)


def test_a_map_of_members_of_what_has_none_is_refused_before_a_base_is_fitted():
    root = np.random.default_rng(0).normal(size=(40, 40))
    target = cs.Target(gaussian(root @ root.T), 40)
    with pytest.raises(ValueError, match=r"does not fall apart.*leave network out"):
        cs.train_sampler(KEY, target, network="hierarchical", **conditional(39)[1])


@pytest.mark.parametrize(
    ("error", "interrupted"), [(KeyboardInterrupt, True), (ValueError("no start"), False)]
)
def test_another_map_that_cannot_be_made_loses_nothing(monkeypatch, error, interrupted):
    """The general map of a small hierarchy falls short, and then Ctrl-C comes, or no fit."""

    def log_density(x):
        return -0.5 * (x[0] ** 2 + jnp.sum((x[1:] - x[0]) ** 2))

    def stop(*_, **__):
        raise error

    target = cs.Target(log_density, 9)
    trained = cs.train_sampler(
        KEY, target, base=cs.bases.standard_normal(9), effort="base", progress_bar=False
    )
    monkeypatch.setattr(map_choice.chain_stage, "falls_short", lambda *_: True)
    monkeypatch.setattr(map_choice, "fit_diagonal", stop)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        start, plan = Start(trained.base, False), types.SimpleNamespace(progress_bar=False)
        found = map_choice.or_hierarchical(KEY, trained, start, plan, 0.0)
    assert found[0] is trained and found[1] is interrupted
    assert any("interrupted" in str(w.message) for w in said) == interrupted
