"""A control that is the gradient of a learned scalar."""

import flax.linen as nn
import jax.numpy as jnp

from consistent_samplers.networks.perceptron import MAX_SCALED, Trunk, beside
from consistent_samplers.types import Array


class Potential(nn.Module):
    """The gradient ∇_x φ(x, t, d) of a scalar network: φ = c + x · v; zero while untrained.

    c and v ``[dim]`` are outputs of one perceptron, so that a quadratic φ takes a linear v. Points
    beyond `MAX_SCALED` standard deviations of the base are drawn in: the gradient vanishes there.

    Attributes:
      dim: dimension of x.
      hidden: widths of the hidden layers.

    Example:
      >>> import jax, jax.numpy as jnp, consistent_samplers as cs
      >>> network = cs.networks.Potential(dim=2, hidden=(8,))
      >>> x, t, d = jnp.ones(2), jnp.zeros(()), jnp.ones(())
      >>> params = network.init(jax.random.key(0), x, t, d)
      >>> network.apply(params, x, t, d).tolist()
      [0.0, 0.0]
      >>> float(network.apply(params, x, t, d, method="scalar"))
      0.0
    """

    dim: int
    hidden: tuple[int, ...] = (64, 64)

    def setup(self) -> None:
        """The perceptron."""
        self.trunk = Trunk(self.hidden)
        self.head = nn.Dense(1 + self.dim, kernel_init=nn.initializers.zeros)

    def scalar(self, x: Array, t: Array, d: Array, features: Array | None = None) -> Array:
        """φ at ``x [dim]``: ``[]``; ``features`` tell a base's components apart."""
        x = MAX_SCALED * jnp.tanh(x / MAX_SCALED)
        out = self.head(self.trunk(beside(x, features), t, d))
        value: Array = out[0] + x @ out[1:]
        return value

    def __call__(self, x: Array, t: Array, d: Array, features: Array | None = None) -> Array:
        """The control ∇φ at ``x [dim]``: ``[dim]``."""
        # JAX's own gradient does not go through a module that is being initialised.
        (gradient,) = nn.grad(lambda own, x: own.scalar(x, t, d, features), self, x)
        return gradient
