"""Compiled computations with several determinants must finish, with XLA's default flags.

On CPUs, two independent LAPACK factorisations with gradients in one compiled computation can
wait for each other for ever. No test can interrupt that from inside, hence the subprocesses.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TIME_LIMIT = 120
# Of a process that trains, beside others: what hangs waits for ever.
TRAINING_LIMIT = 400

# Batches of 4 never hung where one factorisation a step did; batches of 64 always.
SETUP = """
import jax, jax.numpy as jnp
import consistent_samplers as cs
from consistent_samplers import log_det, processes, simulate

dim, BATCH = {dim}, 64
assert (dim > log_det.MAX_ELIMINATION_DIM) == {lapack}
key = jax.random.key(0)
target = cs.Target(lambda x: -0.5 * jnp.sum((x - 1.0) ** 2), dim)
base = cs.bases.standard_normal(dim)
"""

FLOW_WEIGHTS = """
weights = jax.random.normal(key, (dim, dim)) / dim**0.5
x0 = jax.random.normal(key, (BATCH, dim))

@jax.jit
@jax.value_and_grad
def elbo(weights):
    def log_weight(x):
        control = lambda x, t, d: 0.3 * jnp.tanh(weights @ x + t)
        path = simulate.flow_path(control, processes.OrnsteinUhlenbeck(), x, 4)
        return simulate.flow_log_weight(path, target.log_density)
    return jax.vmap(log_weight)(x0).mean()

for _ in range(3):
    value, grad = jax.block_until_ready(elbo(weights))
assert jnp.isfinite(value) and jnp.isfinite(grad).all() and jnp.abs(grad).max() > 0
print("finished")
"""

OSDS = """
settings = {{"max_steps": 4, "batch_size": BATCH, "hidden": (8,), "volume": "exact"}}
algorithm = cs.osds(target, base=base, guidance={guidance}, **settings)
state = algorithm.init(key)
step = {step}
for i in range(3):
    state, info = jax.block_until_ready(step(jax.random.fold_in(key, i), state))
assert jnp.isfinite(info.loss) and jnp.isfinite(info.volume_consistency)
print("finished")
"""


@pytest.mark.parametrize("dim", [12, 80], ids=["elimination", "lapack"])
@pytest.mark.parametrize(
    "script",
    [
        FLOW_WEIGHTS,
        pytest.param(
            OSDS.format(guidance="'ratio'", step="jax.jit(algorithm.step)"), marks=pytest.mark.slow
        ),
        # The density outside: two compiled computations of ours.
        pytest.param(OSDS.format(guidance=None, step="algorithm.step"), marks=pytest.mark.slow),
    ],
    ids=["flow_weights", "osds", "osds_density_outside"],
)
@pytest.mark.slow
def test_gradients_of_many_determinants_finish(script, dim):
    # Flags of the developer's shell would hide the fault, and so would another platform.
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    environment["JAX_PLATFORMS"] = "cpu"
    done = subprocess.run(
        [sys.executable, "-c", SETUP.format(dim=dim, lapack=dim == 80) + script],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "finished"


@pytest.mark.slow
def test_no_density_hangs_the_recipe(tmp_path):
    from benchmarks import case, hang

    # Some kinds once, as the first, second or third target of their process; half two at a time.
    # All of them, many times: python -m benchmarks hang.
    kinds = ["eigh", "mixture", "fourier", "latent_process", "fit"]
    settings = {"processes": len(kinds), "limit": TRAINING_LIMIT}
    settings |= {"late": False, "unguarded": False}
    rows = case.run(hang.BENCHMARK, settings, kinds, tmp_path)
    ends = {row["target"]: row["end"] for row in rows}
    assert ends == dict.fromkeys(kinds, "done")


@pytest.mark.slow
def test_large_matrices_do_not_hang_where_jax_was_in_use_before(tmp_path):
    from benchmarks import case, hang

    settings = {"processes": 1, "limit": TRAINING_LIMIT, "late": True, "unguarded": False}
    rows = case.run(hang.BENCHMARK, settings, ["latent_process"], tmp_path)
    assert [row["end"] for row in rows] == ["done"]
