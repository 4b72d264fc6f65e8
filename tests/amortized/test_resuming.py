"""A family's training that ends early: killed and made again, or by Ctrl-C."""

import jax
import numpy as np
import pytest
from amortized_models import TINY, designs, regression

import consistent_samplers as cs
from consistent_samplers.amortized import fitting, resuming

KEY = jax.random.key(5)
SETTINGS = TINY | {"num_data_sets": 300, "num_iterations": (20, 20)}


@pytest.fixture
def short_chunks(monkeypatch):
    monkeypatch.setattr(fitting, "_CHUNK", 5)
    monkeypatch.setattr(resuming, "_SECONDS", 0.0)


def train(folder=None, key=KEY):
    given = {"num_rows": (4, 6), "observed": {"y": "y"}, "checkpoint_dir": folder}
    return cs.amortize(key, regression, designs, **given, **SETTINGS)


def ends_after(monkeypatch, num_chunks, error=None):
    """Notes the chunks of both stages; after so many of them, an error if there is one."""
    write, written = resuming.Folder.write_if_due, []

    def then_raises(self, *args):
        write(self, *args)
        written.append(self)
        if len(written) == num_chunks:
            raise error

    monkeypatch.setattr(resuming.Folder, "write_if_due", then_raises)
    return written


@pytest.mark.slow
def test_a_training_that_was_killed_goes_on_to_the_same_family(short_chunks, monkeypatch, tmp_path):
    whole = train()
    with monkeypatch.context() as during:
        ends_after(during, 6, RuntimeError("killed"))
        with pytest.raises(RuntimeError, match="killed"):
            train(tmp_path)
    written = ends_after(monkeypatch, None)
    again = train(tmp_path)
    # Of 4 chunks of each stage those that were missing.
    assert len(written) == 2
    assert again.history == whole.history
    jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)


@pytest.mark.slow
def test_ctrl_c_leaves_a_family_and_a_folder_to_go_on_from(short_chunks, monkeypatch, tmp_path):
    with monkeypatch.context() as during:
        ends_after(during, 2, KeyboardInterrupt())
        with pytest.warns(RuntimeWarning, match="interrupted after 10 of 20 iterations"):
            family = train(tmp_path)
    assert [len(chunks) for chunks in family.history.values()] == [2, 0]
    (args, kwargs) = designs(jax.random.key(1), 5)
    answer = family.condition(jax.random.key(2), *args, **kwargs, y=np.zeros(5))
    assert np.isfinite(answer.evidence.log_z)
    again = train(tmp_path)
    assert [len(chunks) for chunks in again.history.values()] == [4, 4]


@pytest.mark.slow
def test_a_folder_of_another_training_is_refused(short_chunks, tmp_path):
    train(tmp_path)
    with pytest.raises(cs.CheckpointError, match="a training of another rng_key"):
        train(tmp_path, jax.random.key(6))
