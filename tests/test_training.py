"""The training loop: chunks do not matter, NaN stops it, arguments are checked."""

import dataclasses
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consistent_samplers as cs
from consistent_samplers import checkpoint, training
from consistent_samplers.algorithms import Objective
from consistent_samplers.algorithms.learning import _updated
from consistent_samplers.algorithms.protocol import Loss
from consistent_samplers.checkpoint import CheckpointError

KEY = jax.random.key(0)
PARAMS = jnp.array([1.0, -2.0, 0.5])
TARGET = cs.targets.gaussian(np.array([1.0, -0.5]), np.eye(2))
BASE = cs.bases.standard_normal(2)
OSDS = cs.osds(TARGET, base=BASE, max_steps=1, batch_size=8, hidden=(8,), guidance=None)


class ToyInfo(NamedTuple):
    loss: jax.Array
    elbo: jax.Array
    gradient_norm: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy(Objective):
    """A noisy distance from zero: order, keys and number of iterations all show.

    Compiles in no time, which an algorithm of ours does not.

    Attributes:
      bad_from: first iteration whose loss is reported as NaN.
      bad_until: the one after the last.
      bad_above: only with updates of more than this size.
    """

    ema_decay: float = 0.0
    bad_from: int = 10**6
    bad_until: int = 10**6
    bad_above: float = 0.0

    name = "toy"

    def init(self, rng_key, control, evaluate):
        return {"toy": jax.random.normal(rng_key, (3,))}

    def __call__(self, params, now, evaluate):
        i = now.state.iteration
        loss = jnp.sum((params["toy"] + jax.random.normal(now.rng_key, (3,))) ** 2)
        bad = (i >= self.bad_from) & (i < self.bad_until)
        bad &= now.state.step_scale > self.bad_above
        reported = jnp.where(bad, jnp.nan, loss)
        return Loss((loss,), ToyInfo(reported, -loss, loss))


SGD = optax.sgd(0.05)
TOY = dataclasses.replace(OSDS, name="toy", objective=Toy(), optimizer=SGD)
# Whole chunks of it are compiled, as its control asks for the density.
GUIDED = dataclasses.replace(TOY, control=TOY.control.replace(guidance="ratio"))


def toy(**settings):
    return dataclasses.replace(TOY, objective=Toy(**settings))


def fit(num_iterations, algorithm=TOY, **kwargs):
    return cs.fit(KEY, algorithm, num_iterations, progress_bar=False, **kwargs)


@pytest.fixture(scope="module")
def whole():
    return fit(40)


@pytest.mark.parametrize("algorithm", [TOY, GUIDED], ids=["outside", "inside"])
@pytest.mark.parametrize("chunk_size", [1, 7, 100])
def test_chunks_do_not_matter(whole, chunk_size, algorithm):
    result = fit(40, algorithm, chunk_size=chunk_size)
    chex.assert_trees_all_close(result.state, whole.state, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(result.history, whole.history, rtol=1e-5, atol=1e-6)


def test_a_continued_run_is_the_whole_run(whole):
    result = fit(25, state=fit(15).state)
    assert result.state.iteration == 40
    chex.assert_trees_all_close(result.state, whole.state, rtol=1e-4, atol=1e-5)


def test_keys_differ_between_iterations_and_runs(whole):
    # Same state, same key: the losses would repeat.
    frozen = dataclasses.replace(TOY, optimizer=optax.set_to_zero())
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


def poisonous(at: int) -> optax.GradientTransformation:
    """NaN as updates of finite gradients, from an iteration on."""

    def update(updates, count, params=None):
        poison = jnp.where(count >= at, jnp.nan, 0.0)
        return jax.tree.map(lambda u: u + poison, updates), count + 1

    return optax.GradientTransformation(lambda _: jnp.zeros((), jnp.int32), update)


def breaking(at: int, where: str):
    """TOY with a NaN in its loss, or in its parameters alone, from an iteration on."""
    if where == "loss":
        return toy(bad_from=at)
    return dataclasses.replace(TOY, optimizer=optax.chain(SGD, poisonous(at)))


@pytest.mark.parametrize("where", ["loss", "params"])
def test_nan_stops_training_and_keeps_the_last_good_state(whole, where):
    with (
        pytest.warns(RuntimeWarning, match=r"goes on from iteration 20 with updates of 0\.1 times"),
        pytest.raises(cs.TrainingDivergedError, match="last good state") as caught,
    ):
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
    with (
        pytest.warns(RuntimeWarning, match="goes on from iteration 0"),
        pytest.raises(cs.TrainingDivergedError, match="at iteration 3") as caught,
    ):
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
def test_progress_bar(progress_bar, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
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
    with pytest.warns(RuntimeWarning, match="1 of 20 iterations"):
        result = fit(20, toy(bad_from=4, bad_until=5), chunk_size=20)
    assert result.state.iteration == 20


def test_smaller_updates_may_save_a_run():
    """The step is not finite at full size: training goes on at a tenth, and says so once."""
    with pytest.warns(RuntimeWarning, match="goes on from iteration 20"):
        result = fit(60, toy(bad_from=25, bad_above=0.5), chunk_size=10)
    assert result.state.iteration == 60
    assert float(result.state.step_scale) == pytest.approx(0.1)
    assert result.history.loss.shape == (60,) and np.isfinite(result.history.loss).all()


def test_a_chunk_in_which_no_point_has_a_density_ends_training():
    target = cs.Target(lambda x: jnp.where(x[0] > 30.0, -0.5 * jnp.sum(x**2), -jnp.inf), 2, "far")
    algorithm = cs.algorithms.contrastive(target, base=BASE, max_steps=1, hidden=(8,))
    with pytest.raises(
        cs.TrainingDivergedError,
        match=r"no point with a density for a while, up to iteration 11\. The density is zero at "
        r"100% of the ends: take a base that covers",
    ) as caught:
        fit(20, algorithm, chunk_size=3)
    assert caught.value.result.state.iteration == 9


def test_a_few_iterations_without_a_density_do_not_end_training():
    info = ToyInfo(np.zeros(1), np.array([-np.inf]), np.zeros(1))
    good = info._replace(elbo=np.zeros(1))
    assert not training._is_idle((good, info), ended=True)
    assert not training._is_idle((info,) * 9, ended=False)
    assert training._is_idle((info,) * 9, ended=True)
    assert training._is_idle((good, *(info,) * 10), ended=False)


def test_the_step_scale_scales_the_updates():
    optimizer = optax.adam(1e-2)
    start = cs.SamplerState(PARAMS, PARAMS, optimizer.init(PARAMS), jnp.zeros((), int))
    full = _updated(optimizer, start, 3.0 * PARAMS, 0.9)
    less = _updated(optimizer, start._replace(step_scale=0.1), 3.0 * PARAMS, 0.9)
    assert float(jnp.abs(full.params - PARAMS).min()) > 5e-3
    np.testing.assert_allclose(less.params - PARAMS, 0.1 * (full.params - PARAMS), rtol=1e-3)
    # And no update at all where the gradient is not finite.
    same = _updated(optimizer, start, PARAMS.at[0].set(jnp.inf), 0.9)
    np.testing.assert_array_equal(same.params, PARAMS)
    assert int(same.iteration) == 1


def test_ctrl_c_returns_the_state_reached(whole, monkeypatch):
    class Interrupting(training.tqdm):
        seen = 0

        def update(self, n=1):
            self.seen += n
            if self.seen >= 30:
                raise KeyboardInterrupt

    monkeypatch.setattr(training, "tqdm", Interrupting)
    with pytest.warns(RuntimeWarning, match="interrupted after 30 of 40 iterations"):
        result = fit(40, chunk_size=10)
    assert result.state.iteration == 30
    assert result.history.loss.shape == (30,)
    np.testing.assert_allclose(result.history.loss, whole.history.loss[:30], rtol=1e-4)


# --- Checkpoints --------------------------------------------------------------------------------


def kept(folder, num_iterations, **kwargs):
    return fit(
        num_iterations, chunk_size=5, checkpoint_dir=folder, checkpoint_seconds=0.0, **kwargs
    )


def test_a_finished_run_is_read_back_and_a_longer_one_goes_on(tmp_path):
    straight = fit(40, chunk_size=5)
    first = kept(tmp_path / "run", 20)
    chex.assert_trees_all_equal(kept(tmp_path / "run", 20), first)
    longer = kept(tmp_path / "run", 40)
    chex.assert_trees_all_equal(longer, straight)
    assert isinstance(longer.history, ToyInfo)
    with pytest.raises(CheckpointError, match="40 iterations, more than the 20"):
        kept(tmp_path / "run", 20)


def test_runs_are_not_mixed_up(tmp_path):
    kept(tmp_path, 10)
    with pytest.raises(CheckpointError, match="another rng_key and start"):
        cs.fit(jax.random.key(5), TOY, 10, checkpoint_dir=tmp_path, progress_bar=False)
    with pytest.raises(CheckpointError, match="another algorithm"):
        fit(10, dataclasses.replace(TOY, name="other"), checkpoint_dir=tmp_path)
    larger = dataclasses.replace(TOY, optimizer=optax.adam(0.1))
    with pytest.raises(CheckpointError, match="other settings"):
        fit(10, larger, checkpoint_dir=tmp_path)


def test_folders_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"Cannot write to .* nothing in memory is lost"):
        fit(10, checkpoint_dir=tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("header.json", lambda b: b[: len(b) // 2], "damaged"),
        ("header.json", lambda b: b"[1, 2]", "damaged"),
        ("header.json", lambda b: b'{"hello": 1}', "damaged or no header"),
        ("header.json", lambda b: b"\xff\xfe", "no checkpoint"),
        ("header.json", lambda b: b.replace(b'"version": 1', b'"version": 99'), "reads up to 1"),
        ("header.json", lambda b: b.replace(b'"training"', b'"sampler"'), "not a 'training'"),
        ("header.json", lambda b: b.replace(b"consistent_samplers", b"other", 1), "of 'other'"),
        ("arrays", lambda b: b[:-3], "damaged or cut short"),
        ("arrays", lambda b: b[:40] + b"\x00" + b[41:], "damaged or cut short"),
        ("arrays", None, "arrays of .* are missing"),
    ],
)
def test_damaged_checkpoints_say_so(tmp_path, name, change, message):
    kept(tmp_path, 5)
    (path,) = tmp_path.glob(f"{name}*")
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    with pytest.raises(CheckpointError, match=message):
        kept(tmp_path, 10)


def test_a_disk_that_fills_up_ends_no_training(tmp_path, monkeypatch):
    written = []

    def full(*args):
        written.append(args)
        if len(written) > 2:
            raise CheckpointError("Cannot write: no space left on device.")
        return write(*args)

    write = checkpoint.write
    monkeypatch.setattr(checkpoint, "write", full)
    with pytest.warns(RuntimeWarning, match="Training goes on"):
        result = kept(tmp_path, 20)
    assert result.state.iteration == 20 and len(written) > 3


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from test_training import kept
print("ready", flush=True)
kept({folder!r}, 4_000)
print("done", flush=True)
"""


def killed_again_and_again(folder, num_kills, seed):
    """Runs training in a child process, kills it at random moments, and lets it finish."""
    script = KILLED.format(tests=str(Path(__file__).parent), folder=str(folder))
    delays = np.random.default_rng(seed).uniform(0.0, 3.0, num_kills)
    num_killed = 0
    for delay in [*delays, None]:
        child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "ready\n"
        if delay is not None:
            time.sleep(delay)
            num_killed += child.poll() is None
            child.kill()
        child.communicate(timeout=120)
    assert child.returncode == 0
    return num_killed


@pytest.mark.slow
@pytest.mark.parametrize("num_kills", [1, 20])
def test_killed_runs_end_in_the_same_bits(tmp_path, num_kills):
    num_killed = killed_again_and_again(tmp_path / "run", num_kills, seed=num_kills)
    assert num_killed >= num_kills // 2
    chex.assert_trees_all_equal(kept(tmp_path / "run", 4_000), fit(4_000, chunk_size=5))
