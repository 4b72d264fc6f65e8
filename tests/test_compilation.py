"""What the compiler is asked for, and what JAX knows again."""

import contextlib
import threading

import jax
import jax.numpy as jnp
import pytest
from jax.tree_util import Partial

import consistent_samplers as cs
from consistent_samplers import compilation, corrections, guard, kernels, programs, training_free
from consistent_samplers.compilation import as_partial, compiler_options, is_traced
from consistent_samplers.recipe import ahead, stages, training

KEY = jax.random.key(0)


@pytest.fixture
def every_option_known(monkeypatch):
    monkeypatch.setattr(compilation, "_is_known", lambda name, value, backend: backend == "cpu")


def test_less_effort_is_asked_for_where_it_is_known(monkeypatch, every_option_known):
    # The tests' own flags are left alone by it.
    monkeypatch.setenv("XLA_FLAGS", f"--{guard.FLAG}=false")
    level = "xla_backend_optimization_level"
    assert compiler_options("full") == {}
    assert compiler_options("less") == {level: 1}
    assert set(compiler_options("least")) == {level, "xla_cpu_use_fusion_emitters"}
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compiler_options("least") == {}


def test_a_flag_of_the_user_wins(monkeypatch, every_option_known):
    level = "xla_backend_optimization_level"
    monkeypatch.setenv("XLA_FLAGS", f"--{level}=3")
    assert level not in compiler_options("least")


@pytest.mark.parametrize("effort", ["full", "less", "least"])
def test_the_compiler_takes_what_it_is_told(monkeypatch, effort):
    monkeypatch.setenv("XLA_FLAGS", "")
    doubled = jax.jit(lambda x: 2.0 * x, compiler_options=compiler_options(effort) or None)
    assert doubled(1.5) == 3.0


def test_a_function_is_wrapped_once_and_known_again():
    traced = []

    def density(x):
        traced.append(x)
        return jnp.sum(x)

    known = as_partial(density)
    assert as_partial(known) is known and isinstance(known, Partial)
    compiled = jax.jit(lambda f, x: f(x))
    for _ in range(2):
        # Another wrapper of the same function is the same to JAX.
        assert compiled(as_partial(density), jnp.ones(3)) == 3.0
    assert len(traced) == 1


def test_tracing_is_noticed_in_arguments_and_around_constants():
    assert not is_traced((jnp.ones(2), 3.0, None))
    seen = []
    jax.jit(lambda x: seen.append((is_traced(x), is_traced(2.0))))(1.0)
    jax.vmap(lambda x: seen.append((is_traced(x), True)))(jnp.ones(2))
    assert seen == [(True, True), (True, True)]


def test_options_that_a_compiler_does_not_know_are_found_out():
    assert compilation._is_known("xla_backend_optimization_level", 1, "cpu")
    assert not compilation._is_known("xla_no_such_option", 1, "cpu")
    assert not compilation._is_known("xla_backend_optimization_level", 1, "tpu")


@pytest.mark.slow
def test_a_second_training_on_the_same_density_traces_nothing():
    calls = []

    def log_density(x):
        calls.append(None)
        return -0.5 * jnp.sum((x - 0.3) ** 2)

    target = cs.Target(log_density, 2)

    def train(seed):
        return cs.train_sampler(
            jax.random.key(seed),
            target,
            base=cs.bases.standard_normal(2),
            max_steps=2,
            hidden=(8,),
            num_iterations=2,
            num_calibration_iterations=2,
            progress_bar=False,
        )

    train(0)
    traced = len(calls)
    assert traced > 0
    train(1)
    assert len(calls) == traced


@pytest.fixture
def made(monkeypatch):
    """By which thread which function was compiled."""
    found, prepare = [], programs.prepare

    def noted(function, *args, **kwargs):
        found.append((threading.current_thread().name, function.__name__))
        return prepare(function, *args, **kwargs)

    monkeypatch.setattr(programs, "prepare", noted)
    # A worker that ran many tests makes room: what was dropped would be made once more.
    monkeypatch.setattr(kernels, "_is_crowded", lambda: False)
    return found


@pytest.mark.slow
def test_what_draws_need_is_compiled_beside_the_training(monkeypatch, made):
    """By another thread, with the same results; a short calibration with all that follows it."""

    def train(dim):
        target = cs.Target(lambda x: -0.5 * x @ x - 0.1 * jnp.sum(x**4), dim)
        settings = {"base": cs.bases.standard_normal(dim), "effort": "short", "hidden": (8,)}
        trained = cs.train_sampler(
            KEY, target, num_calibration_iterations=5, progress_bar=False, **settings
        )
        return trained.evidence(KEY, 10_000)

    beside = train(13)
    here = threading.current_thread().name
    assert ("compiles ahead", "round_trips") in made
    by_training = {name for thread, name in made if thread == here}
    assert "learn" in by_training and "round_trips" not in by_training
    # Nobody's answer depends on it.
    monkeypatch.setattr(stages, "draws_compiled", lambda *_: contextlib.nullcontext())
    assert train(13) == beside


@pytest.mark.slow
def test_what_a_training_needs_is_compiled_beside_the_exploration(monkeypatch, made):
    """Where a Gaussian's weights are uneven, and only there; with the same results."""

    def train(bend, dim):
        target = cs.Target(lambda x: -0.5 * x @ x - bend * jnp.sum((x[1:] - x[:-1] ** 2) ** 2), dim)
        return cs.train_sampler(KEY, target, hidden=(8,), progress_bar=False).evidence(KEY, 10_000)

    beside = train(0.5, 3)
    assert ("compiles ahead", "learn") in made
    made.clear()
    train(0.0, 2)
    assert "learn" not in {name for _, name in made}
    monkeypatch.setattr(training, "compile_training", lambda *_: None)
    assert train(0.5, 3) == beside


@pytest.mark.slow
def test_what_a_hierarchical_map_needs_is_compiled_beside_the_fit_of_its_base(monkeypatch, made):
    """Its iterations, and what the look at its members takes; with the same results."""
    beside_it = ahead._beside

    def at_once(work):  # else it is a matter of chance which thread is the first
        thread = beside_it(work)
        thread.join()
        return thread

    monkeypatch.setattr(ahead, "_beside", at_once)

    def train():
        target = cs.Target(lambda x: -0.5 * (x[0] ** 2 + jnp.sum((x[1:] - x[0]) ** 2)), 104)
        trained = cs.train_sampler(
            KEY, target, num_calibration_iterations=100, hidden=(8,), progress_bar=False
        )
        assert isinstance(trained.one_step.control, cs.maps.HierarchicalMap)
        return trained.evidence(KEY, 10_000)

    beside = train()
    threads = {name: [thread for thread, other in made if other == name] for _, name in made}
    assert all(threads[name] == ["compiles ahead"] for name in ("ask", "learn", "_seen"))
    monkeypatch.setattr(training, "compile_iterations", lambda *_: None)
    monkeypatch.setattr(stages, "draws_compiled", lambda *_: contextlib.nullcontext())
    assert train() == beside


@pytest.mark.slow
def test_what_is_compiled_beside_has_the_precision_of_who_asked(monkeypatch):
    """Precision is set for a thread: in another one all would be of single precision."""
    made, prepare = [], programs.prepare

    def noted(function, *args, **kwargs):
        if threading.current_thread().name == "compiles ahead":
            made.append((function.__name__, jnp.zeros(0).dtype))
        return prepare(function, *args, **kwargs)

    monkeypatch.setattr(programs, "prepare", noted)
    with compilation.precision(double=True):
        target = cs.Target(lambda x: -0.5 * x @ x - 0.5 * jnp.sum((x[1:] - x[:-1] ** 2) ** 2), 4)
        cs.train_sampler(KEY, target, hidden=(8,), effort="short", progress_bar=False)
    assert dict(made)["learn"] == jnp.float64
    with compilation.precision(double=False):
        assert jnp.zeros(0).dtype == jnp.float32


def test_where_flags_came_too_late_a_density_is_compiled_with_options(monkeypatch):
    monkeypatch.setattr(compilation, "scheduler_option", lambda: {"xla_cpu_scheduler_type": "X"})
    monkeypatch.setattr(compilation, "_is_known", lambda *of: True)
    told = []
    real = jax.jit

    def recording(function, compiler_options=None, **settings):
        told.append(compiler_options)
        return real(function, **settings)

    monkeypatch.setattr(jax, "jit", recording)
    doubled = compilation.jit(lambda x, *, by: by * x, static_argnames="by")
    assert doubled(1.5, by=2) == 3.0
    assert told == [None, {"xla_cpu_scheduler_type": "X"}]
    # Inside of another transformation options are an error: it is computed without.
    assert jax.vmap(lambda x: doubled(x, by=2))(jnp.ones(2)).tolist() == [2.0, 2.0]
    assert real(lambda x: doubled(x, by=2))(1.5) == 3.0
    assert len(told) == 2


def half_reward(x):
    return jnp.where(x[0] > 0.0, 0.0, -1.0)


CORRECTIONS = {
    "resampled_paths": lambda key, a, s: corrections.resampled_paths(key, a, s, 8, 2),
    "annealed": lambda key, a, s: corrections.annealed(key, a, s, 8, num_temperatures=2),
    "guided": lambda key, a, s: corrections.guided(key, a, s, half_reward, 8, 2),
    "product_paths": lambda key, a, s: corrections.product_paths(key, [a], [s], [2.0], 8, 2),
    "perturbed": lambda key, a, s: corrections.perturbed(key, a, s, 8, num_iterations=2),
    "polar_slice": lambda key, a, s: (
        training_free.polar_slice(key, a.target, jnp.ones((4, 2)), 3).position
    ),
    "walk_jump": lambda key, a, s: training_free.walk_jump(
        key, a.target, 8, num_measurements=2, num_walk_steps=2
    ),
    "reverse_diffusion": lambda key, a, s: training_free.reverse_diffusion(
        key, a.target, 8, num_steps=2, num_start_steps=1
    ),
}


counts_compilations = pytest.mark.skipif(
    not hasattr(jax.monitoring, "unregister_event_duration_listener"),
    reason="a jax that does not let go of a listener",
)


@contextlib.contextmanager
def compiled():
    """Whether each event since was a compilation."""
    events = []

    def listen(event, seconds, **kwargs):
        events.append("backend_compile" in event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@counts_compilations
@pytest.mark.parametrize("name", CORRECTIONS)
def test_a_second_call_compiles_nothing(name):
    target, base = cs.targets.gaussian(jnp.ones(2), jnp.ones(2)), cs.bases.standard_normal(2)
    algorithm = cs.dis(target, base=base, max_steps=2, hidden=(4,))
    state = algorithm.init(KEY)
    CORRECTIONS[name](jax.random.key(1), algorithm, state)
    with compiled() as events:
        CORRECTIONS[name](jax.random.key(2), algorithm, state)
    assert not any(events)


def _log_density(centre, x):
    return -0.5 * jnp.sum((x - centre) ** 2)


@counts_compilations
def test_chains_of_other_data_and_another_map_compile_nothing():
    def run(centre, scale):
        target = cs.Target(jax.tree_util.Partial(_log_density, jnp.full(2, centre)), 2)
        sampler = cs.Sampler.of_base(cs.bases.standard_normal(2, scale))
        return cs.corrections.latent_chains(KEY, target, sampler, num_warmup=100, num_samples=100)

    run(1.0, 1.0)
    with compiled() as events:
        moved = run(-2.0, 1.5)
    assert not any(events)
    # Nor do they move on the first one's density.
    assert abs(moved.log_z.log_z - jnp.log(2.0 * jnp.pi)) < 0.1
    assert jnp.abs(moved.position.mean((0, 1)) + 2.0).max() < 0.3
