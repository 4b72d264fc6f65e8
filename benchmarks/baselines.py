"""What else gives evidence in the same time: tempered SMC and NumPyro's normalising-flow guides."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoBNAFNormal, AutoIAFNormal
from numpyro.optim import Adam

import consistent_samplers as cs
from benchmarks.race import figures
from consistent_samplers.bases.exploration import find_modes, tempered_particles
from consistent_samplers.targets import Target
from consistent_samplers.types import Array, Draws, PRNGKey

# Guides and the particles of an iteration: a BNAF normalises its weights anew for each.
GUIDES = {"AutoIAFNormal": (AutoIAFNormal, 16), "AutoBNAFNormal": (AutoBNAFNormal, 1)}
# Two hidden layers of 8 units a dimension hold 64 dim² weights each.
_MAX_BNAF_DIM = 200
_CHUNK = 50


def measured(
    rng_key: PRNGKey, target: Target, method: str, seconds: float, num_samples: int
) -> dict[str, Any] | None:
    """Figures of a method in a given wall time; None where it is too large for the target."""
    if method in GUIDES:
        return _flow_guide(rng_key, target, method, seconds, num_samples)
    return _tempered_smc(rng_key, target, seconds)


def _tempered_smc(rng_key: PRNGKey, target: Target, seconds: float) -> dict[str, Any]:
    """BlackJAX's adaptive tempered SMC with as many particles as the time allows.

    A first run of 2,000 particles (200 above 200 dimensions) tells what a particle costs; a second
    one spends what is left, if that is more. Compilation and the search for a start count.
    """
    start = time.perf_counter()
    key_modes, *keys = jax.random.split(rng_key, 3)
    modes = find_modes(key_modes, target)
    found = time.perf_counter()
    num = 2_000 if target.dim <= 200 else 200
    _, log_z, _ = tempered_particles(keys[0], target, modes, num_particles=num)
    spent = time.perf_counter() - found
    more = int(num * (seconds - (time.perf_counter() - start)) / spent)
    if more > num:
        num = more
        _, log_z, _ = tempered_particles(keys[1], target, modes, num_particles=num)
    return {"log_z": log_z, "particles": num, "seconds": time.perf_counter() - start}


def _flow_guide(
    rng_key: PRNGKey, target: Target, name: str, seconds: float, num_samples: int
) -> dict[str, Any] | None:
    """A guide of NumPyro trained by its SVI, and its importance weights.

    Adam at 2e-3, the guide's own defaults otherwise; at least one chunk is run.
    """
    if name == "AutoBNAFNormal" and target.dim > _MAX_BNAF_DIM:
        return None

    def model() -> None:
        space = dist.ImproperUniform(dist.constraints.real_vector, (), (target.dim,))
        numpyro.factor("log_density", target.log_density(numpyro.sample("x", space)))

    key_init, key_draw = jax.random.split(rng_key)
    start, iterations, (kind, num_particles) = time.perf_counter(), 0, GUIDES[name]
    guide = kind(model)
    svi = SVI(model, guide, Adam(2e-3), Trace_ELBO(num_particles=num_particles))
    state = svi.init(key_init)

    @jax.jit
    def chunk(state: Any) -> Any:
        return jax.lax.scan(lambda s, _: svi.stable_update(s), state, length=_CHUNK)[0]

    while iterations == 0 or time.perf_counter() - start < seconds:
        state = jax.block_until_ready(chunk(state))
        iterations += _CHUNK
    spent, q = time.perf_counter() - start, guide.get_posterior(svi.get_params(state))

    def one(key: PRNGKey) -> tuple[Array, Array]:
        # With the transforms' own intermediate values: neither flow has to be inverted.
        x, between = q.sample_with_intermediates(key)
        return x, target.log_density(x) - q.log_prob(x, between)

    keys = jax.random.split(key_draw, num_samples)
    x, log_weight = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=256))(keys)
    log_weight = jnp.where(jnp.isnan(log_weight), -jnp.inf, log_weight)
    e = cs.evidence(Draws(x, log_weight, bound="lower"))
    return {**figures(e), "iterations": iterations, "seconds": spent}
