"""Lattice field theory: fields on a periodic lattice, weighted by the exponential of an action."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from consistent_samplers.checks import check_integer
from consistent_samplers.targets.base import Target
from consistent_samplers.targets.numerics import matvec
from consistent_samplers.types import Array, PRNGKey


def phi4(length: int = 8, mass_squared: float = -4.0, coupling: float = 6.008) -> Target:
    """The φ⁴ theory on a periodic square lattice; length² coordinates, one a site, row by row.

    log ρ(φ) = -S(φ) with the action of Albergo, Kanwar & Shanahan, Flow-based generative models for
    Markov chain Monte Carlo in lattice field theory (2019, arXiv:1904.12072),

      S(φ) = Σ_x [Σ_y φ(x) □(x, y) φ(y) + m² φ(x)² + λ φ(x)⁴],
      Σ_y □(x, y) φ(y) = Σ_μ [2 φ(x) - φ(x + μ) - φ(x - μ)],  μ = 1, 2,

    without factors of a half: the kinetic part is Σ_x Σ_μ (φ(x + μ) - φ(x))². The defaults are
    their E2. All five have m² = -4 and are in the symmetric phase, at a correlation length of
    about a quarter of the lattice: λ = 6.975, 6.008, 5.550, 5.276, 5.113 at length 6, 8, 10, 12,
    14. At smaller λ the sign of the field breaks: two modes that φ → -φ exchanges. Translations,
    rotations by a right angle and reflections of the lattice leave the density unchanged too.

    Without coupling the field is Gaussian, and ``log_z`` and ``sample`` are exact:
    log Z = ½ Σ_k [log π - log(m² + 4 sin²(π k_1 / length) + 4 sin²(π k_2 / length))] over the modes
    k of the lattice. With coupling both are None.

    Args:
      length: sites along each direction, at least 2.
      mass_squared: m², of any sign; positive without coupling.
      coupling: λ, not negative.

    Raises:
      ValueError: a length below 2, parameters that are not finite, a negative coupling, or no
        coupling without a positive m²: then Z would be infinite.

    Example:
      >>> import jax.numpy as jnp, consistent_samplers as cs
      >>> target = cs.targets.phi4(length=4, mass_squared=-4.0, coupling=6.0)
      >>> float(target.log_density(0.5 * jnp.ones(16)))  # a constant field: -16 (-4/4 + 6/16)
      10.0
      >>> round(cs.targets.phi4(length=4, mass_squared=1.0, coupling=0.0).log_z, 4)
      -2.8581
    """
    check_integer("length", length, 2)
    if not (math.isfinite(mass_squared) and math.isfinite(coupling) and coupling >= 0):
        raise ValueError(
            "mass_squared must be finite and coupling finite and not negative, got "
            f"{mass_squared!r} and {coupling!r}."
        )
    if coupling == 0 and not mass_squared > 0:
        raise ValueError(
            f"Without coupling mass_squared must be positive, got {mass_squared!r}: Z would be "
            "infinite. Give a positive coupling."
        )
    shape, dim = (length, length), length**2

    def log_density(x: Array) -> Array:
        field = x.reshape(shape)
        # As squares of differences: no digits of neighbours that are alike are lost.
        kinetic = sum(jnp.sum((jnp.roll(field, -1, axis) - field) ** 2) for axis in (0, 1))
        square = field**2
        return -kinetic - jnp.sum(square * (mass_squared + coupling * square))

    if coupling > 0:
        return Target(log_density, dim, name="phi4")
    # Eigenvectors of one direction, real ones, and eigenvalues of both.
    one_way = 2.0 * np.eye(length) - np.roll(np.eye(length), 1, 0) - np.roll(np.eye(length), -1, 0)
    values, vectors = np.linalg.eigh(one_way)
    eigenvalues = mass_squared + np.add.outer(values, values)
    scale = 1.0 / np.sqrt(2.0 * eigenvalues)

    def sample(rng_key: PRNGKey, num_samples: int) -> Array:
        noise = jax.random.normal(rng_key, (num_samples, *shape))

        def field(noise: Array) -> Array:
            half = matvec(vectors, jnp.asarray(scale, noise.dtype) * noise)
            return matvec(vectors, half.T).T.ravel()

        return jax.vmap(field)(noise)

    log_z = 0.5 * float(np.sum(np.log(math.pi / eigenvalues)))
    return Target(log_density, dim, name="phi4", log_z=log_z, sample=sample)
