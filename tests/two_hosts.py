"""One of two processes that train and sample together; run by test_hosts.py.

Arguments: this process, the coordinator's port, the folder for what is kept, and "die" for the
process that is to stop halfway.
"""

import os
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import consistent_samplers as cs
from consistent_samplers import sharding
from consistent_samplers import training as training_module

NUM_ITERATIONS, CHUNK_SIZE, NUM_SAMPLES = 12, 3, 50


def algorithm() -> cs.Algorithm:
    target = cs.targets.gaussian(jnp.array([1.0, -1.0]), jnp.eye(2))
    base = cs.bases.standard_normal(2, 1.5)
    return cs.dis(
        target,
        base=base,
        max_steps=2,
        hidden=(8,),
        batch_size=16,
        train_steps=[2],
        loss="log_variance",
    )


def run(mesh, folder: Path | None):
    """The final state and evidence: what one process gives as well, with no mesh."""
    key, made = jax.random.key(0), algorithm()
    state = cs.fit(
        key,
        made,
        NUM_ITERATIONS,
        chunk_size=CHUNK_SIZE,
        progress_bar=False,
        checkpoint_dir=folder,
        checkpoint_seconds=0.0,
        mesh=mesh,
    ).state
    evidence = cs.evidence(made.sample(key, state, NUM_SAMPLES, mesh=mesh))
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state.params)]
    return np.concatenate([leaf.ravel() for leaf in leaves]), np.asarray(
        [evidence.log_z, evidence.elbo, evidence.ess]
    )


def main() -> None:
    index, port, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    jax.distributed.initialize(
        f"localhost:{port}", 2, index, initialization_timeout=60, heartbeat_timeout_seconds=3
    )
    assert jax.device_count() == 4 and jax.local_device_count() == 2
    if sys.argv[4:] == ["die"]:
        read = training_module._is_bad
        calls = []

        def die(info):
            calls.append(info)
            if len(calls) == 3:  # after the third chunk of four
                os.kill(os.getpid(), signal.SIGKILL)
            return read(info)

        training_module._is_bad = die
    params, evidence = run(sharding.data_mesh(), folder / "checkpoint")
    np.savez(folder / f"result-{index}.npz", params=params, evidence=evidence)


if __name__ == "__main__":
    main()
