"""The training loop: chunks do not matter, NaN stops it, arguments are checked."""

import dataclasses
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consistent_samplers as cs

KEY = jax.random.key(0)
TARGET = cs.targets.gaussian(np.array([1.0, -0.5]), np.eye(2))
OSDS = cs.osds(TARGET, max_steps=1, batch_size=8, hidden=(8,), guidance=None)


class ToyInfo(NamedTuple):
    loss: jax.Array
    elbo: jax.Array


def toy_init(key):
    params = jax.random.normal(key, (3,))
    return cs.SamplerState(params, params, (), jnp.zeros((), jnp.int32))


def toy_step(key, state):
    """A step towards a noisy zero: order, keys and number of iterations all show."""
    noise = jax.random.normal(key, (3,))
    params = state.params - 0.1 * (state.params + noise)
    loss = jnp.sum((state.params + noise) ** 2)
    return cs.SamplerState(params, params, (), state.iteration + 1), ToyInfo(loss, -loss)


# Compiles in no time, which an algorithm of ours does not.
TOY = dataclasses.replace(OSDS, name="toy", init=toy_init, step=toy_step)


def fit(num_iterations, algorithm=TOY, **kwargs):
    return cs.fit(KEY, algorithm, num_iterations, progress_bar=False, **kwargs)


@pytest.fixture(scope="module")
def whole():
    return fit(40)


@pytest.mark.parametrize("chunk_size", [1, 7, 100])
def test_chunks_do_not_matter(whole, chunk_size):
    result = fit(40, chunk_size=chunk_size)
    chex.assert_trees_all_close(result.state, whole.state, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(result.history, whole.history, rtol=1e-5, atol=1e-6)


def test_a_continued_run_is_the_whole_run(whole):
    result = fit(25, state=fit(15).state)
    assert result.state.iteration == 40
    chex.assert_trees_all_close(result.state, whole.state, rtol=1e-4, atol=1e-5)


def test_keys_differ_between_iterations_and_runs(whole):
    # Same state, same key: the losses would repeat.
    frozen = dataclasses.replace(
        TOY,
        step=lambda key, state: (
            state._replace(iteration=state.iteration + 1),
            TOY.step(key, state)[1],
        ),
    )
    assert len(np.unique(fit(20, frozen).history.loss)) == 20
    other = cs.fit(jax.random.key(1), TOY, 40, progress_bar=False)
    assert not np.any(other.history.loss == whole.history.loss)


def test_history(whole):
    assert isinstance(whole.history, ToyInfo)
    assert whole.state.iteration == 40
    for values in whole.history:
        assert isinstance(values, np.ndarray)
        assert values.shape == (40,)
    first = fit(1)
    assert first.history.loss.shape == (1,)
    np.testing.assert_allclose(first.history.loss[0], whole.history.loss[0], rtol=1e-4)


def breaking(at: int, where: str):
    """TOY with a NaN in its loss, or in its parameters alone, from an iteration on."""

    def step(key, state):
        new_state, info = TOY.step(key, state)
        poison = jnp.where(state.iteration >= at, jnp.nan, 0.0)
        if where == "loss":
            return new_state, info._replace(loss=info.loss + poison)
        params = jax.tree.map(lambda x: x + poison, new_state.params)
        # The loss of the poisoned iterations hides it.
        return new_state._replace(params=params), info._replace(loss=jnp.nan_to_num(info.loss))

    return dataclasses.replace(TOY, step=step)


@pytest.mark.parametrize("where", ["loss", "params"])
def test_nan_stops_training_and_keeps_the_last_good_state(whole, where):
    with pytest.raises(cs.TrainingDivergedError, match="last good state") as caught:
        fit(60, breaking(25, where), chunk_size=10)
    result = caught.value.result
    chex.assert_tree_all_finite(result.state)
    assert result.state.iteration == 20
    assert result.history.loss.shape == (20,)
    np.testing.assert_allclose(result.history.elbo, whole.history.elbo[:20], rtol=1e-3, atol=1e-4)
    if where == "loss":
        assert "at iteration 25" in str(caught.value)
    # And training can go on from there.
    assert fit(5, state=result.state).state.iteration == 25


def test_nan_in_the_first_chunk():
    with pytest.raises(cs.TrainingDivergedError, match="at iteration 3") as caught:
        fit(10, breaking(3, "loss"))
    result = caught.value.result
    assert result.state.iteration == 0
    assert all(values.shape == (0,) for values in result.history)


def test_nan_after_the_last_iteration_does_not_matter():
    # The last chunk runs on behind num_iterations; what it meets there is thrown away.
    result = fit(25, breaking(25, "loss"), chunk_size=10)
    assert result.state.iteration == 25
    assert np.isfinite(result.history.loss).all()


@pytest.mark.parametrize("progress_bar", [True, False])
def test_progress_bar(progress_bar, capsys):
    cs.fit(KEY, TOY, 6, progress_bar=progress_bar, chunk_size=3)
    shown = capsys.readouterr().err
    assert ("toy" in shown and "6/6" in shown and "ELBO" in shown) == progress_bar
    assert bool(shown) == progress_bar


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "10"])
@pytest.mark.parametrize("name", ["num_iterations", "chunk_size"])
def test_invalid_arguments(name, value):
    arguments = {"num_iterations": 10, "chunk_size": 10} | {name: value}
    with pytest.raises(ValueError, match=f"{name} must be a positive integer"):
        cs.fit(KEY, TOY, progress_bar=False, **arguments)


def test_a_stray_nan_is_skipped_with_a_warning():
    def step(key, state):
        new_state, info = TOY.step(key, state)
        return new_state, info._replace(loss=jnp.where(state.iteration == 4, jnp.nan, info.loss))

    with pytest.warns(RuntimeWarning, match="1 of 20 iterations"):
        result = fit(20, dataclasses.replace(TOY, step=step), chunk_size=20)
    assert result.state.iteration == 20
